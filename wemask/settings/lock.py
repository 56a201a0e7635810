"""One run folder, one job: a lock that dies with its holder, and a record of who that is.

The lock is flock's, by filelock: a process that is killed holds none, and a file server takes a
lost node's back (NFSv4, Lustre, GPFS; NFSv3 only when the node is up again, which a requeued job
does not wait for). flock says nothing about the holder: `lock.json` beside it does.
"""

import errno
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from wemask.errors import RunFolderError
from wemask.files import read_json, write_whole

NAME = "lock.json"
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # NFS without lockd, Lustre without flock
LOCK = ".lock"  # it stays: who had it open when it went would lock a file that nobody else sees

Say = Callable[[str], None]


@contextmanager
def locked(folder: Path, say: Say = print) -> Iterator[None]:
    """Hold the run folder; what a dead process or job has left is taken over, and `say` names it.

    Raises:
        RunFolderError: another process or job works on it.
        OSError: the lock cannot be written.
    """
    ourselves: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": _count(os.environ.get("SLURM_RESTART_COUNT")),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    before = holder(folder) or {}
    is_this_job = before.get("job") is not None and before["job"] == ourselves["job"]
    if is_this_job and _count(before.get("restarts")) < ourselves["restarts"]:  # it was requeued
        (folder / LOCK).unlink(missing_ok=True)  # a lost node cannot let go; ours is another file
    try:
        lock = FileLock(folder / LOCK, fallback_to_soft=False).acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(
            f"{folder} is in use by {holder_words(holder(folder) or {})}: two jobs on one run "
            "folder would destroy each other's checkpoints. Wait for it or end it; then the same "
            f"command resumes. (If you know that it is dead: rm {folder / LOCK})"
        ) from error
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        say(f"The file system of {folder} has no flock: a second job on it would not be noticed.")
        lock = nullcontext()
    with lock:
        if (left := holder(folder)) is not None:
            say(f"The lock of {holder_words(left)} was taken over: it ended without letting go.")
        write_whole(folder / NAME, json.dumps(ourselves))
        try:
            yield
        finally:
            if holder(folder) == ourselves:  # not that of a requeued job that took our place
                (folder / NAME).unlink()


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds a run folder, or was killed while he did: host, pid, job, since; None: nobody."""
    path = folder / NAME
    if not path.exists():  # a link that leads nowhere holds nobody's name
        return None
    try:
        return read_json(path, RunFolderError)
    except RunFolderError:
        return {}


def _count(value: object) -> int:
    """A number of restarts; 0 where a record or a variable says nothing that is one."""
    return int(str(value)) if re.fullmatch(r"\d{1,9}", str(value)) else 0


def holder_words(owner: dict[str, Any]) -> str:
    """A holder in words."""
    job = f", Slurm job {owner['job']}" if owner.get("job") else ""
    since = f", since {owner['since']}" if owner.get("since") else ""
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}{job}{since}"
