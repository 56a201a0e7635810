"""Where a command runs: here, in ranks of its own, or as a Slurm job."""

import sys
from typing import Any

from wemask.distributed import is_rank
from wemask.errors import ConfigError
from wemask.launch.ranks import start_ranks
from wemask.settings.composition import job_words, script_path, section
from wemask.settings.launcher import LauncherConfig


def launched(cfg: Any, script: str) -> bool:
    """Start ranks or submit a job where the settings ask for it; False: go on in this process.

    Args:
        cfg: the composed config.
        script: `train.py` or `evaluate.py`.

    Raises:
        ConfigError: settings that make no sense.
        SystemExit: ranks were started and have failed.
    """
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
