"""Where a command runs: here, in ranks of its own, or as a Slurm job."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from wemask import terminal
from wemask.distributed import is_rank
from wemask.errors import ConfigError
from wemask.launch.ranks import start_ranks
from wemask.settings import composition
from wemask.settings.composition import exit_on_error, job_words, script_path, section
from wemask.settings.launcher import LauncherConfig

if TYPE_CHECKING:
    from wemask.launch.slurm import Planned

T = TypeVar("T")


def command(name: str, act: Callable[[Any, list[str]], T]) -> list[T]:
    """Run train.py or evaluate.py (`name`) where the settings say: one job, or those of a sweep.

    `act` does it in this process: it gets the composed config and the words of the command line, as
    typed. Returns what it returned, of each job that was done here.
    """
    planned, done = list["Planned"](), list[T]()

    def run(cfg: Any, typed: list[str]) -> None:
        jobs = elsewhere(cfg, f"{name}.py")
        if jobs is None:
            done.append(act(cfg, typed))
        planned.extend(jobs or ())

    typed = composition.command(name, run)
    if planned:
        from wemask.launch.slurm import submit_planned

        with exit_on_error():
            submit_planned(planned, typed)
    return done


def elsewhere(cfg: Any, script: str) -> "list[Planned] | None":
    """Start ranks or plan a job where the settings of `script` ask for it.

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
    words = [*terminal.flags(), *job_words()]
    code = start_ranks(launcher.processes, script_path(script), words)
    if code:
        raise SystemExit(code)
    return []
