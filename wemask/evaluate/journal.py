"""What a killed run need not do again: outputs written down batch by batch, until a task is done.

A unit is a batch with its exact members, so that what is run after a kill meets the batch mates
that it would have met without it, and the result is the same to the last bit.
"""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wemask.errors import DataError, RunFolderError
from wemask.files import digest, parse_json, regular, write_whole

SEALED = re.compile(r'"[0-9a-f]{8}"\]$')


class Journal:
    """An append-only file of finished units; each line reaches the disk before the next unit runs.

    Args:
        path: the file; its folder is created.
        key: everything that could change an output. A file of another key is begun anew.
        say: for a line about damage: what a damaged line held is run again, and nothing else.

    Raises:
        RunFolderError: it is no regular file, or cannot be written.
    """

    def __init__(self, path: Path, key: Any, say: Callable[[str], None] = print) -> None:
        self.path = path
        self._done: dict[str, Any] = {}
        self.seconds = 0.0
        """Time that earlier runs spent on the units that are there."""
        header = json.dumps({"key": key}, sort_keys=True, default=str)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._read(header, say):
                path.write_text(header + "\n", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self._since = time.perf_counter()

    def _read(self, header: str, say: Callable[[str], None]) -> bool:
        """Take in all that is whole in a file of this key; False where there is none."""
        if not self.path.exists():
            return False
        regular(self.path, RunFolderError)
        whole, _, rest = self.path.read_bytes().decode("utf-8", "replace").rpartition("\n")
        first, *lines = whole.split("\n")
        if first != header:
            return False
        if lines and not any(SEALED.search(line) for line in lines):  # of version 0.1
            lines, rest = [*map(_sealed, lines)], "what lines are now"
        kept = [line for line in lines if self._take(line)]
        if lost := len(lines) - len(kept):
            say(f"{self.path}: {lost} of {len(lines)} lines are damaged; their part is run again.")
        if lost or rest:  # rest: half a line, which a kill cut short
            write_whole(self.path, "".join(f"{line}\n" for line in (first, *kept)))
        return True

    def _take(self, line: str) -> bool:
        """Take in one line, unless it is not what was written."""
        try:
            *held, seal = parse_json(line, str(self.path), kind=list)
        except (DataError, ValueError):
            return False
        if seal != _seal(held):
            return False
        unit, value, seconds = held
        self._done[unit] = value
        self.seconds += seconds
        return True

    def get(self, unit: str) -> Any:
        """What was written for `unit`, or None."""
        return self._done.get(unit)

    def add(self, unit: str, value: Any) -> None:
        """Write down the outputs of a unit, plain values.

        Raises:
            RunFolderError: it cannot be written (a full disk).
        """
        now = time.perf_counter()
        held = [unit, value, round(now - self._since, 4)]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*held, _seal(held)]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        self._done[unit] = value
        self._since = now

    def remove(self) -> None:
        """The task is done and its samples are written."""
        self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(f"Outputs cannot be written to {self.path}: {error}.")


def _sealed(line: str) -> str:
    try:
        held = parse_json(line, "a line", kind=list)
    except DataError:
        return line
    return json.dumps([*held, _seal(held)]) if len(held) == 3 else line


def _seal(held: list[Any]) -> str:
    """A hash of what a line holds: one flipped bit in an output is seen, too."""
    return digest(json.dumps(held))
