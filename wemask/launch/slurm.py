"""`launcher=slurm`: settings -> a readable sbatch script in the run folder -> a job.

The script is `job.sbatch`. Everything that goes into it is shell-quoted. A sweep is one
job array; the evaluation is a job that waits for the training to end well.
"""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wemask.errors import ConfigError, RunFolderError
from wemask.files import digest, saving, write_whole
from wemask.launch.ranks import SHUTDOWN_SECONDS
from wemask.launch.slurm_queue import ask_queue, job_of
from wemask.settings.composition import MULTIRUN, job_words, script_path, shown
from wemask.settings.config import RunConfig, run_config
from wemask.settings.launcher import OPTIONS, LauncherConfig
from wemask.settings.run_folder import open_run_folder
from wemask.train.saved_state import is_finished
from wemask.train.summary import expected_memory
from wemask.version import __version__

# What the evaluation does not take over from the training's words.
TRAINING_ONLY = re.compile(
    r"\+*~?(launcher|method|dry_run|train_missing|paths\.run_dir)\b|--?(m|multirun)$"
)
EVALUATED_ARMS = {
    frozenset({"sft"}): "arms=[base,sft]",
    frozenset({"wemask"}): "arms=[base,training_free,wemask_sft]",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One run that is to become a job, or a task of an array."""

    config: RunConfig
    script: str
    words: list[str]

    @property
    def folder(self) -> Path:
        """The run folder; of an evaluation a folder for the script and its log."""
        if self.script == "train.py":
            return self.config.folder()
        name = f"evaluate_{digest(self.words)}"
        return self.config.output_dir / self.config.experiment / name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A script for Slurm, and where it goes."""

    path: Path
    title: str
    name: str
    launcher: LauncherConfig
    script: str
    """`train.py` or `evaluate.py`."""
    typed: Sequence[str]
    """The words of the command that it was made for."""
    tasks: Sequence[tuple[Path, Sequence[str]]]
    """Folder and words of each run."""
    log: str
    """Name of the log, with sbatch's %j or %A_%a."""
    ranks: int = 0
    """Of each node; 0: one process without torchrun."""
    array: str | None = None
    """sbatch's --array, of a sweep."""
    runs: Sequence[Planned] = ()
    """Those whose folders are opened, and know of the job."""

    @property
    def text(self) -> str:
        """The script."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            undefined=StrictUndefined,  # a misspelt name is an error, not a hole in the script
            autoescape=False,  # a shell script: `quote` is its escape
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters |= {"quote": shlex.quote, "comment": _one_line}
        seconds = self.launcher.signal_seconds
        values: dict[str, Any] = vars(self) | {
            "version": __version__,
            "command": shown(self.script, self.typed),
            "path": str(self.path.resolve()),
            "directives": self.directives(),
            "runs": [{"folder": str(f.resolve()), "words": shlex.join(w)} for f, w in self.tasks],
            "python": self.launcher.python or sys.executable,
            "patience": max(seconds, 30) if seconds else SHUTDOWN_SECONDS,
            "wait": seconds // 2,
            "script": str(script_path(self.script)),
        }
        return environment.get_template("job.sbatch").render(values)

    def directives(self) -> list[str]:
        """The #SBATCH lines. sbatch reads quotes as a shell does."""
        launcher = self.launcher
        # %j in a path would become the job's number.
        folder = str(self.path.parent.resolve()).replace("%", "%%")
        values: dict[str, Any] = {
            "job-name": self.name,
            "chdir": Path.cwd(),
            "output": f"{folder}/{self.log}",
            "open-mode": "append",  # a requeued job goes on in the same file
            "nodes": launcher.nodes,
            "ntasks-per-node": 1,
            **{option: getattr(launcher, option.replace("-", "_")) or None for option in OPTIONS},
            "requeue" if launcher.requeue else "no-requeue": True,
            "signal": f"B:TERM@{launcher.signal_seconds}" if launcher.signal_seconds else None,
            "array": self.array,
            **launcher.options,
        }
        return [
            f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
            for key, value in values.items()
            if value is not None
        ]


def plan(cfg: Any, script: str) -> Planned:
    """Check the settings of one run that is to become a job.

    Raises:
        ConfigError: the settings make no sense, or the method trains nothing.
    """
    config = run_config(cfg)
    if script == "train.py" and not config.trains:
        raise ConfigError(
            f"method={config.method} trains nothing: there is no job to submit. Compare it: "
            "python evaluate.py launcher=slurm."
        )
    return Planned(config=config, script=script, words=_without_dry_run(job_words()))


def submit_planned(planned: Sequence[Planned], words: Sequence[str]) -> None:
    """Write and submit what was planned: one job, a job array, and the evaluation after it.

    With dry_run=true the script is printed and nothing is written. `words` are those of the command
    line.

    Raises:
        ConfigError: there is no Slurm here, or it refuses the job.
        RunFolderError: a run has a job already, or its folder cannot be used.
    """
    typed = _without_dry_run(words)
    sweep = len(planned) > 1 or bool({*MULTIRUN} & {*typed})  # also one that came to one job only
    job = (train_job if planned[0].script == "train.py" else evaluate_job)(planned, typed, sweep)
    after = evaluation_after(planned, typed, sweep)
    if planned[0].config.dry_run:
        print(job.text)
        if job.runs:
            print(f"# Memory: {expected_memory(job.runs[0].config)}")
        if after is not None:
            print(f"# The evaluation after it would be:\n# {shown('evaluate.py', after)}")
        return
    submit(job, after)


def _without_dry_run(words: Sequence[str]) -> list[str]:
    return [word for word in words if not re.match(r"\+*dry_run=", word)]


# --- scripts --------------------------------------------------------------------------------------


def train_job(planned: Sequence[Planned], typed: Sequence[str], sweep: bool) -> Job:
    """The job that trains: one run, or a sweep's runs as an array."""
    first, config, folder = planned[0], planned[0].config, planned[0].folder
    if sweep:  # a folder for what they share
        name = f"{config.model.name}__sweep__{digest([run.folder.name for run in planned])}"
        folder = config.output_dir / config.experiment / name
    return Job(
        path=folder / "slurm" / "train.sbatch",
        title=f"Training: {len(planned)} runs of a sweep" if sweep else "Training",
        name=_name(first, sweep),
        launcher=config.launcher,
        script="train.py",
        typed=typed,
        tasks=[(run.folder, run.words if sweep else typed) for run in planned],
        log="%A_%a.out" if sweep else "%j.out",
        ranks=config.launcher.ranks_per_node,
        array=f"0-{len(planned) - 1}%{config.launcher.array_limit}" if sweep else None,
        runs=planned,
    )


def evaluate_job(planned: Sequence[Planned], typed: Sequence[str], sweep: bool) -> Job:
    """The job that evaluates, in one process: also a sweep, which ends in one report."""
    first = planned[0]
    # In the job it is to run, not to submit itself again.
    words = [word for word in typed if not re.match(r"\+*launcher\b", word)]
    return _evaluation(first.config.launcher, first.folder, words, _name(first, sweep))


def _evaluation(launcher: LauncherConfig, folder: Path, words: Sequence[str], name: str) -> Job:
    gpus = min(1, launcher.gpus_per_node)
    return Job(
        path=folder / "slurm" / "evaluate.sbatch",
        title="Evaluation, in one process",
        name=f"{name}-evaluate",
        launcher=dataclasses.replace(launcher, nodes=1, processes_per_node=1, gpus_per_node=gpus),
        script="evaluate.py",
        typed=words,
        tasks=[(folder, words)],
        log="evaluate-%j.out",
    )


def _name(first: Planned, sweep: bool) -> str:
    name = first.folder.name if not sweep else f"{first.config.model.name}__sweep"
    return f"wemask-{_one_line(name)}"


def _one_line(text: str) -> str:
    """A text that stays inside a comment."""
    return "".join(c if c.isprintable() else " " for c in text)


def evaluation_after(
    planned: Sequence[Planned], typed: Sequence[str], sweep: bool
) -> list[str] | None:
    """Words of the evaluate.py that follows a training; None where none does."""
    first = planned[0]
    launcher = first.config.launcher
    if first.script != "train.py" or not launcher.evaluate_after:
        return None
    if first.config.run_dir is not None:
        return None  # evaluate.py seeks runs where their settings say
    flag = ["-m"] if sweep and _sweeps(typed) else []
    words = [word for word in typed if not TRAINING_ONLY.match(word)]
    given = {word.partition("=")[0].lstrip("+") for word in launcher.evaluate_words}
    arms = EVALUATED_ARMS.get(frozenset(run.config.method for run in planned))
    words += [arms] if arms and "arms" not in given else []
    words += ["train_missing=false"] if "train_missing" not in given else []
    return [*flag, *words, *launcher.evaluate_words]


def _sweeps(typed: Sequence[str]) -> bool:
    """Whether anything but the method is swept over: one report has all methods anyway."""
    swept = re.compile(r"[^=]+=(?![\[({'\"]).*,|[^=]+=(range|choice|glob|interval)\(")
    return any(swept.match(word) for word in typed if not TRAINING_ONLY.match(word))


# --- submitting -----------------------------------------------------------------------------------


def submit(job: Job, after: Sequence[str] | None) -> None:
    """Write the script, give it to sbatch, say how to follow it.

    Raises:
        ConfigError: there is no sbatch, or it refuses.
        RunFolderError: a run of it is in the queue already, or a folder cannot be used.
    """
    if job.runs and all(is_finished(run.folder) for run in job.runs):
        folders = ", ".join(str(run.folder) for run in job.runs)
        print(f"Finished already, nothing was submitted: {folders}")
        return
    for run in job.runs:
        _refuse_second(run.folder)
        open_run_folder(run.config)
        (run.folder / "slurm").mkdir(exist_ok=True)
    with saving(job.path.parent):
        job.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(job.path, job.text)
    number = sbatch(job.path)
    evaluation = None
    if after is not None:
        made = _evaluation(job.launcher, job.path.parent.parent, after, job.name)
        write_whole(made.path, made.text)
        # afterok waits through requeues, and for every task of an array.
        waiting = (f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes")
        evaluation = sbatch(made.path, *waiting)
    for index, run in enumerate(job.runs):
        mine = f"{number}_{index}" if job.array else number
        about = {"job": mine, "evaluate": evaluation, "script": str(job.path.resolve())}
        with saving(run.folder):
            write_whole(run.folder / "slurm" / "job.json", json.dumps(about, indent=2) + "\n")
    _say(job, number, evaluation, after)


def _refuse_second(folder: Path) -> None:
    about = job_of(folder)
    state = ask_queue(about["job"]) if about else None
    if state is not None and state.active:
        raise RunFolderError(
            f"{folder} has a job in the queue already: {state.job} is {state.state}. Follow it: "
            f"wemask status {shlex.quote(str(folder))}; or end it first: scancel {state.job}"
        )


def sbatch(path: Path, *options: str) -> str:
    """Submit a script; returns the job's number.

    Raises:
        ConfigError: there is no sbatch, or it refuses; its own words are in the message.
    """
    command = ["sbatch", "--parsable", *options, str(path.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise ConfigError(
            "sbatch was sought and not found: launcher=slurm works on a login node of a Slurm "
            f"cluster. The script is {path}; or see it with dry_run=true."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            "sbatch did not answer in two minutes. Look whether squeue has the job; if not, type: "
            f"{shlex.join(command)}"
        ) from error
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ConfigError(
            f"sbatch refuses the job: {said} The script is {path}. Change launcher.partition, "
            "account, time or whatever it names."
        )
    return done.stdout.strip().partition(";")[0]  # 12;cluster


def _say(job: Job, number: str, evaluation: str | None, after: Sequence[str] | None) -> None:
    """Job number and how to follow it."""
    log = job.log.replace("%j", number).replace("%A_%a", number)  # a task goes on in %A.out
    where = job.runs[0].folder if job.array else job.path.parent.parent
    runs = f", {len(job.runs)} runs" if job.array else ""
    lines = [f"Submitted job {number}{runs}", f"script   {job.path}"]
    if evaluation is not None and after is not None:
        lines.append(f"then     job {evaluation}: {shown('evaluate.py', after)}")
    if job.runs:
        lines.append(f"memory   {expected_memory(job.runs[0].config)}")
        lines += [f"status   wemask status {shlex.quote(str(run.folder))}" for run in job.runs]
    lines.append(f"log      tail -F {shlex.quote(str(where / 'slurm' / log))}")
    print("\n".join([*lines, f"stop     scancel {number}"]))
