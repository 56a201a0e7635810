"""Ranks: started here or recognised, of one mind, and gone together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_support import FAST, REPOSITORY, quick, settings, start, weights

from wemask import distributed
from wemask.errors import ConfigError
from wemask.settings.composition import compose
from wemask.settings.config import run_config
from wemask.train.saved_state import last_checkpoint
from wemask.train.training import train


def test_another_world_than_was_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 ranks were asked for, 1 run"):
        train(quick(tmp_path, "launcher.processes=2"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="1 ranks were started, but the trainer uses 2"):
        distributed.check_world(2)


# --- real ranks, without a model ------------------------------------------------------------------


def ranks(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """Two ranks of a script, started as train.py does; it ends when they do."""
    script = tmp_path / "rank.py"
    script.write_text(f"import os, signal, sys, time\nfrom pathlib import Path\n{body}")
    code = (
        "import sys; from pathlib import Path; from wemask.launch.ranks import start_ranks;"
        "sys.exit(start_ranks(2, Path(sys.argv[1]), sys.argv[2:]))"
    )
    path = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


SAY_PID = """
from wemask.distributed import adopt_environment
adopt_environment()
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
(folder / f"pid{rank}.part").write_text(str(os.getpid()))
(folder / f"pid{rank}.part").rename(folder / f"pid{rank}")
"""


def pids(tmp_path: Path, process: subprocess.Popen[str]) -> list[int]:
    paths = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    for _ in range(600):
        if all(path.exists() for path in paths):
            return [int(path.read_text()) for path in paths]
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("the ranks never came")


def gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_killed_rank_ends_the_others_and_is_named(tmp_path: Path) -> None:
    process = ranks(tmp_path, SAY_PID + "time.sleep(100)")
    both = pids(tmp_path, process)
    os.kill(both[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"rank 1 (process {both[1]}) died first, with SIGKILL" in err
    assert "The same command resumes" in err
    assert all(gone(pid) for pid in both)


def test_the_traceback_of_a_rank_is_shown(tmp_path: Path) -> None:
    process = ranks(tmp_path, SAY_PID + "\nif rank == 1: 1 / 0\ntime.sleep(100)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ZeroDivisionError" in err
    assert "rank 1" in err
    assert err.count("Traceback") == 1  # none of ours on top


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)"


def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    process = ranks(
        tmp_path, SAY_PID + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)"
    )
    both = pids(tmp_path, process)
    process.kill()
    process.communicate(timeout=30)
    assert all(gone(pid) for pid in both)


def test_term_goes_to_the_ranks_which_may_take_their_time(tmp_path: Path) -> None:
    handler = """
def save(number, frame):
    time.sleep(2)
    (folder / f"saved{rank}").touch()
    sys.exit(2)
signal.signal(signal.SIGTERM, save)
"""
    process = ranks(tmp_path, handler + SAY_PID + "time.sleep(100)")
    pids(tmp_path, process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert (tmp_path / "saved0").exists()
    assert (tmp_path / "saved1").exists()


AGREE = """
import json
from wemask import distributed
from wemask.errors import ConfigError, RunFolderError
distributed.start(expected=2)
rank = distributed.rank()
seen = {"world": distributed.world(), "main": distributed.is_main()}
calls = []
seen["value"] = distributed.on_main(lambda: calls.append(1) or {"by": rank})
seen["calls"] = len(calls)
seen["any"] = [distributed.any_rank(rank == 1), distributed.any_rank(False)]
seen["largest"] = distributed.largest(rank, -0.5 * rank)
seen["sent"] = distributed.broadcast_object(f"of {rank}")
distributed.agree("same", "this")
try:
    distributed.agree(f"hash{rank}", "the ME Layer")
except ConfigError as error:
    seen["disagree"] = str(error)
def fail():
    raise RunFolderError("the disk is full")
try:
    distributed.on_main(fail)
except RunFolderError as error:
    seen["error"] = [str(error), error.of_main]
cache = Path(sys.argv[1]) / "cache"
def build():
    found = cache.exists()
    cache.touch()
    return f"of {rank}, found: {found}"
seen["first"] = distributed.main_first(build)
try:
    distributed.main_first(lambda: fail() if rank == 0 else None)
except RunFolderError as error:
    seen["first_failed"] = str(error)
(Path(sys.argv[1]) / f"seen{rank}").write_text(json.dumps(seen))
"""


def test_ranks_talk_agree_and_fail_together(tmp_path: Path) -> None:
    process = ranks(tmp_path, AGREE)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    seen = [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in (0, 1)]
    assert [s["main"] for s in seen] == [True, False]
    assert [s["calls"] for s in seen] == [1, 0]
    assert [s["first"] for s in seen] == ["of 0, found: False", "of 1, found: True"]
    assert [s["first_failed"] for s in seen] == ["the disk is full"] * 2
    assert [s["error"] for s in seen] == [["the disk is full", False], ["the disk is full", True]]
    for one in seen:
        assert one["world"] == 2
        assert one["value"] == {"by": 0}
        assert one["any"] == [True, False]
        assert one["largest"] == [1.0, 0.0]
        assert one["sent"] == "of 0"
        assert "disagree about the ME Layer" in one["disagree"]
        assert "rank 1 (hash1)" in one["disagree"]


# --- whole trainings ------------------------------------------------------------------------------


def finished(*words: str) -> tuple[Path, str, str]:
    process = start("train.py", *FAST, *words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    return settings(*FAST, *words).folder(), out, err


def wait_for(path: Path, process: Any) -> None:
    for _ in range(1500):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path} never came")


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_two_ranks_stopped_by_term_end_at_the_same_weights(tmp_path: Path) -> None:
    """Same step, same order of the data: bitwise what an undisturbed run gives."""
    words = ("launcher.processes=2", "trainer.max_steps=40", "trainer.save_steps=1000")
    cut = (*words, f"paths.output_dir={tmp_path / 'cut'}")
    folder = settings(*FAST, *cut).folder()
    process = start(
        "train.py", *FAST, *cut, env={**os.environ, "WEMASK_REQUEUE_FILE": str(tmp_path / "again")}
    )
    wait_for(folder / "progress.json", process)
    process.terminate()
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert err.count("Error: Interrupted at step") == 1
    assert "Traceback" not in err
    assert (tmp_path / "again").exists()
    checkpoint, broken = last_checkpoint(folder)
    assert checkpoint is not None
    assert broken == []
    _, out, err = finished(*cut)
    assert f"Resuming from {checkpoint}" in err
    assert out.count("Saved: ") == 1
    whole, out, _ = finished(*words, f"paths.output_dir={tmp_path / 'whole'}")
    assert out.count("wemask: tiny") == 1
    a, b = weights(folder / "final"), weights(whole / "final")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_that_is_killed_leaves_whole_checkpoints_and_no_process(tmp_path: Path) -> None:
    words = (
        *("launcher.processes=2", f"paths.output_dir={tmp_path}"),
        *("trainer.max_steps=2000", "trainer.save_steps=5"),
    )
    folder = run_config(compose("train", [*FAST, *words])).folder()
    process = start("train.py", *FAST, *words)
    wait_for(folder / "checkpoints" / "checkpoint-5" / "trainer_state.json", process)
    both = children(process.pid)
    assert len(both) == 2
    os.kill(both[1], signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert "died first" in err
    assert all(gone(pid) for pid in both)
    half = folder / "checkpoints" / "checkpoint-1999"
    half.mkdir()  # one that was being written
    checkpoint, broken = last_checkpoint(folder)
    assert checkpoint is not None
    assert "checkpoint-1999" in broken


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]
