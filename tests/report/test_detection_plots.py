from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from figure_cases import layered_report, texts, title, without_massive
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wemask.detection.me_layer import Criterion
from wemask.report.detection_plots import MAX_BINS, magnitude_by_layer, pool_dims, relief
from wemask.report.style import size_words


@given(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 4), st.integers(1, 700)),
        elements=st.floats(0, 1e6),
    )
)
def test_pooling_keeps_every_peak_and_covers_every_dim_once(heights: np.ndarray) -> None:
    pooled, edges = pool_dims(heights)
    width = heights.shape[1]
    assert pooled.shape[1] == min(width, MAX_BINS)
    assert edges[0] == 0
    assert edges[-1] == width
    assert (np.diff(edges) > 0).all()
    column = np.searchsorted(edges, np.arange(width), side="right") - 1
    assert (pooled[:, column] >= heights).all()  # no dim's value is lost
    assert set(pooled.ravel()) <= set(heights.ravel())  # and none is invented


def test_magnitude_by_layer_draws_the_table() -> None:
    report = layered_report(erased=4)
    figure = magnitude_by_layer(report)
    top, bottom = figure.axes
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in top.lines + bottom.lines}
    assert lines["largest abs(h)"].tolist() == [row.max for row in report.layers]
    assert lines["median abs(h)"].tolist() == [row.median for row in report.layers]
    assert lines["largest / median"].tolist() == [row.ratio for row in report.layers]
    criterion = next(y for label, y in lines.items() if str(label).startswith("criterion"))
    assert set(criterion) == {100.0}
    assert "ME Layer 1" in texts(figure)
    assert "erased in 4" in texts(figure)
    ratio = size_words(report.layers[2].ratio)
    assert title(figure) == (
        f"The massive activation is born in layer 1 ({ratio} times the median) "
        "and is erased by layer 4"
    )


def test_magnitude_by_layer_draws_both_thresholds_of_sun2024() -> None:
    report = replace(layered_report(), criterion=Criterion())
    top, bottom = magnitude_by_layer(report).axes
    assert {100} in [set(np.asarray(line.get_ydata())) for line in top.lines]
    assert {1000} in [set(np.asarray(line.get_ydata())) for line in bottom.lines]


def test_magnitude_by_layer_says_that_there_is_none() -> None:
    figure = magnitude_by_layer(without_massive())
    assert title(figure).startswith("No massive activation: the largest ratio is ")
    assert texts(figure) == ""


def test_a_ratio_to_a_median_of_zero_leaves_a_gap() -> None:
    report = layered_report()
    report.layers[0] = replace(report.layers[0], median=0.0, ratio=float("inf"))
    top, bottom = magnitude_by_layer(report).axes
    assert np.isnan(np.asarray(top.lines[1].get_ydata())[0])
    assert np.isnan(np.asarray(bottom.lines[0].get_ydata())[0])


@pytest.mark.parametrize(("layers", "ticks"), [(5, ["emb", "0", "1"]), (32, ["emb", "4", "8"])])
def test_layer_ticks_have_room(layers: int, ticks: list[str]) -> None:
    axes = magnitude_by_layer(layered_report(layers)).axes[1]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown[:3] == ticks
    assert len(shown) <= 14


@pytest.mark.parametrize(("layers", "width"), [(5, 64), (32, 4096)])
def test_relief_follows_every_massive_dim_at_full_height(layers: int, width: int) -> None:
    report = layered_report(layers, width, dims=(3, width - 2))
    assert report.relief is not None
    figure = relief(report)
    axes: Any = figure.axes[0]
    for line, dim in zip(axes.lines, report.dims, strict=True):
        x, y, z = line.get_data_3d()
        assert set(x) == {dim + 0.5}
        assert list(y) == list(range(-1, layers))
        assert np.allclose(z, report.relief[:, dim].numpy())
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["ME Layer 1", "dim 3, up to 160", f"dim {width - 2}, up to 80"]
    assert f"dim {width - 2}" in texts(figure)
    assert title(figure) == (
        f"2 of {width} dimensions carry the massive activation of '<s>', from layer 1 on"
    )


def test_relief_counts_the_dims_it_has_no_room_to_name() -> None:
    figure = relief(layered_report(dims=(1, 9, 20, 33, 41, 60)))
    legend: Any = figure.axes[0].get_legend()
    assert legend.get_title().get_text() == "and 2 more massive dims"
    assert len(legend.get_texts()) == 5  # the ME Layer and four dims


def test_relief_names_do_not_lie_on_each_other() -> None:
    report = layered_report(width=640, dims=(100, 101))
    assert report.relief is not None
    report.relief[2:, 101] = 155.0
    assert texts(relief(report)) == "dim 100"


def test_relief_without_a_massive_activation_names_the_strongest_dim() -> None:
    report = without_massive()
    assert report.relief is not None
    strongest = int(report.relief.max(dim=0).values.argmax())
    figure = relief(report)
    assert title(figure) == "No dimension of 64 stands out by the criterion in any layer"
    assert texts(figure) == f"dim {strongest}"


def test_relief_of_a_report_read_from_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="carries no relief"):
        relief(replace(layered_report(), relief=None))
