"""Is what a training saved whole? One process, DDP, ZeRO and FSDP2 each leave other files.

A kill, a full disk or a lost file leaves a checkpoint that cannot be resumed from, and a damaged
disk one that can, with wrong numbers. So the last thing that is written is a hash of every file.
Checkpoints of before have none: of these, torch.save's files hold a checksum of every tensor, which
torch does not look at (here it is), and safetensors has none.
"""

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from wemask.errors import RunFolderError, WemaskError
from wemask.files import read_json, read_text, write_whole

ENGINE_NAME = "engine.json"
STATE_NAME = "trainer_state.json"
HASHES_NAME = "wemask_files.json"
READERS = 8  # threads: a disk that is read in parallel is faster, and so are checksums
KINDS = ("single", "ddp", "zero", "fsdp")


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
        RunFolderError: engine.json is damaged.
    """
    path = checkpoint / ENGINE_NAME
    if not path.exists():
        return Engine(kind="single", ranks=1)
    values = {"stage": 0, **read_json(path, RunFolderError)}
    numbers = (values.get("ranks"), values["stage"])
    if values.get("kind") not in KINDS or any(type(n) is not int or n < 0 for n in numbers):
        raise RunFolderError(f"{path} names no engine: kind ({', '.join(KINDS)}), ranks and stage.")
    return Engine(**{f.name: values[f.name] for f in fields(Engine)})  # a later one may say more


def tokens_read(checkpoint: Path) -> int | None:
    """How many tokens a run had read when it wrote a checkpoint; None: an older one, unlogged."""
    path = checkpoint / ENGINE_NAME
    found = [read_json(path, RunFolderError).get("tokens")] if path.exists() else []
    found += [line.get("num_tokens") for line in reversed(_state(checkpoint)["log_history"])]
    return next((int(n) for n in found if isinstance(n, int | float)), None)


# --- hashes ---------------------------------------------------------------------------------------


def write_hashes(folder: Path, pattern: str = "**/*") -> None:
    """Keep the sha256 of every file that matches, in one that is written last."""
    files = [p for p in folder.glob(pattern) if p.is_file() and p.name != HASHES_NAME]
    with ThreadPoolExecutor(READERS) as pool:
        hashes = pool.map(_sha256, files)
        values = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": found}
            for path, found in zip(files, hashes, strict=True)
        }
    write_whole(folder / HASHES_NAME, json.dumps(values, indent=1, sort_keys=True) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(folder: Path, *, contents: bool) -> str | None:
    """What is no longer as it was saved; without `contents` by the files' names and sizes."""
    values = read_json(folder / HASHES_NAME, RunFolderError)
    for name, kept in values.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if not isinstance(kept, dict) or path.stat().st_size != kept.get("bytes"):
            return f"{name} is damaged (another size than when it was saved)"
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda name: _sha256(folder / name), values if contents else ())
        for (name, kept), hashed in zip(values.items(), found, strict=False):
            if hashed != kept.get("sha256"):
                return f"{name} is damaged (another sha256 than when it was saved)"
    return None


# --- checkpoints ----------------------------------------------------------------------------------


def what_is_wrong(checkpoint: Path, *, contents: bool = True) -> str | None:
    """Why a checkpoint cannot be resumed from; None: it is whole.

    Args:
        checkpoint: its folder.
        contents: read all of every file that has a hash, not its size alone.
    """
    if not checkpoint.is_dir():
        return "it is no folder"
    try:
        _state(checkpoint)  # written last, but for the hashes
        engine = read_engine(checkpoint)
        missing = (n for n in _needed(checkpoint, engine) if not (checkpoint / n).exists())
        if few := [*islice(missing, 3)]:
            return f"{', '.join(few)} missing"
        if (checkpoint / HASHES_NAME).exists():
            problem = _changed(checkpoint, contents=contents)
        else:
            problem = _first_problem(checkpoint, _needed(checkpoint, engine), _damage)
        return problem or _first_problem(checkpoint, _needed(checkpoint, engine), _would_run)
    except (OSError, WemaskError) as error:
        return str(error)


def _state(checkpoint: Path) -> dict[str, Any]:
    """What trainer_state.json says (RunFolderError: nothing that a training left there)."""
    path = checkpoint / STATE_NAME
    values = {"log_history": [], **read_json(path, RunFolderError)}
    step, lines = values.get("global_step"), values["log_history"]
    if type(step) is not int or f"checkpoint-{step}" != checkpoint.name:
        raise RunFolderError(f"{path} is of step {step!r:.40}, which {checkpoint.name} is not.")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise RunFolderError(f"{path} has no list of log lines.")
    return values


