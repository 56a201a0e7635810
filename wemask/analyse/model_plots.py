"""Figures of a model as it is, softening off and on: diversity, rigidity, sinks, who writes.

`layers` is the wide table of an analysis: `state` (off or on), `layer`, and the fields of
`layer_sums.LayerMetrics`, NaN or None where one does not apply. With `me_layer` that layer is
shaded, and what a title says of a mean is over the layers after it. Every function is pure and
returns a matplotlib `Figure`, as in `plots.py`; those of the experiments are in
`experiment_plots.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.analyse.rows import change, change_words, has_later, later_mean, layer_values, mean
from wemask.report.softening_plots import moved_words
from wemask.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    WIDTH,
    drawable,
    layer_axis,
    log_axis,
    size_words,
    styled,
    titled,
)

FEW = 20  # layers that have room for large markers


# -------------------------------------------------------------------------------------- by layer


@styled
def diversity(layers: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Effective rank, anisotropy and mean cosine of the attention input per layer, off and on."""
    figure, panels = _stacked(layers, 3, 6.0)
    names = {
        "effective_rank": "effective rank",
        "anisotropy": "anisotropy p1",
        "mean_cosine": "mean cosine",
    }
    for axes, (column, words) in zip(panels, names.items(), strict=True):
        _off_and_on(axes, layers, column)
        axes.set_ylabel(words)
        axes.margins(y=0.15)
    _finish(figure, panels, layers, me_layer, "what attention reads in decoder layer")
    off, on = (later_mean(layers, state, "effective_rank", me_layer) for state in ("off", "on"))
    after = " after the ME Layer" if has_later(layers, me_layer) else ""
    if math.isnan(on):
        return titled(figure, f"Tokens use {size_words(off)} directions{after} (effective rank)")
    moved = moved_words("the effective rank", off, on, size_words)
    return titled(figure, f"Softening {moved}{after} ({change_words(change(on, off))})")


