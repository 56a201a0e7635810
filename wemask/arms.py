"""The experiment: base, training-free, SFT and WeMask-SFT on the same items, compared in pairs."""

import datetime
import gc
import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import wemask
from wemask import statistics
from wemask.config import RunConfig, digest
from wemask.detection import calibration_inputs, detect
from wemask.errors import ConfigError, RunFolderError, nearest
from wemask.evaluation import TaskConfig, TaskResult, check_tasks, evaluate_arm
from wemask.loading import load_model, load_tokenizer
from wemask.me_layer import MELayerReport
from wemask.metrics import layer_metrics
from wemask.operator import WeMaskConfig
from wemask.patch import soften
from wemask.report import terminal_table, write_report
from wemask.runs import environment, open_folder, open_run_folder, saving
from wemask.training import load_base, train
from wemask.verdict import NEAR_ZERO

# arm -> the method whose run it is; sft_then_wemask is the run of sft, softened only now.
METHODS = {
    "base": "base",
    "training_free": "training_free",
    "sft": "sft",
    "wemask_sft": "wemask",
    "sft_then_wemask": "sft",
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What `evaluate.py` was asked for.

    Raises:
        ConfigError: unknown or repeated arms, or no task.
    """

    config: RunConfig
    arms: Sequence[str]
    tasks: Sequence[TaskConfig]
    limit: int | None = None
    batch_size: int = 32
    train_missing: bool = True
    command: str = "python evaluate.py"
    overrides: Sequence[str] = ()
    """Command-line settings that `train.py` takes as well, to name the missing command."""

    def __post_init__(self) -> None:
        problems = [
            f"arms has {arm!r}; there are {', '.join(METHODS)}.{nearest(arm, METHODS)}"
            for arm in self.arms
            if arm not in METHODS
        ]
        if len(set(self.arms)) != len(self.arms) or not self.arms:
            problems.append(f"arms must be different and at least one, got {list(self.arms)}.")
        if not self.tasks:
            problems.append("tasks is empty. Type tasks=[synthetic].")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            problems.append(f"limit is a whole number >= 1 or null, got {self.limit!r}.")
        if type(self.batch_size) is not int or self.batch_size < 1:
            problems.append(f"batch_size is a whole number >= 1, got {self.batch_size!r}.")
        if type(self.train_missing) is not bool:
            problems.append(f"train_missing must be true or false, got {self.train_missing!r}.")
        if problems:
            raise ConfigError("\n".join(problems))

    def run(self, arm: str) -> RunConfig:
        """The run that an arm stands for."""
        return self.config.with_method(METHODS[arm])

    def identity(self) -> dict[str, Any]:
        """Every setting that can change the comparison, as plain values."""
        return {
            "arms": {arm: self.run(arm).identity() for arm in self.arms},
            "tasks": {task.name: asdict(task) for task in self.tasks},
            "limit": self.limit,
        }

    def folder(self) -> Path:
        """Where the comparison goes."""
        config = self.config
        name = f"{config.model.name}__compare__s{config.seed}__{digest(self.identity())}"
        return config.run_dir or config.output_dir / config.experiment / name


def evaluate(experiment: Experiment, console: Console | None = None) -> Path:
    """Train what is missing, run every arm on every task, compare, write the report.

    Finished arms are read back, so running it again resumes.

    Returns:
        The folder with results.json, report.md, report.html and figures/.

    Raises:
        WemaskError: bad settings, data or model; a missing run with `train_missing=false`.
    """
    console = console or Console()
    check_tasks(experiment.tasks)
    missing = _missing(experiment)
    # Before the training: a model that cannot be softened is refused now, not hours later.
    report, softening, model_info = _look_at_base(experiment, console)
    for method, run in missing.items():
        console.rule(f"training method={method}")
        train(run, console)
        _free()
    folder = experiment.folder()
    if experiment.config.dry_run:
        console.print("dry_run=true: nothing was trained or compared, nothing was written.")
        return folder
    explicit = experiment.config.run_dir is not None
    open_folder(folder, experiment.identity(), explicit=explicit)
    results: dict[str, dict[str, TaskResult]] = {}
    for arm in experiment.arms:
        console.rule(f"arm {arm}")
        results[arm] = _run_arm(experiment, arm)
        _free()
    _check_same_items(results)
    document = _document(experiment, report, softening, model_info, results)
    samples = {(arm, t): r.samples for arm, rs in results.items() for t, r in rs.items()}
    with saving(folder):
        write_report(document, folder, report, samples)
    console.print(terminal_table(document))
    for note in document["notes"]:
        console.print(note, style="yellow", markup=False)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False)
    return folder


def _missing(experiment: Experiment) -> dict[str, RunConfig]:
    """Method -> run that is not trained yet; with `train_missing=false` an error names commands."""
    runs = {METHODS[arm]: experiment.run(arm) for arm in experiment.arms}
    missing = {m: run for m, run in runs.items() if run.trains and not _final(run).exists()}
    if missing and not experiment.train_missing:
        lines = [
            shlex.join(["python", "train.py", *experiment.overrides, f"method={method}"])
            for method in missing
        ]
        raise RunFolderError("Not trained yet. Run first:\n  " + "\n  ".join(lines))
    return missing


def _final(run: RunConfig) -> Path:
    return run.folder() / "final"


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _look_at_base(
    experiment: Experiment, console: Console
) -> tuple[MELayerReport, dict[str, Any] | None, dict[str, Any]]:
    """Detect in the base model, and measure what the softening does to it."""
    model, tokenizer, _ = load_base(experiment.config)
    report = detect(model, tokenizer, criterion=experiment.config.model.criterion)
    console.print(report.verdict, markup=False)
    info = {
        "name": experiment.config.model.name,
        "path": experiment.config.model.path,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": report.model["dtype"],
    }
    softening = None
    if report.found:
        softening = _softening(model, tokenizer, report, experiment.config.operator)
    elif any(arm not in ("base", "sft") for arm in experiment.arms):
        soften(model, report, experiment.config.operator).remove()  # refuses without given layers
    del model
    _free()
    return report, softening, info


def _softening(
    model: nn.Module, tokenizer: Any, report: MELayerReport, operator: WeMaskConfig
) -> dict[str, Any]:
    """Massive activations and sinks of the base model with the operator off and on."""
    ids, mask = calibration_inputs(tokenizer)
    massive = torch.zeros_like(mask, dtype=torch.bool)
    for token in report.tokens:
        massive[token.text, token.position] = True
    off = layer_metrics(model, ids, mask, massive)
    with soften(model, report, operator) as handle:
        on = layer_metrics(model, ids, mask, massive)
        return {
            "config": operator.to_dict(),
            "layers": handle.layers,
            "dims": {str(i): dims or [] for i, dims in handle.dims.items()},
            "tokens_touched": {str(i): n for i, n in handle.tokens_touched.items()},
            "metrics": {"off": [m.to_dict() for m in off], "on": [m.to_dict() for m in on]},
        }


def _run_arm(experiment: Experiment, arm: str) -> dict[str, TaskResult]:
    run = experiment.run(arm)
    folder = open_run_folder(run)
    model, tokenizer = _load_arm(experiment, arm)
    settings = [arm, run.identity(), _stamp(run)]
    if arm == "sft_then_wemask":  # the one arm whose operator is not in the run's identity
        settings.append(experiment.config.operator.to_dict())
        folder = folder / "softened"
    fingerprint = digest(settings)
    return evaluate_arm(
        model,
        tokenizer,
        experiment.tasks,
        arm=arm,
        folder=folder,
        fingerprint=fingerprint,
        limit=experiment.limit,
        batch_size=experiment.batch_size,
        seed=experiment.config.seed,
    )


def _stamp(run: RunConfig) -> list[Any]:
    """Changes when a run is trained again, so that results of the old weights are not reused."""
    files = sorted(_final(run).glob("*.safetensors")) if run.trains else []
    return [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files]


def _load_arm(experiment: Experiment, arm: str) -> tuple[nn.Module, Any]:
    run = experiment.run(arm)
    options = {**run.model.load_options(), "revision": None}
    if arm == "wemask_sft":
        options.pop("revision")
        return wemask.load(_final(run), **options)
    if not run.trains:
        model, tokenizer, _ = load_base(run)
    elif (_final(run) / "adapter_config.json").exists():
        model, tokenizer = _load_adapter(run)
    else:
        model = load_model(str(_final(run)), **options)
        tokenizer = load_tokenizer(str(_final(run)))
    if arm in ("training_free", "sft_then_wemask"):
        report = detect(model, tokenizer, criterion=run.model.criterion)
        soften(model, report, run.operator)
    return model, tokenizer


def _load_adapter(run: RunConfig) -> tuple[nn.Module, Any]:
    from peft import PeftModel

    base, _, _ = load_base(run)
    model = PeftModel.from_pretrained(base, str(_final(run))).eval()  # pyright: ignore
    return model, load_tokenizer(str(_final(run)))


def _check_same_items(results: dict[str, dict[str, TaskResult]]) -> None:
    """Paired statistics need the same items in the same order, and the same prompts."""
    first, *others = results.items()
    for arm, tasks in others:
        for name, result in tasks.items():
            expected = first[1][name]
            if [s["id"] for s in result.samples] != [s["id"] for s in expected.samples]:
                raise RunFolderError(
                    f"Task {name}: arms {first[0]} and {arm} have different items. Delete "
                    f"{result.path.parent} and run again."
                )
            if result.template_sha256 != expected.template_sha256:
                raise RunFolderError(
                    f"Task {name}: arms {first[0]} and {arm} were prompted with different chat "
                    "templates, so they cannot be compared."
                )


# --- results.json ---------------------------------------------------------------------------------


def _document(
    experiment: Experiment,
    report: MELayerReport,
    softening: dict[str, Any] | None,
    model_info: dict[str, Any],
    results: dict[str, dict[str, TaskResult]],
) -> Any:
    first = next(iter(results.values()))
    return {
        "schema_version": 1,
        "command": experiment.command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "wemask_version": wemask.__version__,
        **environment(),
        "model": model_info,
        "me_layer": report.to_dict(),
        "softening": softening,
        "tasks": {name: _task_info(result) for name, result in first.items()},
        "arms": {
            arm: {name: _score(experiment, arm, result) for name, result in tasks.items()}
            for arm, tasks in results.items()
        },
        "comparisons": compare_arms(results),
        "notes": _notes(report, results),
    }


def _task_info(result: TaskResult) -> dict[str, Any]:
    return {
        "metric": result.metric,
        "n": len(result.samples),
        "source": result.source,
        "template_sha256": result.template_sha256,
        "fewshot": result.fewshot,
        "note": result.note,
    }


def _verdicts(result: TaskResult) -> list[bool]:
    return [sample["correct"] for sample in result.samples]


def _score(experiment: Experiment, arm: str, result: TaskResult) -> dict[str, Any]:
    interval = statistics.mean_interval(_verdicts(result))
    run = experiment.run(arm)
    return {
        "n": interval.n,
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "extraction_failures": result.extraction_failures,
        "seconds": result.seconds,
        "samples": os.path.relpath(result.path, experiment.folder()),
        "run_folder": str(run.folder()) if run.trains else None,
    }


def compare_arms(results: dict[str, dict[str, TaskResult]]) -> list[dict[str, Any]]:
    """Every pair of arms on every task, later arm minus earlier, Holm over all of them."""
    rows: list[dict[str, Any]] = []
    for task in next(iter(results.values())):
        for b, a in itertools.combinations(results, 2):
            pair = statistics.compare_paired(
                _verdicts(results[a][task]), _verdicts(results[b][task])
            )
            rows.append(
                {
                    "task": task,
                    "a": a,
                    "b": b,
                    "n": pair.n,
                    "delta": pair.delta,
                    "low": pair.low,
                    "high": pair.high,
                    "p_value": pair.p_value,
                    "a_only": pair.a_only,
                    "b_only": pair.b_only,
                    "odds_ratio": pair.odds_ratio,
                    "effect_size": pair.effect_size,
                    "minimum_detectable": pair.minimum_detectable,
                    "test": pair.test,
                }
            )
    adjusted = statistics.holm([row["p_value"] for row in rows]) if rows else []
    for row, p in zip(rows, adjusted, strict=True):
        row["p_holm"] = float(p)
    return rows


def _notes(report: MELayerReport, results: dict[str, dict[str, TaskResult]]) -> list[str]:
    notes = []
    for name in next(iter(results.values())):
        best = max(tasks[name].accuracy for tasks in results.values())
        if best < NEAR_ZERO:
            notes.append(
                f"{name}: accuracy is near zero on every arm (at most {best:.1%}). The comparison "
                "shows that the path works; it says nothing about the method."
            )
    if not report.found:
        notes.append(report.verdict)
    return notes
