"""What a terminal, a log file, a pipe and a full disk get to see of a command."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.utils
import huggingface_hub.utils
import pytest
import tqdm
import tqdm.auto
import transformers.utils.logging
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from wemask import terminal
from wemask.cli import main
from wemask.errors import ConfigError, PatchError, WemaskError
from wemask.operator.patch import WeMaskWarning
from wemask.settings import composition
from wemask.terminal import SECONDS, SHARE, SHORTEST, note, session
from wemask.version import __version__

BARS: dict[str, Callable[..., Any]] = {
    "lm-eval, ours": tqdm.tqdm,
    "the trainer": tqdm.auto.tqdm,
    "weights": transformers.utils.logging.tqdm,
    "maps": datasets.utils.tqdm,
    "downloads": huggingface_hub.utils.tqdm,
}
WITH_CODE = (
    (lambda: None, 0),
    (lambda: sys.exit(0), 0),
    (lambda: sys.exit(3), 3),
)


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def lines_of(
    make: Callable[..., Any], total: int | None, waits: list[float], **more: Any
) -> list[str]:
    """What a bar writes that moves by one after each wait."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch, session():
        patch.setattr(terminal, "time", clock)
        file = io.StringIO()
        bar = make(total=total, desc="x", file=file, mininterval=0, miniters=1, **more)
        for wait in waits:
            clock.now += wait
            bar.update()
        bar.close()
        written = file.getvalue()
    assert "\r" not in written and "\x1b" not in written
    return written.splitlines()


# --- bars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", BARS.values(), ids=BARS)
def test_every_library_s_bar_is_a_line_for_each_tenth(make: Callable[..., Any]) -> None:
    lines = lines_of(make, 100, [2.0] * 100)
    assert [line.split("|")[0].split()[:2] for line in lines] == [
        ["x:", f"{share}%"] for share in range(10, 101, 10)
    ]
    assert "100/100" in lines[-1]


@given(st.lists(st.sampled_from([0.01, 0.4, 2.0, 31.0]), min_size=1, max_size=80), st.booleans())
def test_lines_are_as_many_as_are_of_use(waits: list[float], counted: bool) -> None:
    lines = lines_of(tqdm.tqdm, len(waits) if counted else None, waits)
    spent = sum(waits)
    assert len(lines) <= 1 + spent / SECONDS + (SHARE if counted else 0)
    assert len(lines) <= 1 + spent / SHORTEST
    assert len(lines) >= sum(wait > SECONDS for wait in waits)
    if spent >= SHORTEST:
        assert (
            f"{len(waits)}/{len(waits)}" in lines[-1] if counted else f"{len(waits)}it" in lines[-1]
        )


@pytest.mark.parametrize(
    ("waits", "more"),
    [([0.001] * 48, {}), ([5.0, 0.1], {"leave": False}), ([9.0], {"disable": True})],
)
def test_what_took_no_time_or_does_not_stay_leaves_no_last_line(waits: Any, more: Any) -> None:
    lines = lines_of(tqdm.tqdm, len(waits), waits, **more)
    assert not [line for line in lines if "100%" in line]


def test_a_terminal_keeps_its_bars_and_tqdm_is_as_before_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    before = {name: tqdm.tqdm.__dict__[name] for name in ("display", "clear", "close", "write")}
    monkeypatch.setenv("TERM", "xterm")
    with session():
        bar = tqdm.tqdm(total=4, file=(screen := Screen()))
        bar.update(4)
        bar.close()
    assert "\r" in screen.getvalue()
    assert before == {name: tqdm.tqdm.__dict__[name] for name in before}


# --- what goes where ------------------------------------------------------------------------------


def test_results_alone_are_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with session():
        note(Console(), "[how] it goes")
        tqdm.tqdm.write("{'loss': 1}")  # as the trainer's callback does
        logging.getLogger("wemask.x").info("read")
        logging.getLogger("other").warning("odd")
        logging.getLogger("other").info("never said")
        terminal.aside(Console()).print("screen")
        Console().print("result")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "[how] it goes\n{'loss': 1}\nread\nWarning: odd\nscreen\n"