def _first_problem(checkpoint: Path, names: Iterator[str], look: Any) -> str | None:
    with ThreadPoolExecutor(READERS) as pool:
        problems = pool.map(lambda name: look(checkpoint / name), names)
        return next((problem for problem in problems if problem), None)


def _needed(checkpoint: Path, engine: Engine) -> Iterator[str]:
    """Names of all files that resuming reads, and of the weights beside them."""
    weights = [path.name for path in checkpoint.glob("*.safetensors")]
    yield from weights or ["model.safetensors"]
    if engine.ranks > 1:
        yield from (f"rng_state_{rank}.pth" for rank in range(engine.ranks))
    elif (checkpoint / "rng_state.pth").exists():
        yield "rng_state.pth"
    yield "scheduler.pt"
    if engine.kind == "zero":
        yield from _zero(checkpoint, engine.ranks, engine.stage)
    elif engine.kind == "fsdp":
        yield from _fsdp(checkpoint)
    else:
        yield "optimizer.pt"


def _zero(checkpoint: Path, ranks: int, stage: int) -> Iterator[str]:
    """DeepSpeed's shards, in the folder that its file `latest` names."""
    tag = read_text(checkpoint / "latest", RunFolderError).strip()
    if not re.fullmatch(r"global_step\d+", tag):
        raise RunFolderError(f"latest names no step: {tag[:40]!r}")
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


def _would_run(path: Path) -> str | None:
    """Names that unpickling a file would call: torch refuses them, in the middle of a start.

    Not of DeepSpeed's own shards, which it unpickles as they are.
    """
    if path.suffix not in (".pt", ".bin", ".pth") or path.parent.name.startswith("global_step"):
        return None
    from torch.serialization import get_unsafe_globals_in_checkpoint
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            found = get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # a pickle that somebody made, taken apart
        return f"{path.name} is damaged ({error})"
    return f"{path.name} would run {', '.join(found[:3])} when it is opened" if found else None


def last_checkpoint(folder: Path, *, contents: bool = True) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and the names of newer ones that are half-written.

    A checkpoint is whole when all that its engine wrote is there, and as it was written
    (`contents`: see `what_is_wrong`).

    Raises:
        RunFolderError: `checkpoints` is no folder.
    """
    place = folder / "checkpoints"
    if place.exists() and not place.is_dir():
        raise RunFolderError(
            f"{place} is a file; a run's checkpoints go to a folder. Move it away."
        )
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in place.glob("*"))
    steps = sorted((int(match[1]), path) for match, path in matches if match)
    broken: list[str] = []
    for _, path in reversed(steps):
        if what_is_wrong(path, contents=contents) is None:
            return path, broken
        broken.append(path.name)
    return None, broken


def set_aside(checkpoint: Path) -> str:
    """Take a checkpoint out of the way of a training; what was done, in words.

    What a kill left half-written goes. What was whole once, or is somebody's own, is kept.
    """
    kept = checkpoint.with_name(f"damaged-{checkpoint.name}")
    if checkpoint.is_symlink():
        checkpoint.unlink()
        return "The link was removed."
    written = any((checkpoint / name).exists() for name in (STATE_NAME, HASHES_NAME))
    if checkpoint.is_dir() and not written:
        shutil.rmtree(checkpoint)
        return "It was removed."
    if kept.is_dir():
        shutil.rmtree(kept)
    checkpoint.replace(kept)
    return f"It is kept as {kept.name}."


# --- the end --------------------------------------------------------------------------------------


def is_finished(folder: Path) -> bool:
    """Whether a run has its final weights.

    Raises:
        RunFolderError: `final/` is there, but not they.
    """
    final = folder / "final"
    if not final.exists():
        return False
    if (final / HASHES_NAME).exists():
        problem = _changed(final, contents=False)
    else:  # of before
        problem = None if any(final.glob("*.safetensors")) else "it holds no weights"
    if problem:
        raise RunFolderError(
            f"{final} was finished, but {problem}. Restore its files. To train it again, from the "
            f"last checkpoint where there is one: rm -r {final}, and then the same command."
        )
    return True
