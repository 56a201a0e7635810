"""One run folder, one job: a lock file that tells who holds it, and a pulse to see if he lives.

Clocks of two nodes may differ, so no clock is compared with another: whether the holder lives is
seen by the file's mtime moving while we watch it.
"""

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wemask.errors import RunFolderError

NAME = "lock.json"
PULSE = 10.0  # seconds between two touches of the lock
WATCH = 3.5  # pulses without a touch, after which the holder is dead

Say = Callable[[str], None]


@contextmanager
def locked(folder: Path, say: Say = print, *, pulse: float = PULSE) -> Iterator[None]:
    """Hold the run folder; what a dead process or job has left is taken over and named.

    Args:
        folder: a run folder.
        say: for a line about a lock that is taken over.
        pulse: seconds between two signs of life.

    Raises:
        RunFolderError: another process or job works on it.
        OSError: the lock cannot be written.
    """
    path = folder / NAME
    owner = _ourselves()
    while not _create(path, owner):
        _clear(path, owner, say, pulse)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, owner, stop, pulse), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        if _read(path).get("token") == owner["token"]:
            path.unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds a run folder: host, pid, job, ...; None when nobody does."""
    path = folder / NAME
    return _read(path) if path.exists() else None


def describe(owner: dict[str, Any]) -> str:
    """A holder in words."""
    job = f", Slurm job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}{job}"


def _ourselves() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "token": uuid.uuid4().hex,
    }


def _boot() -> str | None:
    """Where a pid means something: this boot of this machine, and this container's processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None when there is none (or no /proc).

    A pid is used again after a while, with another start.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return None


def _create(path: Path, owner: dict[str, Any]) -> bool:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, json.dumps(owner).encode())
        os.fsync(file)
    finally:
        os.close(file)
    return True


def _read(path: Path) -> dict[str, Any]:
    """The holder; {} for a lock that is gone or not written yet."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _clear(path: Path, ours: dict[str, Any], say: Say, pulse: float) -> None:
    """Remove the lock of a holder that is dead.

    Raises:
        RunFolderError: he lives.
    """
    if not path.exists():
        return
    owner = _read(path)
    reason = _why_dead(path, owner, ours, say, pulse)
    if not path.exists():
        return  # it has ended meanwhile
    if reason is None:
        raise RunFolderError(
            f"{path.parent} is in use by {describe(owner)}: two jobs on one run folder would "
            "destroy each other's checkpoints. Wait for it or end it; the same command then "
            f"resumes. (If you know that it is dead: rm {path})"
        )
    aside = path.with_name(f".{NAME}.{ours['token']}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return  # another has cleared it
    if _read(aside).get("token") != owner.get("token"):
        # Between our look and the rename another took it over: give it back.
        os.link(aside, path)
        aside.unlink()
        return
    aside.unlink()
    say(f"The lock of {describe(owner)} was taken over: {reason}.")


def _why_dead(
    path: Path, owner: dict[str, Any], ours: dict[str, Any], say: Say, pulse: float
) -> str | None:
    """Why the holder no longer works on the folder; None when he does."""
    job = owner.get("job")
    if job is not None and job == ours["job"] and owner.get("pid") != ours["pid"]:
        return "it is this job, before it was requeued"
    if owner.get("boot") is not None and owner["boot"] == ours["boot"]:
        born = _born(int(owner.get("pid", 0)))
        return "there is no such process any more" if born != owner.get("born") else None
    if job is not None and (queued := _in_queue(str(job))) is not None:
        return None if queued else "that job is no longer in the queue"
    patience = WATCH * pulse
    say(f"{path} is held by {describe(owner)}: watching it for {patience:.0f} s.")
    return f"no sign of life in {patience:.0f} s" if _is_still(path, patience) else None


def _in_queue(job: str) -> bool | None:
    """Whether Slurm has the job; None when Slurm cannot be asked."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T", "--states=all"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    over = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
    over |= {"BOOT_FAIL", "DEADLINE", "REVOKED"}
    return any(state not in over for state in done.stdout.split())


def _is_still(path: Path, patience: float) -> bool:
    """Whether a file's mtime stays what it is."""
    first = _touched(path)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(patience / 20)
        if _touched(path) != first:
            return False
    return True


def _touched(path: Path) -> int | None:
    """The mtime as the file server has it: opening a file makes NFS ask for it again."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _beat(path: Path, owner: dict[str, Any], stop: threading.Event, pulse: float) -> None:
    """Touch the lock until told to stop."""
    while not stop.wait(pulse):
        found = _read(path)
        if found and found.get("token") != owner["token"]:
            # We were frozen so long that another took over. Two writers would ruin the folder.
            text = f"{path} was taken over by {describe(found)} while this process stood still"
            os.write(2, f"\nError: {text}. It ends here.\n".encode())
            os._exit(2)
        try:
            os.utime(path)
        except OSError:
            continue  # a file server that hangs for a moment is no reason to end a training
