"""Start the ranks of a run, or recognise that somebody else has.

`python train.py launcher.processes=2` starts two ranks of the same command. Under torchrun,
`accelerate launch`, `deepspeed` and `srun` nothing is started. With `launcher=slurm` a job is
submitted. `python -m wemask.launch.ranks ARGS` is torchrun with our exit codes, for job scripts.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHUTDOWN_SECONDS = "300"  # for ranks that were told to stop: saving a large model takes minutes


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
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_SECONDS)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = run.parse_args(list(arguments))
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun would take one, and warn
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        ranks = str(options.nproc_per_node)
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // int(ranks if ranks.isdigit() else 1)))
    try:
        run.run(options)
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as error:
        print(f"\nThe ranks were stopped by {error.sigval.name}.", file=sys.stderr)
        return 2
    return 0


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


if __name__ == "__main__":
    sys.exit(torchrun(sys.argv[1:]))
