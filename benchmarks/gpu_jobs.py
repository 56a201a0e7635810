"""Commands that run beside each other until they have ended, or until their time is up."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE = 10.0  # seconds in which a command that was told to stop may save what it has
POLL = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command."""

    name: str
    command: Sequence[str]


@dataclass(kw_only=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    began: float

    def outcome(self, *, stopped: bool) -> dict[str, Any]:
        code = self.process.wait()
        status = "finished" if code == 0 else "stopped" if stopped else "failed"
        result: dict[str, Any] = {
            "status": status,
            "seconds": round(time.monotonic() - self.began, 1),
        }
        if status == "failed":
            lines = self.log.read_text(errors="replace").split("\n")
            result["says"] = " ".join([line.strip() for line in lines if line.strip()][-2:])
        return result


def run(
    jobs: Iterable[Job],
    *,
    until: float,
    lanes: int,
    logs: Path,
    environment: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Run `jobs` in their order, at most `lanes` at once.

    Args:
        jobs: with different names.
        until: when all is over, by time.monotonic; jobs are told to stop `GRACE` before it.
        lanes: jobs at once.
        logs: folder; what a job prints goes to NAME.log.
        environment: of the jobs.

    Returns:
        Job name -> status (finished | stopped | failed | not begun), seconds, and of a failed one
        the last two lines that it printed.
    """
    waiting, running, outcomes = list(jobs), list[_Running](), dict[str, dict[str, Any]]()
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while (waiting or running) and time.monotonic() < until - GRACE:
            while waiting and len(running) < lanes:
                running.append(_start(waiting.pop(0), logs, environment))
            time.sleep(POLL)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                outcomes[one.job.name] = one.outcome(stopped=False)
    finally:  # also when it is us who are stopped
        _stop(running)
    outcomes |= {one.job.name: one.outcome(stopped=True) for one in running}
    return outcomes | {job.name: {"status": "not begun", "seconds": 0.0} for job in waiting}


def _start(job: Job, logs: Path, environment: Mapping[str, str]) -> _Running:
    log = logs / f"{job.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            job.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # so that its own children are reached, too
        )
    return _Running(job=job, process=process, log=log, began=time.monotonic())


def _stop(running: Sequence[_Running]) -> None:
    """TERM for all, so that they save side by side; KILL for what is there after `GRACE`."""
    for one in running:
        _signal(one.process, signal.SIGTERM)
    end = time.monotonic() + GRACE
    for one in running:
        try:
            one.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(one.process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)
