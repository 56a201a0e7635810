"""What is said of the figures of a report, for readers who cannot see them."""

import re

import pytest
from figure_cases import dosed, studied
from report_cases import made_up, made_up_report

from wemask.compare.results import Results, validate_results
from wemask.report.figures import build_figures, described, layer_figures
from wemask.report.softening_plots import softening_effect


def test_the_report_says_the_maps_in_words() -> None:
    figures = {f.name: f for f in build_figures(validate_results(made_up()), made_up_report())}
    maps = figures["sink_maps"]
    assert maps.section == "softening"
    assert maps.alt.startswith("Softening leaves the sink rate at 50%. softening off: 3 of 6 ")
    assert "2410.10781" in maps.caption


@pytest.mark.parametrize("results", [studied(), dosed()], ids=["controls", "dose"])
def test_every_figure_has_a_name_a_section_and_words_of_its_own(results: Results) -> None:
    figures = build_figures(results, None)
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert re.fullmatch(r"[A-Za-z0-9_-]+", figure.name)
        assert len(figure.alt) > 60 and figure.caption.endswith(".")
    sections = {figure.section for figure in figures}
    assert sections >= {"arms", "differences", "layers"} and sections & {"controls", "dose"}


def test_the_relief_is_there_where_the_detection_has_one() -> None:
    report = made_up_report()
    assert [figure.name for figure in layer_figures(report)] == ["magnitude_by_layer", "relief"]
    report.relief = None
    assert [figure.name for figure in layer_figures(report)] == ["magnitude_by_layer"]


def test_the_words_are_the_title_and_the_numbers_else_the_caption() -> None:
    metrics = validate_results(made_up())["softening"]["metrics"]  # pyright: ignore
    figure = softening_effect(metrics)
    title = figure.get_suptitle().replace("\n", " ")
    assert described("a b/c", "s", figure, "Caption.").alt == f"{title}. Caption."
    assert described("a b/c", "s", figure, "Caption.", "1; 2").alt == f"{title}. 1; 2"
    assert described("a b/c", "s", figure, "Caption.").name == "a_b_c"
