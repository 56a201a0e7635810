"""A study: train what is missing, ask every arm the same items, compare, write the report."""

import datetime
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from accelerate.utils import release_memory
from pydantic import AfterValidator, BeforeValidator, InstanceOf
from rich.console import Console
from torch import nn

from wemask.compare.compare import document, samples_of
from wemask.compare.evaluated_runs import Entry, check_comparable, group, read_runs
from wemask.compare.results import LayerRow
from wemask.data.schema import Count, Seed, settings
from wemask.decoder.parts import unwrap
from wemask.detection.calibration import CALIBRATION_TEXTS, calibration_inputs
from wemask.detection.me_layer import MELayerReport
from wemask.errors import (
    ConfigError,
    DataError,
    DetectionError,
    PatchError,
    RunFolderError,
    nearest,
)
from wemask.evaluate.arm_run import ArmRun
from wemask.evaluate.arms import ARMS
from wemask.evaluate.evaluation import Load, TaskConfig, check_tasks, evaluate_arm
from wemask.files import digest, saving, say
from wemask.measure.layer_sums import LayerMetrics
from wemask.measure.measurement import measure, probe_batches
from wemask.operator.handle import SoftenHandle
from wemask.operator.patch import soften
from wemask.operator.settings import WeMaskConfig
from wemask.report.report import read_detection, terminal_table, write_report
from wemask.report.tracking import log_study
from wemask.settings.config import RunConfig
from wemask.settings.run_folder import open_folder, open_run_folder
from wemask.terminal import aside, note
from wemask.train.prepare import detect_run, load_base
from wemask.train.training import train
from wemask.version import __version__

MEASURED = 16  # calibration texts on which the report's softening figures are measured


def _listed(arms: Any) -> Any:
    return [arms] if isinstance(arms, str) else () if arms is None else arms


def _arms(arms: Sequence[str]) -> Sequence[str]:
    problems = [
        f"arms has {arm!r}; there are {', '.join(ARMS)}.{nearest(arm, ARMS)}"
        for arm in arms
        if arm not in ARMS
    ]
    if len(set(arms)) != len(arms) or not arms:
        problems.append(f"arms must be different and at least one, got {list(arms)}.")
    if problems:
        raise ConfigError("\n".join(problems))
    return arms


def _tasks(tasks: Sequence[TaskConfig]) -> Sequence[TaskConfig]:
    if not tasks:
        raise ConfigError("tasks is empty. Type tasks=[synthetic].")
    return tasks


@settings("")
class Study:
    """What `evaluate.py` was asked for."""

    config: InstanceOf[RunConfig]
    arms: Annotated[Sequence[str], BeforeValidator(_listed), AfterValidator(_arms)]
    tasks: Annotated[Sequence[TaskConfig], AfterValidator(_tasks)]
    limit: Count | None = None
    batch_size: Count = 32
    train_missing: bool = True
    eval_seed: Seed = 0
    """Of few-shot examples and of sampled outputs: the same for every arm and training seed."""
    command: str = "python evaluate.py"
    overrides: Sequence[str] = ()
    """Command-line settings that `train.py` takes as well, to name the missing command."""
    sweep: str | None = None
    """Name of the sweep that this is a job of: the sweep's own report is the one that is logged."""

    def run(self, arm: str) -> ArmRun:
        """The run that an arm stands for."""
        return ArmRun.of(arm, self.config)

    def identity(self) -> dict[str, Any]:
        """Every setting that can change the comparison, as plain values."""
        runs = {arm: self.run(arm) for arm in self.arms}
        return {
            "arms": {arm: {**run.settings(), "seed": run.seed} for arm, run in runs.items()},
            "tasks": {task.name: asdict(task) for task in self.tasks},
            "limit": self.limit,
            "eval_seed": self.eval_seed,
        }

    def folder(self) -> Path:
        """Where the comparison goes."""
        config = self.config
        name = f"{config.model.name}__compare__s{config.seed}__{digest(self.identity())}"
        return config.run_dir or config.output_dir / config.experiment / name


@dataclass(frozen=True, kw_only=True)
class Base:
    """What was seen in the model that all arms start from."""

    report: MELayerReport
    budgets: dict[str, dict[str, Any]]
    """Arm -> what its operator does to this model; without those it cannot be put into."""
    facts: dict[str, Any]
    """model, me_layer, softening, absent and notes, as in `Results`."""


