"""`wemask analyse`: all metrics and causal experiments of a model -> one folder with one page.

The folder holds me_layer.json, tables/*.parquet and *.csv, figures/*.png and *.svg, analysis.json
and analysis.html. Every measurement is written down as soon as it is made: the same command goes on
where a killed one stopped, and with other experiments it adds to the folder.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from rich.console import Console
from torch import nn
from tqdm import tqdm

from wemask.analyse.conditions import IMPOSSIBLE, Condition, Subject, condition_rows
from wemask.analyse.experiments import EXPERIMENTS
from wemask.analyse.figures import build_analysis_figures
from wemask.analyse.findings import findings
from wemask.analyse.page import AnalysisFacts, Cost, render_analysis
from wemask.analyse.quadratic import quadratic_form
from wemask.analyse.rows import table
from wemask.checkpoint.fingerprint import sample_weights
from wemask.decoder.parts import positions, unwrap
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ConfigError, DetectionError, nearest
from wemask.evaluate.journal import Journal
from wemask.files import digest, saving, write_whole
from wemask.measure.measurement import probe_batches
from wemask.measure.norm_weights import norm_rows
from wemask.operator.settings import WeMaskConfig
from wemask.report.style import save_figure
from wemask.report.tracking import log_analysis
from wemask.settings.run_folder import environment, machine, open_folder
from wemask.settings.texts import load_texts, tokenise
from wemask.terminal import note
from wemask.version import __version__

QUADRATIC = "quadratic"
CHOICES = (*EXPERIMENTS, QUADRATIC)
RANGES = {"count": (1, 100_000), "length": (2, 2**20), "batch_size": (1, 2**20)}


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
    """What to analyse, and on which texts.

    Raises:
        ConfigError: every problem of the given values, together.
    """

    experiments: tuple[str, ...] = ("all",)
    """Names of `CHOICES`; all | none. The metrics are always there."""
    texts: Path | None = None
    """None: embedded word problems."""
    column: str | None = None
    count: int = 64
    length: int = 64
    """Tokens of each text, as arXiv 2410.10781 measures sinks."""
    batch_size: int = 8
    operator: WeMaskConfig = field(default_factory=WeMaskConfig)

    def __post_init__(self) -> None:
        words = ("all", "none", *CHOICES)
        problems = [
            f"--experiments {name} does not exist; there are {', '.join(words)}."
            + nearest(name, words)
            for name in self.experiments
            if name not in words
        ]
        if len(self.experiments) > 1 and {"all", "none"} & set(self.experiments):
            problems.append("all and none stand alone: --experiments all, or a list of names.")
        for name, (low, high) in RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:
                option = name.replace("_", "-")
                problems.append(f"--{option} must be {low:,} to {high:,}, got {value:,}.")
        if problems:
            raise ConfigError("\n".join(problems))

    @property
    def chosen(self) -> tuple[str, ...]:
        """The experiments by name, each once, in the order of the page."""
        if self.experiments == ("all",):
            return CHOICES
        return tuple(name for name in CHOICES if name in self.experiments)


Rows = dict[str, list[dict[str, Any]]]  # of tables by name


class _Step(NamedTuple):
    """One measurement: what it is called in the journal, and how its rows are made."""

    unit: str
    part: str  # an experiment, or the metrics
    run: Callable[[Callable[[], None]], Rows]
    passes: int


def analyse(
    model: nn.Module,
    tokenizer: Any,
    report: MELayerReport,
    config: AnalysisConfig,
    *,
    name: str,
    folder: Path | None = None,
    command: str = "wemask analyse",
    logger: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Measure, write tables and figures, and the page, analysis.html, whose path is returned.

    Args:
        model: a transformers causal language model, unsoftened.
        tokenizer: its own.
        report: its detection.
        config: which experiments on which texts.
        name: of the model, for the folder and the page.
        folder: where; None: outputs/analyse/NAME__HASH, from the settings.
        command: to print on the page.
        logger: name, project and mode of W&B (`tracking.log_analysis`); None: nothing is logged.
        console: for progress and messages.

    Raises:
        ConfigError, DataError, DetectionError, RunFolderError: what is wrong, before the long work.
    """
    console = console or Console()
    if config.length > (most := positions(model)):
        clamped = f"--length {config.length}: the model has {most} positions, which count."
        note(console, clamped)
        config = replace(config, length=most)
    texts = load_texts(config.texts, config.count, config.column)
    ids, mask = tokenise(tokenizer, texts, config.length)
    identity = _identity(model, report, config, texts)
    place = folder or Path("outputs") / "analyse" / f"{name}__{digest(identity)}"
    with saving(place):
        open_folder(place, identity, explicit=folder is not None)
        report.save(place / "me_layer.json")
        journal = Journal(place / "journal.jsonl", identity, partial(note, console))
    batches = probe_batches(model, report, ids, mask, config.batch_size)
    subject = Subject(model=model, report=report, batches=batches, operator=config.operator)
    run = _Run(subject=subject, config=config, journal=journal, console=console)
    tables = run.tables()
    facts = _facts(run, tables, settings=identity, name=name, command=command)
    with saving(place):
        page = write_analysis(place, facts, tables, report)
        if logger is not None:
            log_analysis(facts, tables, place, logger, partial(note, console))
    return page


