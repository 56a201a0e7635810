import re
import struct
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import pytest
from figure_cases import NASTY, layered_report, made_up_metrics, small_results
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from wemask.report.comparison_plots import arms, forest
from wemask.report.detection_plots import magnitude_by_layer, relief
from wemask.report.softening_plots import softening_effect
from wemask.report.style import DPI, WIDTH, log_axis, plain, save_figure, size_words, svg_text


def png_width(path: Path) -> int:
    return struct.unpack(">I", path.read_bytes()[16:20])[0]


def test_any_string_can_be_drawn(tmp_path: Path) -> None:
    report = layered_report()
    report.tokens[0] = replace(report.tokens[0], string=NASTY)
    results = small_results(NASTY)
    results["arms"][NASTY] = results["arms"].pop("sft")
    results["comparisons"] = [c for c in results["comparisons"] if "sft" not in (c["a"], c["b"])]
    for figure in (relief(report), arms(results, NASTY), forest(results)):
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
    assert svg_text(forest(small_results())) == svg_text(forest(small_results()))


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    magnitude_by_layer(layered_report())
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
