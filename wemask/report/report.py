"""Results -> results.json, report.md, and report.html: one page that can be sent to a colleague."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from wemask.compare.results import Results, save_results, validate_results
from wemask.compare.verdict import (
    QUESTIONS,
    SIGNIFICANT,
    arm_words,
    arms_named,
    between,
    compared,
    difference_words,
    finding_words,
    headline,
    judgement_of,
    main_arms,
    ordered_tasks,
    real_arms,
)
from wemask.detection.me_layer import MELayerReport
from wemask.files import write_whole
from wemask.report import plots, study_plots
from wemask.report.disagreements import Disagreement, Samples, disagreements
from wemask.report.figures import ReportFigure, build_figures
from wemask.report.page import TEMPLATES, pictures, style, template_environment

RELIEF_NAME = "relief.npy"  # beside results.json, so that `wemask report` can draw it again


def write_report(
    results: dict[str, Any] | Results,
    folder: Path,
    report: MELayerReport | None,
    samples: Samples,
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
        np.save(folder / RELIEF_NAME, report.relief.numpy(), allow_pickle=False)
        written.append(folder / RELIEF_NAME)
    figures = build_figures(checked, report)
    for item in figures:
        written += plots.save_figure(item.figure, folder / "figures" / item.name)
    for name, text in (
        ("report.md", render_markdown(checked, figures, samples)),
        ("report.html", render_html(checked, figures, samples)),
    ):
        write_whole(folder / name, text)
        written.append(folder / name)
    return written


def read_detection(me_layer: dict[str, Any], folders: Sequence[Path]) -> MELayerReport:
    """The detection of a results.json, with its relief where one of the folders has it."""
    report = MELayerReport.from_dict(me_layer)
    relief = next((f / RELIEF_NAME for f in folders if (f / RELIEF_NAME).exists()), None)
    if relief is not None:
        report.relief = torch.from_numpy(np.load(relief, allow_pickle=False))
    return report


def render_html(
    results: Results, figures: Sequence[ReportFigure], samples: Samples | None = None
) -> str:
    """Render the whole report as one page that loads nothing: style, script, figures inside."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        template_environment(autoescape=True)
        .get_template("report.html")
        .render(
            _facts(results, samples),
            pictures=pictures(figures),
            style=style(),
            # Trusted: the file is ours. Whatever comes from a model or a dataset is escaped.
            script=Markup(script),
            script_sha256=digest,
        )
    )


def render_markdown(
    results: Results, figures: Sequence[ReportFigure], samples: Samples | None = None
) -> str:
    """Render the report for GitHub; it links figures/NAME.png beside it."""
    template = template_environment(autoescape=False).get_template("report.md")
    return template.render(_facts(results, samples), figures=figures)


def terminal_table(results: Results) -> Table:
    """Arms by tasks with 95% intervals, then the paired differences, for the end of a run."""
    tasks = ordered_tasks(results)
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
    findings = [judgement_of(results, comparison) for comparison in compared(results)]
    detected = MELayerReport.from_dict(results["me_layer"])
    return {
        "results": results,
        "told": detected.told,
        "others": detected.others,
        "headline": headline(results),
        "criterion": detected.criterion.describe(),
        "tasks": ordered_tasks(results),
        "arms": list(results["arms"]),
        "main_arms": main_arms(results),
        "specific": _specific(results),
        "same_found": sum(row["p_value"] < SIGNIFICANT for row in results["same"]),
        "findings": findings,
        "sentences": [_sentence(finding_words(f)) for f in findings],
        "disagreements": disagreements(results, samples or {}),
        "examples_by_task": _first_examples,
    }


def _specific(results: Results) -> list[dict[str, Any]]:
    """The rows of "Is it specific?": each real arm with its controls, task by task."""
    rows = []
    info = results["arm_info"]
    for real in real_arms(results):
        for task in ordered_tasks(results):
            for arm, gain in study_plots.gains(results, task, real):
                pairs = between(results, task, arms_named(results, real), [arm])
                against = pairs[0] if pairs and info[arm]["control_of"] else None
                rows.append(
                    {
                        "task": task,
                        "arm": arm,
                        "gain": gain,
                        "against": against and judgement_of(results, against),
                        "budget": info[arm]["budget"],
                    }
                )
    return rows


def _sentence(clause: str) -> str:
    return f"{clause[:1].upper()}{clause[1:]}."


def _first_examples(shown: Sequence[Disagreement], task: str) -> list[Disagreement]:
    """Two examples of a task, if possible such that divide the arms in question."""
    pair = set(QUESTIONS[0])

    def beside_the_point(example: Disagreement) -> bool:
        return len({o.correct for o in example.outputs if o.arm in pair}) < 2

    return sorted((e for e in shown if e.task == task), key=beside_the_point)[:2]
