"""Figures of an analysis: by layer with the softening off and on, and of the experiments.

`table` is the tidy table of an experiment (`experiments.py`), of which the rows without a layer are
drawn; by layer, the one of `rows.tidy_layers`. Conditions that are missing, or whose value is NaN,
leave a gap. Every function is pure and returns a matplotlib `Figure` without a title, which
`figures.py` gives it.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.analyse.rows import JUDGED, changed, group_words, intact, metric_words, overall
from wemask.report import style
from wemask.report.comparison_plots import dose_surface
from wemask.report.softening_plots import layer_lines
from wemask.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED

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
        "cosine\nacross inputs": ("attention_input_rigidity", "attention_input_rigidity_ordinary"),
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
SIZES = ("massive_magnitude", "perplexity")
WIDE = 5  # sizes that span more than this get a log axis
MANY_TIMES = 50  # a panel whose largest change is so many times its middle one gets a log axis
NEAR = 1.0  # %: up to here such an axis is linear
LEAST_LIMIT = 2.0  # %: weaker changes are not blown up to the full colours of a dose surface
DOTS: Any = {"jitter": False, "size": 7, "alpha": 0.75}
OTHERS = -0.3  # where other layers stand on the axis of c


# -------------------------------------------------------------------------------------- by layer


@style.styled
def by_layer(table: pd.DataFrame, name: str, me_layer: int | None = None) -> Figure:
    """One of `PANELS`, of the table that `rows.tidy_layers` makes; `me_layer` is shaded."""
    layers = sorted({int(layer) for layer in table["layer"].dropna()})
    count = len(PANELS[name])
    figure, grid = style.panels(1.6 + 1.6 * count, count, sharex=True, squeeze=False)
    panels = list(grid[:, 0])
    for axes, (words, metrics) in zip(panels, PANELS[name].items(), strict=True):
        layer_lines(axes, _lines(table, metrics))
        axes.set_ylabel(words)
        axes.margins(y=0.15)
        if name != FREE:
            low, high = axes.get_ylim()
            axes.set_ylim(min(-0.05, low), max(1.05, high))
    panels[-1].set(xlabel="decoder layer", xlim=(layers[0] - 0.5, layers[-1] + 0.5))
    style.layer_axis(panels, layers)
    if me_layer is not None:
        style.mark_layer(panels, me_layer, f"ME Layer {me_layer}", layers)
    style.one_legend(figure, panels)
    return figure


def _lines(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The rows that can be drawn, each with the line that it belongs to."""
    chosen: Any = table[table["metric"].isin(metrics)]
    rows = chosen.dropna(subset=["layer", "value"])
    states = rows["group"].map({"intact": " off", "wemask": " on"})
    lines = rows["metric"].map(WHOSE).fillna("softening") + states
    return rows.assign(line=lines).astype({"layer": float})


# ---------------------------------------------------------------------------- of an experiment