@styled
def rigidity(layers: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Cosines of the massive token with itself a layer before, and across inputs; ordinary beside.

    A token that is first sees no other, and is the same in every input by construction.
    """
    figure, (top, bottom) = _stacked(layers, 2, 5.0)
    _off_and_on(top, layers, "rigidity_layers")
    _off_and_on(bottom, layers, "attention_input_rigidity")
    ordinary = {"marker": "^", "linestyle": ":", "color": ORANGE, "label": "ordinary tokens, off"}
    _draw(bottom, layers, "off", "attention_input_rigidity_ordinary", ordinary)
    top.set_ylabel("cosine with\nthe layer before")
    bottom.set_ylabel("cosine\nacross inputs")
    for axes in (top, bottom):
        low = min([0.0, *(y for line in axes.lines for y in _finite(line.get_ydata()))])
        axes.set_ylim(low - 0.05, 1.06)
    _finish(figure, (top, bottom), layers, me_layer, "decoder layer")
    columns = ("attention_input_rigidity", "attention_input_rigidity_ordinary")
    massive, others = (later_mean(layers, "off", column, me_layer) for column in columns)
    if math.isnan(massive):
        return titled(figure, "No two massive tokens, so nothing is known of their rigidity")
    return titled(
        figure,
        f"Cosine across inputs of what attention reads: massive tokens {massive:.2f}, "
        f"ordinary ones {others:.2f}",
    )


@styled
def sinks(layers: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Sink mass and sink rate per layer, off and on, of massive tokens; first tokens beside."""
    figure, panels = _stacked(layers, 2, 5.0)
    for axes, column in zip(panels, ("sink_mass", "sink_rate"), strict=True):
        _off_and_on(axes, layers, column)
        first = {"marker": "D", "linestyle": ":", "color": PURPLE, "label": "first token, off"}
        _draw(axes, layers, "off", f"{column}_first", {**first, "markerfacecolor": "none"})
        axes.set_ylabel(column.replace("_", " "))
        axes.set_ylim(-0.04, 1.04)
    _finish(figure, panels, layers, me_layer, "decoder layer")
    off, on = (later_mean(layers, state, "sink_mass", me_layer) for state in ("off", "on"))
    if math.isnan(off):
        first = later_mean(layers, "off", "sink_mass_first", me_layer)
        return titled(figure, f"No massive token; the first token draws {first:.0%} of attention")
    after = " after the ME Layer" if has_later(layers, me_layer) else ""
    if math.isnan(on):
        return titled(
            figure, f"Massive tokens draw {off:.0%} of the attention of later ones{after}"
        )
    moved = moved_words("the sink mass", off, on, "{:.2f}".format)
    return titled(figure, f"Softening {moved}{after} ({change_words(change(on, off))})")


@styled
def writes(layers: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Share of what each layer writes into massive tokens that attention and FFN wrote, off and on.

    The two add up to 1; one that works against the other is below 0.
    """
    figure, (axes,) = _stacked(layers, 1, 3.6)
    axes.axhline(0, color=GREY, linewidth=1)
    looks = {"ffn_share": ("FFN", BLUE, "o"), "attention_share": ("attention", ORANGE, "^")}
    for column, (words, colour, marker) in looks.items():
        look: dict[str, Any] = {"color": colour, "marker": marker}
        _draw(axes, layers, "off", column, {**look, "label": f"{words}, off"})
        dashed = {"linestyle": "--", "markerfacecolor": "white", "label": f"{words}, on"}
        _draw(axes, layers, "on", column, {**look, **dashed})
    axes.set_ylabel("share of the write")
    _finish(figure, (axes,), layers, me_layer, "decoder layer")
    places, shares = layer_values(layers, "off", "ffn_share")
    known = {p: s for p, s in zip(places, shares, strict=True) if math.isfinite(s)}
    if not known:
        return titled(figure, "No massive token, so nothing is known of who writes into it")
    place = me_layer if me_layer in known else max(known, key=lambda p: known[p])
    name = f"the ME Layer, {place}," if place == me_layer else f"layer {place}"
    return titled(
        figure, f"In {name} the FFN writes {known[place]:.0%} of what massive tokens are given"
    )


# -------------------------------------------------------------------------------- quadratic form


@styled
def quadratic(rows: Sequence[Mapping[str, Any]], dims: Sequence[Mapping[str, Any]] = ()) -> Figure:
    """What the quadratic form predicts against what the FFN writes; alignment of the tokens.

    `rows` and `dims` are `QuadraticForm.rows()` and `.dim_rows()`: without `dims`, ordinary tokens
    are left out. Log axes hold sizes; a prediction of another sign than observed is crossed out.
    """
    figure = Figure(figsize=(WIDTH, 6.4))
    top, bottom = figure.subplots(2, 1, height_ratios=(1.5, 1))
    _draw_predictions(top, rows)
    _draw_alignment(bottom, rows, dims)
    figure.legend(loc="outside lower left", ncols=2)
    return titled(figure, _quadratic_title(rows))


def _draw_predictions(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    observed = np.array([abs(row["observed"]) for row in rows], dtype=float)
    looks = {
        "whole": ("the whole form", BLUE, "o", 9),
        "leading": ("its leading pair", ORANGE, "s", 6),
        "exact": ("the FFN's formula", GREEN, "x", 6),
    }
    for column, (words, colour, marker, size) in looks.items():
        predicted = _column(rows, column)
        opposite = predicted * _column(rows, "observed") < 0
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
        look |= {"markersize": size, "markerfacecolor": "none", "alpha": 0.8}
        axes.plot(drawable(observed), drawable(np.abs(predicted)), label=words, **look)
        wrong: dict[str, Any] = {"color": RED, "marker": "+", "markersize": 13, "linestyle": "none"}
        axes.plot(observed[opposite], np.abs(predicted[opposite]), **wrong)
    seen = _finite(np.concatenate([line.get_xydata() for line in axes.lines]).ravel())
    ends = [min(seen) / 1.3, max(seen) * 1.3] if seen else [1.0, 10.0]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=0, label="equal")
    axes.set(xlabel="observed abs(FFN output)", ylabel="predicted")
    log_axis(axes)
    log_axis(axes, "x")
    axes.set(xlim=ends, ylim=ends)


def _draw_alignment(
    axes: Axes, rows: Sequence[Mapping[str, Any]], dims: Sequence[Mapping[str, Any]]
) -> None:
    names = list(dict.fromkeys(row["dim"] for row in [*rows, *dims]))
    by_dim = {row["dim"]: row for row in dims}
    for x, dim in enumerate(names):
        cosines = [abs(row["alignment"]) for row in rows if row["dim"] == dim]
        words: dict[str, Any] = {"label": "massive tokens"} if x == 0 else {}
        axes.plot([x] * len(cosines), cosines, "o", color=BLUE, markerfacecolor="none", **words)
        if dim not in by_dim:
            continue
        usual, most = (by_dim[dim][f"ordinary_alignment{end}"] for end in ("", "_max"))
        if usual is not None and most is not None:
            words = {"label": "ordinary: mean to largest"} if x == 0 else {}
            axes.plot([x, x], [usual, most], color=ORANGE, linewidth=5, alpha=0.6, **words)
            axes.plot(x, usual, "_", color=ORANGE, markersize=14, markeredgewidth=2.5)
    axes.set_xticks(range(len(names)), [str(dim) for dim in names])
    axes.set(xlabel="massive dim", ylabel="abs(cosine) with\nthe direction", ylim=(-0.04, 1.04))
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.grid(axis="x", visible=False)


def _quadratic_title(rows: Sequence[Mapping[str, Any]]) -> str:
    ratios = _column(rows, "leading") / np.where(
        _column(rows, "observed") == 0, np.nan, _column(rows, "observed")
    )
    ratio = mean(list(ratios))
    if math.isnan(ratio):
        return "The quadratic form could not be held against what the FFN writes"
    low, high = min(_finite(ratios)), max(_finite(ratios))
    return (
        f"One direction predicts {ratio:.0%} of what the FFN writes on the massive dims, "
        f"between {low:.0%} and {high:.0%} by token"
    )


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    values = (row.get(name) for row in rows)
    return np.array([math.nan if v is None else float(v) for v in values], dtype=float)


# ---------------------------------------------------------------------------------------- shared


def _finite(numbers: Any) -> list[float]:
    return [float(n) for n in numbers if math.isfinite(n)]


def _stacked(layers: pd.DataFrame, count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, height))
    return figure, list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _off_and_on(axes: Axes, layers: pd.DataFrame, column: str) -> None:
    _draw(axes, layers, "off", column, {"color": INK, "marker": "o", "label": "softening off"})
    on = {"color": BLUE, "marker": "s", "linestyle": "--", "markerfacecolor": "white"}
    _draw(axes, layers, "on", column, {**on, "label": "softening on"})


def _draw(
    axes: Axes, layers: pd.DataFrame, state: str, column: str, look: Mapping[str, Any]
) -> None:
    places, numbers = layer_values(layers, state, column)
    if any(map(math.isfinite, numbers)):
        size = 6.5 if len(places) < FEW else 3
        axes.plot(places, numbers, **{"markersize": size, **look})


def _finish(
    figure: Figure,
    panels: Sequence[Axes],
    layers: pd.DataFrame,
    me_layer: int | None,
    words: str,
) -> None:
    """Layer axis, the ME Layer's shade, and one legend for all panels."""
    shown = sorted({int(layer) for layer in layers["layer"]})
    for axes in panels:
        if me_layer is not None:
            axes.axvline(me_layer, color=BLUE, linewidth=7, alpha=0.16, zorder=0)
    if me_layer is not None:
        mark_me_layer(panels[0], me_layer, shown)
    panels[-1].set_xlabel(words)
    panels[-1].set_xlim(shown[0] - 0.5, shown[-1] + 0.5)
    layer_axis(panels, shown)
    found = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=2)


def mark_me_layer(axes: Axes, me_layer: int, layers: Sequence[int]) -> None:
    """Write "ME Layer 6" above the axes, inside its width."""
    place = (me_layer - layers[0]) / max(layers[-1] - layers[0], 1)
    axes.annotate(
        f"ME Layer {me_layer}",
        (me_layer, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right" if place > 0.85 else "left" if place < 0.1 else "center",
        fontsize=9,
        fontweight="bold",
    )
