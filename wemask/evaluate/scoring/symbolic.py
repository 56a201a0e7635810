"""Symbolic equality of two LaTeX answers, in a worker process that can be stopped at any moment.

math-verify parses both sides with an ANTLR grammar (no eval, no sympify of text) and compares them
with sympy. Its own time limit is SIGALRM: main thread only, and deaf while C code multiplies
integers of a billion digits. So it runs, without that limit, in one lazily started worker whose
watchdog (faulthandler, a C thread that needs no GIL) ends the process; the caller then reads end
of file, from whatever thread it is in, and the next comparison starts a new worker.

This file is both sides of the pipe: imported, it is the client; run as a script, the worker.
At import it needs nothing of ours, so the worker pays for sympy only.
"""

import atexit
import faulthandler
import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from typing import IO

TIME_LIMIT = 5.0  # seconds per comparison; ordinary ones take milliseconds
START_LIMIT = 120.0  # seconds for importing sympy and math-verify, on a busy machine
MEMORY_LIMIT = 4 << 30  # bytes of address space, where the platform can limit it

TIMED_OUT = "the symbolic comparison took too long and was stopped"
CRASHED = "the symbolic comparison crashed or ran out of memory"
NOT_MATHEMATICS = "not understood as mathematics"


class _Worker:
    """One child process; `ask` is one line out and one line back."""

    def __init__(self) -> None:
        # -P keeps this file's folder off sys.path: its statistics.py would hide the standard one.
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(TIME_LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; the worker ends when its input closes
        )

    def ask(self, request: dict[str, str] | None) -> dict[str, object] | None:
        """Send `request` (None: only wait for the greeting); None means that the worker died."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        try:
            if request is not None:
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
            line = stdout.readline()
        except OSError:  # it died between two requests
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def close(self) -> int:
        """End the worker and return its exit status; at once if it is dead or idle."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                _close_quietly(pipe)
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except OSError:  # unsent bytes for a worker that is gone: nobody is left to read them
        return


_lock = threading.Lock()
_worker: _Worker | None = None
_inherited: list[_Worker] = []  # workers of the parent after a fork: not ours to use or to end


@lru_cache(maxsize=8192)
def symbolically_equal(gold: str, value: str) -> tuple[bool, str]:
    """Compare two LaTeX expressions; return (equal, note), the note "" for a plain verdict.

    Never raises on any pair of strings and never takes longer than TIME_LIMIT once the worker
    runs. Raises ConfigError when the worker cannot start, with what to install.
    """
    global _worker
    with _lock:
        for attempt in (1, 2):  # a worker may have died since the last call: ask a fresh one
            fresh = _worker is None
            worker = _worker = _worker or _start()
            try:
                reply = worker.ask({"gold": gold, "value": value})
            except BaseException:  # Ctrl-C: its answer would be read as that of the next question
                _shut_down()
                raise
            if reply is not None:
                return bool(reply["equal"]), str(reply["note"])
            _worker = None
            stopped = worker.close() == 1
            if stopped or fresh or attempt == 2:
                return False, TIMED_OUT if stopped else CRASHED
    raise AssertionError("unreachable")


def _start() -> _Worker:
    worker = _Worker()
    greeting = worker.ask(None)
    if greeting is None or "missing" in greeting:
        status = worker.close()
        cause = greeting["missing"] if greeting else f"it ended with status {status}"
        from wemask.errors import ConfigError  # here, so that the worker does not import wemask

        raise ConfigError(
            f"The worker that compares answers did not start: {cause}. "
            "Try: pip install 'math-verify[antlr4_9_3]'"
        )
    return worker


def _forget() -> None:
    global _worker, _lock
    if _worker is not None:
        _inherited.append(_worker)
    _worker, _lock = None, threading.Lock()


def _shut_down() -> None:
    global _worker
    if _worker is not None:
        _worker.close()
        _worker = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_shut_down)


# The worker's side


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not POSIX: the time limit alone must do
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or hard > MEMORY_LIMIT:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, hard))


def _compare(gold: str, value: str) -> dict[str, object]:
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
        return {"equal": False, "note": NOT_MATHEMATICS}
    return {"equal": bool(verify(sides[0], sides[1], timeout_seconds=0)), "note": ""}


def _serve(time_limit: float) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    # Our standard output is the pipe: nothing that is imported may print into it.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sink = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # the watchdog's, to the very end
    faulthandler.dump_traceback_later(START_LIMIT, exit=True, file=sink)
    _limit_memory()
    try:
        _compare("x+1", "1+x")
        greeting: dict[str, object] = {"ready": True}
    except ImportError as error:
        greeting = {"missing": str(error)}
    print(json.dumps(greeting), file=replies, flush=True)
    faulthandler.cancel_dump_traceback_later()
    for line in sys.stdin:
        request = json.loads(line)
        faulthandler.dump_traceback_later(time_limit, exit=True, file=sink)
        try:
            reply = _compare(request["gold"], request["value"])
        except (Exception, RecursionError):  # any failure inside sympy: they are not equal
            reply = {"equal": False, "note": CRASHED}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
