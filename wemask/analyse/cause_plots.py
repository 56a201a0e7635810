"""Figures of the experiments on the cause: necessity, sufficiency, location.

`table` is the tidy table of an experiment (`experiments.py`). What is drawn are the rows without a
layer: means over the layers after the ME Layer, or of the model. Conditions that are missing, or
whose value is NaN, leave a gap. Every function is pure and returns a matplotlib `Figure`. Those of
the operator and its controls are in `operator_plots.py`.
"""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from wemask.analyse.model_plots import mark_me_layer
from wemask.analyse.rows import (
    change,
    change_words,
    changes,
    chosen,
    group_words,
    intact,
    mean,
    metric_words,
    overall,
    value,
    values,
)
from wemask.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    WIDTH,
    drawable,
    layer_axis,
    log_axis,
    plain,
    styled,
    titled,
)

WIDE = 10  # perplexities that span more than this get a log axis
BEFORE, AFTER = -0.22, -0.4  # where the control layers stand on the axis of c
GROUPS = ("before", "at", "after", "random_layers")


# ------------------------------------------------------------------------------------- necessity


@styled
def necessity(table: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Magnitude, sink mass, effective rank, perplexity over c, the part of the FFN that is left.

    Triangles at c = 0 are the control: the same taken away in a layer before (left) or after the
    ME Layer (right); the furthest from intact is named. `me_layer` is read from the table if None.
    """
    me_layer = _me_layer(table) if me_layer is None else me_layer
    figure = Figure(figsize=(WIDTH, 5.6))
    panels = figure.subplots(2, 2, sharex=True).ravel()
    metrics = ("massive_magnitude", "sink_mass", "effective_rank", "perplexity")
    for axes, metric in zip(panels, metrics, strict=True):
        axes.axhline(intact(table, metric), color=INK, linewidth=1, linestyle=":", label="intact")
        for group, colour, look in (("ffn_input", BLUE, "o-"), ("ffn_output", ORANGE, "s--")):
            rows = chosen(table, metric, group).sort_values("amount")
            heights = drawable(rows["value"])
            words = group_words(group)
            axes.plot(rows["amount"], heights, look, color=colour, markersize=6, label=words)
        _draw_other_layers(axes, table, metric, me_layer)
        axes.set_title(metric_words(metric), fontsize=10, loc="left")
        axes.set_xlim(AFTER - 0.2, 1.08)
        axes.margins(y=0.12)
        axes.set_xticks([(BEFORE + AFTER) / 2, 0, 0.5, 1], ["other\nlayers", "0", "0.5", "1"])
    log_axis(panels[0])
    _log_if_wide(panels[3], table)
    for axes in panels[2:]:
        axes.set_xlabel("c, the part left")
    if (low := panels[1].get_ylim()[0]) > 0:
        panels[1].set_ylim(min(0, low), None)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)
    return titled(figure, _necessity_title(table, me_layer))


def _log_if_wide(axes: Axes, table: pd.DataFrame) -> None:
    """Perplexity can grow a thousand times, which hides all the rest on a linear axis."""
    found = [v for v in overall(table, "perplexity")["value"] if v > 0]
    if found and max(found) > WIDE * min(found):
        log_axis(axes)


def _me_layer(table: pd.DataFrame) -> int | None:
    found: Any = table[table["group"].str.startswith("ffn_")]["at"]
    found = found.dropna()
    return int(found.iloc[0]) if len(found) else None


def _draw_other_layers(axes: Axes, table: pd.DataFrame, metric: str, me_layer: int | None) -> None:
    rows = chosen(table, metric, "other_layer").dropna(subset=["value"])
    if not len(rows):
        return
    reference, place = intact(table, metric), {}
    for side, marker, x in (("before", "<", BEFORE), ("after", ">", AFTER)):
        own = [r for _, r in rows.iterrows() if (side == "before") == _is_before(r["at"], me_layer)]
        place |= {int(row["at"]): x for row in own}
        look: dict[str, Any] = {"color": GREY, "markerfacecolor": "white", "markersize": 7}
        heights = drawable(row["value"] for row in own)
        label = f"c = 0 in a layer {side} it"
        if own:
            axes.plot([x] * len(own), heights, marker, label=label, **look)
    furthest = rows.loc[(rows["value"] - reference).abs().fillna(0).idxmax()]
    below = furthest["value"] < reference
    axes.annotate(
        f"layer {furthest['at']}",
        (place[int(furthest["at"])], furthest["value"]),
        xytext=(0, 6 if below else -6),
        textcoords="offset points",
        ha="center",
        va="bottom" if below else "top",
        fontsize=8.5,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _is_before(layer: int, me_layer: int | None) -> bool:
    return me_layer is not None and layer < me_layer


def _necessity_title(table: pd.DataFrame, me_layer: int | None) -> str:
    parts = []
    for metric in ("massive_magnitude", "sink_mass"):
        before, now = intact(table, metric), value(table, metric, "ffn_output", amount=0.0)
        if math.isnan(now):
            now = value(table, metric, "ffn_input", amount=0.0)
        words = change_words(change(now, before))
        parts.append(f"{metric_words(metric)} {words}")
    where = "the ME Layer" if me_layer is None else f"layer {me_layer}"
    return f"Without what the FFN of {where} writes: {', '.join(parts)}"


# ----------------------------------------------------------------------------------- sufficiency


@styled
def sufficiency(table: pd.DataFrame) -> Figure:
    """Magnitude, sink mass and sink rate: intact, removed, restored, on other dims or a token."""
    rows = _sufficiency_rows(table)
    figure = Figure(figsize=(WIDTH, 1.9 + 0.34 * len(rows)))
    metrics = ("massive_magnitude", "sink_mass", "sink_rate")
    panels = list(figure.subplots(1, 3, sharey=True))
    colours = {"intact": INK, "removed": INK, "restored": BLUE, "other_dims": ORANGE}
    for axes, metric in zip(panels, metrics, strict=True):
        for name, colour in (("intact", INK), ("removed", GREY)):
            axes.axvline(value(table, metric, name), color=colour, linewidth=1, linestyle=":")
        for y, (group, amount, _) in enumerate(rows):
            where = {} if group != "restored" else {"amount": amount}
            found = values(table, metric, group, **where)
            shown = drawable(found) if metric == "massive_magnitude" else found
            colour = colours.get(group, PURPLE)
            face = "white" if group in ("removed", "other_token_before") else colour
            marker = "s" if group == "restored" else "D" if "token" in group else "o"
            look: dict[str, Any] = {"color": colour, "markerfacecolor": face, "markersize": 7}
            axes.plot(shown, [y] * len(shown), marker, alpha=0.85, **look)
        axes.set_title(metric_words(metric).removeprefix("massive "), fontsize=10, loc="left")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.15)
        if metric != "massive_magnitude":
            axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    log_axis(panels[0], "x", fine=(1, 3))
    panels[0].set_yticks(range(len(rows)), [words for _, _, words in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return titled(figure, _sufficiency_title(table))


def _sufficiency_rows(table: pd.DataFrame) -> list[tuple[str, float, str]]:
    """(group, amount, words) of the rows of the figure."""
    groups = list(dict.fromkeys(table["group"]))
    rows: list[tuple[str, float, str]] = []
    for group in groups:
        if group == "restored":
            amounts = sorted(set(table[table["group"] == group]["amount"]))
            rows += [(group, amount, f"restored {amount:.0%}") for amount in amounts]
        else:
            rows.append((group, math.nan, plain(group_words(group))))
    return rows


def restored_share(table: pd.DataFrame, metric: str, now: float) -> float:
    """Which part of what was lost by the removal is there again; NaN where nothing was lost."""
    whole, removed = intact(table, metric), value(table, metric, "removed")
    lost = whole - removed
    return (now - removed) / lost if lost and math.isfinite(lost) else math.nan


def _sufficiency_title(table: pd.DataFrame) -> str:
    back = restored_share(table, "sink_mass", value(table, "sink_mass", "restored", amount=1.0))
    if math.isnan(back):
        return "No sink mass was lost with the massive vector, so none could be restored"
    others = [
        restored_share(table, "sink_mass", v) for v in values(table, "sink_mass", "other_dims")
    ]
    if not others:
        return f"The massive vector restores {back:.0%} of the lost sink mass"
    span = f"{min(others):.0%}" if len(others) == 1 else f"{min(others):.0%} to {max(others):.0%}"
    return f"The massive vector restores {back:.0%} of the lost sink mass; on other dims {span}"


# -------------------------------------------------------------------------------------- location


@styled
def location(table: pd.DataFrame, me_layer: int | None = None) -> Figure:
    """Change against intact by the layer that is softened alone, and by groups of layers."""
    metrics = ("sink_mass", "effective_rank", "perplexity")
    figure = Figure(figsize=(WIDTH, 6.2))
    grid = figure.subplots(3, 2, sharey="row", sharex="col", width_ratios=(2.2, 1))
    layers = sorted({int(i) for i in chosen(table, "sink_mass", "one_layer")["at"].dropna()})
    for (left, right), metric in zip(grid, metrics, strict=True):
        _draw_one_layer(left, table, metric, me_layer)
        _draw_groups(right, table, metric)
        left.set_ylabel(f"{metric_words(metric)}, %")
        for axes in (left, right):
            axes.axhline(0, color=INK, linewidth=1)
            axes.margins(y=0.2)
    if layers:
        layer_axis([row[0] for row in grid], layers)
        grid[-1][0].set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        if me_layer is not None:
            mark_me_layer(grid[0][0], me_layer, layers)
    grid[-1][0].set_xlabel("the layer softened alone")
    names = ["before", "at", "after", "random"]
    grid[-1][1].set_xticks(range(len(GROUPS)), names, rotation=45)
    grid[-1][1].set_xlim(-0.5, len(GROUPS) - 0.5)
    return titled(figure, _location_title(table))


def _draw_one_layer(axes: Axes, table: pd.DataFrame, metric: str, me_layer: int | None) -> None:
    if me_layer is not None:
        axes.axvline(me_layer, color=BLUE, linewidth=7, alpha=0.16, zorder=0)
    rows = chosen(table, metric, "one_layer").dropna(subset=["at"]).sort_values("at")
    whole = intact(table, metric)
    heights = [100 * change(v, whole) for v in rows["value"]]
    places = [int(at) for at in rows["at"]]
    axes.vlines(places, 0, heights, color=BLUE, linewidth=2)
    axes.plot(places, heights, "o", color=BLUE, markersize=6 if len(places) < 20 else 4)


def _draw_groups(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    for x, group in enumerate(GROUPS):
        found = changes(table, metric, group)
        drawn = group == "random_layers"
        look: dict[str, Any] = {"color": ORANGE if drawn else GREEN, "markersize": 7}
        face = "none" if drawn else look["color"]
        axes.plot([x] * len(found), found, "o" if drawn else "D", markerfacecolor=face, **look)
    axes.grid(axis="x", visible=False)
    axes.tick_params(left=False)


def _location_title(table: pd.DataFrame) -> str:
    words = {"before": "before it", "at": "at it", "after": "after the ME Layer"}
    parts = [
        f"{change_words(mean(found) / 100)} {words[group]}"
        for group in reversed(words)
        if (found := changes(table, "sink_mass", group))
    ]
    if not parts:
        return "Softening one layer alone, against the model as it is"
    return f"Softening changes the sink mass by {', '.join(parts)}"
