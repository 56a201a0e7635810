from typing import Any

import numpy as np
import pytest
from figure_cases import dosed, small_results, studied, texts, title
from report_cases import made_up

from wemask.compare.results import validate_results
from wemask.compare.verdict import headline
from wemask.report.comparison_plots import (
    LIGHT,
    arms,
    controls,
    dose,
    dose_rows,
    forest,
    seeded_arms,
    seeds,
)
from wemask.report.style import INK


def test_arms_draws_accuracy_and_interval_in_percent() -> None:
    results = small_results()
    figure = arms(results, "arith")
    axes = figure.axes[0]
    intervals = [list(np.asarray(line.get_xdata())) for line in axes.lines[::2]]
    assert np.allclose(intervals, [[15, 25], [17, 27], [65, 75], [75, 85]])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "base",
        "training-free WeMask",
        "SFT",
        "WeMask-SFT",
    ]
    assert axes.yaxis_inverted()  # the first arm on top
    assert title(figure) == "arith: WeMask-SFT scores highest (n = 100)"


def test_arms_says_when_accuracy_is_near_zero() -> None:
    results = small_results()
    for scores in results["arms"].values():
        scores["arith"].update(mean=0.01, low=0.0, high=0.04)
    figure = arms(results, "arith")
    assert title(figure) == "arith: accuracy is near zero on every arm (n = 100)"
    figure.draw_without_rendering()
    edge = figure.axes[0].get_window_extent().x0
    assert all(words.get_window_extent().x0 > edge for words in figure.axes[0].texts)
    with pytest.raises(KeyError):
        arms(results, "nowhere")


def test_forest_draws_every_difference_with_its_interval() -> None:
    figure = forest(small_results())
    axes = figure.axes[0]
    zero, *rest = axes.lines
    assert set(np.asarray(zero.get_xdata())) == {0}
    assert np.allclose([np.asarray(line.get_xdata()) for line in rest[::2]][1], [4, 16])
    shown = texts(figure)
    for words in ("WeMask-SFT - SFT", "+10.0 [+4.0, +16.0], p = 0.010", "arith (n = 100)"):
        assert words in shown
    assert "-50.0 [-56.0, -44.0], p < 0.001" in shown
    assert title(figure) == "2 of 3 differences between arms are clear of zero"
    assert len(axes.collections) == 3  # the grey bands of the minimum detectable difference


def test_forest_of_nothing() -> None:
    results = small_results()
    results["comparisons"] = []
    assert title(forest(results)) == "No two arms were compared"


def test_the_figure_of_controls_has_the_real_arm_and_every_control() -> None:
    figure = controls(studied(), "arith", "training_free")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["training-free WeMask", "random dims", "massive set to zero"]
    assert figure.get_suptitle().startswith("arith: 2 of 2 controls differ")


def test_seeds_are_drawn_one_by_one() -> None:
    data = made_up()
    for arm, means in (("sft", (0.5, 0.6)), ("wemask_sft", (0.7, 0.75))):
        data["arm_info"][arm]["seeds"] = [0, 1]
        run = data["arms"][arm]["arith"]["runs"][0]
        data["arms"][arm]["arith"]["runs"] = [
            {**run, "seed": seed, "mean": mean} for seed, mean in enumerate(means)
        ]
    results = validate_results(data)
    assert seeded_arms(results, "arith") == {
        "sft": {0: 0.5, 1: 0.6},
        "wemask_sft": {0: 0.7, 1: 0.75},
    }
    figure = seeds(results, "arith")
    heights = [[round(float(y), 6) for y in line.get_ydata()] for line in figure.axes[0].lines]  # pyright: ignore
    assert [50.0, 70.0] in heights and [60.0, 75.0] in heights
    assert [55.0, 55.0] in heights and [72.5, 72.5] in heights  # the means
    assert "span up to 10.0 points" in figure.get_suptitle()


def test_the_dose_surface_has_each_dose_in_its_place() -> None:
    results = dosed()
    figure = dose(results, "arith", "training_free")
    axes = figure.axes[0]
    columns, rows = (
        [tick.get_text() for tick in ticks]
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
    )
    shown = {
        t.get_text(): (columns[int(t.get_position()[0])], rows[int(t.get_position()[1])])
        for t in axes.texts
    }
    assert shown == {"0.0": ("0.01", "0.5"), "+10.0*": ("0.01", "1"), "-10.0*": ("0.1", "0.5")}
    assert "2 of 3 doses are clear of zero" in figure.get_suptitle().replace("\n", " ")
    assert len(dose_rows(results, "arith", "training_free")) == 3
    assert dose_rows(results, "arith", "wemask_sft") == {}  # one dose is no surface
    # Several doses of one arm are summed up in the verdict, by their settings.
    assert "better on arith (rate=0.01, strength=1.0) (+10.0)" in headline(results)[1]


def luminance(colour: Any) -> float:
    """Relative luminance of (r, g, b) in 0..1, by WCAG 2.2."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_ink_is_readable_on_every_colour_of_the_dose_surface() -> None:
    ink = luminance([int(INK[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    surface = min(luminance(LIGHT(x)) for x in np.linspace(0, 1, 101))
    assert (surface + 0.05) / (ink + 0.05) >= 4.5
