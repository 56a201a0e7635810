"""Say which lock of the datasets cache is waited for: `datasets` itself waits in silence."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 10.0  # to build small data takes less: nobody needs to hear of it
LOGGER = logging.getLogger("filelock")  # which says at every poll that it waits


@contextmanager
def waits_said(say: Callable[[str], object]) -> Iterator[None]:
    """Within this, tell once of each lock that is waited for longer than `SECONDS`."""
    since: dict[str, float] = {}

    def hear(record: logging.LogRecord) -> bool:
        if "not acquired" in record.msg and isinstance(record.args, tuple):
            lock = str(record.args[1])
            if time.monotonic() - since.setdefault(lock, time.monotonic()) >= SECONDS:
                since[lock] = math.inf
                say(
                    f"Waiting for another process that is building these data: it holds {lock}. "
                    f"This run goes on when it is done. Who it is: fuser {lock}. A cache of its "
                    "own: HF_DATASETS_CACHE=FOLDER before the command."
                )
        return record.levelno > logging.DEBUG  # what it says at DEBUG is for us alone

    level = LOGGER.level
    LOGGER.addFilter(hear)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOGGER.removeFilter(hear)
        LOGGER.setLevel(level)
