import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure

from wemask.compare.results import Results, SofteningMetrics
from wemask.detection.me_layer import Criterion, LayerRow, MassiveToken, MELayerReport
from wemask.report import plots
from wemask.report.relief import MAX_BINS, pool_dims, relief
from wemask.report.softening_plots import softening_effect
from wemask.report.style import DPI, WIDTH, log_axis, plain, save_figure, size_words, svg_text

NASTY = "$x_1$ \n\x1b[0m \u202e \u4e2d {} %s <s>"


def made_up_report(
    layers: int = 5, width: int = 64, *, me: int = 1, erased: int | None = None, dims: Any = (3, 60)
) -> MELayerReport:
    """A report in which layer `me` writes 160, 80, ... into `dims` and `erased` takes it away."""
    generator = torch.Generator().manual_seed(0)
    relief = torch.rand(layers + 1, width, generator=generator) + 0.1
    for order, dim in enumerate(dims):
        relief[me + 1 : None if erased is None else erased + 1, dim] = 160.0 / 2**order
    rows = []
    for layer, row in enumerate(relief.tolist(), start=-1):
        largest, median = max(row), float(np.median(row))
        row_facts = {"text": 0, "position": 0, "token": "<s>", "dim": int(np.argmax(row))}
        rows.append(
            LayerRow(
                layer=layer,
                max=largest,
                median=median,
                ratio=largest / median,
                jump=None,
                top_dims=[],
                cosine_next=None,
                **row_facts,
            )
        )
    token = MassiveToken(text=0, position=0, token_id=1, string="<s>", magnitude=160.0)
    return MELayerReport(
        model={"name": "made-up", "revision": None, "dtype": "float32", "architecture": "Llama"},
        num_layers=layers,
        hidden_size=width,
        criterion=Criterion(name="relative"),
        found=True,
        layer=me,
        dims=list(dims),
        magnitudes=[160.0 / 2**i for i in range(len(dims))],
        tokens=[token],
        erased_at=erased,
        emergences=[],
        layers=rows,
        relief=relief,
    )


def without_massive() -> MELayerReport:
    report = made_up_report(dims=())
    return replace(report, found=False, layer=None, tokens=[], emergences=[])


def made_up_metrics(on_sink: float | None = 0.2, on_max: float | None = 160.0) -> SofteningMetrics:
    def rows(largest: float | None, sink: float | None) -> list[dict[str, Any]]:
        values = {"massive_ratio": 400.0, "value_norm_ratio": 0.2, "sink_mass_by_head": None}
        return [{"layer": i, "massive_max": largest, "sink_mass": sink, **values} for i in range(4)]

    return cast(SofteningMetrics, {"off": rows(160.0, 0.6), "on": rows(on_max, on_sink)})


def made_up_results(task: str = "arith") -> Results:
    def score(mean: float) -> dict[str, Any]:
        rest: dict[str, Any] = {"metrics": {}, "runs": []}
        return {"n": 100, "mean": mean, "low": mean - 0.05, "high": mean + 0.05, **rest}

    def difference(a: str, b: str, delta: float, p: float) -> dict[str, Any]:
        rest = {"a_only": 9, "b_only": 2, "odds_ratio": 4.5, "effect_size": 0.1, "test": "McNemar"}
        ends = {"low": delta - 0.06, "high": delta + 0.06, "p_value": p, "p_holm": p}
        names = {"task": task, "a": a, "b": b, "n": 100, "delta": delta, "kind": "main"}
        names |= {"unit": "items", "units": 100, "others": []}
        return {**names, **ends, **rest, "minimum_detectable": 0.08}

    info = {"metric": "acc", "n": 100, "source": "x", "template_sha256": "0", "fewshot": 0}
    means = {"base": 0.2, "training_free": 0.22, "sft": 0.7, "wemask_sft": 0.8}
    return cast(
        Results,
        {
            "tasks": {task: {**info, "note": None}},
            "arms": {arm: {task: score(mean)} for arm, mean in means.items()},
            "comparisons": [
                difference("training_free", "base", 0.02, 0.6),
                difference("wemask_sft", "sft", 0.1, 0.01),
                difference("base", "sft", -0.5, 0.0001),
            ],
        },
    )


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for axes in figure.axes for t in axes.texts)


def png_width(path: Path) -> int:
    return struct.unpack(">I", path.read_bytes()[16:20])[0]


# ------------------------------------------------------------------------------------ pooling


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


# ------------------------------------------------------------------------- figures of the layers


def test_magnitude_by_layer_draws_the_table() -> None:
    report = made_up_report(erased=4)
    figure = plots.magnitude_by_layer(report)
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
    report = replace(made_up_report(), criterion=Criterion())
    top, bottom = plots.magnitude_by_layer(report).axes
    assert {100} in [set(np.asarray(line.get_ydata())) for line in top.lines]
    assert {1000} in [set(np.asarray(line.get_ydata())) for line in bottom.lines]


def test_magnitude_by_layer_says_that_there_is_none() -> None:
    figure = plots.magnitude_by_layer(without_massive())
    assert title(figure).startswith("No massive activation: the largest ratio is ")
    assert texts(figure) == ""


