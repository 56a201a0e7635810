"""The figures of a report, each with what a reader needs who cannot see it."""

import re
from dataclasses import dataclass

from matplotlib.figure import Figure

from wemask.compare.results import Results, SofteningRecord
from wemask.compare.verdict import (
    arm_words,
    compared,
    difference_words,
    ordered_tasks,
    percent,
    real_arms,
)
from wemask.detection.me_layer import MELayerReport
from wemask.report import plots, study_plots
from wemask.report.softening_plots import SINK, has_sink_maps, sink_words

CONTROLS_CAPTION = (
    "The real arm (blue, its interval shaded) and its controls, each minus its reference. A filled "
    "square differs from the real arm."
)
SEEDS_CAPTION = (
    "Each point is one run, named by its seed; grey lines join the runs of a seed, blue bars are "
    "means over seeds."
)
DOSE_CAPTION = (
    "Points of accuracy over the reference. A star marks p below 0.05 after Holm's correction."
)


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure with what a reader needs who cannot see it, or wants to read it right."""

    name: str  # file name without suffix
    section: str  # of report.html ("arms", "layers", ...) or analysis.html ("necessity", ...)
    figure: Figure
    alt: str
    caption: str


def build_figures(results: Results, report: MELayerReport | None) -> list[ReportFigure]:
    """All figures of a report, in reading order."""
    layers = report or MELayerReport.from_dict(results["me_layer"])
    figures = [_arms_figure(results, task) for task in ordered_tasks(results)]
    if compared(results):
        figures.append(_forest_figure(results))
    figures += _study_figures(results)
    figures += layer_figures(layers)
    if results["softening"] is not None:
        figures.append(
            described(
                "softening_effect",
                "softening",
                plots.softening_effect(results["softening"]["metrics"]),
                "The base model on the same texts with the softening off and on. Sink mass is the "
                "mean attention that later tokens give to the massive ones, over all heads.",
            )
        )
        figures += _sink_figure(results["softening"])
    return figures


def layer_figures(report: MELayerReport) -> list[ReportFigure]:
    """Where the massive activation lives: magnitude by layer, and the relief if it is in memory."""
    caption = (
        "Largest and median magnitude of the hidden state after every layer, over all calibration "
        "texts. Vertical axes are logarithmic; emb is the embedding output."
    )
    figure = plots.magnitude_by_layer(report)
    figures = [described("magnitude_by_layer", "layers", figure, caption)]
    if report.relief is not None:
        caption = (
            "The hidden state of the strongest token: one curtain per layer, the embedding output "
            "at the back. The walls follow the massive dimensions through the layers."
        )
        figures.append(described("relief", "layers", plots.relief(report), caption))
    return figures


def described(
    name: str, section: str, figure: Figure, caption: str, numbers: str = ""
) -> ReportFigure:
    """A figure whose alternative text is its title and `numbers`, else its title and caption."""
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
    return described(
        f"arms_{_file_name(task)}", "arms", plots.arms(results, task), caption, numbers
    )


def _forest_figure(results: Results) -> ReportFigure:
    numbers = "; ".join(
        f"{arm_words(c['a'])} minus {arm_words(c['b'])} on {c['task']}: {difference_words(c)}"
        for c in compared(results)
    )
    caption = (
        "Paired differences on the same items, with 95% intervals and p-values after Holm's "
        "correction. Blue and orange-red: the interval excludes zero; the title counts those whose "
        "p is also below 0.05. A difference inside the grey band is too small for this many items "
        "to show."
    )
    return described("forest", "differences", plots.forest(results), caption, numbers)


def _study_figures(results: Results) -> list[ReportFigure]:
    """What larger studies add: controls, seeds, dose."""
    figures = []
    info = results["arm_info"]
    for task in ordered_tasks(results):
        for real in real_arms(results):
            if rows := study_plots.gains(results, task, real):
                numbers = "; ".join(f"{arm_words(a)} {difference_words(row)}" for a, row in rows)
                figure = study_plots.controls(results, task, real)
                name = f"controls_{_file_name(real)}_{_file_name(task)}"
                figures.append(described(name, "controls", figure, CONTROLS_CAPTION, numbers))
        if arms := study_plots.seeded_arms(results, task):
            numbers = "; ".join(
                f"{arm_words(arm)}: {', '.join(percent(mean) for mean in values.values())}"
                for arm, values in arms.items()
            )
            figure = study_plots.seeds(results, task)
            name = f"seeds_{_file_name(task)}"
            figures.append(described(name, "seeds", figure, SEEDS_CAPTION, numbers))
        for name in dict.fromkeys(about["arm"] for about in info.values()):
            if study_plots.dose_rows(results, task, name):
                figure = study_plots.dose(results, task, name)
                place = f"dose_{_file_name(name)}_{_file_name(task)}"
                figures.append(described(place, "dose", figure, DOSE_CAPTION))
    return figures


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)


def _sink_figure(softening: SofteningRecord) -> list[ReportFigure]:
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
    return [described("sink_maps", "softening", figure, caption, sink_words(softening["metrics"]))]
