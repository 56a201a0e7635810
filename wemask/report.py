"""Results -> results.json, report.md, and report.html: one page that can be sent to a colleague."""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from wemask import plots
from wemask.examples import Example, Samples, disagreements, visible
from wemask.figure_style import svg_text
from wemask.me_layer import MELayerReport
from wemask.results import (
    Comparison,
    Results,
    Softening,
    save_results,
    validate_results,
    write_whole,
)
from wemask.softening_plots import SINK, has_sink_maps, sink_words
from wemask.verdict import (
    OUTCOME_WORDS,
    QUESTIONS,
    arm_words,
    finding_words,
    headline,
    judge,
    ordered_tasks,
    p_value_words,
    p_words,
    percent,
    points,
)

TEMPLATES = Path(__file__).parent / "templates"
RELIEF_NAME = "relief.npy"  # beside results.json, so that `wemask report` can draw it again


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure with what a reader needs who cannot see it, or wants to read it right."""

    name: str  # file name without suffix
    section: str  # "arms", "differences", "layers" or "softening"
    figure: Figure
    alt: str
    caption: str


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


def build_figures(results: Results, report: MELayerReport | None) -> list[ReportFigure]:
    """All figures of a report, in reading order."""
    layers = report or MELayerReport.from_dict(results["me_layer"])
    figures = [_arms_figure(results, task) for task in ordered_tasks(results)]
    if results["comparisons"]:
        figures.append(_forest_figure(results))
    figures.append(
        _figure(
            "magnitude_by_layer",
            "layers",
            plots.magnitude_by_layer(layers),
            "Largest and median magnitude of the hidden state after every layer, over all "
            "calibration texts. Vertical axes are logarithmic; emb is the embedding output.",
        )
    )
    if layers.relief is not None:
        figures.append(
            _figure(
                "relief",
                "layers",
                plots.relief(layers),
                "The hidden state of the strongest token: one curtain per layer, the embedding "
                "output at the back. The walls follow the massive dimensions through the layers.",
            )
        )
    if results["softening"] is not None:
        figures.append(
            _figure(
                "softening_effect",
                "softening",
                plots.softening_effect(results["softening"]["metrics"]),
                "The base model on the same texts with the softening off and on. Sink mass is the "
                "mean attention that later tokens give to the massive ones, over all heads.",
            )
        )
        figures += _sink_figure(results["softening"])
    return figures


def render_html(
    results: Results, figures: Sequence[ReportFigure], samples: Samples | None = None
) -> str:
    """Render the whole report as one page that loads nothing: style, script, figures inside."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = [{"figure": figure, "uri": _svg_uri(figure.figure)} for figure in figures]
    return (
        _environment(autoescape=True)
        .get_template("report.html")
        .render(
            _facts(results, samples),
            pictures=pictures,
            # Trusted: both files are ours. Whatever comes from a model or a dataset is escaped.
            style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_sha256=digest,
        )
    )


def render_markdown(
    results: Results, figures: Sequence[ReportFigure], samples: Samples | None = None
) -> str:
    """Render the report for GitHub; it links figures/NAME.png beside it."""
    template = _environment(autoescape=False).get_template("report.md")
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
    for a, b in dict.fromkeys((c["a"], c["b"]) for c in results["comparisons"]):
        found = {c["task"]: c for c in results["comparisons"] if (c["a"], c["b"]) == (a, b)}
        cells = [_difference_words(found[task]) if task in found else "-" for task in tasks]
        table.add_row(Text(f"{arm_words(a)} - {arm_words(b)}"), *map(Text, cells))
    return table


def _score_words(score: Any) -> str:
    low, high = 100 * score["low"], 100 * score["high"]
    return f"{100 * score['mean']:.1f} [{low:.1f}, {high:.1f}]"


def _difference_words(row: Comparison) -> str:
    interval = f"[{points(row['low'])}, {points(row['high'])}]"
    return f"{points(row['delta'])} {interval}, {p_words(row['p_holm'])}"


