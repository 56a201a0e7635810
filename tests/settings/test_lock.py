import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from run_support import fit, quick

from wemask.errors import RunFolderError
from wemask.settings.lock import LOCK, NAME, holder, locked

# Holds a folder until its stdin is closed; with "fork" a child of it lives on, as data loaders do.
HOLD = """
import os, sys, time
from pathlib import Path
from wemask.settings.lock import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2:] == ["fork"]:
        told, tell = os.pipe()
        if os.fork() == 0:
            os.write(tell, b"!")  # by now it has let go of what it inherited
            time.sleep(30)
            os._exit(0)
        os.read(told, 1)
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(folder: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    pipe = subprocess.PIPE
    other = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **environment}
    )
    assert other.stdout is not None and other.stdin is not None
    try:
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.stdin.close()
        other.wait(30)
        other.stdout.close()


def refuse(folder: Path) -> str:
    with pytest.raises(RunFolderError, match="is in use by process") as error, locked(folder):
        raise AssertionError
    return str(error.value)


def take_over(folder: Path) -> list[str]:
    said: list[str] = []
    with locked(folder, said.append):
        owner: Any = holder(folder)
        assert owner["pid"] == os.getpid()
    assert holder(folder) is None
    return said


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path: Path) -> None:
    with locked(tmp_path):
        owner = holder(tmp_path)
        assert owner is not None
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert holder(tmp_path) is None
    assert take_over(tmp_path) == []


def test_it_goes_away_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert take_over(tmp_path) == []


def test_a_second_lock_is_refused_in_one_process_too(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert f"process {os.getpid()} on" in refuse(tmp_path)


def test_a_second_process_is_refused_and_hears_by_whom_and_since_when(tmp_path: Path) -> None:
    with held(tmp_path, SLURM_JOB_ID="12") as other:
        owner: Any = holder(tmp_path)
        who = f"process {other.pid} on {socket.gethostname()}, Slurm job 12, since {owner['since']}"
        said = refuse(tmp_path)
        assert who in said
        assert f"rm {tmp_path / LOCK}" in said
        assert holder(tmp_path) == owner
    assert take_over(tmp_path) == []


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_the_lock_of_a_killed_process_is_taken_over_and_named(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Also where a child that it forked lives on."""
    with held(tmp_path, *words) as other:
        other.send_signal(signal.SIGKILL)
        other.wait(30)
        (line,) = take_over(tmp_path)
    assert f"process {other.pid} on {socket.gethostname()}" in line
    assert "taken over" in line


def test_a_lock_that_a_lost_node_left_does_not_stop_the_requeued_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file server still has the lock, as NFSv3 does until the node is up again."""
    with held(tmp_path, SLURM_JOB_ID="12") as other:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        (line,) = take_over(tmp_path)
    assert f"process {other.pid} on" in line


@pytest.mark.parametrize(("job", "restarts"), [("12", "0"), ("13", "1")])
def test_a_job_that_was_not_requeued_does_not_take_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restarts: str
) -> None:
    """Two processes of one allocation, and another job."""
    with held(tmp_path, SLURM_JOB_ID="12"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        refuse(tmp_path)


@pytest.mark.parametrize("text", ['{"host"', "[]", "[" * 100_000])
def test_half_a_record_is_somebodys(tmp_path: Path, text: str) -> None:
    with held(tmp_path):
        (tmp_path / NAME).write_text(text)
        assert "unknown host" in refuse(tmp_path)


@pytest.mark.parametrize("restarts", ["abc", None, [1]])
def test_a_record_of_odd_values_and_an_odd_variable_stop_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: Any
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "x")
    (tmp_path / NAME).write_text(json.dumps({"pid": "abc", "job": "12", "restarts": restarts}))
    (line,) = take_over(tmp_path)
    assert "process abc on" in line


def test_a_record_that_is_a_dangling_link_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("/nonexistent/lock.json")
    assert holder(tmp_path) is None
    assert take_over(tmp_path) == []
    assert not (tmp_path / NAME).is_symlink()


def test_the_record_of_whom_took_over_stays(tmp_path: Path) -> None:
    other = {"host": "node7", "pid": 4711, "job": "12", "restarts": 1}
    with locked(tmp_path):
        (tmp_path / NAME).write_text(json.dumps(other))
    assert holder(tmp_path) == other


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock_is_named_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refused)
    said: list[str] = []
    with locked(tmp_path, said.append):
        owner = holder(tmp_path)
        assert owner is not None and owner["pid"] == os.getpid()
    assert holder(tmp_path) is None
    assert ["has no flock" in line for line in said] == [True]


def test_a_record_alone_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"host": "node7", "pid": 4711, "job": None}))
    (line,) = take_over(tmp_path)
    assert "process 4711 on node7 was taken over" in line


def test_two_trainings_of_one_run_the_second_refuses(tmp_path: Path) -> None:
    config = quick(tmp_path, "trainer.max_steps=1")
    config.folder().mkdir(parents=True)
    with locked(config.folder()), pytest.raises(RunFolderError, match="is in use by"):
        fit(config)
    folder, _ = fit(config)
    assert (folder / "final").exists()
    assert not (folder / NAME).exists()
