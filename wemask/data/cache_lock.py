"""Say which lock of the datasets cache is waited for: `datasets` itself waits in silence."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 10.0  # to build small data takes less: nobody needs to hear of it
LOGGER = logging.getLogger("filelock")  # which says at every poll that it waits


class _Waits(logging.Handler):
    """Hears of every poll; tells once of each lock that was waited for longer than `SECONDS`."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__(logging.DEBUG)
        self.say = say
        self.since: dict[str, float] = {}
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if "not acquired" not in record.msg or not isinstance(record.args, tuple):
            return
        lock = str(record.args[1])
        waited = time.monotonic() - self.since.setdefault(lock, time.monotonic())
        if waited < SECONDS or lock in self.said:
            return
        self.said.add(lock)
        self.say(
            f"Waiting for another process that is building these data: it holds {lock}. This run "
            f"goes on when it is done. Who it is: fuser {lock}. A cache of its own: "
            "HF_DATASETS_CACHE=FOLDER before the command."
        )


@contextmanager
def waits_said(say: Callable[[str], object]) -> Iterator[None]:
    """Within this, tell of a lock that is waited for."""
    handler, level, spread = _Waits(say), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False  # what it says at DEBUG is for us alone
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = spread