def test_a_ratio_to_a_median_of_zero_leaves_a_gap() -> None:
    report = made_up_report()
    report.layers[0] = replace(report.layers[0], median=0.0, ratio=float("inf"))
    top, bottom = plots.magnitude_by_layer(report).axes
    assert np.isnan(np.asarray(top.lines[1].get_ydata())[0])
    assert np.isnan(np.asarray(bottom.lines[0].get_ydata())[0])


@pytest.mark.parametrize(("layers", "ticks"), [(5, ["emb", "0", "1"]), (32, ["emb", "4", "8"])])
def test_layer_ticks_have_room(layers: int, ticks: list[str]) -> None:
    axes = plots.magnitude_by_layer(made_up_report(layers)).axes[1]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown[:3] == ticks
    assert len(shown) <= 14


@pytest.mark.parametrize(("layers", "width"), [(5, 64), (32, 4096)])
def test_relief_follows_every_massive_dim_at_full_height(layers: int, width: int) -> None:
    report = made_up_report(layers, width, dims=(3, width - 2))
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
    figure = relief(made_up_report(dims=(1, 9, 20, 33, 41, 60)))
    legend: Any = figure.axes[0].get_legend()
    assert legend.get_title().get_text() == "and 2 more massive dims"
    assert len(legend.get_texts()) == 5  # the ME Layer and four dims


def test_relief_names_do_not_lie_on_each_other() -> None:
    report = made_up_report(width=640, dims=(100, 101))
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
        relief(replace(made_up_report(), relief=None))


# ---------------------------------------------------------------------------- softening and arms


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


def test_arms_draws_accuracy_and_interval_in_percent() -> None:
    results = made_up_results()
    figure = plots.arms(results, "arith")
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
    results = made_up_results()
    for scores in results["arms"].values():
        scores["arith"].update(mean=0.01, low=0.0, high=0.04)
    figure = plots.arms(results, "arith")
    assert title(figure) == "arith: accuracy is near zero on every arm (n = 100)"
    figure.draw_without_rendering()
    edge = figure.axes[0].get_window_extent().x0
    assert all(words.get_window_extent().x0 > edge for words in figure.axes[0].texts)
    with pytest.raises(KeyError):
        plots.arms(results, "nowhere")


def test_forest_draws_every_difference_with_its_interval() -> None:
    figure = plots.forest(made_up_results())
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
    results = made_up_results()
    results["comparisons"] = []
    assert title(plots.forest(results)) == "No two arms were compared"


# ------------------------------------------------------------------------------------- the look


def test_any_string_can_be_drawn(tmp_path: Path) -> None:
    report = made_up_report()
    report.tokens[0] = replace(report.tokens[0], string=NASTY)
    results = made_up_results(NASTY)
    results["arms"][NASTY] = results["arms"].pop("sft")
    results["comparisons"] = [c for c in results["comparisons"] if "sft" not in (c["a"], c["b"])]
    for figure in (relief(report), plots.arms(results, NASTY), plots.forest(results)):
        save_figure(figure, tmp_path / "x")  # a missing letter is a warning, so an error


def test_save_figure_writes_png_and_svg_and_keeps_dots(tmp_path: Path) -> None:
    figure = softening_effect(made_up_metrics())
    png, svg = save_figure(figure, tmp_path / "deep" / "llama-3.2-1b")
    assert (png.name, svg.name) == ("llama-3.2-1b.png", "llama-3.2-1b.svg")
    assert DPI >= 150
    assert png_width(png) == round(WIDTH * DPI)
    text = svg.read_text(encoding="utf-8")
    assert text.lstrip().startswith("<?xml")
    # Namespaces and metadata name addresses; nothing that a browser would load.
    assert not re.findall(r"(?:href|src)=\"(?!#|data:)[^\"]+\"", text)


def test_equal_data_make_equal_bytes() -> None:
    assert svg_text(plots.forest(made_up_results())) == svg_text(plots.forest(made_up_results()))


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    plots.magnitude_by_layer(made_up_report())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("low", "high", "named"),
    [(12, 240, ["20", "50", "100", "200"]), (0.2, 300.0, ["1", "10", "100"])],
)
def test_log_axes_name_a_few_plain_numbers(low: float, high: float, named: list[str]) -> None:
    axes = Figure().subplots()
    axes.plot([low, high])
    log_axis(axes)
    axes.figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    shown = [
        label.get_text()
        for value, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if bottom <= value <= top
    ]
    assert [name for name in shown if name in named] == named
    assert len(shown) <= 6
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))


@given(st.text())
def test_plain_text_is_ascii_and_never_mathematics(text: str) -> None:
    shown = plain(text)
    assert shown.isascii()
    assert shown.isprintable()
    assert re.sub(r"\\\$", "", shown).count("$") == 0


@pytest.mark.parametrize(
    ("value", "words"), [(1234.5, "1,234"), (160.0, "160"), (93.28, "93.3"), (0.01234, "0.0123")]
)
def test_size_words(value: float, words: str) -> None:
    assert size_words(value) == words
