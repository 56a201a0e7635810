"""One run, several ranks: who writes, who waits, and that all of them mean the same.

With one process everything here is a no-op. Ranks are started by `launch/ranks.py`, torchrun,
accelerate, deepspeed or srun. Torch is imported on first use.
"""

import atexit
import ctypes
import datetime
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from wemask import errors
from wemask.errors import ConfigError, WemaskError

T = TypeVar("T")
RANK0_SECONDS = 10  # seconds that a rank leaves rank 0 to say what is wrong


def rank() -> int:
    """This process's number among all ranks."""
    return _number("RANK", 0)


def world() -> int:
    """How many ranks the run has."""
    return _number("WORLD_SIZE", 1)


def _number(name: str, otherwise: int) -> int:
    """A variable's number; who says that it holds none (`_check_ranks`) asks for it, too."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise


def is_main() -> bool:
    """Whether this is rank 0: the one that writes the run folder, prints, and opens W&B."""
    return rank() == 0


def started() -> bool:
    """Whether the ranks can talk to each other yet."""
    if world() == 1 or "torch" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


def start(
    *, expected: int | None = None, timeout: float = 1800, group_of_one: bool = False
) -> None:
    """Connect the ranks; a second call does nothing.

    Args:
        expected: ranks that the settings ask for; None takes what the environment says.
        timeout: seconds after which a rank that waits in vain gives up; trainer.ddp_timeout.
        group_of_one: give a process that is alone a group, too: without one DeepSpeed seeks MPI.

    Raises:
        ConfigError: there are more or fewer ranks than were asked for.
    """
    if expected is not None and expected != world():
        raise ConfigError(
            f"{expected} ranks were asked for, {world()} run. Give torchrun, accelerate or srun as "
            "many as the launcher's settings, or leave the settings out."
        )
    if world() == 1 and not group_of_one:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"  # gloo for what is said below: no wait for the GPU
    alone: dict[str, Any] = {}
    if world() == 1:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        alone = {"store": store, "rank": 0, "world_size": 1}
        os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed asks for
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout), **alone)
    # Left to the interpreter's end, gloo's threads now and then abort a rank that is done.
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


def check_world(found: int) -> None:
    """Raise ConfigError unless the trainer has all ranks.

    accelerate may silently make one process of two (`accelerate launch --cpu`).
    """
    if found != world():
        raise ConfigError(
            f"{world()} ranks were started, but the trainer uses {found}: each would train alone. "
            "Start them with launcher.processes, or with torchrun."
        )


def largest(*values: float) -> list[float]:
    """The largest of each number over all ranks; the same everywhere. Every rank must ask."""
    if not started():
        return [*values]
    import torch
    import torch.distributed as dist

    found = torch.tensor(values)  # on the CPU, through gloo
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; the same answer everywhere. Every rank must ask."""
    return bool(largest(int(flag))[0])


def broadcast_object(value: T) -> T:
    """The value of rank 0, on every rank: plain values only."""
    if not started():
        return value
    import torch
    import torch.distributed as dist

    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def on_main(act: Callable[[], T]) -> T:
    """Do something on rank 0 while the others wait; its result (plain values) is everybody's.

    Raises:
        WemaskError: what `act` raises, on every rank.
    """
    if not started():
        return act()
    if is_main():
        try:
            value = act()
        except WemaskError as error:
            broadcast_object([type(error).__name__, str(error), None])
            raise
        broadcast_object([None, None, value])
        return value
    name, message, value = broadcast_object([None, None, None])
    if name is not None:
        error = getattr(errors, name, WemaskError)(message)
        error.of_main = True
        raise error
    return value  # pyright: ignore[reportReturnType]


def main_first(act: Callable[[], T]) -> T:
    """Do something on every rank, on rank 0 before the others: they find what it leaves in a cache.

    Where another node has a cache of its own, its ranks do it anew.

    Raises:
        WemaskError: what `act` raises on rank 0, on every rank.
    """
    made: list[T] = []
    on_main(lambda: made.append(act()))
    return made[0] if made else act()


