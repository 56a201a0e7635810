"""The terminal: results on stdout, all else on stderr; bars, or lines where nobody watches.

`session` stands around a whole command. Every library that shows progress here (transformers,
datasets, TRL, lm-eval, the hub, ourselves) does so through tqdm, so that is the one place where a
bar becomes lines, or nothing.
"""

import errno
import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from wemask.distributed import is_main
from wemask.errors import ConfigError
from wemask.files import say
from wemask.version import __version__

QUIET = ("-q", "--quiet")
SHARE = 10  # a line each time that so many parts of all are done,
SECONDS = 30.0  # or after so many seconds,
SHORTEST = 1.0  # but none so soon after the last, and none of what takes no longer
PIPE_CLOSED = 141  # what a shell reports of a process that SIGPIPE ended
LIBRARIES = {"TRANSFORMERS_VERBOSITY": "error", "WANDB_SILENT": "true"}  # unless the user set them
TALKING = ("wemask", "hydra")  # loggers whose INFO is shown
_DISPLAY, _CLEAR, _CLOSE, _WRITE = tqdm.display, tqdm.clear, tqdm.close, tqdm.write.__func__  # pyright: ignore

_quiet = False
_lost: list[int] = []  # exit codes of the streams that could not be written


@contextmanager
def session() -> Iterator[None]:
    """Set the terminal up for a command, and put everything back after it.

    A stream that cannot be written (its reader is gone, its disk is full) costs no work: what is
    said there is dropped, and the command ends with a code that tells.

    Raises:
        ConfigError: the current folder was deleted.
        SystemExit: all went well but for a stream: 141 where a pipe was closed, else 2.
    """
    _check_place()
    _lost.clear()
    ended: SystemExit | None = None
    with ExitStack() as stack:
        _environment(stack)
        _loggers(stack)
        _bars(stack)
        _streams(stack)
        stack.callback(_be_loud, sys.stdout)
        try:
            yield
        except SystemExit as end:
            ended = end
        if sys.stdout is not None:
            sys.stdout.flush()
    if _lost and not (ended and ended.code):
        raise SystemExit(_lost[0])
    if ended is not None:
        raise ended


def be_quiet() -> None:
    """Say nothing but warnings and errors from now on, until the session ends."""
    global _quiet
    _quiet = True
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    for name in TALKING:
        logging.getLogger(name).setLevel(logging.WARNING)


def _be_loud(stdout: Any) -> None:
    global _quiet
    if _quiet:
        sys.stdout.close()
        _quiet, sys.stdout = False, stdout


def take_flags(words: MutableSequence[str]) -> None:
    """Take -q, --quiet and --version off a command line that goes to Hydra, which has no -q.

    Raises:
        SystemExit: the version was asked for, and printed.
    """
    if "--version" in words:
        print(f"wemask {__version__}")
        raise SystemExit(0)
    if any(word in QUIET for word in words):
        be_quiet()
    words[:] = [word for word in words if word not in QUIET]


def flags() -> list[str]:
    """What a command that this one starts is told of the session."""
    return ["--quiet"] if _quiet else []


def note(on: Console, text: str) -> None:
    """Print a line about how the work goes: on stderr, past bars that are on the screen.

    A caller's own console (in a file, or recording) gets it as well as the results.
    """
    if _is_own(on):
        say(on, text)
    elif not on.quiet:
        tqdm.write(text, file=sys.stderr)


def warn(on: Console, text: str) -> None:
    """The same of what may be wrong: it is said under -q as well."""
    if _is_own(on):
        say(on, text)
    elif is_main():
        _WRITE(tqdm, text, file=sys.stderr)


def aside(on: Console) -> Console:
    """Where a command says what comes before its results, such as screens of a training in it."""
    return on if _is_own(on) else Console(stderr=True, quiet=on.quiet or _quiet)


def _is_own(console: Console) -> bool:
    return console.record or console.file not in (sys.stdout, sys.stderr)


def _check_place() -> None:
    try:
        Path.cwd()
    except OSError as error:  # numerical libraries would end the process with lines of their own
        raise ConfigError(
            f"The current folder cannot be entered ({error.strerror}): was it deleted? Type cd to "
            "one that exists."
        ) from error


# --- what libraries say ---------------------------------------------------------------------------


