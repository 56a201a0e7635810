import math
from collections.abc import Callable, Sequence
from typing import Any

import analysis_cases as cases
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_cases import made_up_report

from wemask.analyse import cause_plots as experiment_plots
from wemask.analyse import model_plots as analysis_plots
from wemask.analyse import operator_plots
from wemask.analyse.figures import build_analysis_figures
from wemask.report.style import WIDTH

PER_LAYER = ("diversity", "rigidity", "sinks", "writes")


def heights(axes: Axes, label: str) -> list[float]:
    """What a labelled line shows, up the vertical axis."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return [round(float(y), 6) for y in np.asarray(line.get_ydata())]


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def can_be_drawn(figure: Figure) -> bool:
    figure.draw_without_rendering()  # raises where ticks or layout are impossible
    return True


def points(axes: Axes) -> set[tuple[float, float]]:
    """Every point that a line passes, rounded."""
    found = [np.asarray(line.get_xydata()) for line in axes.lines]
    return {(round(float(x), 4), round(float(y), 4)) for xy in found for x, y in xy}


# -------------------------------------------------------------------------------------- by layer


def test_the_sinks_of_every_layer_are_the_tables_and_the_title_sums_them_up() -> None:
    figure = analysis_plots.sinks(cases.layers(), 1)
    mass, rate = figure.axes
    assert (
        heights(mass, "softening off") == heights(rate, "softening off") == [0.05, 0.05, 0.6, 0.6]
    )
    assert heights(mass, "softening on") == [0.05, 0.05, 0.3, 0.3]
    assert heights(mass, "first token, off") == [0.07] * 4
    words = "Softening lowers the sink mass from 0.60 to 0.30 after the ME Layer (-50%)"
    assert title(figure) == words


def test_diversity_rigidity_and_writes_say_what_came_out() -> None:
    figure = analysis_plots.diversity(cases.layers(), 1)
    assert heights(figure.axes[0], "softening on") == [10.0, 11.0, 12.0, 13.0]
    assert title(figure) == "Softening leaves the effective rank at 12.5 after the ME Layer (0%)"
    figure = analysis_plots.rigidity(cases.layers(), 1)
    assert heights(figure.axes[1], "ordinary tokens, off") == [0.25] * 4
    assert "massive tokens 0.75, ordinary ones 0.25" in title(figure)
    figure = analysis_plots.writes(cases.layers(), 1)
    assert heights(figure.axes[0], "attention, on") == [0.04] * 4
    assert title(figure).startswith("In the ME Layer, 1, the FFN writes 96%")


@pytest.mark.parametrize("name", PER_LAYER)
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
    figure = getattr(analysis_plots, name)(table, me_layer)
    assert figure.get_size_inches()[0] == WIDTH
    assert "nan" not in title(figure)
    assert can_be_drawn(figure)


def test_without_a_massive_token_titles_say_so() -> None:
    table = cases.layers(massive=False)
    assert "the first token draws 7% of attention" in title(analysis_plots.sinks(table))
    assert "nothing is known" in title(analysis_plots.rigidity(table))
    assert "nothing is known" in title(analysis_plots.writes(table))


# ----------------------------------------------------------------------------------- experiments


def test_necessity_draws_both_sites_and_the_control_layers() -> None:
    figure = experiment_plots.necessity(cases.necessity(0.8, {0: 0.5, 2: 0.0}), 1)
    magnitude, mass, rank, _ = figure.axes
    assert heights(magnitude, "what the FFN writes") == [20.0, 110.0, 200.0]
    assert heights(mass, "what the FFN reads") == [0.08, 0.24, 0.4]
    assert heights(mass, "intact") == [0.4, 0.4]
    assert heights(mass, "c = 0 in a layer before it") == [0.2]
    assert heights(mass, "c = 0 in a layer after it") == [0.4]
    assert heights(rank, "what the FFN writes") == [20.0] * 3
    assert "layer 0" in [text.get_text() for text in mass.texts]
    assert title(figure).endswith("layer 1 writes: massive magnitude -90%, sink mass -80%")


def test_sufficiency_has_a_row_for_every_condition_and_a_point_for_every_draw() -> None:
    figure = experiment_plots.sufficiency(cases.sufficiency())
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == [
        *("intact", "removed", "restored 50%", "restored 100%", "other dims"),
        *("other token, without", "other token, with it"),
    ]
    shown = points(figure.axes[1])
    assert {(0.4, 0), (0.2, 1), (0.29, 2), (0.38, 3), (0.22, 4), (0.24, 4), (0.04, 5)} <= shown
    assert title(figure).endswith("restores 90% of the lost sink mass; on other dims 10% to 20%")


def test_location_shows_changes_in_percent() -> None:
    figure = experiment_plots.location(cases.location(), 1)
    alone, groups = figure.axes[:2]
    assert {(0, 0), (1, 0), (2, -50)} <= points(alone)
    assert {(0, 0), (1, 0), (2, -50), (3, 0), (3, -1)} <= points(groups)
    words = "Softening changes the sink mass by -50% after the ME Layer, 0% at it, 0% before it"
    assert title(figure) == words


def test_specificity_shows_draws_and_their_mean() -> None:
    figure = operator_plots.specificity(cases.specificity(uniform=-0.25))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["the operator", "random dims", "uniform damping"]
    shown = points(figure.axes[0])
    assert {(-50, 0), (-2, 1), (1, 1), (-25, 2), (-0.5, 0.7), (-0.5, 1.3)} <= shown
    assert "by -50%, outside the drawn controls' -2.0% to +1.0%" in title(figure)
    figure = operator_plots.specificity(cases.specificity(real=0.005))
    assert "within the drawn controls'" in title(figure)


def test_one_change_that_dwarfs_the_others_gets_a_log_axis() -> None:
    figure = operator_plots.specificity(cases.specificity(real=-0.01, set_zero=80.0))
    assert figure.axes[0].get_xscale() == "symlog"
    assert figure.axes[1].get_xscale() == "linear"
    assert figure.axes[0].get_title(loc="left") == "sink mass, % (log)"


def test_the_dose_surface_has_each_dose_in_its_place() -> None:
    figure = operator_plots.dose(cases.dose())
    shown = {t.get_position(): t.get_text() for t in figure.axes[0].texts}
    assert shown == {
        (0, 0): "0.398",
        (1, 0): "0.380",
        (2, 0): "0.300",
        (0, 1): "0.396",
        (1, 1): "0.360",
        (2, 1): "0.200",
    }
    assert figure.axes[0].get_title(loc="left") == "sink mass (intact 0.4)"
    assert title(figure).startswith("Over the doses the sink mass changes by -0.5% to -50%")


@pytest.mark.parametrize(
    ("colour", "ink"),
    [((1, 1, 1, 1), "#222222"), ((0, 0, 0, 1), "white"), ((0.2, 0, 0.3), "white")],
)
def test_letters_take_the_better_contrast(colour: Sequence[float], ink: str) -> None:
    assert operator_plots.ink_on(colour) == ink


def test_the_quadratic_form_is_drawn_against_what_was_observed() -> None:
    given = cases.quadratic(0.5)
    rows, dims = ([*given[name].to_dict("records")] for name in ("quadratic", "quadratic_dims"))
    figure = analysis_plots.quadratic(rows, dims)  # pyright: ignore
    top, bottom = figure.axes
    assert heights(top, "its leading pair") == [50.0, 25.0]
    assert heights(top, "the whole form") == [110.0, 55.0]
    assert all(math.isnan(y) for y in heights(top, "the FFN's formula"))  # exact is None
    assert {(0, 0.8), (0, 0.2), (0, 0.1)} <= points(bottom)
    assert "predicts 50% of what the FFN writes" in title(figure)
    assert "nan" not in title(analysis_plots.quadratic([{**rows[0], "observed": 0.0}]))  # pyright: ignore


DRAW: dict[str, Callable[[Any], Figure]] = {
    "necessity": experiment_plots.necessity,
    "sufficiency": experiment_plots.sufficiency,
    "location": experiment_plots.location,
    "specificity": operator_plots.specificity,
    "dose": operator_plots.dose,
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
        assert "nan" not in title(figure)
        assert "nan" not in " ".join(t.get_text() for axes in figure.axes for t in axes.texts)
        assert can_be_drawn(figure)


# ------------------------------------------------------------------------------ for the page


def test_every_table_has_its_figures_with_words() -> None:
    figures = build_analysis_figures(cases.tables(), made_up_report(), softened=[2, 3])
    assert [f.name for f in figures] == [
        *("magnitude_by_layer", "relief", "sinks", "diversity", "rigidity", "writes", "sink_maps"),
        *("necessity", "sufficiency", "location", "specificity", "dose", "quadratic"),
    ]
    for figure in figures:
        assert len(figure.alt) > 60, figure.name
        assert "nan" not in figure.alt
        assert len(figure.caption) > 60
    figures = {f.name: f for f in figures}  # the words hold the numbers
    assert "other dims 0.22 to 0.24" in figures["sufficiency"].alt
    assert "0.6 to 0.3 (-50%)" in figures["sinks"].alt
    assert "dim 5: observed 50 to 100" in figures["quadratic"].alt


def test_without_tables_the_detection_stands_alone() -> None:
    alone = build_analysis_figures({"dose": cases.dose().head(0)}, made_up_report())
    assert [f.name for f in alone] == ["magnitude_by_layer", "relief"]
