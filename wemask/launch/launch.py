"""Where a command runs: here, in ranks of its own, or as a Slurm job."""

from typing import TYPE_CHECKING, Any

from wemask.distributed import is_rank
from wemask.errors import ConfigError
from wemask.launch.ranks import start_ranks
from wemask.settings.composition import job_words, script_path, section
from wemask.settings.launcher import LauncherConfig

if TYPE_CHECKING:
    from wemask.launch.slurm import Planned


def elsewhere(cfg: Any, script: str) -> "list[Planned] | None":
    """Start ranks or plan a job where the settings ask for it.

    Args:
        cfg: the composed config.
        script: `train.py` or `evaluate.py`.

    Returns:
        None: go on in this process. Else the job that is to be submitted; none where ranks did it.

    Raises:
        ConfigError: settings that make no sense.
        SystemExit: ranks were started and have failed.
    """
    launcher = LauncherConfig(**section(cfg, "launcher"))
    if is_rank():
        return None
    if launcher.name == "slurm":
        from wemask.launch.slurm import plan

        return [plan(cfg, script)]
    if launcher.processes == 1 or cfg.dry_run:
        return None
    if script != "train.py":
        raise ConfigError(
            "evaluate.py runs in one process. Train with python train.py launcher.processes="
            f"{launcher.processes}, then evaluate without launcher.processes."
        )
    code = start_ranks(launcher.processes, script_path(script), job_words())
    if code:
        raise SystemExit(code)
    return []


def submit(planned: "list[Planned]", typed: list[str]) -> None:
    """Submit what was planned: one job, or a sweep as a job array; nothing where nothing was.

    Raises:
        WemaskError: no Slurm here, or it refuses.
    """
    if planned:
        from wemask.launch.slurm import submit_planned

        submit_planned(planned, typed)
