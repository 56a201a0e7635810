"""The figures of softening: what is drawn, counted, and said where nothing was measured."""

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from figure_cases import made_up_metrics, title
from matplotlib.colors import to_hex
from report_cases import made_up

from wemask.compare.results import SofteningRecord, validate_results
from wemask.report.figures import sink_figures
from wemask.report.softening_plots import (
    SINK,
    has_sink_maps,
    sink_count,
    sink_maps,
    sink_words,
    softening_effect,
)


def softening(off: Any, on: Any, softened: list[int] | None = None) -> SofteningRecord:
    """Made-up metrics; `off` and `on` are lists, one per layer, of heads or None."""

    def rows(masses: Any) -> list[dict[str, Any]]:
        rest = {"massive_max": 1.0, "massive_ratio": 1.0, "value_norm_ratio": None}
        return [
            {"layer": i, "sink_mass": None, "sink_mass_by_head": heads, **rest}
            for i, heads in enumerate(masses)
        ]

    metrics = {"off": rows(off), "on": rows(on)}
    return cast(SofteningRecord, {"layers": softened or [1], "metrics": metrics})


def grid(layers: int, heads: int) -> list[list[float]]:
    return np.random.default_rng(0).random((layers, heads)).tolist()


def words(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_both_maps_hold_the_numbers_on_one_scale() -> None:
    off, on = grid(8, 4), grid(8, 4)[::-1]
    left, right, scale = sink_maps(softening(off, on)).axes
    for axes, masses in ((left, off), (right, on)):
        (image,) = axes.images
        assert np.array_equal(image.get_array(), masses)  # row: layer, column: head
        assert image.get_clim() == (0, 1)
        assert image.get_cmap().name == "cividis"
        assert axes.yaxis_inverted()  # layer 0 on top
        assert axes.get_xlabel() == "head"
    assert scale.get_xlim() == (0, 1)
    assert {SINK} in [set(np.asarray(line.get_xdata())) for line in scale.lines]


def test_the_rate_is_the_share_of_pairs_above_the_threshold() -> None:
    figure = sink_maps(softening([[0.3, 0.31], [0.9, 0.8]], [[0.1, 0.1], [0.2, 0.9]]))
    assert figure.get_suptitle() == "Softening lowers the sink rate from 75% to 25%"
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    assert titles[0] == "softening off\nsink rate 75% of 4 pairs"
    assert titles[1] == "softening on\nsink rate 25% of 4 pairs"


def test_a_layer_that_was_not_measured_is_neither_drawn_nor_counted() -> None:
    data = softening([None, [0.9], [0.9, 0.1]], [None, None, None])
    figure = sink_maps(data)
    left, right, _ = figure.axes
    drawn = np.ma.getmaskarray(left.images[0].get_array())
    assert drawn.tolist() == [[True, True], [False, True], [False, False]]
    assert np.ma.getmaskarray(right.images[0].get_array()).all()
    assert right.get_title(loc="left") == "softening on\nsink rate not measured"
    assert figure.get_suptitle() == "Softening was not measured on the sink rate"
    assert words(figure) == ["0.90", "0.90", "0.10"]
    assert sink_words(data["metrics"]) == (
        "softening off: 2 of 3 (layer, head) pairs above 0.3, the largest sink mass 0.90 in "
        "layer 1, head 0; softening on: not measured"
    )


@pytest.mark.parametrize(("layers", "heads"), [(8, 4), (32, 32), (80, 64)])
def test_maps_of_any_size_are_readable(layers: int, heads: int) -> None:
    data = softening(grid(layers, heads), grid(layers, heads), list(range(2, layers)))
    figure = sink_maps(data)
    figure.draw_without_rendering()
    assert figure.get_figheight() < 7  # a screen, half a page
    for axes in figure.axes[:2]:
        names = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(a.y0 > b.y1 for a, b in pairwise(names))
        names = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in pairwise(names))
    # Numbers where they fit, and then in every cell.
    assert len(words(figure)) == (2 * layers * heads if heads == 4 else 0)


def test_numbers_are_light_on_dark_and_dark_on_light() -> None:
    figure = sink_maps(softening([[0.05, 0.95]], [[0.05, 0.95]]))
    inks = [to_hex(text.get_color()) for text in figure.axes[0].texts]
    assert inks == ["#ffffff", "#000000"]


def test_the_bar_follows_the_softened_layers() -> None:
    data = softening(grid(9, 2), grid(9, 2), [2, 3, 4, 7])
    bars: Any = sink_maps(data).axes[1].collections[0]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[1.5, 4.5], [6.5, 7.5]]


def test_without_single_heads_there_is_no_map() -> None:
    data = made_up()
    for side in data["softening"]["metrics"].values():
        for row in side:
            row["sink_mass_by_head"] = None
    checked = validate_results(data)
    assert checked["softening"] is not None
    assert not has_sink_maps(checked["softening"]["metrics"])
    assert sink_figures(checked["softening"], "softening") == []
    with pytest.raises(ValueError, match="no layer holds sink_mass_by_head"):
        sink_maps(checked["softening"])


def test_a_pair_at_the_threshold_is_no_sink() -> None:
    assert sink_count(np.array([[SINK, math.nextafter(SINK, 1)], [math.nan, 0.0]])) == (1, 3)


def test_softening_effect_says_what_changed() -> None:
    figure = softening_effect(made_up_metrics())
    assert title(figure) == (
        "Softening leaves the massive activation at 160 and lowers the mean sink mass "
        "from 0.60 to 0.20"
    )
    assert [line.get_label() for line in figure.axes[0].lines] == ["softening off", "softening on"]
    assert set(np.asarray(figure.axes[1].lines[1].get_ydata())) == {0.2}


def test_softening_effect_leaves_gaps_where_nothing_was_measured() -> None:
    figure = softening_effect(made_up_metrics(on_sink=None, on_max=None))
    for axes in figure.axes:
        assert np.isnan(np.asarray(axes.lines[1].get_ydata())).all()
    assert "was not measured on the mean sink mass" in title(figure)