def _facts(run: "_Run", tables: dict[str, pd.DataFrame], name: str, **asked: Any) -> AnalysisFacts:
    """What the page says beside tables and figures, once all is measured."""
    model, report, config = run.subject.model, run.subject.report, run.config
    source = "word problems embedded in wemask" if config.texts is None else str(config.texts)
    first = f"the first {config.count} texts, at most {config.length} tokens of each"
    masks = [batch.attention_mask.bool() for batch in run.subject.batches]
    return AnalysisFacts(
        model={
            "name": name,
            "path": report.model["name"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": report.model["dtype"],
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine(),
        wemask_version=__version__,
        versions=environment()["versions"],
        texts={
            "description": f"{source}, {first}",
            "count": sum(len(mask) for mask in masks),
            "tokens": sum(int(mask.sum()) for mask in masks),
            "massive_tokens": sum(int(batch.massive.sum()) for batch in run.subject.batches),
        },
        costs=run.costs,
        impossible=run.impossible,
        notes=run.notes,
        findings=findings(tables, report),
        me_layer=report.to_dict(),
        files=[f"tables/{table}.{kind}" for table in tables for kind in ("parquet", "csv")],
        **asked,
    )


def write_analysis(
    folder: Path, facts: AnalysisFacts, tables: dict[str, pd.DataFrame], report: MELayerReport
) -> Path:
    """Write tables, figures, analysis.json and analysis.html; return the page's path."""
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        frame.to_parquet(folder / "tables" / f"{name}.parquet")
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False)
    text = json.dumps(facts, indent=2, allow_nan=False, default=str)
    write_whole(folder / "analysis.json", text + "\n")
    figures = build_analysis_figures(tables, report, facts["findings"])
    for item in figures:
        save_figure(item.figure, folder / "figures" / item.name)
    page = folder / "analysis.html"
    write_whole(page, render_analysis(facts, tables, figures))
    return page


@dataclass(kw_only=True)
class _Run:
    """The measurements of an analysis, with progress and a journal."""

    subject: Subject
    config: AnalysisConfig
    journal: Journal
    console: Console
    impossible: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name, of what was measured now or before."""
        steps = [*self._metric_steps(), *self._experiment_steps()]
        new = [step for step in steps if self.journal.get(step.unit) is None]
        if len(new) < len(steps):
            made = len(steps) - len(new)
            note(self.console, f"{made} of {len(steps)} measurements were made before.")
        self._measure(new)
        rows: Rows = {}
        for part, own in groupby(steps, key=lambda step: step.part):
            made = [(step.passes, self.journal.get(step.unit)) for step in own]
            self._count(part, made)
            for _, found in made:
                if "impossible" in found:
                    self.impossible.append(found["impossible"])
                for name, of in found.get("rows", {}).items():
                    rows.setdefault(name, []).extend(of)
        return {
            name: table(of) if name in EXPERIMENTS else pd.DataFrame(of)
            for name, of in rows.items()
        }

    def _measure(self, steps: Sequence[_Step]) -> None:
        passes = sum(step.passes for step in steps)
        with tqdm(total=passes, unit=" forwards", disable=not steps) as bar:
            for step in steps:
                bar.set_description(step.part, refresh=False)
                made = self._made(step, bar.update)
                self.journal.add(step.unit, made)
                if step is steps[0]:
                    seconds = made["seconds"]
                    left = (passes - step.passes) * seconds / max(1, step.passes)
                    took = f"{len(steps)} measurements; the first took {seconds:.1f} s"
                    note(self.console, f"{took}, so about {_duration(left)} more.")

    def _made(self, step: _Step, done: Callable[[], Any]) -> dict[str, Any]:
        """What the journal keeps of a step: its rows, or why there are none, and what it took."""
        began = time.perf_counter()
        try:
            made: dict[str, Any] = {"rows": step.run(done)}
        except IMPOSSIBLE as error:
            condition = step.unit.split("|", 1)[-1]
            reason = {"experiment": step.part, "condition": condition, "reason": str(error)}
            made = {"impossible": reason}
        return {**made, "seconds": time.perf_counter() - began, "peak_memory": _peak_memory()}

    def _count(self, part: str, made: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """What a part took, in this run or an earlier one of the same command."""
        cost = Cost(
            part=part,
            seconds=sum(found["seconds"] for _, found in made),
            forwards=sum(passes for passes, _ in made),
            peak_memory=max(found["peak_memory"] for _, found in made),
            device=_device_words(self.subject.model),
        )
        self.costs.append(cost)

    def _metric_steps(self) -> Iterator[_Step]:
        passes = len(self.subject.batches)
        yield _Step("layers|off", "metrics", partial(self._layers, "off"), passes)
        yield _Step("norms", "metrics", self._norms, 0)
        if self.subject.report.found:
            yield _Step("layers|on", "metrics", partial(self._layers, "on"), passes)

    def _norms(self, done: Callable[[], None]) -> Rows:
        return {"norms": norm_rows(self.subject.decoder, self.subject.report.dims)}

    def _layers(self, state: str, done: Callable[[], None]) -> Rows:
        operator = self.subject.operator if state == "on" else None
        condition = Condition(experiment="layers", group=state, operator=operator)
        found = self.subject.measure(condition, done)
        extra = {"perplexity": found.perplexity}
        return {"layers": [{"state": state, **row.to_dict(), **extra} for row in found.layers]}

    def _experiment_steps(self) -> Iterator[_Step]:
        chosen = self.config.chosen
        if not chosen:
            return
        try:
            _ = self.subject.me_layer
        except DetectionError as error:
            if self.config.experiments != ("all",):
                raise
            self.notes.append(str(error))
            return
        for name in chosen:
            if name == QUADRATIC:
                yield _Step(QUADRATIC, QUADRATIC, self._quadratic, 1)
                continue
            for condition in EXPERIMENTS[name]().conditions(self.subject):
                run = partial(self._condition, condition)
                yield _Step(condition.key, name, run, len(self.subject.batches))

    def _condition(self, condition: Condition, done: Callable[[], None]) -> Rows:
        found = self.subject.measure(condition, done)
        return {condition.experiment: condition_rows(condition, found, self.subject.me_layer)}

    def _quadratic(self, done: Callable[[], None]) -> Rows:
        batch = next(batch for batch in self.subject.batches if batch.massive.any())
        subject = self.subject
        form = quadratic_form(subject.model, subject.report, batch.input_ids, batch.attention_mask)
        done()
        return {QUADRATIC: form.rows(), "quadratic_dims": form.dim_rows()}


def _identity(
    model: nn.Module, report: MELayerReport, config: AnalysisConfig, texts: Sequence[str]
) -> dict[str, Any]:
    """All that could change a number; the experiments that were asked for do not."""
    return {
        "wemask": __version__,
        "model": report.model,
        "weights": digest(sample_weights(model)),
        "me_layer": digest(report.to_dict()),
        "texts": digest(list(texts)),
        **{name: getattr(config, name) for name in ("count", "length", "batch_size")},
        "operator": config.operator.to_dict(),
    }


def _peak_memory() -> int:
    """Bytes that the process has held at most so far: of the GPUs, where there are any."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_words(model: nn.Module) -> str:
    """Where the model is; under device_map, where its parts are."""
    places = getattr(unwrap(model), "hf_device_map", None)
    if places:
        return "spread over " + ", ".join(sorted(set(map(str, places.values()))))
    device = next(model.parameters()).device
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def _duration(seconds: float) -> str:
    """1.5 -> "2 s", 90 -> "1 min 30 s", 7000 -> "1 h 57 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
