"""The figures: where the massive activation lives, and how the arms compare.

Every function is pure and returns a matplotlib `Figure` (object API, no pyplot, no global state).
"""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.compare.results import ArmScore, Comparison, Results
from wemask.compare.verdict import (
    NEAR_ZERO,
    arm_words,
    compared,
    difference_words,
    judgement_of,
    ordered_tasks,
)
from wemask.detection.me_layer import MELayerReport
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
    interval,
    layer_axis,
    log_axis,
    mark_layer,
    note,
    plain,
    size_words,
    styled,
    titled,
)

ARM_COLOURS = {"base": INK, "training_free": GREEN, "sft": ORANGE, "wemask_sft": BLUE}


# ---------------------------------------------------------------------------- the model's layers


@styled
def magnitude_by_layer(report: MELayerReport) -> Figure:
    """Largest and median abs(h) per layer and their ratio (log axes), with the ME Layer marked.

    Layer -1, the embedding output, is drawn as "emb". Dashed lines are the criterion's thresholds.
    """
    rows, criterion = report.layers, report.criterion
    x = [row.layer for row in rows]
    largest, median = drawable(r.max for r in rows), drawable(r.median for r in rows)
    figure = Figure(figsize=(WIDTH, 5.2))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1))
    look: dict[str, Any] = {"marker": "o", "markersize": 5 if len(rows) < 20 else 3}
    top.plot(x, largest, color=RED, label="largest abs(h)", **look)
    top.plot(x, median, color=GREY, label="median abs(h)", **look)
    top.fill_between(x, median, largest, color=RED, alpha=0.07, linewidth=0)
    bottom.plot(x, drawable(r.ratio for r in rows), color=BLUE, label="largest / median", **look)
    look = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 3))}
    if criterion.min_magnitude > 0:
        top.axhline(criterion.min_magnitude, **look)
    words = "\n".join(textwrap.wrap(f"criterion: {criterion.describe()}", 38))
    bottom.axhline(criterion.min_ratio, label=words, **look)
    top.set_ylabel("abs(h)")
    bottom.set(ylabel="largest / median", xlabel="output of decoder layer")
    _mark_layers((top, bottom), report)
    layer_axis((top, bottom), x)
    log_axis(top)
    log_axis(bottom)
    figure.legend(loc="outside lower left", ncols=2)
    return titled(figure, _magnitude_title(report))


def _magnitude_title(report: MELayerReport) -> str:
    if not report.found or report.layer is None:
        best = max(report.layers, key=lambda row: row.ratio)
        where = "the embedding output" if best.layer < 0 else f"layer {best.layer}"
        return f"No massive activation: the largest ratio is {size_words(best.ratio)}, at {where}"
    ratio = next(row.ratio for row in report.layers if row.layer == report.layer)
    erased = report.erased_at
    end = "lasts to the end" if erased is None else f"is erased by layer {erased}"
    return (
        f"The massive activation is born in layer {report.layer} "
        f"({size_words(ratio)} times the median) and {end}"
    )


def _mark_layers(panels: Sequence[Axes], report: MELayerReport) -> None:
    """Shade the ME Layer and the layer that erases; the labels stand above the upper panel."""
    places, first = range(len(report.layers)), report.layer
    if first is not None:
        mark_layer(panels, first, f"ME Layer {first}", places)
    if (erased := report.erased_at) is not None:
        crowded = first is not None and abs(erased - first) < 0.25 * max(places[-1], 1)
        up = 15 if crowded else 3
        mark_layer(panels, erased, f"erased in {erased}", places, PURPLE, up)


# ------------------------------------------------------------------------------- arms compared