def _facts(results: Results, samples: Samples | None) -> dict[str, Any]:
    """What both templates read."""
    findings = [judge(results, comparison) for comparison in results["comparisons"]]
    return {
        "results": results,
        "headline": headline(results),
        "criterion": MELayerReport.from_dict(results["me_layer"]).criterion.describe(),
        "tasks": ordered_tasks(results),
        "arms": list(results["arms"]),
        "findings": findings,
        "sentences": [_sentence(finding_words(f)) for f in findings],
        "disagreements": disagreements(results, samples or {}),
        "examples_by_task": _first_examples,
    }


def _sentence(clause: str) -> str:
    return f"{clause[:1].upper()}{clause[1:]}."


def _first_examples(shown: Sequence[Example], task: str) -> list[Example]:
    """Two examples of a task, if possible such that divide the arms in question."""
    pair = set(QUESTIONS[0])

    def beside_the_point(example: Example) -> bool:
        return len({o.correct for o in example.outputs if o.arm in pair}) < 2

    return sorted((e for e in shown if e.task == task), key=beside_the_point)[:2]


def _figure(
    name: str, section: str, figure: Figure, caption: str, numbers: str = ""
) -> ReportFigure:
    title = figure.get_suptitle().replace("\n", " ").replace(r"\$", "$")
    alt = f"{title}. {numbers or caption}"
    return ReportFigure(name=name, section=section, figure=figure, alt=alt, caption=caption)


def _arms_figure(results: Results, task: str) -> ReportFigure:
    numbers = "; ".join(
        f"{arm_words(arm)} {percent(scores[task]['mean'])}, interval "
        f"{percent(scores[task]['low'])} to {percent(scores[task]['high'])}"
        for arm, scores in results["arms"].items()
        if task in scores
    )
    caption = f"Accuracy on {task}. Lines are 95% intervals of each arm by itself."
    name = f"arms_{re.sub(r'[^A-Za-z0-9_-]+', '_', task)}"
    return _figure(name, "arms", plots.arms(results, task), caption, numbers)


def _forest_figure(results: Results) -> ReportFigure:
    numbers = "; ".join(
        f"{arm_words(c['a'])} minus {arm_words(c['b'])} on {c['task']}: {_difference_words(c)}"
        for c in results["comparisons"]
    )
    caption = (
        "Paired differences on the same items, with 95% intervals and p-values after Holm's "
        "correction. Blue and orange-red: the interval excludes zero; the title counts those whose "
        "p is also below 0.05. A difference inside the grey band is too small for this many items "
        "to show."
    )
    return _figure("forest", "differences", plots.forest(results), caption, numbers)


def _sink_figure(softening: Softening) -> list[ReportFigure]:
    """The sink maps; none where the attention of single heads was not measured."""
    if not has_sink_maps(softening["metrics"]):
        return []
    caption = (
        "Sink mass of every head: the mean attention that later tokens give to the massive ones. "
        f"The sink rate is the share of (layer, head) pairs above {SINK} (after Gu et al., arXiv "
        "2410.10781; here over all massive tokens, a token's attention to itself left out). The "
        "blue bar beside the right map marks the softened layers."
    )
    figure = plots.sink_maps(softening)
    return [_figure("sink_maps", "softening", figure, caption, sink_words(softening["metrics"]))]


def _svg_uri(figure: Figure) -> str:
    encoded = base64.b64encode(svg_text(figure).encode()).decode()
    return f"data:image/svg+xml;base64,{encoded}"


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,  # a misspelt name is an error, not a hole in the page
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "arm": arm_words,
        "percent": percent,
        "points": points,
        "p": p_value_words,
        "reading": lambda finding: OUTCOME_WORDS[finding.outcome],
        "visible": visible,
        "yaml": _yaml,
        "cell": _markdown_cell,
        "fenced": _markdown_fence,
    }
    return environment


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _markdown_cell(value: object) -> str:
    """Text that stays text inside a Markdown table or sentence."""
    text = html.escape(visible(str(value)).replace("\n", " "), quote=False)
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)


def _markdown_fence(text: str) -> str:
    """A code block that its own content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}"
