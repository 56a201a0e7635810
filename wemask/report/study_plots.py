"""Figures of larger studies: controls beside the real thing, seeds, dose.

Every function is pure and returns a matplotlib `Figure`, as in `plots.py`.
"""

from typing import Any

import numpy as np
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
from wemask.report.style import BLUE, GREY, INK, ORANGE, WIDTH, plain, styled, titled

DOSE = ("rate", "strength")  # the settings that span a dose surface


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
    figure = Figure(figsize=(WIDTH, 1.5 + 0.42 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1.2)
    for y, (arm, row) in enumerate(rows):
        delta, low, high = (100 * row[key] for key in ("delta", "low", "high"))
        is_real = results["arm_info"][arm]["control_of"] is None
        colour = BLUE if is_real else ORANGE
        if is_real:
            axes.axvspan(low, high, color=BLUE, alpha=0.09, linewidth=0)
        axes.plot([low, high], [y, y], color=colour, linewidth=2.4, solid_capstyle="butt")
        face = colour if is_real or apart(results, task, real, arm) else "white"
        axes.plot(delta, y, "s", color=colour, markerfacecolor=face, markersize=7)
        axes.annotate(
            points(row["delta"]), (delta, y), (0, 7), textcoords="offset points", ha="center"
        )
    axes.set_yticks(range(len(rows)), [plain(arm_words(arm)) for arm, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    reference = arm_words(rows[0][1]["b"])
    axes.set_xlabel(plain(f"accuracy minus {reference}, points (95% interval)"), loc="right")
    axes.grid(axis="y", visible=False)
    told = sum(apart(results, task, real, arm) for arm, _ in rows[1:])
    title = f"{task}: {told} of {len(rows) - 1} controls differ from {arm_words(real)}"
    return titled(figure, title)


def apart(results: Results, task: str, real: str, control: str) -> bool:
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
    arms = seeded_arms(results, task)
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    for seed in dict.fromkeys(s for values in arms.values() for s in values):
        places = [x for x, values in enumerate(arms.values()) if seed in values]
        heights = [100 * values[seed] for values in arms.values() if seed in values]
        axes.plot(places, heights, "o-", color=GREY, alpha=0.75, linewidth=1.2, markersize=5)
        axes.annotate(f"{seed}", (places[-1], heights[-1]), (7, -3), textcoords="offset points")
    for x, values in enumerate(arms.values()):
        mean = 100 * float(np.mean(list(values.values())))
        axes.plot([x - 0.18, x + 0.18], [mean, mean], color=BLUE, linewidth=3)
    axes.set_xticks(range(len(arms)), [plain(arm_words(arm)) for arm in arms])
    if len(arms) > 4:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlim(-0.5, len(arms) - 0.4)
    axes.set_ylabel("accuracy, % of items")
    spread = max(100 * (max(v.values()) - min(v.values())) for v in arms.values())
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
    rows = dose_rows(results, task, name)
    rates, strengths = (sorted({key[i] for key in rows}) for i in (0, 1))
    grid = np.full((len(strengths), len(rates)), np.nan)
    stars = set()
    for (rate, strength), row in rows.items():
        place = (strengths.index(strength), rates.index(rate))
        grid[place] = 100 * row["delta"]
        stars |= {place} if row["p_holm"] < SIGNIFICANT else set()
    figure = Figure(figsize=(WIDTH, 1.6 + 0.55 * len(strengths)))
    axes = figure.subplots()
    _heat(axes, grid, stars)
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
    axes.set(xlabel="rate (share of dims)", ylabel="strength s")
    axes.grid(visible=False)
    low, high = float(np.nanmin(grid)) / 100, float(np.nanmax(grid)) / 100
    title = (
        f"{task}: {arm_words(name)} changes accuracy by {points(low)} to {points(high)} points; "
        f"{len(stars)} of {len(rows)} doses are clear of zero"
    )
    return titled(figure, title)


def _heat(axes: Any, grid: Any, stars: set[tuple[int, int]]) -> None:
    limit = max(float(np.nanmax(np.abs(grid))), 1.0)
    axes.imshow(grid, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    for (y, x), value in np.ndenumerate(grid):
        if np.isnan(value):
            continue
        words = points(value / 100) + ("*" if (y, x) in stars else "")
        colour = "white" if abs(value) > 0.62 * limit else INK
        axes.text(x, y, words, ha="center", va="center", color=colour)
