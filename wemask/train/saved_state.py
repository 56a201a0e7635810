"""Is a training checkpoint whole? One process, DDP, ZeRO and FSDP2 each leave other files.

A kill, a full disk or a lost file leaves a checkpoint that cannot be resumed from, and a damaged
disk one that can, with wrong numbers. torch.save's files hold a checksum of every tensor, which
torch does not look at: here it is. (safetensors has none; only its header can be checked.)
"""

import json
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open

ENGINE_NAME = "engine.json"
READERS = 8  # threads: a disk that is read in parallel is faster, and so are checksums


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What trains: `kind` is single, ddp, zero or fsdp; `stage` is that of ZeRO."""

    kind: str
    ranks: int
    stage: int = 0

    def __str__(self) -> str:
        names = {"single": "one process", "ddp": "DDP", "fsdp": "FSDP2"}
        name = names.get(self.kind, f"DeepSpeed ZeRO-{self.stage}")
        ranks = f"{self.ranks} rank" + "s" * (self.ranks != 1)
        return name if self.kind == "single" else f"{name} on {ranks}"

    @property
    def words(self) -> list[str]:
        """What chooses it on the command line."""
        words = {"zero": [f"deepspeed=zero{self.stage}"], "fsdp": ["fsdp=full_shard"]}
        return words.get(self.kind, [])


def read_engine(checkpoint: Path) -> Engine:
    """The engine that wrote a checkpoint; one process where it does not say.

    Raises:
        ValueError, TypeError: engine.json is damaged.
    """
    path = checkpoint / ENGINE_NAME
    if not path.exists():
        return Engine(kind="single", ranks=1)
    values = json.loads(path.read_text())
    known = {field.name for field in fields(Engine)}  # a later version may say more
    return Engine(**{name: values[name] for name in known if name in values})


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None: it is whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())  # written last
        names = sorted(_needed(checkpoint, read_engine(checkpoint)))
    except (OSError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    if missing := [name for name in names if not (checkpoint / name).exists()]:
        return f"{', '.join(missing)} missing"
    with ThreadPoolExecutor(READERS) as pool:
        problems = pool.map(lambda name: _damage(checkpoint / name), names)
        return next((problem for problem in problems if problem), None)


def _needed(checkpoint: Path, engine: Engine) -> Iterator[str]:
    """Names of all files that resuming reads, and of the weights beside them."""
    weights = [path.name for path in checkpoint.glob("*.safetensors")]
    yield from weights or ["model.safetensors"]
    if engine.ranks > 1:
        yield from (f"rng_state_{rank}.pth" for rank in range(engine.ranks))
    yield "scheduler.pt"
    if engine.kind == "zero":
        yield from _zero(checkpoint, engine.ranks, engine.stage)
    elif engine.kind == "fsdp":
        yield from _fsdp(checkpoint)
    else:
        yield "optimizer.pt"


def _zero(checkpoint: Path, ranks: int, stage: int) -> Iterator[str]:
    """DeepSpeed's shards, in the folder that its file `latest` names."""
    tag = (checkpoint / "latest").read_text().strip()
    if not re.fullmatch(r"global_step\d+", tag):
        raise ValueError(f"latest names no step: {tag[:40]!r}")
    folder = checkpoint / tag
    half = "bf16_" if any(folder.glob("bf16_zero_pp_rank_*")) else ""
    for rank in range(ranks):
        shard = f"{tag}/{{}}zero_pp_rank_{rank}_mp_rank_00_"
        yield shard.format(half) + "optim_states.pt"
        if stage == 3:
            yield shard.format("") + "model_states.pt"
    if stage != 3:
        yield f"{tag}/mp_rank_00_model_states.pt"


def _fsdp(checkpoint: Path) -> Iterator[str]:
    """Whole states (FULL_STATE_DICT), or folders of shards that a .metadata lists."""
    folders = [p.name for p in checkpoint.glob("*_0") if p.is_dir()]
    if not folders:
        yield from ("pytorch_model_fsdp.bin", "optimizer.bin")
        return
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        yield f"{name}/.metadata"
        yield from (f"{name}/{path.name}" for path in (checkpoint / name).glob("*.distcp"))


def _damage(path: Path) -> str | None:
    """What is wrong with one file; torch.save's are zip archives, with a sum of each part."""
    problem = None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                file.keys()
        elif path.suffix in (".pt", ".bin", ".pth"):
            with zipfile.ZipFile(path) as archive:
                if part := archive.testzip():
                    problem = f"bad checksum of {part}"
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        problem = str(error)
    return f"{path.name} is damaged ({problem})" if problem else None


def last_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and the names of newer ones that are half-written.

    A checkpoint is whole when all that its engine wrote is there and readable.
    """
    paths = (folder / "checkpoints").glob("checkpoint-*")
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in paths)
    steps = sorted((int(match[1]), path) for match, path in matches if match)
    broken: list[str] = []
    for _, path in reversed(steps):
        if what_is_wrong(path) is None:
            return path, broken
        broken.append(path.name)
    return None, broken