def test_a_console_of_the_caller_s_gets_all(capsys: pytest.CaptureFixture[str]) -> None:
    own = Console(file=(file := io.StringIO()))
    note(own, "how it goes")
    assert file.getvalue() == "how it goes\n"
    assert terminal.aside(own) is own
    assert capsys.readouterr() == ("", "")


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    stdout = sys.stdout
    with session():
        terminal.take_flags(words := ["train.py", "-q", "seed=1", "--quiet"])
        assert words == ["train.py", "seed=1"]
        assert terminal.flags() == ["--quiet"]
        note(Console(), "how it goes")
        terminal.aside(Console()).print("screen")
        tqdm.tqdm.write("{'loss': 1}")
        print("result")
        logging.getLogger("wemask.x").info("read")
        logging.getLogger("wemask.x").warning("odd")
        bar = tqdm.tqdm(total=1, mininterval=0)
        bar.close()
    assert sys.stdout is stdout and terminal.flags() == []
    assert capsys.readouterr() == ("", "Warning: odd\n")


@pytest.mark.parametrize("words", [("-q", "status", "/nowhere"), ("status", "/nowhere", "--quiet")])
def test_quiet_may_stand_anywhere(words: tuple[str, ...], capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "Error: " in capsys.readouterr().err


def test_a_warning_is_one_line_that_says_whose_it_is() -> None:
    with session():
        ours = warnings.formatwarning("ours", WeMaskWarning, "f.py", 3)
        theirs = warnings.formatwarning("theirs", FutureWarning, "f.py", 3)
    assert (ours, theirs) == ("Warning: ours\n", "Warning: theirs (f.py:3)\n")


def test_libraries_are_told_to_be_still_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    with session():
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
        assert os.environ["WANDB_SILENT"] == "true"
    assert "WANDB_SILENT" not in os.environ


# --- streams --------------------------------------------------------------------------------------


def full() -> Any:
    return Path("/dev/full").open("w")


def closed_pipe() -> Any:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [(closed_pipe, 141, ""), (full, 2, "No space left on device")],
)
def test_a_stdout_that_cannot_be_written_costs_no_work(
    make: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    done = []
    for ending, own in WITH_CODE:
        with make() as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            with pytest.raises(SystemExit) as end, session():  # noqa: PT012
                print("result")
                Console().print("result")
                done.append(own)
                ending()
            assert end.value.code == (own or code)
        err = capsys.readouterr().err
        assert said in err and err.count("Error: ") == bool(said)
    assert done == [own for _, own in WITH_CODE]


def test_a_c_locale_costs_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with session():
        print("a… \ud800")
        Console(width=8).print("é" * 9, overflow="ellipsis", no_wrap=True)
    stream.seek(0)
    assert stream.read().startswith("a\\u2026 \\ud800\n\\xe9")


def test_a_deleted_folder_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as end:
        main(["detect", "--model", "tiny"])
    assert end.value.code == 2
    assert "was it deleted?" in capsys.readouterr().err


# --- the scripts ----------------------------------------------------------------------------------


def start(monkeypatch: pytest.MonkeyPatch, act: Any, *words: str) -> int:
    """The exit code of train.py with these words, which does `act`."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as end, session():  # noqa: PT012
        composition.command("train", lambda cfg, typed: act())
        raise SystemExit(0)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--config-dir /nonexistent", "/nonexistent"),
        ("--config-name nope", "nope"),
        ("hydra.run.dir=/dev/null/x", "/dev/null/x"),
        ("hydra/launcher=nope", "nope"),
    ],
)
def test_what_hydra_refuses_is_one_message(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert start(monkeypatch, None, *words.split()) == 2
    err = capsys.readouterr().err
    assert err.count("Error: ") == 1 and said in err
    assert "HYDRA_FULL_ERROR" not in err and "Traceback" not in err


def test_a_fault_of_a_job_is_not_hydra_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: type[Exception]) -> None:
        raise kind("it")

    with pytest.raises(ZeroDivisionError):
        start(monkeypatch, lambda: fail(ZeroDivisionError), "dry_run=true")
    for kind in (ConfigError, PatchError, WemaskError):
        assert start(monkeypatch, lambda kind=kind: fail(kind), "dry_run=true") == 2


def test_the_scripts_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert start(monkeypatch, None, "seed=1", "--version") == 0
    assert capsys.readouterr().out == f"wemask {__version__}\n"
    assert start(monkeypatch, None, "--help") == 0
    out = capsys.readouterr().out
    assert "--quiet" in out and "--version" in out and "docs/terminal.md" in out
