"""The figures of an analysis, with their titles and words."""

import math

import analysis_cases as cases
import pandas as pd
import pytest
from figure_cases import title
from report_cases import made_up_report

from wemask.analyse.experiments import EXPERIMENTS
from wemask.analyse.figures import build_analysis_figures
from wemask.analyse.findings import findings
from wemask.report.figures import ReportFigure


def drawn(tables: dict[str, pd.DataFrame]) -> dict[str, ReportFigure]:
    report = made_up_report()
    found = build_analysis_figures(tables, report, findings(tables, report))
    return {figure.name: figure for figure in found}


def test_every_table_has_its_figures_with_words() -> None:
    figures = drawn(cases.tables())
    assert list(figures) == [
        *("magnitude_by_layer", "relief", "sinks", "diversity", "rigidity", "writes", "sink_maps"),
        *("necessity", "sufficiency", "location", "specificity", "dose", "quadratic"),
    ]
    for figure in figures.values():
        assert len(figure.alt) > 60, figure.name
        assert "nan" not in figure.alt
        assert len(figure.caption) > 60
    # the words hold the numbers
    assert "on other dims: sink mass, of what was lost 0.2 to 0.23 (+15%, +10% to +20% over 2" in (
        figures["sufficiency"].alt
    )
    assert "sink mass 0.6 to 0.3 (-50%, -50% to -50% over 2 layers)" in figures["sinks"].alt
    assert "Dim 5: written, then predicted 75 to 75 (0%" in figures["quadratic"].alt


def test_a_title_is_the_finding() -> None:
    titles = {name: title(figure.figure) for name, figure in drawn(cases.tables()).items()}
    assert titles["sinks"] == "Softening on: sink mass 0.6 to 0.3 (-50%)"
    assert titles["diversity"] == "Softening on: effective rank 12.5 to 12.5 (0%)"
    assert titles["rigidity"].endswith(
        "cosine of massive tokens 0.75, cosine of ordinary tokens 0.25"
    )
    assert titles["writes"] == "What layer 1 writes into massive tokens: its FFN's part 0.96"
    assert titles["location"] == (
        "Softened in all layers after the ME Layer: sink mass 0.4 to 0.2 (-50%); told apart from "
        "every control; the nearest is all before, 0%"
    )
    assert titles["dose"] == "Rate 0.5, strength 1: sink mass 0.4 to 0.2 (-50%)"
    without = drawn({"layers": cases.layers(massive=False).query("state == 'off'")})
    assert list(without) == ["magnitude_by_layer", "relief", "sinks", "diversity", "rigidity"]
    assert title(without["sinks"].figure) == "As it is: sink mass of the first token 0.07"


def test_without_tables_the_detection_stands_alone() -> None:
    assert list(drawn({"dose": cases.dose().head(0)})) == ["magnitude_by_layer", "relief"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_words_of_a_table_with_holes_hold_no_nan(name: str) -> None:
    table = cases.tables()[name]
    for given in (table.assign(value=math.nan), table.head(1), table.tail(3)):
        for figure in drawn({name: given}).values():
            assert "nan" not in title(figure.figure) + figure.alt