def agree(value: str, what: str) -> None:
    """Raise ConfigError, with the ranks that differ, unless `value` (a hash) is the same on all."""
    if not started():
        return
    import torch.distributed as dist

    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    if others := [i for i, other in enumerate(values) if other != values[0]]:
        raise ConfigError(
            f"The ranks disagree about {what}: rank 0 has {values[0]}, but not so "
            f"{', '.join(f'rank {i} ({values[i]})' for i in others)}. They need the same model "
            "files, packages and settings: compare them on the nodes."
        )


def say_once(error: WemaskError) -> None:
    """Print an error once, though every rank has it, and give rank 0 time to do so."""
    if is_main():
        print(f"\nError: {error}", file=sys.stderr, flush=True)
        return
    # Before the ranks are connected, rank 0 checks the same settings and says the same.
    if started() and not error.of_main:
        print(f"\nError on rank {rank()}: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(RANK0_SECONDS)  # whoever started us ends us when rank 0 is gone


def adopt_environment() -> None:
    """Take part in what torchrun, accelerate, deepspeed or srun have started; before anything else.

    Raises:
        ConfigError: `accelerate launch` on CPUs, which starts one process instead of several.
    """
    # The deepspeed command adds this to the words, and Hydra would not know it.
    sys.argv[1:] = [word for word in sys.argv[1:] if not re.match(r"--local[-_]rank=\d+$", word)]
    if "RANK" not in os.environ:
        os.environ.update(srun_ranks(os.environ))
    _check_ranks(os.environ)
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        _end_with_parent()
        if os.environ.get("RANK", "0") != "0":
            logging.getLogger("wemask").setLevel(logging.WARNING)  # rank 0 says it
    elif "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs "
            "without --multi_gpu. Type: python train.py launcher.processes=2, or use torchrun."
        )


def _check_ranks(environment: Mapping[str, str]) -> None:
    """Raise ConfigError where the variables of a rank are no numbers, contradict, or are partial.

    A RANK that is left in a shell would make one process wait for others that nobody started.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: environment[name] for name in names if name in environment}
    unset = f"Start the ranks with launcher.processes or torchrun, or type: unset {' '.join(given)}"
    for name, value in given.items():
        if not re.fullmatch(r"\d{1,9}", value.removeprefix("-" if name[0] == "L" else "")):
            raise ConfigError(f"{name} must be a whole number, found {value!r:.60}. {unset}")
    number, ranks = int(given.get("RANK", 0)), int(given.get("WORLD_SIZE", 1))
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in environment]
    if missing and ("RANK" in given or ranks > 1):
        raise ConfigError(f"{', '.join(given)} set, but {', '.join(missing)} missing. {unset}")
    if number >= ranks:
        raise ConfigError(f"RANK is {number}, but WORLD_SIZE {ranks}. {unset}")


def srun_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, ... of a task of `srun`; {} elsewhere.

    The counts of the step, not of the job: a batch script that asked for several tasks is one
    process all the same.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_STEP_ID" not in environment or tasks == "1":
        return {}
    names = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
    for name in names:
        if not re.fullmatch(r"\d{1,18}", environment.get(name, "")):
            raise ConfigError(
                f"srun sets {name} to a whole number, found {environment.get(name)!r:.60}. Start "
                "this with srun, or type: unset SLURM_STEP_ID"
            )
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_node(environment),
        "MASTER_PORT": environment.get("MASTER_PORT")
        or str(port_of(int(environment["SLURM_JOB_ID"]))),
    }


def port_of(job: int) -> int:
    """The port of rank 0: the same on every node, another for each job, none that is ephemeral."""
    return 10000 + job % 20000


def _first_node(environment: Mapping[str, str]) -> str:
    """Address of the first node of a step, as Slurm itself reaches it."""
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    try:
        names = _ask("scontrol", "show", "hostnames", nodes).split()
        match = re.search(r"\bNodeAddr=(\S+)", _ask("scontrol", "show", "node", "-o", names[0]))
        return match[1] if match else names[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise ConfigError(
            f"The address of the first of the nodes {nodes} was sought, scontrol said: {error}. "
            "Set MASTER_ADDR."
        ) from error


def _ask(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


def _end_with_parent() -> None:
    """Ask Linux to end this rank when whoever started it is killed: no orphans."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def is_rank() -> bool:
    """Whether this process is a rank of something that is running already."""
    return "RANK" in os.environ
