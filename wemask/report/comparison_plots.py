"""Figures of a comparison: arms, their differences, and what larger studies add.

Every function is pure and returns a matplotlib `Figure` (object API, no pyplot, no global state).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.compare import verdict
from wemask.compare.results import ArmScore, Comparison, Results
from wemask.compare.verdict import arm_words, judgement_of, points
from wemask.report import style
from wemask.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED

ARM_COLOURS = {"base": INK, "training_free": GREEN, "sft": ORANGE, "wemask_sft": BLUE}
DOSE = ("rate", "strength")  # the settings that span a dose surface
LIGHT = sns.blend_palette([ORANGE, "#F7F7F7", "#56B4E9"], as_cmap=True)  # ink reads on all of it


# ------------------------------------------------------------------------- arms and differences


@style.styled
def arms(results: Results, task: str) -> Figure:
    """Accuracy of every arm on one task, with its 95% interval. KeyError for an unknown task."""
    info = results["tasks"][task]
    scored = {arm: scores[task] for arm, scores in results["arms"].items() if task in scores}
    figure, axes = style.panels(1.3 + 0.46 * max(len(scored), 1))
    edge, end = _limits([s[k] for s in scored.values() for k in ("low", "high")], floor=0.0)
    for y, (arm, score) in enumerate(scored.items()):
        mean = style.interval(axes, y, score, ARM_COLOURS.get(arm, PURPLE), "o")
        side = "left" if mean < edge + 0.1 * (end - edge) else "center"  # clear of the axis
        style.note(axes, f"{mean:.1f}%", (mean, y), (0, 7), ha=side, fontweight="bold")
    _name_arms(axes, list(scored), f"{info['metric']}, % of items (95% interval)")
    axes.set_xlim(edge, end)
    return style.titled(figure, _arms_title(task, scored))


def _name_arms(axes: Axes, arms: Sequence[str], label: str) -> None:
    """One row for each arm, the first on top, and what the horizontal axis shows."""
    axes.set_yticks(range(len(arms)), [style.plain(arm_words(arm)) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.75)
    axes.set_xlabel(style.plain(label), loc="right")
    axes.grid(axis="y", visible=False)


def _arms_title(task: str, scored: dict[str, ArmScore]) -> str:
    if not scored:
        return f"{task}: no arm has been scored"
    best = max(score["mean"] for score in scored.values())
    n = next(iter(scored.values()))["n"]
    if best <= verdict.NEAR_ZERO:
        return f"{task}: accuracy is near zero on every arm (n = {n})"
    leaders = [arm_words(arm) for arm, score in scored.items() if score["mean"] == best]
    return f"{task}: {' and '.join(leaders)} score{'s' * (len(leaders) == 1)} highest (n = {n})"


@style.styled
def forest(results: Results) -> Figure:
    """Forest plot of the paired differences a - b: estimate, 95% interval, zero line, p (Holm).

    The grey band of a row spans differences too small for its number of items to show reliably.
    """
    tasks = verdict.ordered_tasks(results)
    rows = sorted(verdict.compared(results), key=lambda c: tasks.index(c["task"]))
    heads = [i for i, c in enumerate(rows) if i == 0 or c["task"] != rows[i - 1]["task"]]
    places = [i + 0.8 * sum(h <= i for h in heads) for i in range(len(rows))]  # room for heads
    figure, axes = style.panels(1.4 + 0.42 * (len(rows) + 0.8 * len(heads)))
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
    return style.titled(figure, title if rows else "No two arms were compared")


def _draw_difference(axes: Axes, y: float, row: Comparison) -> None:
    colour = GREY if row["low"] <= 0 <= row["high"] else BLUE if row["delta"] > 0 else RED
    if row["minimum_detectable"] is not None:
        unseen = 100 * row["minimum_detectable"]
        axes.fill_betweenx([y - 0.3, y + 0.3], -unseen, unseen, color="#EFEFEF", linewidth=0)
    style.interval(axes, y, row, colour)
    _left_of(axes, y, 6, f"{arm_words(row['a'])} - {arm_words(row['b'])}")
    _left_of(axes, y, -6, verdict.difference_words(row), fontsize=8.5, color=GREY)


def _left_of(axes: Axes, y: float, up: float, text: str, **look: Any) -> None:
    """Write left of the axes, `up` points above the height y."""
    look |= {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
    style.note(axes, style.plain(text), (0, y), (-6, up), annotation_clip=False, **look)


def _limits(shares: Sequence[float], floor: float = -100.0) -> tuple[float, float]:
    """Axis limits in percent around shares, with some air, inside what is possible."""
    low, high = 100 * min(shares, default=0.0), 100 * max(shares, default=1.0)
    air = max(0.12 * (high - low), 1.0)
    low, high = max(low - air, floor), min(high + air, 100.0)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


# ------------------------------------------------------------------- controls, seeds and doses


def gains(results: Results, task: str, real: str) -> list[tuple[str, Comparison]]:
    """The real arm and its controls, each with its gain over the reference on one task."""
    info = results["arm_info"]
    arms = [*verdict.arms_named(results, real)]
    arms += [arm for arm, about in info.items() if about["control_of"] == real]
    return [(arm, row) for arm in arms for row in verdict.over_reference(results, task, arm)]


@style.styled
def controls(results: Results, task: str, real: str) -> Figure:
    """The gain of the real arm and of each of its controls over their reference, with intervals.

    A control whose difference from the real arm is clear of zero is drawn filled.
    """
    rows = gains(results, task, real)
    told = [_apart(results, task, real, arm) for arm, _ in rows]
    figure, axes = style.panels(1.5 + 0.42 * len(rows))
    axes.axvline(0, color=INK, linewidth=1.2)
    for y, (arm, row) in enumerate(rows):
        is_real = results["arm_info"][arm]["control_of"] is None
        colour = BLUE if is_real else ORANGE
        if is_real:
            axes.axvspan(100 * row["low"], 100 * row["high"], color=BLUE, alpha=0.09, linewidth=0)
        face = colour if is_real or told[y] else "white"
        delta = style.interval(axes, y, row, colour, markerfacecolor=face)
        style.note(axes, points(row["delta"]), (delta, y), (0, 7), ha="center")
    label = f"accuracy minus {arm_words(rows[0][1]['b'])}, points (95% interval)"
    _name_arms(axes, [arm for arm, _ in rows], label)
    differ = f"{sum(told[1:])} of {len(rows) - 1} controls differ from {arm_words(real)}"
    return style.titled(figure, f"{task}: {differ}")


def _apart(results: Results, task: str, real: str, control: str) -> bool:
    """Whether a control is told apart from its real arm."""
    rows = verdict.between(results, task, verdict.arms_named(results, real), [control])
    return any(judgement_of(results, row).outcome in ("better", "worse") for row in rows)


def seeded_arms(results: Results, task: str) -> dict[str, dict[int, float]]:
    """Arm -> seed -> accuracy, of arms with at least two seeds."""
    arms = {
        arm: {run["seed"]: run["mean"] for run in scores[task]["runs"] if run["seed"] is not None}
        for arm, scores in results["arms"].items()
        if task in scores
    }
    return {arm: seeds for arm, seeds in arms.items() if len(seeds) > 1}


@style.styled
def seeds(results: Results, task: str) -> Figure:
    """Accuracy of every seed, lines joining a seed's runs, and each arm's mean over seeds."""
    shares: Any = 100 * pd.DataFrame(seeded_arms(results, task))  # [seeds, arms]
    figure, axes = style.panels(3.6)
    for seed, row in shares.set_axis(range(shares.shape[1]), axis=1).iterrows():
        own = row.dropna()
        axes.plot(own.index, own, "o-", color=GREY, alpha=0.75, linewidth=1.2, markersize=5)
        style.note(axes, f"{seed}", (own.index[-1], own.iloc[-1]), (7, -3))
    for x, mean in enumerate(shares.mean()):
        axes.plot([x - 0.18, x + 0.18], [mean, mean], color=BLUE, linewidth=3)
    axes.set_xticks(range(shares.shape[1]), [style.plain(arm_words(arm)) for arm in shares])
    if shares.shape[1] > 4:
        axes.tick_params(axis="x", rotation=30)
    axes.set(xlim=(-0.5, shares.shape[1] - 0.4), ylabel="accuracy, % of items")
    spread = (shares.max() - shares.min()).max()
    return style.titled(figure, f"{task}: seeds of one method span up to {spread:.1f} points")


def dose_rows(results: Results, task: str, name: str) -> dict[tuple[float, float], Comparison]:
    """(rate, strength) -> that dose of an arm against its reference; {} unless two were tried."""
    doses = {}
    for arm in verdict.arms_named(results, name):
        operator = results["arm_info"][arm]["operator"] or {}
        values = tuple(operator.get(key) for key in DOSE)
        if all(isinstance(value, (int, float)) for value in values):
            doses[values] = verdict.over_reference(results, task, arm)
    return {dose: row for dose, rows in doses.items() for row in rows if len(doses) > 1}


@style.styled
def dose(results: Results, task: str, name: str) -> Figure:
    """Gain over the reference on a grid of rate and strength; a star marks p (Holm) below 5%."""
    found = dose_rows(results, task, name)
    rows: Any = pd.DataFrame(list(found.values()))
    rows[list(DOSE)] = list(found)
    clear = rows["p_holm"] < verdict.SIGNIFICANT
    words = rows["delta"].map(points) + clear.map({True: "*", False: ""})
    figure, axes = style.panels(1.6 + 0.55 * rows["strength"].nunique())
    dose_surface(axes, rows.assign(change=100 * rows["delta"], words=words), 1.0)
    axes.set(xlabel="rate (share of dims)", ylabel="strength s")
    low, high = (points(end) for end in (rows["delta"].min(), rows["delta"].max()))
    title = (
        f"{task}: {arm_words(name)} changes accuracy by {low} to {high} points; "
        f"{clear.sum()} of {len(rows)} doses are clear of zero"
    )
    return style.titled(figure, title)


def dose_surface(axes: Axes, rows: Any, least: float) -> None:
    """A cell for each `rate` and `strength`: `change` as its colour, `words` in it.

    Colours are full at the largest change, or at `least` where that is smaller.
    """
    changes, words = (
        rows.pivot(index="strength", columns="rate", values=name).sort_index(ascending=False)
        for name in ("change", "words")
    )
    limit = max(least, rows["change"].abs().max())
    look: Any = {"annot_kws": {"color": INK, "size": 9}, "cbar": False, "fmt": ""}
    sns.heatmap(changes, annot=words, cmap=LIGHT, vmin=-limit, vmax=limit, ax=axes, **look)
    axes.set_yticks([y + 0.5 for y in range(len(words))], [f"{s:g}" for s in words.index])
    axes.set_xticks([x + 0.5 for x in range(len(words.T))], [f"{rate:g}" for rate in words])
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel="", ylabel="")
    axes.grid(visible=False)
