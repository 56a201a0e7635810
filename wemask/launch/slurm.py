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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wemask.errors import ConfigError, RunFolderError
from wemask.files import digest
from wemask.launch.ranks import SHUTDOWN_SECONDS
from wemask.settings.composition import MULTIRUN, job_words, script_path, shown
from wemask.settings.config import RunConfig, run_config
from wemask.settings.launcher import LauncherConfig
from wemask.train.summary import expected_memory
from wemask.version import __version__

TEMPLATES = Path(__file__).parent
JOB = "slurm/job.json"
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
    dry_run: bool

    @property
    def folder(self) -> Path:
        """The run folder; of an evaluation a folder for the script and its log."""
        if self.script == "train.py":
            return self.config.folder()
        name = f"evaluate_{digest(self.words)}"
        return self.config.output_dir / self.config.experiment / name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A script that was made, and where it goes."""

    path: Path
    text: str
    runs: list[Planned]
    array: bool = False


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
    words = _without_dry_run(job_words())
    return Planned(config=config, script=script, words=words, dry_run=config.dry_run)


def submit_planned(planned: Sequence[Planned], words: Sequence[str]) -> None:
    """Write and submit what was planned: one job, a job array, and the evaluation after it.

    With dry_run=true the script is printed and nothing is written. `words` are those of the command
    line.

    Raises:
        ConfigError: there is no Slurm here, or it refuses the job.
        RunFolderError: a run has a job already, or its folder cannot be used.
    """
    typed = _without_dry_run(words)
    sweep = is_sweep(typed, planned)
    job = (train_job if planned[0].script == "train.py" else evaluate_job)(planned, typed, sweep)
    after = evaluation_after(planned, typed, sweep)
    if planned[0].dry_run:
        print(job.text)
        if job.runs:
            print(f"# Memory: {expected_memory(job.runs[0].config)}")
        if after is not None:
            print(f"# The evaluation after it would be:\n# {shown('evaluate.py', after)}")
        return
    submit(job, after)


def is_sweep(typed: Sequence[str], planned: Sequence[Planned]) -> bool:
    """Whether a command line was a multirun, also where it came to one job only."""
    return len(planned) > 1 or bool({*MULTIRUN} & {*typed})


def _without_dry_run(words: Sequence[str]) -> list[str]:
    return [word for word in words if not re.match(r"\+*dry_run=", word)]


# --- scripts --------------------------------------------------------------------------------------


def train_job(planned: Sequence[Planned], typed: Sequence[str], sweep: bool) -> Job:
    """The job that trains: one run, or a sweep's runs as an array."""
    first = planned[0]
    launcher = first.config.launcher
    if not sweep:
        folder = first.folder / "slurm"
        words = list(typed)
        log = f"{_escaped(folder.resolve())}/%j.out"
        array = {}
    else:
        folder = _beside(first, planned) / "slurm"
        words = []
        log = f"{_escaped(folder.resolve())}/%A_%a.out"
        array = {"array": f"0-{len(planned) - 1}%{launcher.array_limit}"}
    text = _render(
        title="Training" if not sweep else f"Training: {len(planned)} runs of a sweep",
        command=shown("train.py", typed),
        path=folder / "train.sbatch",
        directives=directives(launcher, _name(first, sweep), log, array),
        runs=[(run.folder, words or run.words) for run in planned],
        array=sweep,
        launcher=launcher,
        ranks=launcher.ranks_per_node,
        script=script_path("train.py"),
    )
    return Job(path=folder / "train.sbatch", text=text, runs=list(planned), array=sweep)


def evaluate_job(planned: Sequence[Planned], typed: Sequence[str], sweep: bool) -> Job:
    """The job that evaluates, in one process: also a sweep, which ends in one report."""
    first = planned[0]
    # In the job it is to run, not to submit itself again.
    words = [word for word in typed if not re.match(r"\+*launcher\b", word)]
    return _evaluation(first.config.launcher, first.folder, words, _name(first, sweep))


def _evaluation(launcher: LauncherConfig, folder: Path, words: Sequence[str], name: str) -> Job:
    path = folder / "slurm" / "evaluate.sbatch"
    launcher = dataclasses.replace(
        launcher, nodes=1, processes_per_node=1, gpus_per_node=min(1, launcher.gpus_per_node)
    )
    log = f"{_escaped(path.parent.resolve())}/evaluate-%j.out"
    text = _render(
        title="Evaluation, in one process",
        command=shown("evaluate.py", words),
        path=path,
        directives=directives(launcher, f"{name}-evaluate", log, {}),
        runs=[(folder, words)],
        array=False,
        launcher=launcher,
        ranks=0,
        script=script_path("evaluate.py"),
    )
    return Job(path=path, text=text, runs=[])


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


def directives(launcher: LauncherConfig, name: str, log: str, more: Mapping[str, Any]) -> list[str]:
    """The #SBATCH lines of a job. sbatch reads quotes as a shell does."""
    values: dict[str, Any] = {
        "job-name": name,
        "chdir": Path.cwd(),
        "output": log,
        "open-mode": "append",  # a requeued job goes on in the same file
        "nodes": launcher.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": launcher.gpus_per_node or None,
        "cpus-per-task": launcher.cpus_per_task,
        "mem": launcher.mem,
        "time": launcher.time,
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "requeue" if launcher.requeue else "no-requeue": True,
        "signal": f"B:TERM@{launcher.signal_seconds}" if launcher.signal_seconds else None,
        **more,
        **launcher.options,
    }
    return [
        f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
        for key, value in values.items()
        if value is not None
    ]


