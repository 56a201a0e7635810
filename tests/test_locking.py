import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from run_support import fit, quick

from wemask.errors import RunFolderError
from wemask.settings import lock as locking
from wemask.settings.lock import NAME, holder, locked

PULSE = 0.1


def left_behind(folder: Path, **changes: Any) -> Path:
    """A lock of another machine, which may be alive."""
    owner = {
        "host": "node7",
        "boot": "another",
        "pid": 4711,
        "born": "1",
        "job": None,
        "token": "theirs",
        **changes,
    }
    path = folder / NAME
    path.write_text(json.dumps(owner))
    return path


def here(**changes: Any) -> dict[str, Any]:
    return {**locking._ourselves(), "token": "theirs", **changes}


def test_a_lock_says_who_holds_it_and_goes_away(tmp_path: Path) -> None:
    with locked(tmp_path):
        owner = holder(tmp_path)
        assert owner is not None
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_it_goes_away_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(RunFolderError, match="is in use by process")
    with locked(tmp_path), refused as error, locked(tmp_path):
        raise AssertionError
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(error.value)
    assert str(tmp_path / NAME) in str(error.value)


def test_the_lock_of_a_dead_process_is_taken_over_and_named(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left_behind(tmp_path, **here(pid=child.pid, born="123"))
    said: list[str] = []
    with locked(tmp_path, said.append):
        owner = holder(tmp_path)
        assert owner is not None
        assert owner["pid"] == os.getpid()
    (line,) = said
    assert f"process {child.pid}" in line
    assert "no such process" in line


def test_a_pid_that_is_in_use_again_is_another_process(tmp_path: Path) -> None:
    left_behind(tmp_path, **here(born="123"))
    with locked(tmp_path, lambda text: None):
        pass


def test_a_pid_of_another_container_says_nothing(tmp_path: Path) -> None:
    """The same host and pid, another pid namespace: only the pulse tells."""
    left_behind(tmp_path, **here(boot="another namespace", pid=4711))
    said: list[str] = []
    with locked(tmp_path, said.append, pulse=PULSE):
        pass
    assert "watching it" in said[0]


def test_a_silent_lock_of_another_host_is_taken_over(tmp_path: Path) -> None:
    left_behind(tmp_path)
    said: list[str] = []
    with locked(tmp_path, said.append, pulse=PULSE):
        pass
    assert "process 4711 on node7" in said[-1]
    assert "no sign of life" in said[-1]


@pytest.mark.parametrize("skew", [-86400, 0, 86400])
def test_a_beating_lock_is_respected_whatever_its_clock_says(tmp_path: Path, skew: int) -> None:
    """Its node's clock is a day off: no mtime is compared with our clock."""
    path = left_behind(tmp_path)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(PULSE):
            now = time.time() + skew
            os.utime(path, (now, now))

    other = threading.Thread(target=beat)
    other.start()
    try:
        with pytest.raises(RunFolderError, match="node7"), locked(tmp_path, pulse=PULSE):
            raise AssertionError
    finally:
        stop.set()
        other.join()
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.parametrize("skew", [-86400, 86400])
def test_a_silent_lock_is_taken_over_whatever_its_clock_says(tmp_path: Path, skew: int) -> None:
    path = left_behind(tmp_path)
    now = time.time() + skew
    os.utime(path, (now, now))
    with locked(tmp_path, lambda text: None, pulse=PULSE):
        pass


def test_our_own_lock_beats(tmp_path: Path) -> None:
    with locked(tmp_path, pulse=PULSE):
        assert not locking._is_still(tmp_path / NAME, 10 * PULSE)


def test_a_lock_that_is_let_go_while_we_watch_is_ours(tmp_path: Path) -> None:
    path = left_behind(tmp_path)
    timer = threading.Timer(PULSE, path.unlink)
    timer.start()
    with locked(tmp_path, lambda text: None, pulse=PULSE):
        pass
    timer.join()


def test_half_a_lock_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"host"')
    said: list[str] = []
    with locked(tmp_path, said.append, pulse=PULSE):
        pass
    assert "no sign of life" in said[-1]


# --- Slurm jobs -----------------------------------------------------------------------------------


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A squeue that answers what the test writes."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def answer(text: str) -> None:
        (programs / "squeue").write_text(f"#!/bin/sh\n{text}\n")
        (programs / "squeue").chmod(0o755)

    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return answer


@pytest.mark.parametrize(
    "text",
    [
        "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        "echo COMPLETED",
        "echo CANCELLED",
        "echo",
    ],
)
def test_the_lock_of_a_job_that_left_the_queue_is_taken_over(
    tmp_path: Path, queue: Any, text: str
) -> None:
    queue(text)
    left_behind(tmp_path, job="12")
    said: list[str] = []
    with locked(tmp_path, said.append):
        pass
    assert "Slurm job 12" in said[0]
    assert "no longer in the queue" in said[0]


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "COMPLETING"])
def test_the_lock_of_a_job_in_the_queue_is_respected(
    tmp_path: Path, queue: Any, state: str
) -> None:
    queue(f"echo {state}")
    left_behind(tmp_path, job="12")
    with pytest.raises(RunFolderError, match="Slurm job 12"), locked(tmp_path):
        raise AssertionError


def test_where_slurm_does_not_answer_the_pulse_tells(tmp_path: Path, queue: Any) -> None:
    queue("echo 'Unable to contact slurm controller' >&2; exit 1")
    left_behind(tmp_path, job="12")
    said: list[str] = []
    with locked(tmp_path, said.append, pulse=PULSE):
        pass
    assert "no sign of life" in said[-1]


def test_a_requeued_job_takes_over_from_itself(
    tmp_path: Path, queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue("echo RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    left_behind(tmp_path, job="12")
    said: list[str] = []
    with locked(tmp_path, said.append):
        pass
    assert "it is this job, before it was requeued" in said[0]


# --- a process that was frozen, and a run ---------------------------------------------------------

FROZEN = """
import sys, time
from pathlib import Path
from wemask.settings.lock import NAME, locked
folder = Path(sys.argv[1])
with locked(folder, pulse=0.1):
    (folder / NAME).write_text('{"token": "theirs", "pid": 4711, "host": "node7"}')
    time.sleep(30)
"""


def test_a_process_whose_lock_was_taken_ends_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FROZEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "taken over by process 4711 on node7" in done.stderr


def test_two_trainings_of_one_run_the_second_refuses(tmp_path: Path) -> None:
    config = quick(tmp_path, "trainer.max_steps=1")
    config.folder().mkdir(parents=True)
    with locked(config.folder()), pytest.raises(RunFolderError, match="is in use by"):
        fit(config)
    folder, _ = fit(config)
    assert (folder / "final").exists()
    assert not (folder / NAME).exists()