def evaluate(study: Study, console: Console | None = None) -> Path:
    """Train what is missing, run every arm on every task, compare, write the report.

    Finished arms are read back, so running it again resumes.

    Returns:
        The folder with results.json, report.md, report.html and figures/.

    Raises:
        WemaskError: bad settings, data or model; a missing run with `train_missing=false`.
    """
    console = console or Console()
    load = check_tasks(study.tasks)
    missing = _missing(study)
    # Before the training: a model that cannot be softened is refused now, not hours later.
    base = _look_at_base(study, console)
    runs = [study.run(arm) for arm in study.arms if arm not in base.facts["absent"]]
    for run in missing:
        if run.name not in base.facts["absent"]:
            note(console, f"--- training {run.name} ---")
            train(run.config, aside(console))
            release_memory()
    folder = study.folder()
    if study.config.dry_run:
        console.print("dry_run=true: nothing was trained or compared, nothing was written.")
        return folder
    open_folder(folder, study.identity(), explicit=study.config.run_dir is not None)
    _check_templates(study, runs)
    entries = list(_ask_all(study, runs, base, load, console))
    logger = study.config.logger if study.sweep is None else {"name": "none"}
    facts = {"command": study.command, **base.facts}
    _finish(entries, facts, folder, base.report, logger, console)
    return folder


def _finish(
    entries: Sequence[Entry],
    facts: Mapping[str, Any],
    folder: Path,
    report: MELayerReport | None,
    logger: Mapping[str, Any],
    console: Console,
) -> None:
    """Compare evaluated runs, and write, log and print what came out; `facts` as in `Results`."""
    groups = group(entries)
    check_comparable(groups)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = document(groups, folder, {**facts, "created": now, "wemask_version": __version__})
    with saving(folder):
        write_report(results, folder, report, samples_of(groups))
    console.print(terminal_table(results))
    for line in results["notes"]:
        console.print(line, style="yellow", markup=False)
    say(console, f"Report: {folder / 'report.html'}")
    log_study(results, folder, logger, partial(note, console))  # last: W&B may refuse it


def finish_sweep(studies: Sequence[Study], console: Console | None = None) -> None:
    """One report of all jobs of a sweep, beside theirs; raises what `compare_runs` does."""
    first = studies[0]
    if first.config.dry_run:
        return
    folders = list(dict.fromkeys(study.folder() for study in studies))
    name = digest([folder.name for folder in folders])
    config = first.config
    out = config.output_dir / config.experiment / f"{config.model.name}__{first.sweep}__{name}"
    compare_runs(folders, out, command=first.command, logger=config.logger, console=console)


def compare_runs(
    folders: Sequence[Path],
    out: Path,
    *,
    command: str,
    logger: Mapping[str, Any],
    console: Console | None = None,
) -> None:
    """Compare finished runs: the same report as `evaluate`, from what they left on disk, in `out`.

    `folders` are of comparisons, or of runs that were evaluated; see `read_runs`. `command` is
    printed in the report; `logger` is the section of the settings.

    Raises:
        DataError: no or damaged results, or such as cannot be compared.
        RunFolderError: `out` cannot be written.
        ConfigError: W&B refuses it, when all else is done.
    """
    entries, documents = read_runs(folders)
    absent = {arm: why for earlier in documents for arm, why in earlier["absent"].items()}
    facts: dict[str, Any] = {"command": command, "absent": absent, "notes": []}
    if documents:
        facts |= {key: documents[0][key] for key in ("model", "me_layer", "softening")}
    else:  # runs that were evaluated
        detected = MELayerReport.load(folders[0] / "me_layer.json").to_dict()
        facts |= {"model": entries[0].about["model"], "me_layer": detected, "softening": None}
    report = read_detection(facts["me_layer"], folders)
    _finish(entries, facts, out, report, logger, console or Console())


def _missing(study: Study) -> list[ArmRun]:
    """Runs that are not trained yet; with `train_missing=false` an error names commands."""
    runs = {run.final: run for run in map(study.run, study.arms) if run.missing}
    if runs and not study.train_missing:
        lines = [_train_command(study, run) for run in runs.values()]
        raise RunFolderError("Not trained yet. Run first:\n  " + "\n  ".join(lines))
    return list(runs.values())


def _train_command(study: Study, run: ArmRun) -> str:
    return shlex.join(["python", "train.py", *study.overrides, *run.words])


def _check_templates(study: Study, runs: Sequence[ArmRun]) -> None:
    """See before anything is asked that all arms will be asked with one chat template.

    Raises:
        DataError: a run was trained with another one.
    """
    if all(task.chat is False for task in study.tasks):
        return
    first: dict[Path | None, ArmRun] = {}
    for run in runs:
        first.setdefault(run.final if run.config.trains else None, run)
    found = [(run.name, run.chat_template()) for run in first.values()]
    for name, template in found:
        if template != found[0][1]:
            raise DataError(
                f"The chat template of {name} is not that of {found[0][0]}: their answers could "
                "not be compared. Train it again, or ask without: tasks.TASK.chat=false."
            )


