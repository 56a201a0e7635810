"""Figures of the experiments on the operator: specificity and dose.

`table` is the tidy table of an experiment (`experiments.py`), of which the rows without a layer are
drawn, as in `experiment_plots.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.analyse.rows import (
    change,
    change_words,
    changes,
    group_words,
    intact,
    mean,
    metric_words,
    overall,
    value,
)
from wemask.report.style import BLUE, GREY, INK, ORANGE, WIDTH, plain, size_words, styled, titled

MANY_TIMES = 50  # a panel whose largest change is so many times its smallest gets a log axis
NEAR = 1.0  # %: up to here such an axis is linear
CLOSE = 5.0  # %: numbers of a dose surface that lie closer than this get a digit more
BRIGHT = 0.21  # luminance below which white has more contrast than ink
LEAST_LIMIT = 2.0  # %: weaker changes are not blown up to the full colours of a dose surface


# ----------------------------------------------------------------------------------- specificity


@styled
def specificity(table: pd.DataFrame) -> Figure:
    """Change against intact of the operator and each control: draws as rings, means as bars.

    The grey band spans the draws of the controls that are drawn.
    """
    groups = [g for g in dict.fromkeys(table["group"]) if g != "intact"]
    figure = Figure(figsize=(WIDTH, 1.7 + 0.5 * len(groups)))
    panels = figure.subplots(2, 2, sharey=True).ravel()
    metrics = ("sink_mass", "effective_rank", "perplexity", "massive_magnitude")
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axvline(0, color=INK, linewidth=1)
        if span := drawn_values(table, metric):
            whole = intact(table, metric)
            ends = [100 * change(v, whole) for v in (min(span), max(span))]
            axes.axvspan(*ends, color=GREY, alpha=0.2, linewidth=0)
        for y, group in enumerate(groups):
            _draw_control(axes, y, group, changes(table, metric, group))
        _change_axis(axes, [c for g in groups for c in changes(table, metric, g)])
        scale = "%" if axes.get_xscale() == "linear" else "% (log)"
        words = metric_words(metric).removeprefix("massive ")
        axes.set_title(f"{words}, {scale}", fontsize=10, loc="left")
        axes.grid(axis="y", visible=False)
    names = [plain(group_words(group)) for group in groups]
    panels[0].set_yticks(range(len(groups)), names)
    panels[0].set_ylim(len(groups) - 0.5, -0.5)
    return titled(figure, _specificity_title(table))


def _draw_control(axes: Axes, y: int, group: str, found: Sequence[float]) -> None:
    if not found:
        return
    colour, marker = (BLUE, "s") if group == "wemask" else (ORANGE, "o")
    if len(found) > 1:
        axes.plot(found, [y] * len(found), marker, color=colour, markerfacecolor="none")
        axes.plot([mean(found)] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2.5)
    else:
        axes.plot(found, [y], marker, color=colour, markersize=7)


def drawn_values(table: pd.DataFrame, metric: str) -> list[float]:
    """The values of all controls that are drawn by a seed."""
    rows = overall(table, metric)
    rows = rows[rows["seed"].notna() & (rows["group"] != "wemask")]
    return [float(v) for v in rows["value"] if math.isfinite(v)]


def _change_axis(axes: Axes, shown: Sequence[float]) -> None:
    """A log axis to both sides where one change dwarfs the others."""
    sizes = sorted(abs(v) for v in shown if v)
    if not sizes or sizes[-1] < MANY_TIMES * max(sizes[len(sizes) // 2], NEAR / 2):
        axes.margins(x=0.15)
        return
    axes.set_xscale("symlog", linthresh=NEAR)
    limit = 10.0 ** math.floor(math.log10(sizes[-1]))
    low, high = 1.6 * min(-NEAR, *shown), 1.6 * max(NEAR, *shown)
    far = (limit, 10 * limit) if min(-low, high) <= 2 * NEAR else (limit,)  # room on one side
    ticks = [t for t in (*(-f for f in far), 0, *far) if low < t < high]
    axes.set_xticks(ticks, [f"{t:,g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)


def _specificity_title(table: pd.DataFrame) -> str:
    whole, real = intact(table, "sink_mass"), value(table, "sink_mass", "wemask")
    drawn = drawn_values(table, "sink_mass")
    words = f"The operator changes the sink mass by {change_words(change(real, whole))}"
    if math.isnan(real) or not drawn:
        return words
    span = [change_words(change(v, whole)) for v in (min(drawn), max(drawn))]
    apart = real < min(drawn) or real > max(drawn)
    return f"{words}, {'outside' if apart else 'within'} the drawn controls' {' to '.join(span)}"


# ------------------------------------------------------------------------------------------ dose


@styled
def dose(table: pd.DataFrame) -> Figure:
    """Sink mass, effective rank, perplexity by rate and strength; colours show the change."""
    metrics = ("sink_mass", "effective_rank", "perplexity")
    doses: Any = table[table["group"] != "intact"]
    rates, strengths = (sorted(set(doses[key].dropna())) for key in ("rate", "amount"))
    height = 1.5 + 3 * (0.5 + 0.3 * max(len(strengths), 1))
    figure = Figure(figsize=(WIDTH, height))
    panels = figure.subplots(3, 1, sharex=True)
    for axes, metric in zip(panels, metrics, strict=True):
        grid = np.full((len(strengths), len(rates)), np.nan)
        for _, row in overall(doses, metric).iterrows():
            grid[strengths.index(row["amount"]), rates.index(row["rate"])] = row["value"]
        whole = intact(table, metric)
        _heat(axes, grid, whole)
        known = f" (intact {size_words(whole)})" if math.isfinite(whole) else ""
        axes.set_title(metric_words(metric) + known, fontsize=10, loc="left")
        axes.set_yticks(range(len(strengths)), [f"{s:g}" for s in strengths])
        axes.grid(visible=False)
    panels[1].set_ylabel("strength s")
    panels[-1].set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    panels[-1].set_xlabel("rate (share of dims)")
    return titled(figure, _dose_title(table))


def _heat(axes: Axes, grid: np.ndarray, whole: float) -> None:
    if not grid.size:
        return
    moved = 100 * (grid - whole) / abs(whole) if whole and math.isfinite(whole) else 0 * grid
    sizes = [abs(v) for v in moved.ravel() if math.isfinite(v)]
    limit = max([LEAST_LIMIT, *sizes])
    picture = axes.imshow(
        moved, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", origin="lower"
    )
    for (y, x), number in np.ndenumerate(grid):
        if math.isfinite(number):
            colour = ink_on(picture.to_rgba(moved[y, x]))
            words = _digits(number, 4 if max([0.0, *sizes]) < CLOSE else 3)
            axes.text(x, y, words, ha="center", va="center", color=colour, fontsize=9)


def ink_on(colour: Any) -> str:
    """White or ink, whichever has more contrast on an (r, g, b, alpha) in 0..1 (WCAG 2.2)."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "white" if luminance < BRIGHT else INK


def _digits(number: float, digits: int) -> str:
    """1234.5 -> "1,234"; 0.25 -> "0.250" with 3 digits, so that cells look alike."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:#.{digits}g}".rstrip(".")


def _dose_title(table: pd.DataFrame) -> str:
    found = changes(table, "sink_mass", "wemask")
    if not found:
        return "No dose was measured"
    span = " to ".join(change_words(v / 100) for v in (max(found), min(found)))
    cost = changes(table, "perplexity", "wemask")
    words = f"Over the doses the sink mass changes by {span}"
    if not cost:
        return words
    paid = " to ".join(change_words(v / 100) for v in (min(cost), max(cost)))
    return f"{words}, perplexity by {paid}"
