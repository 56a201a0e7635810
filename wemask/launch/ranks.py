"""Start the ranks of a run, or recognise that somebody else has.

`python train.py launcher.processes=2` starts two ranks of the same command. Under torchrun,
`accelerate launch`, `deepspeed` and `srun` nothing is started. With `launcher=slurm` a job is
submitted. `python -m wemask.launch.ranks ARGS` is torchrun with our exit codes, for job scripts.
"""

import ctypes
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wemask.errors import ConfigError
from wemask.settings.launcher import LauncherConfig

PATIENCE = "300"  # seconds for ranks that were told to stop: saving a large model takes minutes


# --- the environment that we were started in ------------------------------------------------------


def adopt_environment() -> None:
    """Take part in what torchrun, accelerate, deepspeed or srun have started; before anything else.

    Raises:
        ConfigError: `accelerate launch` on CPUs, which starts one process instead of several.
    """
    # The deepspeed command adds this to the words, and Hydra would not know it.
    sys.argv[1:] = [word for word in sys.argv[1:] if not re.match(r"--local[-_]rank=\d+$", word)]
    if "RANK" not in os.environ:
        os.environ.update(srun_ranks(os.environ))
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        _end_with_parent()
        if os.environ.get("RANK", "0") != "0":
            logging.getLogger("wemask").setLevel(logging.WARNING)  # rank 0 says it
    elif "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one, as it does on CPUs "
            "without --multi_gpu. Type: python train.py launcher.processes=2, or use torchrun."
        )


def srun_ranks(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, ... of a task of `srun`; {} elsewhere.

    The counts of the step, not of the job: a batch script that asked for several tasks is one
    process all the same.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "SLURM_STEP_ID" not in environment or int(tasks) < 2:
        return {}
    job = int(environment["SLURM_JOB_ID"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_node(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(port_of(job)),
    }


def port_of(job: int) -> int:
    """The port of rank 0: the same on every node, another for each job, none that is ephemeral."""
    return 10000 + job % 20000


def _first_node(environment: Mapping[str, str]) -> str:
    """Address of the first node of a step, as Slurm itself reaches it."""
    nodes = environment["SLURM_STEP_NODELIST"]
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


# --- starting -------------------------------------------------------------------------------------


def launched(cfg: Any, script: str) -> bool:
    """Start ranks or submit a job where the settings ask for it; False: go on in this process.

    Args:
        cfg: the composed config.
        script: `train.py` or `evaluate.py`.

    Raises:
        ConfigError: settings that make no sense.
        SystemExit: ranks were started and have failed.
    """
    from wemask.settings.composition import section

    launcher = LauncherConfig.from_values(section(cfg, "launcher"))
    if is_rank():
        return False
    if launcher.name == "slurm":
        from wemask.launch import slurm

        slurm.plan(cfg, script)
        return True
    if launcher.processes == 1 or cfg.dry_run:
        return False
    if script != "train.py":
        raise ConfigError(
            "evaluate.py runs in one process. Train with python train.py launcher.processes="
            f"{launcher.processes}, then evaluate without launcher.processes."
        )
    code = start_ranks(launcher.processes, script_path(script), job_words())
    if code:
        raise SystemExit(code)
    return True


def submit_planned() -> None:
    """Submit what `launched` has planned in this process: one job, or a sweep as a job array.

    Raises:
        WemaskError: no Slurm here, or it refuses.
    """
    if "wemask.launch.slurm" in sys.modules:
        from wemask.launch import slurm

        slurm.submit_planned()


def job_words() -> list[str]:
    """The settings of this job: the command line's, of a sweep only this job's."""
    from hydra.core.hydra_config import HydraConfig

    return [str(word) for word in HydraConfig.get().overrides.task]


def script_path(name: str) -> Path:
    """Where train.py or evaluate.py is.

    Raises:
        ConfigError: not beside the package (an installation from a wheel has none).
    """
    path = Path(__file__).resolve().parents[2] / name
    if not path.exists():
        raise ConfigError(f"{path} was sought and not found. Work in a checkout of wemask.")
    return path


def start_ranks(processes: int, script: Path, words: Sequence[str]) -> int:
    """Run `script` in so many ranks on this machine; returns the exit code.

    A rank that dies ends the others. Ctrl-C and TERM go to the ranks, which save.
    """
    # Not localhost's name but its address: a name may resolve to nothing that can be reached.
    local = ("--standalone", "--local-addr", "127.0.0.1")
    return torchrun([*local, "--nproc-per-node", str(processes), str(script), *words])


def torchrun(arguments: Sequence[str]) -> int:
    """What the torchrun command does, with one message instead of its own traceback.

    Returns:
        0; what the ranks exit with where they said why (2); else 1.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", PATIENCE)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = run.parse_args(list(arguments))
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun would take one, and warn
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // _per_node(options)))
    try:
        run.run(options)
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as error:
        print(f"\nThe ranks were stopped by {error.sigval.name}.", file=sys.stderr)
        return 2
    return 0


def _per_node(options: Any) -> int:
    return int(options.nproc_per_node) if str(options.nproc_per_node).isdigit() else 1


def _explain(error: Any) -> int:
    """Say which rank died first and how; a rank that has said what is wrong itself exits with 2."""
    failures = error.failures.values()
    if any(failure.exitcode == 2 for failure in failures):
        return 2
    rank, first = error.get_first_failure()
    how = first.signal_name() if first.exitcode < 0 else f"exit code {first.exitcode}"
    print(
        f"\nError: rank {rank} (process {first.pid}) died first, with {how}; "
        "its traceback, if it had one, is above. The other ranks were stopped. The same command "
        "resumes from the last whole checkpoint.",
        file=sys.stderr,
    )
    return 1


def shown(script: str, words: Sequence[str]) -> str:
    """A command as one would type it."""
    return shlex.join(["python", script, *words])


if __name__ == "__main__":
    sys.exit(torchrun(sys.argv[1:]))
