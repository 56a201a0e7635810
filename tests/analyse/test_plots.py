import math
from collections.abc import Callable
from typing import Any

import analysis_cases as cases
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.analyse import plots
from wemask.analyse.plots import PANELS, by_layer
from wemask.analyse.rows import tidy_layers
from wemask.report.style import BLUE, INK, PURPLE, WIDTH


def can_be_drawn(figure: Figure) -> bool:
    figure.draw_without_rendering()  # raises where ticks or layout are impossible
    return True


def points(axes: Axes) -> set[tuple[float, float]]:
    """Every point that a line passes and every dot, rounded."""
    found = [np.asarray(line.get_xydata()) for line in axes.lines]
    found += [np.asarray(dots.get_offsets()) for dots in axes.collections]
    return {(round(float(x), 4), round(float(y), 4)) for xy in found for x, y in xy}


# -------------------------------------------------------------------------------------- by layer


def test_lines_by_layer_are_the_tables() -> None:
    table = tidy_layers(cases.layers(), 1)
    mass, rate = by_layer(table, "sinks", 1).axes
    off, on, first = [0.05, 0.05, 0.6, 0.6], [0.05, 0.05, 0.3, 0.3], [0.07] * 4
    shown = {line.get_color(): list(np.asarray(line.get_ydata())) for line in _curves(mass)}
    assert shown == {INK: off, BLUE: on, PURPLE: first}
    assert off in [list(np.asarray(line.get_ydata())) for line in _curves(rate)]


def _curves(axes: Axes) -> list[Any]:
    return [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 4]


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize(
    ("table", "me_layer"),
    [
        (cases.layers(1, 0), 0),
        (cases.layers(80, 6), 6),
        (cases.layers(massive=False), None),
        (cases.layers().query("state == 'off'"), 1),
        (cases.layers().drop(columns=["anisotropy", "sink_rate"]), 1),
    ],
    ids=["one layer", "80 layers", "no massive token", "off only", "missing columns"],
)
def test_figures_by_layer_cope(name: str, table: pd.DataFrame, me_layer: int | None) -> None:
    figure = by_layer(tidy_layers(table, me_layer), name, me_layer)
    assert figure.get_size_inches()[0] == WIDTH
    assert can_be_drawn(figure)


# ----------------------------------------------------------------------------------- experiments


def test_necessity_draws_both_sites_and_the_control_layers() -> None:
    figure = plots.necessity(cases.necessity(0.8, {0: 0.5, 2: 0.0}), 1)
    _, mass, rank, _ = figure.axes
    shown = points(mass)
    assert {(0, 0.08), (0.5, 0.24), (1, 0.4), (-0.3, 0.2), (-0.3, 0.4)} <= shown
    assert {(0, 20), (0.5, 20), (1, 20)} <= points(rank)
    assert "layer 0" in [text.get_text() for text in mass.texts]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        *("intact", "what the FFN reads", "what the FFN writes"),
        *("c = 0 in a layer before it", "c = 0 in a layer after it"),
    ]


def test_sufficiency_has_a_row_for_every_condition_and_a_dot_for_every_draw() -> None:
    figure = plots.sufficiency(cases.sufficiency())
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        *("intact", "removed", "restored 50%", "restored 100%", "other dims"),
        *("other token, without", "other token, with it"),
    ]
    shown = points(figure.axes[1])
    assert {(0.4, 0), (0.2, 1), (0.29, 2), (0.38, 3), (0.22, 4), (0.24, 4), (0.04, 5)} <= shown


def test_location_shows_changes_in_percent() -> None:
    figure = plots.location(cases.location(), 1)
    alone, groups = figure.axes[:2]
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in alone.patches}  # pyright: ignore
    assert bars == pytest.approx({0: 0, 1: 0, 2: -50})
    assert {(0, 0), (1, 0), (2, -50), (3, 0), (3, -1)} <= points(groups)


def test_specificity_shows_every_draw_and_their_band() -> None:
    figure = plots.specificity(cases.specificity(uniform=-0.25))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["the operator", "random dims", "uniform damping"]
    assert {(-50, 0), (-2, 1), (1, 1), (-25, 2)} <= points(figure.axes[0])
    (band,) = figure.axes[0].patches
    assert band.get_extents().transformed(figure.axes[0].transData.inverted()).intervalx == (
        pytest.approx((-2, 1))
    )


def test_one_change_that_dwarfs_the_others_gets_a_log_axis() -> None:
    figure = plots.specificity(cases.specificity(real=-0.01, set_zero=80.0))
    assert figure.axes[0].get_xscale() == "symlog"
    assert figure.axes[1].get_xscale() == "linear"
    assert figure.axes[0].get_title(loc="left") == "sink mass, % (log)"


def test_the_dose_surface_has_each_dose_in_its_place() -> None:
    figure = plots.dose(cases.dose())
    axes = figure.axes[0]
    columns, rows = (
        [t.get_text() for t in ticks]
        for ticks in (figure.axes[2].get_xticklabels(), axes.get_yticklabels())
    )
    shown = {
        (rows[int(t.get_position()[1])], columns[int(t.get_position()[0])]): t.get_text()
        for t in axes.texts
    }
    assert shown == {
        ("0.5", "0.01"): "0.3980",
        ("0.5", "0.1"): "0.3800",
        ("0.5", "0.5"): "0.3000",
        ("1", "0.01"): "0.3960",
        ("1", "0.1"): "0.3600",
        ("1", "0.5"): "0.2000",
    }
    assert axes.get_title(loc="left") == "sink mass (intact 0.4)"


def test_the_quadratic_form_is_drawn_against_what_was_observed() -> None:
    given = cases.quadratic(0.5)
    figure = plots.quadratic(given["quadratic"], given["quadratic_dims"])
    top, bottom = figure.axes
    assert {(100, 50), (50, 25), (100, 110), (50, 55)} <= points(top)  # exact is None
    assert (0, 0.8) in points(bottom)
    (ordinary,) = [c for c in bottom.collections if c.get_label() == "ordinary: mean to largest"]
    assert ordinary.get_paths()[0].vertices[:, 1] == pytest.approx([0.1, 0.2])
    tokens = given["quadratic"].assign(observed=0.0)
    assert can_be_drawn(plots.quadratic(tokens))


DRAW: dict[str, Callable[[Any], Figure]] = {
    "necessity": plots.necessity,
    "sufficiency": plots.sufficiency,
    "location": plots.location,
    "specificity": plots.specificity,
    "dose": plots.dose,
}
KEPT = {"necessity": "ffn_input", "sufficiency": "intact", "location": "one_layer"}


@pytest.mark.parametrize("name", DRAW)
def test_experiments_cope_with_what_is_missing(name: str) -> None:
    table = cases.tables()[name]
    holes = table.assign(value=math.nan)
    little = table[table["group"] == KEPT.get(name, "wemask")]
    others = table[table["group"] != KEPT.get(name, "wemask")]
    for given in (holes, little, others, little.head(1)):
        figure = DRAW[name](given)
        assert "nan" not in " ".join(t.get_text() for axes in figure.axes for t in axes.texts)
        assert can_be_drawn(figure)