def _panels(
    rows: int, columns: int, height: float, metrics: Sequence[str], **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each metric, its name above it."""
    figure, panels = style.panels(height, rows, columns, **shared)
    for axes, metric in zip(panels.flat, metrics, strict=True):
        axes.set_title(metric_words(metric).removeprefix("massive "), fontsize=10, loc="left")
    return figure, list(panels.flat)


def _measured(table: pd.DataFrame, metric: str) -> Any:
    """The finite rows of a metric without a layer, with `change` in percent (NaN without intact)
    and `words` for the group.
    """
    rows = overall(changed(table), metric)
    rows = rows[np.isfinite(rows["value"])]
    words = rows["group"].map(lambda group: style.plain(group_words(group)))
    return rows.assign(change=100 * rows["change"], words=words)


def _log_if_wide(axes: Axes, rows: Any, which: Literal["x", "y"] = "y") -> None:
    sizes = rows[rows["metric"].isin(SIZES)]["value"]
    if len(sizes) and sizes.max() > WIDE * sizes.min() > 0:
        style.log_axis(axes, which, fine=(1, 3) if which == "x" else (1, 2, 5))


def _dots(axes: Axes, rows: Any, across: str, colours: dict[str, str]) -> None:
    """One line for each of some words, in their colours, one dot for each row."""
    words = list(colours)
    axes.set_yticks(range(len(words)), words)
    which: Any = {"order": words, "hue": "words", "palette": colours, "legend": False}
    sns.stripplot(rows, x=across, y="words", ax=axes, **which, **DOTS)
    axes.set(xlabel="", ylabel="", ylim=(max(len(words), 1) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.15)


@style.styled
def necessity(table: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Magnitude, sink mass, effective rank, perplexity over c, the part of the FFN that is left.

    Triangles are the control: c = 0 in a layer before or after the ME Layer; the one that is
    furthest from intact is named.
    """
    metrics = ("massive_magnitude", *JUDGED)
    figure, panels = _panels(2, 2, 5.6, metrics, sharex=True)
    for axes, metric in zip(panels, metrics, strict=True):
        rows, whole = _measured(table, metric), intact(table, metric)
        axes.axhline(whole, color=INK, linewidth=1, linestyle=":", label="intact")
        for group, look, colour in (("ffn_input", "o-", BLUE), ("ffn_output", "s--", ORANGE)):
            if len(own := rows[rows["group"] == group].sort_values("amount")):
                name = group_words(group)
                axes.plot(own["amount"], own["value"], look, color=colour, label=name)
        _draw_others(axes, rows[rows["group"] == "other_layer"], whole, me_layer)
        axes.margins(y=0.15)
        _log_if_wide(axes, rows)
        axes.set_xlim(OTHERS - 0.25, 1.1)
        axes.set_xticks([OTHERS, 0, 0.5, 1], ["other\nlayers", "0", "0.5", "1"])
    for axes in panels[2:]:
        axes.set_xlabel("c, the part left")
    style.one_legend(figure, panels)
    return figure


def _draw_others(axes: Axes, rows: Any, whole: float, me_layer: int | None) -> None:
    """Other layers at the left of the axis; the furthest from intact by name."""
    after = rows["at"] > (-1 if me_layer is None else me_layer)
    for side, marker, own in (("before", "<", rows[~after]), ("after", ">", rows[after])):
        if len(own):
            look: Any = {"color": GREY, "fillstyle": "none", "label": f"c = 0 in a layer {side} it"}
            axes.plot([OTHERS] * len(own), own["value"], marker, **look)
    if len(rows):
        far = rows.loc[(rows["value"] - whole).abs().fillna(0).idxmax()]
        up, side = (6, "bottom") if far["value"] < whole else (-6, "top")  # towards intact
        place = (OTHERS, far["value"])
        style.note(axes, f"layer {far['at']}", place, (0, up), ha="center", va=side, fontsize=8.5)


@style.styled
def sufficiency(table: pd.DataFrame) -> Figure:
    """Magnitude, sink mass and sink rate: intact, removed, restored, on other dims or a token."""
    part = table["amount"].map("{:.0%}".format).where(table["group"] == "restored", "")
    names: Any = (table["group"].map(group_words) + " " + part).str.strip().map(style.plain)
    colours = {"intact": INK, "removed": GREY, "restored": BLUE, "other_dims": ORANGE}
    palette = dict(zip(names, table["group"].map(colours.get).fillna(PURPLE), strict=True))
    metrics = ("massive_magnitude", "sink_mass", "sink_rate")
    figure, panels = _panels(1, 3, 1.9 + 0.34 * len(palette), metrics, sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        rows = _measured(table, metric).assign(words=names)
        for group in ("intact", "removed"):
            for value in rows[rows["group"] == group]["value"]:
                axes.axvline(value, color=colours[group], linewidth=1, linestyle=":")
        _dots(axes, rows, "value", palette)
        _log_if_wide(axes, rows, "x")
    return figure


@style.styled
def location(table: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Change against intact by the layer that is softened alone, and by groups of layers."""
    figure, grid = style.panels(6.2, 3, 2, sharey="row", sharex="col", width_ratios=(2.2, 1))
    alone: Any = table[table["group"] == "one_layer"]
    layers = [int(layer) for layer in sorted(alone["at"].dropna().unique())]
    groups = {"before": GREEN, "at": GREEN, "after": GREEN, "random_layers": ORANGE}
    for (left, right), metric in zip(grid, JUDGED, strict=True):
        rows = _measured(table, metric).dropna(subset=["change"])
        own = rows[rows["group"] == "one_layer"].astype({"at": float})
        left.bar(own["at"], own["change"], width=0.5, color=BLUE)
        which: Any = {"order": list(groups), "hue": "group", "palette": groups, "legend": False}
        rows = rows[rows["group"].isin(list(groups))]
        sns.stripplot(rows, x="group", y="change", ax=right, **which, **DOTS)
        for axes in (left, right):
            axes.axhline(0, color=INK, linewidth=1)
            axes.margins(y=0.2)
            axes.set(xlabel="", ylabel="")
            axes.grid(axis="x", visible=False)
        left.set_ylabel(f"{metric_words(metric)}, %")
    grid[-1][0].set_xlabel("the layer softened alone")
    grid[-1][1].set_xticks(range(4), ["before", "at", "after", "random"], rotation=45)
    if layers:
        style.layer_axis(list(grid[:, 0]), layers)
        grid[-1][0].set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        if me_layer is not None:
            style.mark_layer(list(grid[:, 0]), me_layer, f"ME Layer {me_layer}", layers)
    return figure


@style.styled
def specificity(table: pd.DataFrame) -> Figure:
    """Change against intact of the operator and each control, one dot for each draw.

    The grey band spans the draws of the controls that are drawn.
    """
    groups = [group for group in dict.fromkeys(table["group"]) if group != "intact"]
    colours = {style.plain(group_words(g)): BLUE if g == "wemask" else ORANGE for g in groups}
    metrics = (*JUDGED, "massive_magnitude")
    figure, panels = _panels(2, 2, 1.7 + 0.5 * len(groups), metrics, sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        rows = _measured(table, metric).dropna(subset=["change"])
        axes.axvline(0, color=INK, linewidth=1)
        drawn = rows[rows["seed"].notna() & (rows["group"] != "wemask")]["change"]
        if len(drawn):
            axes.axvspan(drawn.min(), drawn.max(), color=GREY, alpha=0.2, linewidth=0)
        _dots(axes, rows[rows["group"] != "intact"], "change", colours)
        scale = _log_if_dwarfed(axes, list(rows["change"]))
        axes.set_title(f"{axes.get_title(loc='left')}, %{scale}", fontsize=10, loc="left")
    return figure


def _log_if_dwarfed(axes: Axes, shown: Sequence[float]) -> str:
    """A log axis to both sides where one change dwarfs the others, and words for it."""
    sizes = sorted(abs(v) for v in shown if v)
    if not sizes or sizes[-1] < MANY_TIMES * max(sizes[len(sizes) // 2], NEAR / 2):
        return ""
    axes.set_xscale("symlog", linthresh=NEAR)
    axes.margins(x=0.15)
    far = 10.0 ** math.floor(math.log10(sizes[-1]))
    low, high = axes.get_xlim()
    ticks = [t for t in (-10 * far, -far, 0, far, 10 * far) if low < t < high]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.minorticks_off()
    return " (log)"


@style.styled
def dose(table: pd.DataFrame) -> Figure:
    """Sink mass, effective rank, perplexity by rate and strength; colours show the change."""
    doses: Any = table[table["group"] != "intact"]
    strengths = doses["amount"].nunique()
    figure, panels = _panels(3, 1, 1.5 + 3 * (0.5 + 0.3 * max(strengths, 1)), JUDGED, sharex=True)
    for axes, metric in zip(panels, JUDGED, strict=True):
        rows, whole = _measured(table, metric).dropna(subset=["rate"]), intact(table, metric)
        if math.isfinite(whole):
            title = f"{metric_words(metric)} (intact {style.size_words(whole)})"
            axes.set_title(title, fontsize=10, loc="left")
        if len(rows):
            words = rows["value"].map(lambda v: f"{v:,.0f}" if abs(v) >= 1000 else f"{v:#.4g}")
            cells = rows.fillna({"change": 0.0}).rename(columns={"amount": "strength"})
            dose_surface(axes, cells.assign(words=words), LEAST_LIMIT)
    panels[1].set_ylabel("strength s")
    panels[-1].set_xlabel("rate (share of dims)")
    return figure


@style.styled
def quadratic(tokens: pd.DataFrame, dims: pd.DataFrame | None = None) -> Figure:
    """What the quadratic form predicts against what the FFN writes; alignment of the tokens.

    `tokens` and `dims` are `QuadraticForm.rows()` and `.dim_rows()`: without `dims`, ordinary
    tokens are left out. Log axes hold sizes; a prediction of another sign than observed is crossed.
    """
    figure, (top, bottom) = style.panels(6.4, 2, height_ratios=(1.5, 1))
    _draw_predictions(top, tokens)
    _draw_alignment(bottom, tokens, dims)
    style.one_legend(figure, (top, bottom))
    return figure


def _draw_predictions(axes: Axes, tokens: pd.DataFrame) -> None:
    names = {"whole": "the whole form", "leading": "its leading pair", "exact": "the FFN's formula"}
    rows: Any = tokens.rename(columns=names).melt(["observed"], list(names.values()), "by", "says")
    rows["says"] = pd.to_numeric(rows["says"])
    opposite = rows["says"] * rows["observed"] < 0
    rows = rows.assign(
        observed=style.drawable(rows["observed"].abs()), says=style.drawable(rows["says"].abs())
    )
    sizes = rows[["observed", "says"]].stack()
    ends = [sizes.min() / 1.3, sizes.max() * 1.3] if sizes.notna().any() else [1.0, 10.0]
    axes.plot(ends, ends, color=GREY, linewidth=1, linestyle="--", zorder=0, label="equal")
    which: Any = {"hue": "by", "style": "by", "size": "by", "sizes": [130, 55, 30], "alpha": 0.8}
    which |= {"palette": [BLUE, ORANGE, INK], "markers": ["o", "s", "X"]}
    sns.scatterplot(rows, x="observed", y="says", ax=axes, **which)
    axes.plot(*rows[opposite][["observed", "says"]].to_numpy().T, "+", color=RED, markersize=13)
    style.log_axis(axes)
    style.log_axis(axes, "x")
    axes.set(xlim=ends, ylim=ends, xlabel="observed abs(FFN output)", ylabel="predicted")


def _draw_alignment(axes: Axes, tokens: pd.DataFrame, dims: pd.DataFrame | None) -> None:
    order = [str(dim) for dim in dict.fromkeys(tokens["dim"])]
    rows = tokens.assign(dim=tokens["dim"].astype(str), near=tokens["alignment"].abs())
    if dims is not None:
        known = dims.assign(dim=dims["dim"].astype(str)).set_index("dim").reindex(order)
        low, high = known["ordinary_alignment"], known["ordinary_alignment_max"]
        look: Any = {"color": ORANGE, "linewidth": 5, "alpha": 0.7}
        axes.vlines(range(len(order)), low, high, label="ordinary: mean to largest", **look)
    axes.plot([], [], "o", color=BLUE, label="massive tokens")
    sns.stripplot(rows, x="dim", y="near", order=order, color=BLUE, size=7, jitter=False, ax=axes)
    axes.set(xlabel="massive dim", ylabel="abs(cosine) with\nthe direction", ylim=(-0.04, 1.04))
    axes.set_xlim(-0.6, max(len(order), 1) - 0.4)
    axes.grid(axis="x", visible=False)
