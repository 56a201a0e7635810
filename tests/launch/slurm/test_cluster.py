"""Jobs on a real Slurm of two nodes on this host: `make test-slurm`, about three minutes.

Needs root, for Slurm's daemons; installs slurm-wlm and munge through apt where they are missing.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import network_guard
import pytest
import yaml
from engine_support import SHARD_ALL, environment

from wemask import load
from wemask.launch.slurm_queue import status
from wemask.train.saved_state import last_checkpoint

REPOSITORY = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
HOSTILE = "it's $(touch pwned) #1 100%j"
STEPS = 60
QUICK = ("debug=fast", "launcher.gpus_per_node=0", "trainer.logging_steps=1")

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(400)]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running Slurm; every job's children import this checkout."""
    folder = tmp_path_factory.mktemp("slurm")
    dead = "http://{}:{}".format(*network_guard.DEAD_PROXY)  # what tests have; apt would ask it
    outside = {name: value for name, value in os.environ.items() if value != dead}
    done = subprocess.run(
        [HERE / "up.sh", folder], env=outside, capture_output=True, text=True, timeout=300
    )
    if done.returncode == 3:  # no root, or no packages
        pytest.skip(f"NO SLURM HERE, NOTHING OF IT WAS TESTED: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    before = dict(os.environ)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    try:
        yield folder
    finally:
        subprocess.run([HERE / "down.sh", folder], timeout=60)
        os.environ.clear()
        os.environ.update(before)


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def wemask(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "wemask.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(met: Callable[[], Any], what: Callable[[], str], seconds: float = 150) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := met():
            return value
        time.sleep(0.25)
    raise AssertionError(f"waited {seconds} s in vain.\n{ask('squeue', '--states=all')}\n{what()}")


def state(job: str) -> str:
    return ask("squeue", "-h", "-r", "--states=all", f"--jobs={job}", "--format=%T").strip()


def log_of(run: Path) -> str:
    return "\n".join(
        path.read_text(errors="replace") for path in sorted((run / "slurm").glob("*.out"))
    )


def step_of(run: Path) -> int:
    path = run / "progress.json"
    return json.loads(path.read_text())["step"] if path.exists() else 0


# --- a training on two nodes that has to make room, and its evaluation ----------------------------


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Submitted, preempted by a job of higher priority, requeued, finished, evaluated."""
    cwd = tmp_path_factory.mktemp("chain") / HOSTILE
    cwd.mkdir()
    words = (*QUICK, "launcher.nodes=2", f"trainer.max_steps={STEPS}", "trainer.save_steps=1000")
    evaluation = "launcher.evaluate_words=['limit=4','arms=[base,wemask_sft]']"
    said = wemask("submit", *words, evaluation, cwd=cwd)
    (run,) = (cwd / "outputs" / "default").glob("tiny__wemask__*")
    jobs = json.loads((run / "slurm" / "job.json").read_text())
    until(lambda: step_of(run) >= 3, lambda: log_of(run))
    during = dict(status(run))  # not as a command: the training lasts about as long as its start
    urgent = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    high = ask("sbatch", "--parsable", *urgent, "--wrap=sleep 1").strip()
    second = subprocess.Popen(
        [sys.executable, "-m", "wemask.cli", "submit", *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )
    until(lambda: state(high) == "COMPLETED", lambda: log_of(run))
    refusal = second.communicate(timeout=100)[1]
    until(lambda: state(jobs["job"]) == "COMPLETED", lambda: log_of(run))
    until(lambda: state(jobs["evaluate"]) == "COMPLETED", lambda: log_of(run))
    return {
        "run": run,
        "said": said,
        "during": during,
        "jobs": jobs,
        "refusal": refusal,
        "cwd": cwd,
    }


def test_submit_says_the_job_and_how_to_follow_it(chain: dict[str, Any]) -> None:
    said, jobs = chain["said"], chain["jobs"]
    assert f"Submitted job {jobs['job']}" in said
    assert f"job {jobs['evaluate']}: python evaluate.py" in said
    assert "wemask status" in said
    assert "tail -F" in said


def test_both_nodes_train_in_one_run_and_rank_0_alone_speaks(chain: dict[str, Any]) -> None:
    log = log_of(chain["run"])
    assert re.search(r"Job \d+ on n\[1-2\], start 1", log)
    assert log.count("Saved: ") == 1
    assert log.count("'train_runtime'") <= 2  # one for each start
    assert not (chain["cwd"] / "pwned").exists()


def test_it_is_preempted_and_goes_on_at_the_same_step(chain: dict[str, Any]) -> None:
    log = log_of(chain["run"])
    stopped = re.search(rf"Interrupted at step (\d+) of {STEPS}", " ".join(log.split()))
    assert stopped, log
    assert 3 <= int(stopped[1]) < STEPS
    assert "Going back into the queue" in log
    assert re.search(r"start 2, ", log)
    assert f"checkpoint-{stopped[1]}." in log  # Resuming from ...
    last = chain["run"] / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json"
    history = json.loads(last.read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == list(range(1, STEPS + 1))
    left = {path.suffix for path in (chain["run"] / "slurm").iterdir()}
    assert left == {".sbatch", ".json", ".out"}
    assert "Traceback" not in log
    assert "service has ended" not in log
    assert not (chain["run"] / "lock.json").exists()


def test_it_stays_one_wandb_run(chain: dict[str, Any]) -> None:
    identity = (chain["run"] / "wandb_run_id").read_text().strip()
    runs = [path.name for path in (chain["run"] / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert all(name.endswith(identity) for name in runs)


def test_the_evaluation_waits_for_the_requeued_job(chain: dict[str, Any]) -> None:
    assert "PENDING (Dependency)" in chain["during"]["evaluation"]
    (results,) = (chain["cwd"] / "outputs" / "default").glob("*__compare__*/results.json")
    assert set(json.loads(results.read_text())["arms"]) == {"base", "wemask_sft"}


def test_status_tells_queue_step_and_loss(chain: dict[str, Any]) -> None:
    during = chain["during"]
    assert re.match(r"\d+: RUNNING on n\[1-2\], 0:\d\d used, ", during["job"])
    assert re.match(rf"\d+ of {STEPS}$", during["step"])
    assert 0 < float(during["loss"]) < 3
    assert re.match(r"0:\d\d:\d\d at \d+\.\d+ s per step", during["time left"])
    assert re.match(r"process \d+ on .*, Slurm job \d+, since ", during["in use by"])
    after = wemask("status", str(chain["run"]), cwd=chain["cwd"])
    assert "COMPLETED" in after
    assert "finished" in after


def test_a_second_job_on_the_same_run_is_refused(chain: dict[str, Any]) -> None:
    assert "has a job in the queue already" in chain["refusal"]
    assert f"{chain['jobs']['job']} is " in chain["refusal"]


# --- the line that a lab types: ZeRO-3 on two nodes ----------------------------------------------


def test_zero3_on_two_nodes_is_told_to_stop_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    if shutil.which("c++") is None:
        pytest.skip("DeepSpeed builds its kernel with c++, which is not here")
    words = (*QUICK, "method=wemask", "deepspeed=zero3", SHARD_ALL, "launcher.nodes=2")
    kernels = f"launcher.env.TORCH_EXTENSIONS_DIR={environment('zero3')['TORCH_EXTENSIONS_DIR']}"
    steps = ("trainer.max_steps=30", "trainer.save_steps=1000")
    own = ("logger=none", "launcher.evaluate_after=false")
    wemask("submit", *words, *steps, *own, kernels, cwd=tmp_path)
    (run,) = (tmp_path / "outputs" / "default").glob("tiny__wemask__*")
    job = json.loads((run / "slurm" / "job.json").read_text())["job"]
    until(lambda: step_of(run) >= 3, lambda: log_of(run), 300)
    ask("scancel", "--batch", "--signal=TERM", job)
    until(lambda: state(job) == "COMPLETED", lambda: log_of(run))
    log = " ".join(log_of(run).split())
    stopped = re.search(r"Interrupted at step (\d+) of 30", log)
    assert stopped, log
    assert f"checkpoint-{stopped[1]}." in log  # Resuming from ...
    last = run / "checkpoints" / "checkpoint-30"
    engine = json.loads((last / "engine.json").read_text())
    assert engine.pop("tokens") > 0  # how many it had read
    assert engine == {"kind": "zero", "ranks": 2, "stage": 3}
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == list(range(1, 31))
    model: Any = load(run / "final")[0]
    assert model.wemask_handle.layers


# --- a node that dies -----------------------------------------------------------------------------


def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    words = (*QUICK, "launcher.nodes=2", "trainer.max_steps=40", "trainer.save_steps=5")
    own = ("logger=none", "launcher.evaluate_after=false")
    wemask("submit", *words, *own, cwd=tmp_path)
    (run,) = (tmp_path / "outputs" / "default").glob("tiny__wemask__*")
    job = json.loads((run / "slurm" / "job.json").read_text())["job"]
    until(lambda: last_checkpoint(run)[0], lambda: log_of(run))
    # What slurmctld finds after SlurmdTimeout; before the kill, of which no daemon could report.
    ask("scontrol", "update", "nodename=n2", "state=down", "reason=died")
    kill_node("n2", job)
    until(lambda: "RUNNING" not in state(job), lambda: log_of(run))
    ask("slurmd", "-N", "n2")  # which brings the node back: ReturnToService=2 in slurm.conf
    until(lambda: state(job) == "COMPLETED", lambda: log_of(run))
    log = " ".join(log_of(run).split())
    again = re.search(r"Resuming from \S+/checkpoint-(\d+)\.", log)
    assert again and int(again[1]) % 5 == 0, log
    assert "start 2, " in log
    last = run / "checkpoints" / "checkpoint-40" / "trainer_state.json"
    history = json.loads(last.read_text())["log_history"]
    assert [line["step"] for line in history if "loss" in line] == list(range(1, 41))
    assert (run / "final").exists()


def kill_node(node: str, job: str) -> None:
    """End the node's slurmd and all of the job's processes on it, as a power cut does."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = (path / "cmdline").read_bytes().split(b"\0")
            values = (path / "environ").read_bytes().split(b"\0")
            ours = {f"SLURMD_NODENAME={node}".encode(), f"SLURM_JOB_ID={job}".encode()}
            if words[:3] == [b"slurmd", b"-N", node.encode()] or ours <= set(values):
                os.kill(int(path.name), signal.SIGKILL)


# --- a sweep --------------------------------------------------------------------------------------


def test_a_sweep_is_one_job_array_and_one_evaluation(tmp_path: Path) -> None:
    words = (*QUICK, "trainer.max_steps=2", "seed=0,1", "logger=none", "launcher.array_limit=1")
    said = wemask("submit", "-m", *words, "launcher.evaluate_after=false", cwd=tmp_path)
    number = re.search(r"Submitted job (\d+), 2 runs", said)
    assert number, said
    runs = sorted((tmp_path / "outputs" / "default").glob("tiny__wemask__s?__*"))
    jobs = [json.loads((run / "slurm" / "job.json").read_text())["job"] for run in runs]
    assert jobs == [f"{number[1]}_0", f"{number[1]}_1"]
    over = ["COMPLETED", "COMPLETED"]
    until(lambda: state(number[1]).split() == over, lambda: "\n".join(map(log_of, runs)))
    for seed, run in enumerate(runs):
        assert (run / "final").exists()
        settings = yaml.safe_load((run / "config.resolved.yaml").read_text())
        assert settings["seed"] == seed
        assert "Saved: " in (run / "slurm" / f"{number[1]}.out").read_text()


# --- what the script does, with something quick in the place of Python ----------------------------

STAND_IN = """#!/usr/bin/env bash
echo "stand-in: $BODY"
eval "$BODY"
"""
SAVES = 'trap "touch $WEMASK_REQUEUE_FILE; exit 1" TERM; for i in {1..300}; do sleep 0.1; done'


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, Callable]]:
    """Submits the script of a run whose Python is a line of shell; (job, its log so far)."""
    cwd = tmp_path_factory.mktemp("quick")
    python = cwd / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    words = (f"launcher.python={python}", "launcher.signal_seconds=4")
    text = wemask("submit", "--dry-run", *QUICK, *words, cwd=cwd)
    script = cwd / "train.sbatch"
    script.write_text(text)
    output = re.search(r"^#SBATCH --output=(.*)/%j.out$", text, re.M)
    assert output
    Path(output[1]).mkdir(parents=True)

    def submit(body: str) -> tuple[str, Callable[[], str]]:
        job = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "BODY": body},
        ).stdout.strip()
        log = Path(output[1]) / f"{job}.out"

        def read() -> str:
            return log.read_text() if log.exists() else ""

        until(lambda: "stand-in" in read(), read, 60)
        return job, read

    return submit


def test_a_job_that_its_user_cancels_is_not_revived(quick: Any) -> None:
    job, log = quick(SAVES)
    ask("scancel", job)
    until(lambda: state(job) == "CANCELLED", log, 60)
    time.sleep(3)
    assert state(job) == "CANCELLED"
    assert "Going back" not in log()


def test_a_crash_is_not_requeued(quick: Any) -> None:
    job, log = quick("exit 1")
    until(lambda: state(job) == "FAILED", log, 60)
    assert "Going back" not in log()


def test_a_job_that_dies_while_it_is_told_to_stop_is_requeued_all_the_same(quick: Any) -> None:
    """Told before the training began, there is nothing to save and nobody to leave the file."""
    job, log = quick("exec sleep 60")
    ask("scancel", "--batch", "--signal=TERM", job)
    until(lambda: "Going back" in log(), log, 60)
    until(lambda: state(job) == "PENDING", log, 60)
    ask("scancel", job)
