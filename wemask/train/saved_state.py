"""Is a training checkpoint whole? One process, DDP, ZeRO and FSDP2 each leave other files.

A kill, a full disk or a lost file leaves a checkpoint that cannot be resumed from, and a damaged
disk one that can, with wrong numbers. torch.save's files hold a checksum of every tensor, which
torch does not look at: here it is. (safetensors has none; only its header can be checked.)
"""

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ENGINE_NAME = "engine.json"
READERS = 8  # threads: a disk that is read in parallel is faster, and so are checksums
CHUNK = 1 << 24


def what_is_wrong(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be resumed from; None: it is whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())  # written last
        engine = _engine(checkpoint)
        names = sorted(_needed(checkpoint, engine))
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    if missing := [name for name in names if not (checkpoint / name).exists()]:
        return f"{', '.join(missing)} missing"
    with ThreadPoolExecutor(READERS) as pool:
        problems = pool.map(lambda name: _damage(checkpoint / name), names)
        return next((problem for problem in problems if problem), None)


def _engine(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / ENGINE_NAME
    return json.loads(path.read_text()) if path.exists() else {"kind": "single", "ranks": 1}


def _needed(checkpoint: Path, engine: dict[str, Any]) -> Iterator[str]:
    """Names of all files that resuming reads, and of the weights beside them."""
    weights = [path.name for path in checkpoint.glob("*.safetensors")]
    yield from weights or ["model.safetensors"]
    kind, ranks = engine["kind"], engine["ranks"]
    if ranks > 1:
        yield from (f"rng_state_{rank}.pth" for rank in range(ranks))
    yield "scheduler.pt"
    if kind == "zero":
        yield from _zero(checkpoint, ranks, engine["stage"])
    elif kind == "fsdp":
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
    """What is wrong with one file."""
    readers: dict[str, Callable[[Path], str | None]] = {".safetensors": _safetensors}
    readers |= dict.fromkeys((".pt", ".bin", ".pth"), _torch_file)
    try:
        problem = readers.get(path.suffix, lambda _: None)(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        problem = str(error)
    return f"{path.name} is damaged ({problem})" if problem else None


def _safetensors(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        return str(error)
    return None


def _torch_file(path: Path) -> str | None:
    """torch.save writes a zip archive; reading a part of it to its end checks the part's sum."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            with archive.open(part) as file:
                while file.read(CHUNK):
                    pass
    return None


def last_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and the names of newer ones that are half-written.

    A checkpoint is whole when all that its engine wrote is there and readable: see `whole.py`.
    """
    steps = {
        int(match[1]): path
        for path in (folder / "checkpoints").glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    broken: list[str] = []
    for _, path in sorted(steps.items(), reverse=True):
        if is_whole(path):
            return path, broken
        broken.append(path.name)
    return None, broken


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from; `what_is_wrong` says why not."""
    return what_is_wrong(checkpoint) is None
