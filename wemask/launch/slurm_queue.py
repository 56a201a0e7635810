"""What Slurm's queue says of a job, and what a run folder says of its run: `wemask status`.

Only `squeue` is asked: clusters without accounting have no `sacct`.
"""

import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from wemask.errors import ConfigError, DataError, RunFolderError
from wemask.files import read_json

ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "STOPPED")
ACTIVE += ("RESIZING", "SIGNALING", "STAGE_OUT", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
FORMAT = "%i|%T|%M|%L|%N|%S|%r"


class Queued(NamedTuple):
    """One line of squeue, in the order of FORMAT."""

    job: str
    state: str
    used: str
    left: str
    nodes: str
    start: str
    reason: str

    @property
    def active(self) -> bool:
        """Whether it runs or will."""
        return self.state in ACTIVE

    def words(self) -> str:
        """State, and what matters in it."""
        if self.state == "PENDING":
            start = "" if self.start in ("N/A", "") else f", expected to start {self.start}"
            return f"PENDING ({self.reason}){start}"
        if self.state == "RUNNING":
            return f"RUNNING on {self.nodes}, {self.used} used, {self.left} left"
        reason = f" ({self.reason})" if self.reason not in ("None", "") else ""
        return f"{self.state}{reason}"


def parse(text: str) -> list[Queued]:
    """Lines of `squeue --format=FORMAT`."""
    rows = (line.strip().split("|", 6) for line in text.splitlines())
    return [Queued(*row) for row in rows if len(row) == len(Queued._fields)]


def ask_queue(job: str) -> Queued | None:
    """The job as the queue has it; None when it has left the queue, or there is no queue here.

    Raises:
        ConfigError: squeue does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all"]
    command += [f"--jobs={job}", f"--format={FORMAT}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{shlex.join(command)} did not answer in a minute.") from error
    if done.returncode:
        if "Invalid job id" in done.stderr:
            return None
        raise ConfigError(f"{shlex.join(command)} failed: {' '.join(done.stderr.split())}")
    rows = parse(done.stdout)
    return rows[0] if rows else None


def job_of(folder: Path) -> dict[str, Any] | None:
    """What was submitted for a run folder: job, evaluate, script; None when nothing was."""
    path = folder / "slurm" / "job.json"
    if not path.exists():
        return None
    try:
        values = read_json(path)
    except DataError as error:
        raise RunFolderError(f"{error} Remove it.") from error
    return values if "job" in values else None


def status(folder: Path) -> list[tuple[str, str]]:
    """What is known of a run: lines of (name, value).

    Raises:
        RunFolderError: it is no run folder.
        ConfigError: squeue does not answer.
    """
    from wemask.settings.lock import holder, holder_words
    from wemask.train.progress import Progress
    from wemask.train.saved_state import is_finished, last_checkpoint

    if not (folder / "config.resolved.yaml").exists():
        raise RunFolderError(
            f"{folder} is no run folder: config.resolved.yaml was sought. It is the folder that "
            "train.py named, outputs/EXPERIMENT/RUN."
        )
    lines = [("run", str(folder)), *_jobs(folder)]
    if (owner := holder(folder)) is not None:
        lines.append(("in use by", holder_words(owner)))
    if (progress := Progress.read(folder)) is not None:
        lines.append(("step", f"{progress.step} of {progress.max_steps}"))
        lines.append(("loss", "unknown" if progress.loss is None else f"{progress.loss:.4f}"))
    if is_finished(folder):
        return [*lines, ("finished", str(folder / "final"))]
    checkpoint, broken = last_checkpoint(folder, contents=False)
    if progress is not None and progress.seconds_left is not None:
        pace = f"{progress.seconds_per_step:.2f} s per step"
        lines.append(("time left", f"{duration(progress.seconds_left)} at {pace}"))
    lines.append(("checkpoint", checkpoint.name if checkpoint else "none yet"))
    lines += [("half-written", name) for name in broken]
    return lines


def _jobs(folder: Path) -> list[tuple[str, str]]:
    about = job_of(folder)
    if about is None:
        return [("job", "none was submitted")]
    lines = []
    for name, key in (("job", "job"), ("evaluation", "evaluate")):
        if (number := about.get(key)) is not None:
            queued = ask_queue(number)
            words = queued.words() if queued else "not in the queue (any more)"
            lines.append((name, f"{number}: {words}"))
    log = folder / "slurm" / f"{str(about['job']).partition('_')[0]}.out"
    return [*lines, ("log", str(log))] if log.exists() else lines


def duration(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
