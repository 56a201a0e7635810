"""Figures by layer of a model, softening off and on: sinks, diversity, rigidity, who writes.

Each is a few panels of lines over layers. Every function is pure and returns a matplotlib `Figure`
without a title, which `figures.py` gives it.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from wemask.report.softening_plots import layer_lines
from wemask.report.style import WIDTH, layer_axis, mark_layer, one_legend, styled

PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "sinks": {
        "sink mass": ("sink_mass", "sink_mass_first"),
        "sink rate": ("sink_rate", "sink_rate_first"),
    },
    "diversity": {
        "effective rank": ("effective_rank",),
        "anisotropy p1": ("anisotropy",),
        "mean cosine": ("mean_cosine",),
    },
    "rigidity": {
        "cosine with\nthe layer before": ("rigidity_layers",),
        "cosine\nacross inputs": (
            "attention_input_rigidity",
            "attention_input_rigidity_ordinary",
        ),
    },
    "writes": {"share of the write": ("ffn_share", "attention_share")},
}
"""Figure -> label of a panel's axis -> the metrics in it."""
WHOSE = {
    "sink_mass_first": "first token",
    "sink_rate_first": "first token",
    "attention_input_rigidity_ordinary": "ordinary tokens",
    "ffn_share": "FFN",
    "attention_share": "attention",
}
FREE = "diversity"  # its axes go where the numbers are; the others hold shares, 0 to 1


@styled
def by_layer(table: pd.DataFrame, name: str, me_layer: int | None = None) -> Figure:
    """One of `PANELS`, of the table that `rows.tidy_layers` makes; `me_layer` is shaded."""
    layers = sorted({int(layer) for layer in table["layer"].dropna()})
    figure = Figure(figsize=(WIDTH, 1.6 + 1.6 * len(PANELS[name])))
    panels = list(figure.subplots(len(PANELS[name]), 1, sharex=True, squeeze=False)[:, 0])
    for axes, (words, metrics) in zip(panels, PANELS[name].items(), strict=True):
        layer_lines(axes, _lines(table, metrics))
        axes.set(ylabel=words, xlabel="decoder layer")
        axes.margins(y=0.15)
        if name != FREE:
            low, high = axes.get_ylim()
            axes.set_ylim(min(-0.05, low), max(1.05, high))
    panels[-1].set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    layer_axis(panels, layers)
    if me_layer is not None:
        mark_layer(panels, me_layer, f"ME Layer {me_layer}", layers)
    one_legend(figure, panels)
    return figure


def _lines(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The rows that can be drawn, each with the line that it belongs to."""
    rows: Any = table[table["metric"].isin(metrics)].dropna(subset=["layer", "value"])
    states = rows["group"].map({"intact": " off", "wemask": " on"})
    lines = rows["metric"].map(WHOSE).fillna("softening") + states
    return rows.assign(line=lines).astype({"layer": float})
