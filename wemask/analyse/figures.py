"""The figures of an analysis, each with what a reader needs who cannot see it.

A figure's title is the finding that it shows, and its alternative text the numbers behind it.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from wemask.analyse import plots
from wemask.analyse.findings import Finding, Tables, sentence
from wemask.analyse.rows import has_rows, metric_words, tidy_layers
from wemask.detection.me_layer import MELayerReport
from wemask.report.figures import ReportFigure, described, layer_figures, sink_figures
from wemask.report.softening_plots import SIDES, SINK
from wemask.report.style import styled, titled

CAPTIONS = {
    "diversity": "How many directions the tokens of a text use in what attention reads: effective "
    "rank (exp of the matrix entropy), share of the energy in the leading direction, and mean "
    "cosine between tokens. Means over texts.",
    "rigidity": "Above: cosine of a massive token's state with its own a layer before. Below: mean "
    "cosine between massive tokens of all inputs in what attention reads, and the same between "
    "ordinary tokens. A token that is first sees no other, and so is the same in every input by "
    "construction.",
    "sinks": "Sink mass: attention that later tokens pay to massive ones, mean over heads. Sink "
    f"rate: share of (token, head) pairs above {SINK}. Diamonds: the first token, massive or not.",
    "writes": "Share of what each layer writes into massive tokens that its attention and its FFN "
    "wrote; they add up to 1, and one that works against the other is below 0.",
    "necessity": "What the ME Layer's FFN reads (circles) or writes (squares) for massive tokens, "
    "multiplied by c; dotted: intact. Triangles: what another layer's FFN writes, taken away.",
    "sufficiency": "The massive vector removed, written back at a part of its size, and the same "
    "values on other dims (one point per draw) or on an ordinary token, which is then the one that "
    "is measured. Dotted lines: intact and removed.",
    "location": "Change against intact. Left: one layer softened alone. Right: all layers before "
    "the ME Layer, the ME Layer, all layers after it, and as many random layers (one dot per "
    "draw).",
    "specificity": "Change against intact, one dot for each draw; the grey band spans all draws of "
    "the controls that are drawn.",
    "dose": "Means over the layers after the ME Layer. Colours show the change against intact, "
    "orange below it and blue above, on a scale of its own in each panel.",
    "quadratic": "Above: what the form, its leading pair alone and the FFN's own formula predict "
    "for each massive token and dim. Below: how closely tokens lie to the leading direction; bars "
    "span ordinary tokens from their mean to the largest.",
}
SHOWN = {
    "sinks": ("sink mass", "sink mass of the first token"),
    "diversity": ("effective rank",),
    "rigidity": ("cosine of massive tokens", "cosine of ordinary tokens"),
    "writes": ("its FFN's part",),
}
"""Figure by layer -> the metrics of the findings that it shows."""
ALWAYS = ("sinks", "diversity")  # the others need massive tokens
TOLD = ("sink mass", "perplexity", "predicted", "written", "cosine")  # how a told metric begins


def build_analysis_figures(
    tables: Tables, report: MELayerReport, found: Sequence[Finding]
) -> list[ReportFigure]:
    """All figures of an analysis, in reading order.

    Args:
        tables: by name; those that are missing or empty have no figure.
        report: the detection, with its relief if that is in memory.
        found: `findings.findings` of the same tables.
    """
    figures = layer_figures(report)
    if has_rows(tables, "layers"):
        table = tidy_layers(tables["layers"], report.layer)
        for name, metrics in SHOWN.items():
            own = [f for f in found if f["experiment"] == "metrics" and f["metric"] in metrics]
            if own or name in ALWAYS:
                figure = plots.by_layer(table, name, report.layer)
                figures.append(_figure(name, "metrics", figure, own, own))
        figures += _sink_figures(tables["layers"])
    draw: dict[str, Callable[[pd.DataFrame], Figure]] = {
        "necessity": lambda table: plots.necessity(table, report.layer),
        "sufficiency": plots.sufficiency,
        "location": lambda table: plots.location(table, report.layer),
        "specificity": plots.specificity,
        "dose": plots.dose,
        "quadratic": lambda table: plots.quadratic(table, tables.get("quadratic_dims")),
    }
    for name, drawn in draw.items():
        if has_rows(tables, name):
            own = [f for f in found if f["experiment"] == name]
            first = [*(f for f in own if f["reading"]), *own][:1]
            told = [f for f in own if f["metric"].startswith(TOLD)]
            figures.append(_figure(name, name, drawn(tables[name]), first, told))
    return figures


def _figure(
    name: str, section: str, figure: Figure, first: Sequence[Finding], told: Sequence[Finding]
) -> ReportFigure:
    title = sentence(*first, short=True) if first else f"{metric_words(name)}: not measured"
    styled(titled)(figure, title)
    by_deed = (list(lines) for _, lines in groupby(told, key=itemgetter("done")))
    numbers = "; ".join(sentence(*lines) for lines in by_deed)
    return described(name, section, figure, CAPTIONS[name], numbers)


def _sink_figures(layers: pd.DataFrame) -> list[ReportFigure]:
    """Sink maps by head, where both states were measured."""
    if set(layers["state"]) != set(SIDES) or "sink_mass_by_head" not in layers:
        return []
    rows: Any = layers.astype(object).where(layers.notna(), None).sort_values("layer")
    metrics = {side: of.to_dict("records") for side, of in rows.groupby("state")}
    softening: Any = {"metrics": metrics, "layers": []}
    return sink_figures(softening, "metrics")