def _render(
    *,
    path: Path,
    runs: Sequence[tuple[Path, Sequence[str]]],
    launcher: LauncherConfig,
    **values: Any,
) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,  # a misspelt name is an error, not a hole in the script
        autoescape=False,  # a shell script: `quote` is its escape
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": shlex.quote, "comment": _one_line}
    return environment.get_template("job.sbatch").render(
        **{key: str(value) if isinstance(value, Path) else value for key, value in values.items()},
        path=str(path.resolve()),
        version=__version__,
        runs=[{"folder": str(f.resolve()), "words": shlex.join(words)} for f, words in runs],
        setup=launcher.setup,
        env=launcher.env,
        python=launcher.python or sys.executable,
        nodes=launcher.nodes,
        cpus=launcher.cpus_per_task,
        patience=max(launcher.signal_seconds, 30)
        if launcher.signal_seconds
        else int(SHUTDOWN_SECONDS),
        wait=launcher.signal_seconds // 2,
        requeue=launcher.requeue,
    )


def _one_line(text: str) -> str:
    """A text that stays inside a comment."""
    return "".join(c if c.isprintable() else " " for c in text)


def _escaped(path: Path) -> str:
    """A path in which sbatch replaces nothing: %j would become a job's number."""
    return str(path).replace("%", "%%")


def _name(first: Planned, sweep: bool) -> str:
    name = first.folder.name if not sweep else f"{first.config.model.name}__sweep"
    return f"wemask-{_one_line(name)}"


def _beside(first: Planned, planned: Sequence[Planned]) -> Path:
    """A folder for what the runs of a sweep share."""
    name = f"{first.config.model.name}__sweep__{digest([run.folder.name for run in planned])}"
    return first.config.output_dir / first.config.experiment / name


# --- submitting -----------------------------------------------------------------------------------


def submit(job: Job, after: Sequence[str] | None) -> None:
    """Write the script, give it to sbatch, say how to follow it.

    Raises:
        ConfigError: there is no sbatch, or it refuses.
        RunFolderError: a run of it is in the queue already, or a folder cannot be used.
    """
    from wemask.files import saving, write_whole
    from wemask.settings.run_folder import open_run_folder

    if job.runs and all((run.folder / "final").exists() for run in job.runs):
        print(f"Finished already, nothing was submitted: {_list(job.runs)}")
        return
    for run in job.runs:
        _refuse_second(run.folder)
        open_run_folder(run.config)
        (run.folder / "slurm").mkdir(exist_ok=True)
    with saving(job.path.parent):
        job.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(job.path, job.text)
    number = sbatch(job.path)
    evaluation = _submit_after(job, after, number) if after is not None else None
    for index, run in enumerate(job.runs):
        mine = f"{number}_{index}" if job.array else number
        about = {"job": mine, "evaluate": evaluation, "script": str(job.path.resolve())}
        with saving(run.folder):
            write_whole(run.folder / JOB, json.dumps(about, indent=2) + "\n")
    _say(job, number, evaluation, after)


def _refuse_second(folder: Path) -> None:
    from wemask.launch.slurm_queue import ask_queue, job_of

    about = job_of(folder)
    if about is None:
        return
    if (state := ask_queue(about["job"])) is not None and state.active:
        raise RunFolderError(
            f"{folder} has a job in the queue already: {state.job} is {state.state}. Follow it: "
            f"wemask status {shlex.quote(str(folder))}; or end it first: scancel {state.job}"
        )


def _submit_after(job: Job, after: Sequence[str], number: str) -> str:
    from wemask.files import write_whole

    first = job.runs[0]
    folder = job.path.parent.parent
    made = _evaluation(first.config.launcher, folder, after, _name(first, job.array))
    write_whole(made.path, made.text)
    # afterok waits through requeues, and for every task of an array.
    options = (f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes")
    return sbatch(made.path, *options)


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
    folder = job.path.parent
    log = f"{number}.out" if job.path.name == "train.sbatch" else f"evaluate-{number}.out"
    where = job.runs[0].folder if job.array else folder.parent
    lines = [f"Submitted job {number}" + (f", {len(job.runs)} runs" if job.array else "")]
    lines += [f"script   {job.path}"]
    if evaluation is not None and after is not None:
        lines.append(f"then     job {evaluation}: {shown('evaluate.py', after)}")
    if job.runs:
        lines.append(f"memory   {expected_memory(job.runs[0].config)}")
        lines += [f"status   wemask status {shlex.quote(str(run.folder))}" for run in job.runs]
    lines += [
        f"log      tail -F {shlex.quote(str(where / 'slurm' / log))}",
        f"stop     scancel {number}",
    ]
    print("\n".join(lines))


def _list(runs: Sequence[Planned]) -> str:
    return ", ".join(str(run.folder) for run in runs)
