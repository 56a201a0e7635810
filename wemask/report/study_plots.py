"""Figures of larger studies: controls beside the real thing, seeds, dose.

Every function is pure and returns a matplotlib `Figure`, as in `plots.py`.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.compare.results import Comparison, Results
from wemask.compare.verdict import (
    SIGNIFICANT,
    arm_words,
    arms_named,
    between,
    judgement_of,
    over_reference,
    points,
)
from wemask.report.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    WIDTH,
    interval,
    note,
    plain,
    styled,
    titled,
)

DOSE = ("rate", "strength")  # the settings that span a dose surface
LIGHT = sns.blend_palette([ORANGE, "#F7F7F7", "#56B4E9"], as_cmap=True)  # ink reads on all of it


def gains(results: Results, task: str, real: str) -> list[tuple[str, Comparison]]:
    """The real arm and its controls, each with its gain over the reference on one task."""
    info = results["arm_info"]
    arms = [*arms_named(results, real)]
    arms += [arm for arm, about in info.items() if about["control_of"] == real]
    return [(arm, row) for arm in arms for row in over_reference(results, task, arm)]


@styled
def controls(results: Results, task: str, real: str) -> Figure:
    """The gain of the real arm and of each of its controls over their reference, with intervals.

    A control whose difference from the real arm is clear of zero is drawn filled.
    """
    rows = gains(results, task, real)
    told = [_apart(results, task, real, arm) for arm, _ in rows]
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1.2)
    for y, (arm, row) in enumerate(rows):
        is_real = results["arm_info"][arm]["control_of"] is None
        colour = BLUE if is_real else ORANGE
        if is_real:
            axes.axvspan(100 * row["low"], 100 * row["high"], color=BLUE, alpha=0.09, linewidth=0)
        face = colour if is_real or told[y] else "white"
        delta = interval(axes, y, row, colour, markerfacecolor=face)
        note(axes, points(row["delta"]), (delta, y), (0, 7), ha="center")
    axes.set_yticks(range(len(rows)), [plain(arm_words(arm)) for arm, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    reference = arm_words(rows[0][1]["b"])
    axes.set_xlabel(plain(f"accuracy minus {reference}, points (95% interval)"), loc="right")
    axes.grid(axis="y", visible=False)
    differ = f"{sum(told[1:])} of {len(rows) - 1} controls differ from {arm_words(real)}"
    return titled(figure, f"{task}: {differ}")


def _apart(results: Results, task: str, real: str, control: str) -> bool:
    """Whether a control is told apart from its real arm."""
    rows = between(results, task, arms_named(results, real), [control])
    return any(judgement_of(results, row).outcome in ("better", "worse") for row in rows)


def seeded_arms(results: Results, task: str) -> dict[str, dict[int, float]]:
    """Arm -> seed -> accuracy, of arms with at least two seeds."""
    arms = {
        arm: {run["seed"]: run["mean"] for run in scores[task]["runs"] if run["seed"] is not None}
        for arm, scores in results["arms"].items()
        if task in scores
    }
    return {arm: seeds for arm, seeds in arms.items() if len(seeds) > 1}


@styled
def seeds(results: Results, task: str) -> Figure:
    """Accuracy of every seed, lines joining a seed's runs, and each arm's mean over seeds."""
    shares: Any = 100 * pd.DataFrame(seeded_arms(results, task))  # [seeds, arms]
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    for seed, row in shares.set_axis(range(shares.shape[1]), axis=1).iterrows():
        own = row.dropna()
        axes.plot(own.index, own, "o-", color=GREY, alpha=0.75, linewidth=1.2, markersize=5)
        note(axes, f"{seed}", (own.index[-1], own.iloc[-1]), (7, -3))
    for x, mean in enumerate(shares.mean()):
        axes.plot([x - 0.18, x + 0.18], [mean, mean], color=BLUE, linewidth=3)
    axes.set_xticks(range(shares.shape[1]), [plain(arm_words(arm)) for arm in shares])
    if shares.shape[1] > 4:
        axes.tick_params(axis="x", rotation=30)
    axes.set(xlim=(-0.5, shares.shape[1] - 0.4), ylabel="accuracy, % of items")
    spread = (shares.max() - shares.min()).max()
    return titled(figure, f"{task}: seeds of one method span up to {spread:.1f} points")


def dose_arms(results: Results, name: str) -> dict[tuple[float, float], str]:
    """(rate, strength) -> arm, of the arms of one name where at least two doses were tried."""
    doses = {}
    for arm in arms_named(results, name):
        operator = results["arm_info"][arm]["operator"] or {}
        values = tuple(operator.get(key) for key in DOSE)
        if all(isinstance(value, (int, float)) for value in values):
            doses[values] = arm
    return doses if len(doses) > 1 else {}


def dose_rows(results: Results, task: str, name: str) -> dict[tuple[float, float], Comparison]:
    """(rate, strength) -> that dose against its reference, on one task."""
    doses = dose_arms(results, name).items()
    return {dose: row for dose, arm in doses for row in over_reference(results, task, arm)}


@styled
def dose(results: Results, task: str, name: str) -> Figure:
    """Gain over the reference on a grid of rate and strength; a star marks p (Holm) below 5%."""
    found = dose_rows(results, task, name)
    rows = pd.DataFrame(list(found.values()))
    rows[list(DOSE)] = list(found)
    clear = rows["p_holm"] < SIGNIFICANT
    words = rows["delta"].map(points) + clear.map({True: "*", False: ""})
    figure = Figure(figsize=(WIDTH, 1.6 + 0.55 * rows["strength"].nunique()))
    axes = figure.subplots()
    dose_surface(axes, rows.assign(change=100 * rows["delta"], words=words), 1.0)
    axes.set(xlabel="rate (share of dims)", ylabel="strength s")
    low, high = (points(end) for end in (rows["delta"].min(), rows["delta"].max()))
    title = (
        f"{task}: {arm_words(name)} changes accuracy by {low} to {high} points; "
        f"{clear.sum()} of {len(rows)} doses are clear of zero"
    )
    return titled(figure, title)


def dose_surface(axes: Axes, rows: pd.DataFrame, least: float) -> None:
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