def _environment(stack: ExitStack) -> None:
    for name, value in LIBRARIES.items():
        if name not in os.environ:
            os.environ[name] = value
            stack.callback(os.environ.pop, name, None)


class _Lines(logging.Handler):
    """Log records as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        grave = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
        _WRITE(tqdm, grave + self.format(record), file=sys.stderr)


def _loggers(stack: ExitStack) -> None:
    root, handler, formatted = logging.getLogger(), _Lines(), warnings.formatwarning
    root.addHandler(handler)
    stack.callback(root.removeHandler, handler)
    for name in TALKING:
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.INFO)
    warnings.formatwarning = _in_one_line
    stack.callback(setattr, warnings, "formatwarning", formatted)


def _in_one_line(
    message: Any, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    """A warning without its line of source; of another package, where it comes from."""
    ours = category.__module__.startswith("wemask")
    return f"Warning: {message}{'' if ours else f' ({filename}:{lineno})'}\n"


# --- bars -----------------------------------------------------------------------------------------


def _bars(stack: ExitStack) -> None:
    ours = {"display": _display, "clear": _clear, "close": _close, "write": classmethod(_write)}
    for name, function in ours.items():
        stack.callback(setattr, tqdm, name, tqdm.__dict__[name])
        setattr(tqdm, name, function)


def _watched(bar: tqdm) -> bool:
    """Whether a bar can be drawn again and again: on a terminal that has a cursor."""
    return bool(bar.fp.isatty()) and os.environ.get("TERM") != "dumb" and not _silent()


def _silent() -> bool:
    return _quiet or not is_main()  # each rank loads and maps: rank 0 says how far it is


def _display(bar: Any, msg: str | None = None, pos: int | None = None) -> bool:
    if _watched(bar):
        return bool(_DISPLAY(bar, msg, pos))
    now = time.monotonic()
    if not hasattr(bar, "began"):
        bar.began, bar.last_line = now, (bar.n, now)
    done, since = bar.last_line
    tenth = bar.total and abs(bar.n - done) * SHARE >= bar.total
    if (tenth and now - since >= SHORTEST) or now - since >= SECONDS:
        _line(bar, now)
    return True


def _line(bar: Any, now: float) -> None:
    bar.last_line = (bar.n, now)
    if not _silent():
        said = bar.format_meter(**{**bar.format_dict, "ncols": 0})  # 0: without the bar itself
        bar.fp.write(said.strip() + "\n")


def _clear(bar: Any, nolock: bool = False) -> None:
    if _watched(bar):
        _CLEAR(bar, nolock=nolock)


def _close(bar: Any) -> None:
    """The last line of a bar that stays, unless it says no more than the one before."""
    if not getattr(bar, "disable", True) and not _watched(bar):
        stays, now = bar.leave or (bar.leave is None and bar.pos == 0), time.monotonic()
        took = now - getattr(bar, "began", now)
        if stays and took >= SHORTEST and bar.last_line[0] != bar.n:
            _line(bar, now)
        bar.sp = None  # tqdm then closes it without a word
    _CLOSE(bar)


def _write(
    cls: Any, s: str, file: Any = None, end: str = "\n", nolock: bool = False
) -> None:  # tqdm's own goes to stdout, among the results
    if not _quiet:
        _WRITE(cls, s, file=file or sys.stderr, end=end, nolock=nolock)


# --- streams --------------------------------------------------------------------------------------


def _streams(stack: ExitStack) -> None:
    """Streams that print any character, and outlive whoever reads them."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed by the shell: >&-
            continue
        # In a C locale a stream is ASCII, and a model may say half a surrogate pair.
        if isinstance(stream, io.TextIOWrapper):  # else what a caller has put there
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
        for name in ("write", "flush"):
            setattr(stream, name, _outliving(stream, getattr(stream, name)))
            stack.callback(delattr, stream, name)


def _outliving(stream: Any, act: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        try:
            return act(*given)
        except OSError as error:
            _lose(stream, error)
            return len(given[0]) if given else None

    return call


def _lose(stream: Any, error: OSError) -> None:
    """Let a stream that cannot be written go nowhere from now on; say so where one can."""
    closed = error.errno == errno.EPIPE
    _lost.append(PIPE_CLOSED if closed else 2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    if not closed and stream is sys.stdout:
        sys.stderr.write(
            f"\nError: stdout cannot be written: {error.strerror}. What is said there is lost; the "
            "work goes on, and its files are written.\n"
        )
