"""Symbolic equality of two LaTeX answers, in a worker process that can be stopped at any moment.

math-verify parses both sides with an ANTLR grammar (no eval, no sympify of text) and compares them
with sympy. Its own time limit is a Python signal handler: main thread only, and deaf while C code
multiplies integers of a billion digits. So it runs, without that limit, in one lazily started
worker whose watchdog (faulthandler, a C thread that needs no GIL) ends the process; the caller then
reads end of file, from whatever thread it is in, and the next comparison starts a new worker.

No multiprocessing pool: its workers run the caller's script again unless that is guarded, and a
daemonic process may not have any. This file is both ends of the pipe: imported, it is the client;
run as a script, the worker. At import it needs nothing of ours, so the worker pays for sympy only.
"""

import atexit
import faulthandler
import logging
import os
import resource
import subprocess
import sys
import threading
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe

TIME_LIMIT = 5.0  # seconds per comparison; ordinary ones take milliseconds
START_LIMIT = 120.0  # seconds for importing sympy and math-verify, on a busy machine
MEMORY_LIMIT = 4 << 30  # bytes of address space
WATCHDOG = 1  # the exit status that faulthandler gives

TIMED_OUT = "the symbolic comparison took too long and was stopped"
CRASHED = "the symbolic comparison crashed or ran out of memory"
NOT_MATHEMATICS = "not understood as mathematics"


class _Worker:
    """One child process; what dies, on either side, ends the other's wait."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                # -P: not this file's folder first on the path, where it would hide packages
                [sys.executable, "-P", __file__, str(theirs.fileno()), str(TIME_LIMIT)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; the worker ends when its pipe closes
            )

    def ask(self, gold: str, value: str) -> tuple[bool, str]:
        """Send one pair, return (equal, note). Raises EOFError or OSError when the worker died."""
        self.pipe.send((gold, value))
        return self.pipe.recv()

    def stop(self) -> int:
        """End the process, unless it has, and return its exit status."""
        self.pipe.close()
        self.process.kill()
        return self.process.wait()


_lock = threading.Lock()
_worker: _Worker | None = None
_inherited: list[_Worker | None] = []  # the parent's after a fork: not ours to use or to end


@lru_cache(maxsize=8192)
def symbolically_equal(gold: str, value: str) -> tuple[bool, str]:
    """Compare two LaTeX expressions; return (equal, note), the note "" for a plain verdict.

    Never raises on any pair of strings and never takes longer than TIME_LIMIT once the worker
    runs. Raises ConfigError when the worker cannot start, with what to install.
    """
    global _worker
    with _lock:
        for _ in range(2):  # the worker may have died since the last call: ask a fresh one, too
            worker, _worker = _worker or _start(), None
            try:
                reply = worker.ask(gold, value)
            except BaseException as error:  # Ctrl-C: the next pair must not read this one's reply
                status = worker.stop()
                if not isinstance(error, EOFError | OSError):
                    raise
                if status == WATCHDOG:
                    return False, TIMED_OUT
            else:
                _worker = worker
                return reply
    return False, CRASHED


def _start() -> _Worker:
    worker = _Worker()
    try:
        ready, cause = worker.ask("x+1", "1+x")
    except (EOFError, OSError):
        ready, cause = False, f"it ended with status {worker.stop()}"
    if ready:
        return worker
    worker.stop()
    from wemask.errors import ConfigError  # here, so that the worker does not import wemask

    raise ConfigError(
        f"The worker that compares answers did not start: {cause}. "
        "Try: pip install 'math-verify[antlr4_9_3]'"
    )


def _forget() -> None:
    global _worker, _lock
    _inherited.append(_worker)
    _worker, _lock = None, threading.Lock()


def _shut_down() -> None:
    global _worker
    if _worker is not None:
        _worker.stop()
        _worker = None


os.register_at_fork(after_in_child=_forget)
atexit.register(_shut_down)


# The worker's side


def _compare(gold: str, value: str) -> tuple[bool, str]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Units are ours to strip: math-verify's list would turn "5c" and "2m" into 5 and 2.
    rules = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    config = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=rules)]
    sides = [
        parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=0)
        for text in (gold, value)
    ]
    if not all(sides):
        return False, NOT_MATHEMATICS
    return bool(verify(sides[0], sides[1], timeout_seconds=0)), ""


def _serve(pipe: Connection, limit: float) -> None:
    """Answer until the other end is closed; the first pair may take as long as imports do."""
    logging.disable(logging.CRITICAL)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    seconds = START_LIMIT
    while True:
        gold, value = pipe.recv()
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            reply = _compare(gold, value)
        except ImportError as error:
            reply = False, str(error)
        except Exception:  # any failure inside sympy: they are not equal
            reply = False, CRASHED
        faulthandler.cancel_dump_traceback_later()
        pipe.send(reply)
        seconds = limit


if __name__ == "__main__":
    try:
        _serve(Connection(int(sys.argv[1])), float(sys.argv[2]))
    except (EOFError, OSError):  # our client is done, or gone
        sys.exit()
