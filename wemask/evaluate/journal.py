"""What a killed run need not do again: outputs written down batch by batch, until a task is done.

A unit is a batch with its exact members, so that what is run after a kill meets the batch mates
that it would have met without it, and the result is the same to the last bit.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from wemask.errors import RunFolderError


class Journal:
    """An append-only file of finished units; each line reaches the disk before the next unit runs.

    Args:
        path: the file; its folder is created.
        key: everything that could change an output. A file of another key is begun anew.
    """

    def __init__(self, path: Path, key: Any) -> None:
        self.path = path
        self._done: dict[str, Any] = {}
        self.seconds = 0.0
        """Time that earlier runs spent on the units that are there."""
        header = json.dumps({"key": key}, sort_keys=True, default=str)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read(header)
            if whole is None:
                path.write_text(header + "\n", encoding="utf-8")
            elif whole < path.stat().st_size:  # a line that the kill cut short
                os.truncate(path, whole)
        except OSError as error:
            raise self._unwritable(error) from error
        self._since = time.perf_counter()

    def _read(self, header: str) -> int | None:
        """Take in all whole lines; return where they end, or None for a file of another key."""
        if not self.path.exists():
            return None
        first, *lines = self.path.read_bytes().split(b"\n")
        if first != header.encode():
            return None
        end = len(first) + 1
        for line in lines[:-1]:  # behind the last newline there is nothing, or half a line
            try:
                unit, value, seconds = json.loads(line)
            except ValueError:
                break
            self._done[unit] = value
            self.seconds += seconds
            end += len(line) + 1
        return end

    def get(self, unit: str) -> Any:
        """What was written for `unit`, or None."""
        return self._done.get(unit)

    def add(self, unit: str, value: Any) -> None:
        """Write down the outputs of a unit, plain values.

        Raises:
            RunFolderError: it cannot be written (a full disk).
        """
        now = time.perf_counter()
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([unit, value, round(now - self._since, 4)]) + "\n")
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