# --- the model that all arms start from -----------------------------------------------------------


def _look_at_base(study: Study, console: Console) -> Base:
    """Detect in the base model, and measure what each arm's softening does to it."""
    model, tokenizer, _ = load_base(study.config)
    report = detect_run(study.config, model, tokenizer)
    console.print(report.verdict, markup=False)
    budgets, absent = dict[str, dict[str, Any]](), dict[str, str]()
    for run in map(study.run, study.arms):
        if run.operator is None:
            continue
        try:
            with soften(model, report, run.operator) as handle:
                budgets[run.name] = _budget(handle)
        except PatchError as error:
            if not run.arm.control_of:
                raise
            absent[run.name] = str(error)
    facts = {
        "model": {
            "name": study.config.model.name,
            "path": study.config.model.path,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": report.model["dtype"],
        },
        "me_layer": report.to_dict(),
        "softening": _softening(model, tokenizer, report, study.config.operator),
        "absent": absent,
        "notes": [] if report.found else [report.verdict],
    }
    del model
    release_memory()
    return Base(report=report, budgets=budgets, facts=facts)


def _budget(handle: SoftenHandle) -> dict[str, Any]:
    """`results.Budget` of a softened model."""
    dims = [len(dims) for dims in handle.dims.values() if dims is not None]
    return {
        "layers": len(handle.layers),
        "dims": max(dims, default=0),
        "tokens": sum(handle.tokens_touched.values()),
        "removed_energy": handle.removed_energy,
    }


def _softening(
    model: nn.Module, tokenizer: Any, report: MELayerReport, operator: WeMaskConfig
) -> dict[str, Any] | None:
    """Massive activations and sinks of the base model with the operator off and on."""
    if not report.found:
        return None
    ids, mask = calibration_inputs(tokenizer, texts=CALIBRATION_TEXTS[:MEASURED], chats=False)
    batches = probe_batches(model, report, ids, mask, batch_size=MEASURED)
    off = measure(model, batches).layers
    with soften(model, report, operator) as handle:
        on = measure(model, batches).layers
        return {
            "config": operator.to_dict(),
            "layers": handle.layers,
            "dims": {str(i): dims or [] for i, dims in handle.dims.items()},
            "tokens_touched": {str(i): n for i, n in handle.tokens_touched.items()},
            "metrics": {"off": _in_schema(off), "on": _in_schema(on)},
        }


def _in_schema(rows: list[LayerMetrics]) -> list[dict[str, Any]]:
    """The metrics that results.json holds; `wemask analyse` has all of them."""
    return [{key: row.to_dict()[key] for key in LayerRow.__annotations__} for row in rows]


# --- one arm --------------------------------------------------------------------------------------


def _ask_all(
    study: Study, runs: Sequence[ArmRun], base: Base, load: Load, console: Console
) -> Iterator[Entry]:
    """Every arm; without those whose trained model has no massive activation left to soften."""
    for run in runs:
        try:
            yield _ask(study, run, base, load, console)
        except (PatchError, DetectionError) as error:
            if not run.arm.softened_after:
                raise
            base.facts["absent"][run.name] = str(error)


def _ask(study: Study, run: ArmRun, base: Base, load: Load, console: Console) -> Entry:
    note(console, f"--- arm {run.name} ---")
    folder = open_run_folder(run.config)
    if not (folder / "me_layer.json").exists():
        with saving(folder):
            base.report.save(folder / "me_layer.json")
    model, tokenizer = run.load()
    about = {**run.about(base.budgets.get(run.name)), "model": base.facts["model"]}
    handle: SoftenHandle | None = getattr(unwrap(model), "wemask_handle", None)
    if handle is not None and run.config.softens and run.config.trains:
        about["softened"] = {"layers": len(handle.layers), "silent": handle.silent}
    results = evaluate_arm(
        model,
        tokenizer,
        study.tasks,
        arm=run.name,
        folder=run.folder,
        fingerprint=run.fingerprint(),
        limit=study.limit,
        batch_size=max(1, study.batch_size // 2) if run.arm.again else study.batch_size,
        seed=study.eval_seed,
        about=about,
        load=load,
        say=partial(say, console),
    )
    del model
    release_memory()
    return Entry(about=about, results=results)
