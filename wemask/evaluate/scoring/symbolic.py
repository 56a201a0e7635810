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
import re
import resource
import subprocess
import sys
import threading
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from typing import Any

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
    from math_verify import grader
    from sympy import Eq

    grader.sympy_numeric_eq = _same_number
    is_complex = grader.should_treat_as_complex(gold + value)
    try:
        target, found = _read(gold, is_complex), _read(value, is_complex)
    except Exception:  # of whatever kind the grammar raises
        return False, NOT_MATHEMATICS
    whole = isinstance(found, Eq) and not grader.is_assignment_relation(found)
    if whole and found.lhs.free_symbols and not grader.is_relation(target):
        return False, ""  # else 2x - 1 = 0 would be the answer 0
    same = grader.verify(target, found, allow_set_relation_comp=True, timeout_seconds=0)
    return bool(same), ""


def _read(text: str, is_complex: bool) -> Any:
    """Parse `text`; alternatives of inequalities become a set, 3 > x > 1 becomes 1 < x < 3."""
    from latex2sympy2_extended.logic import And
    from latex2sympy2_extended.sets import FiniteSet
    from sympy import GreaterThan, Or, StrictGreaterThan
    from sympy.core.relational import Relational

    tree = _parse(text, is_complex)
    chain: Any = tree._unsorted_args if isinstance(tree, And) else ()  # pyright: ignore
    if chain and all(isinstance(one, GreaterThan | StrictGreaterThan) for one in chain):
        return And(*(one.reversed for one in reversed(chain)))
    ways: Any = tree.args if isinstance(tree, FiniteSet) else ()
    unequal = [way for way in ways if isinstance(way, Relational) and not way.is_Equality]
    return Or(*ways).as_set() if len(ways) > 1 and len(unequal) == len(ways) else tree


def _parse(text: str, is_complex: bool) -> Any:
    """Parse LaTeX with decimals exact and every letter in its own case."""
    from latex2sympy2_extended.latex2sympy2 import (
        ConversionConfig,
        NormalizationConfig,
        latex2sympy,
        normalize_latex,
    )

    # Units are ours to strip: math-verify's list would turn "5c" and "2m" into 5 and 2.
    rules = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    exact = re.sub(
        r"(?<![\d.])(\d*)\.(\d+)(?![\d.])",
        lambda it: rf"\frac{{{it[1]}{it[2]}}}{{1{'0' * len(it[2])}}}",
        normalize_latex(text, config=rules),
    )
    return latex2sympy(
        exact,
        is_real=not is_complex,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )


def _same_number(a: Any, b: Any, *precision: Any) -> bool:
    """Stand in for math-verify's comparison of values, which takes 1/2006! for 1/2004!."""
    from math_verify.grader import sympy_expr_eq
    from sympy import Float, MatrixBase

    try:
        if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
            pairs = zip(a.flat(), b.flat(), strict=True)
            return a.shape == b.shape and all(sympy_expr_eq(x, y, *precision) for x, y in pairs)
        if a.free_symbols or b.free_symbols:
            return False  # simplified, next, by math-verify
        if all(getattr(x, "is_rational", False) for x in (a, b)):
            return bool((a - b).doit() == 0)
        gap, size = abs((a - b).evalf(5)), abs(b.evalf(5))
        return bool(size.is_finite and gap <= size * Float("1e-30"))
    except Exception:  # sympy's, of values that have no difference
        return False


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
