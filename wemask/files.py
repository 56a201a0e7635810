"""Files that are whole or not there, names for folders, and lines of text on the terminal."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from wemask.errors import RunFolderError, WemaskError


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
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free / 2**20
        raise RunFolderError(
            f"{folder} cannot be written ({error}; {free:.0f} MiB free). Make room or give another "
            "paths.output_dir; the same command resumes from the last whole checkpoint."
        ) from error


def digest(values: Any, digits: int = 8) -> str:
    """A hash of plain values, in hex digits; the order of keys does not matter."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def say(console: Console, text: str) -> None:
    """Print a line with a path or a model's text in it: never wrapped, never read as markup."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
