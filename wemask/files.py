"""Files that are whole or not there, names for folders, and lines of text on the terminal.

Whatever a user's folder may hold is read by `read_json` and `read_text`: of bounded size, and only
of regular files, for a pipe never ends and /dev/zero never either.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wemask.errors import ConfigError, DataError, RunFolderError, WemaskError

if TYPE_CHECKING:  # an exported model carries this file to where there is no rich
    from rich.console import Console

LARGEST = 256 * 2**20  # bytes of one file of ours; a results.json of 10,000 items has 5 MB
DEEPEST = 100  # levels of nested JSON: what is written here has less than 20


def regular(path: Path, error: type[WemaskError] = DataError) -> int:
    """Bytes of a regular file, links followed.

    Raises:
        WemaskError (`error`): there is none, or it is a folder, a pipe, a device or out of reach.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as problem:  # ValueError: a null byte in the name
        why = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(f"{shown(path)} was sought and cannot be read: {why}.") from problem
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise error(f"{shown(path)} is {kind}; a regular file was sought.")
    return status.st_size


def kind_of(path: str | Path) -> str:
    """`file`, `folder`, `other`, or "" where there is none: a name may be too long for any."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def read_text(path: Path, error: type[WemaskError] = DataError, *, limit: int = LARGEST) -> str:
    """The text of a file in UTF-8.

    Args:
        path: of a regular file.
        error: what is raised where it cannot be read.
        limit: bytes that it may have.

    Raises:
        WemaskError (`error`): what `regular` raises, a larger file, or another encoding.
    """
    if (size := regular(path, error)) > limit:
        raise error(f"{path} has {size:,} bytes; at most {limit:,} are read of such a file.")
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)  # files of /proc have a size of 0
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path} cannot be read as text in UTF-8: {problem}.") from problem


def read_json(
    path: Path,
    error: type[WemaskError] = DataError,
    *,
    kind: type | None = dict,
    limit: int = LARGEST,
) -> Any:
    """The JSON of a file, `kind` at its top (None: whatever it is).

    Raises:
        WemaskError (`error`): what `read_text` raises, no JSON, JSON that is nested deeper than
            `DEEPEST`, or something else at its top.
    """
    return parse_json(read_text(path, error, limit=limit), str(path), error, kind=kind)


def parse_json(
    text: str, where: str, error: type[WemaskError] = DataError, *, kind: type | None = dict
) -> Any:
    """The same of a text; `where` it stands is how the message begins."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is no JSON that can be read: {problem}.") from problem
    if _deeper(values, DEEPEST):
        raise error(f"{where} is JSON nested deeper than {DEEPEST} levels; no such is read.")
    if kind is not None and not isinstance(values, kind):
        sought = {dict: "an object", list: "a list"}.get(kind, kind.__name__)
        raise error(f"{where} must hold {sought}, found {type(values).__name__}.")
    return values


def _deeper(values: Any, levels: int) -> bool:
    """Whether lists and objects nest deeper; no recursion, which is what this guards from."""
    layer = [values]
    for _ in range(levels):
        layer = [
            inner
            for value in layer
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not layer:
            return False
    return any(isinstance(value, dict | list) for value in layer)


def shown(path: str | Path) -> str:
    """A path for a message: one of thousands of characters says no more than its ends."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:140]}...[{len(text)} characters]...{text[-60:]}"


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a full disk or a kill leaves the old one, never half a new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # A model can emit half of a surrogate pair, which UTF-8 cannot hold: show it escaped.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a RunFolderError: what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except WemaskError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save says "PytorchStreamWriter failed" or "[enforce fail at inline_container.cc"
        torch_cannot_write = re.search(r"PytorchStream|inline_container", str(error))
        if isinstance(error, RuntimeError) and not torch_cannot_write:
            raise
        place = next(p for p in (folder, *folder.absolute().parents) if kind_of(p))
        free = shutil.disk_usage(place).free / 2**20
        raise RunFolderError(
            f"{shown(folder)} cannot be written ({str(error)[:400]}; {free:.0f} MiB free). Make "
            "room or give another paths.output_dir; the same command resumes from the last whole "
            "checkpoint."
        ) from error


def inside(name: str) -> str:
    """A name of a folder that stays below the one it is put in: `a` or `a/b`.

    Raises:
        ValueError: it is absolute, or leads out by `..`.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise ValueError("must name a folder below paths.output_dir, without '..' or a leading /")
    return name


def check_length(folder: Path) -> None:
    """Raise ConfigError where a part of a path has more than the 255 bytes of a file's name."""
    for part in folder.parts:
        if (size := len(os.fsencode(part))) > 255:
            raise ConfigError(
                f"A folder's name has at most 255 bytes; {part[:40]}... has {size}. Shorten "
                "experiment_name, model.name or paths."
            )


def digest(values: Any, digits: int = 8) -> str:
    """A hash of plain values, in hex digits; the order of keys does not matter."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def say(console: "Console", text: str) -> None:
    """Print a line with a path or a model's text in it: never wrapped, never read as markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