@styled
def arms(results: Results, task: str) -> Figure:
    """Accuracy of every arm on one task, with its 95% interval. KeyError for an unknown task."""
    info = results["tasks"][task]
    scored = {arm: scores[task] for arm, scores in results["arms"].items() if task in scores}
    figure = Figure(figsize=(WIDTH, 1.3 + 0.46 * max(len(scored), 1)))
    axes = figure.subplots()
    edge, end = _limits([s[k] for s in scored.values() for k in ("low", "high")], floor=0.0)
    for y, (arm, score) in enumerate(scored.items()):
        mean = interval(axes, y, score, ARM_COLOURS.get(arm, PURPLE), "o")
        side = "left" if mean < edge + 0.1 * (end - edge) else "center"  # clear of the axis
        note(axes, f"{mean:.1f}%", (mean, y), (0, 7), ha=side, fontweight="bold")
    axes.set_yticks(range(len(scored)), [plain(arm_words(arm)) for arm in scored])
    axes.set(xlim=(edge, end), ylim=(len(scored) - 0.5, -0.75))
    axes.set_xlabel(plain(f"{info['metric']}, % of items (95% interval)"), loc="right")
    axes.grid(axis="y", visible=False)
    return titled(figure, _arms_title(task, scored))


def _arms_title(task: str, scored: dict[str, ArmScore]) -> str:
    if not scored:
        return f"{task}: no arm has been scored"
    best = max(score["mean"] for score in scored.values())
    n = next(iter(scored.values()))["n"]
    if best <= NEAR_ZERO:
        return f"{task}: accuracy is near zero on every arm (n = {n})"
    leaders = [arm_words(arm) for arm, score in scored.items() if score["mean"] == best]
    return f"{task}: {' and '.join(leaders)} score{'s' * (len(leaders) == 1)} highest (n = {n})"


@styled
def forest(results: Results) -> Figure:
    """Forest plot of the paired differences a - b: estimate, 95% interval, zero line, p (Holm).

    The grey band of a row spans differences too small for its number of items to show reliably.
    """
    tasks = ordered_tasks(results)
    rows = sorted(compared(results), key=lambda c: tasks.index(c["task"]))
    heads = [i for i, c in enumerate(rows) if i == 0 or c["task"] != rows[i - 1]["task"]]
    places = [i + 0.8 * sum(h <= i for h in heads) for i in range(len(rows))]  # room for heads
    figure = Figure(figsize=(WIDTH, 1.4 + 0.42 * (len(rows) + 0.8 * len(heads))))
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1.2)
    for y, row in zip(places, rows, strict=True):
        _draw_difference(axes, y, row)
    for head in heads:
        words = f"{rows[head]['task']} (n = {rows[head]['n']})"
        _left_of(axes, places[head] - 0.85, 0, words, fontweight="bold")
    axes.set_yticks([])
    axes.set_ylim((places[-1] if places else 0) + 0.6, -0.4)
    axes.set_xlim(*_limits([r[k] for r in rows for k in ("low", "high")] + [-0.01, 0.01]))
    # What the grey band means is in the caption: a second line here was wider than the axes.
    axes.set_xlabel("difference, points (95% interval)", loc="right")
    axes.grid(axis="y", visible=False)
    clear = sum(judgement_of(results, row).outcome in ("better", "worse") for row in rows)
    title = f"{clear} of {len(rows)} differences between arms are clear of zero"
    return titled(figure, title if rows else "No two arms were compared")


def _draw_difference(axes: Axes, y: float, row: Comparison) -> None:
    colour = GREY if row["low"] <= 0 <= row["high"] else BLUE if row["delta"] > 0 else RED
    if row["minimum_detectable"] is not None:
        unseen = 100 * row["minimum_detectable"]
        axes.fill_betweenx([y - 0.3, y + 0.3], -unseen, unseen, color="#EFEFEF", linewidth=0)
    interval(axes, y, row, colour)
    _left_of(axes, y, 6, f"{arm_words(row['a'])} - {arm_words(row['b'])}")
    _left_of(axes, y, -6, difference_words(row), fontsize=8.5, color=GREY)


def _left_of(axes: Axes, y: float, up: float, text: str, **look: Any) -> None:
    """Write left of the axes, `up` points above the height y."""
    look |= {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
    note(axes, plain(text), (0, y), (-6, up), annotation_clip=False, **look)


def _limits(shares: Sequence[float], floor: float = -100.0) -> tuple[float, float]:
    """Axis limits in percent around shares, with some air, inside what is possible."""
    low, high = 100 * min(shares, default=0.0), 100 * max(shares, default=1.0)
    air = max(0.12 * (high - low), 1.0)
    low, high = max(low - air, floor), min(high + air, 100.0)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)
