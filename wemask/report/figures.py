"""The figures of a report, each with what a reader needs who cannot see it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from wemask.compare import verdict
from wemask.compare.results import Results, SofteningRecord
from wemask.compare.verdict import arm_words, difference_words, percent
from wemask.detection.me_layer import MELayerReport
from wemask.report import comparison_plots as plots
from wemask.report.detection_plots import magnitude_by_layer, relief
from wemask.report.softening_plots import (
    SINK,
    has_sink_maps,
    sink_maps,
    sink_words,
    softening_effect,
)

CAPTIONS = {
    "arms": "Accuracy on {task}. Lines are 95% intervals of each arm by itself.",
    "forest": "Paired differences on the same items, with 95% intervals and p-values after Holm's "
    "correction. Blue and orange-red: the interval excludes zero; the title counts those whose p "
    "is also below 0.05. A difference inside the grey band is too small for this many items to "
    "show.",
    "controls": "The real arm (blue, its interval shaded) and its controls, each minus its "
    "reference. A filled square differs from the real arm.",
    "seeds": "Each point is one run, named by its seed; grey lines join the runs of a seed, blue "
    "bars are means over seeds.",
    "dose": "Points of accuracy over the reference. A star marks p below 0.05 after Holm's "
    "correction.",
    "layers": "Largest and median magnitude of the hidden state after every layer, over all "
    "calibration texts. Vertical axes are logarithmic; emb is the embedding output.",
    "relief": "The hidden state of the strongest token: one curtain per layer, the embedding "
    "output at the back. The walls follow the massive dimensions through the layers.",
    "softening": "The base model on the same texts with the softening off and on. Sink mass is the "
    "mean attention that later tokens give to the massive ones, over all heads.",
    "sinks": "Sink mass of every head: the mean attention that later tokens give to the massive "
    f"ones. The sink rate is the share of (layer, head) pairs above {SINK} (after Gu et al., arXiv "
    "2410.10781; here over all massive tokens, a token's attention to itself left out).",
    "softened": " The blue bar beside the right map marks the softened layers.",
}


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
    softening = results["softening"]
    figures = [*_compared_figures(results), *_study_figures(results)]
    figures += layer_figures(report or MELayerReport.from_dict(results["me_layer"]))
    if softening is not None:
        effect = softening_effect(softening["metrics"])
        figures.append(described("softening_effect", "softening", effect, CAPTIONS["softening"]))
        figures += sink_figures(softening, "softening")
    return figures


def layer_figures(report: MELayerReport) -> list[ReportFigure]:
    """Where the massive activation lives: magnitude by layer, and the relief if it is in memory."""
    figure = magnitude_by_layer(report)
    figures = [described("magnitude_by_layer", "layers", figure, CAPTIONS["layers"])]
    if report.relief is not None:
        figures.append(described("relief", "layers", relief(report), CAPTIONS["relief"]))
    return figures


def sink_figures(softening: SofteningRecord, section: str) -> list[ReportFigure]:
    """The sink maps; none where the attention of single heads was not measured."""
    if not has_sink_maps(softening["metrics"]):
        return []
    caption = CAPTIONS["sinks"] + (CAPTIONS["softened"] if softening["layers"] else "")
    words = sink_words(softening["metrics"])
    return [described("sink_maps", section, sink_maps(softening), caption, words)]


def described(
    name: str, section: str, figure: Figure, caption: str, numbers: str = ""
) -> ReportFigure:
    """A figure whose alternative text is its title and `numbers`, else its title and caption."""
    title = figure.get_suptitle().replace("\n", " ").replace(r"\$", "$")
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    alt = f"{title}. {numbers or caption}"
    return ReportFigure(name=name, section=section, figure=figure, alt=alt, caption=caption)


def _compared_figures(results: Results) -> Iterator[ReportFigure]:
    """Every arm by itself, task by task, and the paired differences."""
    for task in verdict.ordered_tasks(results):
        scored = ((arm, of[task]) for arm, of in results["arms"].items() if task in of)
        numbers = "; ".join(
            f"{arm_words(arm)} {percent(score['mean'])}, interval "
            f"{percent(score['low'])} to {percent(score['high'])}"
            for arm, score in scored
        )
        figure, caption = plots.arms(results, task), CAPTIONS["arms"].format(task=task)
        yield described(f"arms_{task}", "arms", figure, caption, numbers)
    if rows := verdict.compared(results):
        numbers = "; ".join(
            f"{arm_words(c['a'])} minus {arm_words(c['b'])} on {c['task']}: {difference_words(c)}"
            for c in rows
        )
        yield described("forest", "differences", plots.forest(results), CAPTIONS["forest"], numbers)


def _study_figures(results: Results) -> Iterator[ReportFigure]:
    """What larger studies add: controls, seeds, dose."""
    for task in verdict.ordered_tasks(results):
        for real in verdict.real_arms(results):
            if rows := plots.gains(results, task, real):
                numbers = "; ".join(f"{arm_words(a)} {difference_words(row)}" for a, row in rows)
                figure, name = plots.controls(results, task, real), f"controls_{real}_{task}"
                yield described(name, "controls", figure, CAPTIONS["controls"], numbers)
        if arms := plots.seeded_arms(results, task):
            numbers = "; ".join(
                f"{arm_words(arm)}: {', '.join(percent(mean) for mean in values.values())}"
                for arm, values in arms.items()
            )
            figure = plots.seeds(results, task)
            yield described(f"seeds_{task}", "seeds", figure, CAPTIONS["seeds"], numbers)
        for name in dict.fromkeys(about["arm"] for about in results["arm_info"].values()):
            if plots.dose_rows(results, task, name):
                figure = plots.dose(results, task, name)
                yield described(f"dose_{name}_{task}", "dose", figure, CAPTIONS["dose"])
