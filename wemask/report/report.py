"""Results -> results.json, report.md, and report.html: one page that can be sent to a colleague."""

import base64
import hashlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from wemask.compare import verdict
from wemask.compare.results import Results, save_results, validate_results
from wemask.compare.verdict import arm_words, difference_words, judgement_of
from wemask.detection.me_layer import MELayerReport
from wemask.errors import DataError
from wemask.files import regular, write_whole
from wemask.report.comparison_plots import gains
from wemask.report.disagreements import Disagreement, Samples, disagreements
from wemask.report.figures import ReportFigure, build_figures
from wemask.report.page import render, trusted
from wemask.report.style import save_figure

RELIEF_NAME = "relief.npy"  # beside results.json, so that `wemask report` can draw it again
REMOVE_RELIEF = "Remove it: the page is made without that figure."


def write_report(
    results: dict[str, Any] | Results, folder: Path, report: MELayerReport | None, samples: Samples
) -> list[Path]:
    """Write results.json, figures/, report.md and report.html into `folder`; return their paths.

    `report` is the detection with its relief still in memory; with None it is read back from
    `results["me_layer"]` and the relief is left out. `samples[(arm, task)]` are the records of
    samples.jsonl. Raises DataError, before anything is written, when `results` break the schema.
    """
    checked = validate_results(results)
    folder.mkdir(parents=True, exist_ok=True)
    # The numbers first: they cost hours, a figure costs a second.
    save_results(checked, folder / "results.json")
    written = [folder / "results.json"]
    if report is not None and report.relief is not None:
        written.append(folder / RELIEF_NAME)
        np.save(written[-1], report.relief.numpy(), allow_pickle=False)
    figures = build_figures(checked, report)
    for item in figures:
        written += save_figure(item.figure, folder / "figures" / item.name)
    for name, rendered in (("report.md", render_markdown), ("report.html", render_html)):
        written.append(folder / name)
        write_whole(written[-1], rendered(checked, figures, samples))
    return written


def read_detection(me_layer: dict[str, Any], folders: Sequence[Path]) -> MELayerReport:
    """The detection of a results.json, with its relief where one of the folders has it.

    Raises:
        DataError: the relief is damaged, or of another model.
        DetectionError: so is the detection.
    """
    report = MELayerReport.from_dict(me_layer)
    if path := next((p for p in (f / RELIEF_NAME for f in folders) if p.exists()), None):
        report.relief = _read_relief(path, (report.num_layers + 1, report.hidden_size))
    return report


def _read_relief(path: Path, shape: tuple[int, int]) -> torch.Tensor:
    regular(path)
    try:
        # A map: a header that speaks of more than there is allocates nothing. No pickle is loaded.
        values = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{path} is no array ({said}). {REMOVE_RELIEF}") from error
    if values.dtype != np.float32 or values.shape != shape or not np.isfinite(values).all():
        raise DataError(
            f"{path} must hold {shape} finite numbers of float32, found {values.shape} of "
            f"{values.dtype}. {REMOVE_RELIEF}"
        )
    return torch.from_numpy(np.array(values))


def render_html(
    results: Results, figures: Sequence[ReportFigure], samples: Samples | None = None
) -> str:
    """Render the whole report as one page that loads nothing: style, script, figures inside."""
    script = trusted("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    facts = {"script": script, "script_sha256": digest, **_facts(results, samples)}
    return render("report.html", figures=figures, **facts)


def render_markdown(
    results: Results, figures: Sequence[ReportFigure], samples: Samples | None = None
) -> str:
    """Render the report for GitHub; it links figures/NAME.png beside it."""
    return render("report.md", figures=figures, **_facts(results, samples))


def terminal_table(results: Results) -> Table:
    """Arms by tasks with 95% intervals, then the paired differences, for the end of a run."""
    tasks = verdict.ordered_tasks(results)
    table = Table(title="Accuracy, % of items [95% interval]", title_justify="left")
    table.add_column("arm")
    for task in tasks:
        table.add_column(Text(f"{task} (n = {results['tasks'][task]['n']})"), justify="right")
    for arm, scores in results["arms"].items():
        cells = [_score_words(scores[task]) if task in scores else "-" for task in tasks]
        table.add_row(Text(arm_words(arm)), *map(Text, cells))
    table.add_section()
    rows = results["comparisons"]
    for a, b in dict.fromkeys((c["a"], c["b"]) for c in rows):
        found = {c["task"]: c for c in rows if (c["a"], c["b"]) == (a, b)}
        cells = [difference_words(found[task]) if task in found else "-" for task in tasks]
        table.add_row(Text(f"{arm_words(a)} - {arm_words(b)}"), *map(Text, cells))
    return table


def _score_words(score: Any) -> str:
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['mean']:.1f} [{low:.1f}, {high:.1f}]"


def _facts(results: Results, samples: Samples | None) -> dict[str, Any]:
    """What both templates read."""
    detected = MELayerReport.from_dict(results["me_layer"])
    findings = [judgement_of(results, comparison) for comparison in verdict.compared(results)]
    return {
        "results": results,
        "detected": detected,
        "me": detected.to_dict(),  # also of an older version as this one writes it
        "headline": verdict.headline(results),
        "tasks": verdict.ordered_tasks(results),
        "arms": list(results["arms"]),
        "main_arms": verdict.main_arms(results),
        "specific": _specific(results),
        "same_found": sum(row["p_value"] < verdict.SIGNIFICANT for row in results["same"]),
        "findings": findings,
        "sentences": [f"{s[:1].upper()}{s[1:]}." for s in map(verdict.finding_words, findings)],
        "disagreements": disagreements(results, samples or {}),
        "examples_by_task": _first_examples,
    }


def _specific(results: Results) -> list[dict[str, Any]]:
    """The rows of "Is it specific?": each real arm with its controls, task by task."""
    rows = []
    for real, task in product(verdict.real_arms(results), verdict.ordered_tasks(results)):
        for arm, gain in gains(results, task, real):
            about = results["arm_info"][arm]
            beside = [arm] if about["control_of"] else []
            against = verdict.between(results, task, verdict.arms_named(results, real), beside)
            row = {"task": task, "arm": arm, "gain": gain, "budget": about["budget"]}
            rows.append(row | {"against": judgement_of(results, against[0]) if against else None})
    return rows


def _first_examples(shown: Sequence[Disagreement], task: str) -> list[Disagreement]:
    """Two examples of a task, if possible such that divide the arms in question."""
    pair = set(verdict.QUESTIONS[0])

    def beside_the_point(example: Disagreement) -> bool:
        return len({o.correct for o in example.outputs if o.arm in pair}) < 2

    return sorted((e for e in shown if e.task == task), key=beside_the_point)[:2]
