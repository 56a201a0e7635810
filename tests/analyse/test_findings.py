"""What may be read off tables whose answer is known: both ways, and not where nothing follows."""

import json
import math
from typing import Any

import analysis_cases as cases
import pandas as pd
import pytest
from report_cases import made_up_report

from wemask.analyse.findings import BLIND, NONE, Finding, findings, headlines, sentence
from wemask.detection.me_layer import MELayerReport


def found(name: str, table: Any, **more: pd.DataFrame) -> list[Finding]:
    return findings({name: table, **more}, made_up_report())


def read(name: str, table: Any, **more: pd.DataFrame) -> str:
    """The reading that answers the experiment's question."""
    (answer,) = headlines(found(name, table, **more))
    return answer["reading"]


def line(rows: list[Finding], done: str, metric: str = "sink mass") -> Finding:
    (row,) = [row for row in rows if row["done"] == done and row["metric"] == metric]
    return row


def changes(row: Finding) -> tuple[float, ...]:
    return tuple(round(row[key], 6) for key in ("change", "low", "high"))  # pyright: ignore


# --------------------------------------------------------------------------------------- readings


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.necessity(0.8), "told apart from every control; the nearest is layer 0's FFN, 0%"),
        (cases.necessity(0.03), NONE),
        (cases.necessity(-0.5), "told apart from every control"),
        (cases.necessity(0.8, {}), "no control was measured"),
        (cases.necessity(0.5, {0: 0.6, 2: 0.0}), "not told apart from layer 0's FFN, -60%"),
        (cases.necessity(0.5, {0: 0.0, 2: 0.45}), "not told apart from layer 2's FFN, -45%"),
        (cases.necessity(0.5, {0: -0.6, 2: 0.3}), "told apart from every control"),
        (cases.necessity(0.8, massive_magnitude=1.0), f"{BLIND}: the massive magnitude stayed"),
    ],
    ids="cause bystander grows alone before after opposite unmoved".split(),
)
def test_necessity_is_no_more_than_its_controls_allow(table: Any, words: str) -> None:
    assert read("necessity", table).startswith(words)


def test_without_sinks_nothing_is_said_of_them() -> None:
    table = cases.necessity()
    table.loc[table["metric"] == "sink_mass", "value"] *= 0.01
    assert read("necessity", table).startswith(f"{BLIND}: there is no sink mass to lose")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.sufficiency(0.9, (0.1, 0.2)), "told apart from every control; the nearest is other"),
        (cases.sufficiency(0.9, (0.1, 0.9)), "not told apart from other dims (draw 1), +90%"),
        (cases.sufficiency(0.0), NONE),
        (cases.sufficiency(0.9, ()), "no control was measured"),
    ],
    ids=["dims", "any dims", "none", "no control"],
)
def test_sufficiency_stands_beside_other_dims(table: Any, words: str) -> None:
    assert read("sufficiency", table).startswith(words)


def test_sufficiency_tells_parts_of_what_was_lost() -> None:
    rows, part = found("sufficiency", cases.sufficiency(0.9)), "sink mass, of what was lost"
    assert line(rows, "massive vector written back", part)["change"] == pytest.approx(0.9)
    assert line(rows, "massive vector removed")["change"] == pytest.approx(-0.5)
    others = line(rows, "the same values on other dims", part)
    assert changes(others) == (0.15, 0.1, 0.2)
    assert others["over"] == "2 draws"


def test_what_was_lost_whole_can_be_restored() -> None:
    table = cases.sufficiency(0.9)
    removed = (table["group"] == "removed") & (table["metric"] == "sink_mass")
    table.loc[removed, "value"] = 0.0
    assert read("sufficiency", table).startswith("told apart from every control")  # 95%, 60%


@pytest.mark.parametrize(("gain", "reached"), [(0.9, True), (0.0, True), (0.9, False)])
def test_a_token_that_was_not_reached_says_nothing(gain: float, reached: bool) -> None:
    rows = found("sufficiency", cases.sufficiency(other_token=gain, reached=reached))
    token = line(rows, "written to an ordinary token", "sink mass, of what was lost")
    assert token["change"] == pytest.approx(gain)
    assert token["reading"].startswith(BLIND) is not reached


def test_where_nothing_was_lost_nothing_is_restored() -> None:
    table = cases.sufficiency()
    table.loc[table["metric"] == "sink_mass", "value"] = 0.4
    assert read("sufficiency", table).startswith(BLIND)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.location(-0.5, 0.0), "told apart from every control; the nearest is all before, 0%"),
        (cases.location(-0.5, -0.45), "not told apart from all before, -45%"),
        (cases.location(-0.01), NONE),
    ],
    ids=["matters", "does not", "no effect"],
)
def test_location_holds_places_against_each_other(table: Any, words: str) -> None:
    assert read("location", table) == words


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.specificity(-0.5, set_zero=-0.9), "told apart from every control; the nearest is r"),
        (cases.specificity(-0.5, uniform=-0.45), "not told apart from uniform damping, -45%"),
        (cases.specificity(-0.5, (-0.6, 0.1)), "not told apart from random dims (draw 0), -60%"),
        (cases.specificity(-0.02), NONE),
        (cases.specificity(-0.5, ()), "no control was measured"),
    ],
    ids=["specific", "not", "within the draws", "no effect", "no control"],
)
def test_specificity_is_told_by_the_nearest_draw(table: Any, words: str) -> None:
    assert read("specificity", table).startswith(words)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (cases.quadratic(1.0), ["predicted within 5%", "every massive token is closer"]),
        (cases.quadratic(0.5), ["not predicted within 5%", "every massive token is closer"]),
        (cases.quadratic(1.0, ordinary=0.9), ["predicted within 5%", "some ordinary token"]),
    ],
    ids=["holds", "half", "not aligned"],
)
def test_the_quadratic_form_is_held_against_what_was_written(given: Any, words: list[str]) -> None:
    rows = found("quadratic", given["quadratic"], quadratic_dims=given["quadratic_dims"])
    readings = [row["reading"] for row in rows if row["reading"]]
    assert all(r.startswith(w) for r, w in zip(readings, words, strict=True)), readings
    assert read("quadratic", given["quadratic"]) == words[0]  # without the table of dims


def test_a_prediction_of_the_wrong_sign_is_not_right() -> None:
    tokens = cases.quadratic(-1.0)["quadratic"]
    assert read("quadratic", tokens) == "not predicted within 5%"
    both = tokens.assign(observed=-tokens["observed"], leading=-tokens["observed"])
    assert read("quadratic", both) == "predicted within 5%"


# ---------------------------------------------------------------------------------------- numbers


def test_a_finding_has_its_numbers_and_never_those_of_single_layers() -> None:
    rows = found("necessity", cases.necessity(0.8, {0: 0.1, 2: 0.0}))
    nothing = line(rows, "layer 1's FFN writes nothing (c = 0)")
    assert sentence(nothing).startswith(
        "Layer 1's FFN writes nothing (c = 0): sink mass 0.4 to 0.08 (-80%); told apart"
    )
    half = line(rows, "layer 1's FFN writes half (c = 0.5)", "massive magnitude")
    assert sentence(half).endswith("massive magnitude 200 to 110 (-45%)")
    assert line(rows, "an FFN before it writes nothing")["change"] == pytest.approx(-0.1)
    assert line(rows, "an FFN after it writes nothing")["change"] == 0


def test_ranges_are_over_draws_or_over_the_layers_after_the_me_layer() -> None:
    rows = found("specificity", cases.specificity(-0.5, (-0.02, 0.01)))
    assert changes(line(rows, "random dims")) == (-0.005, -0.02, 0.01)
    assert line(rows, "random dims")["over"] == "2 draws"
    rows = found(
        "layers",
        cases.layers(6, 1).assign(sink_mass=[0.5] * 6 + [0.5, 9, 0.4, 0.3] * 1 + [0.2, 0.1]),
    )
    softened = line(rows, "softening on")
    assert changes(softened) == (-0.5, -0.8, -0.2)  # layer 1, where it grows, is not after it
    assert softened["over"] == "4 layers"


def test_doses_of_the_same_dims_are_to_be_seen() -> None:
    rows = found("dose", cases.dose((0.01, 0.02, 0.5)))
    deeds = list(dict.fromkeys(row["done"] for row in rows))
    assert deeds == [
        *("rate 0.5, strength 1", "rate 0.01 (1 of 16 dims)", "rate 0.02 (1 of 16 dims)"),
        "rate 0.5 (8 of 16 dims)",
    ]
    assert rows[0]["change"] == pytest.approx(-0.5)
    assert changes(line(rows, deeds[-1])) == (-0.375, -0.5, -0.25)


def test_rigidity_stands_beside_that_of_ordinary_tokens() -> None:
    rows = found("layers", cases.layers())
    done = "what attention reads, between inputs"
    assert line(rows, done, "cosine of massive tokens")["now"] == 0.75
    assert line(rows, done, "cosine of ordinary tokens")["now"] == 0.25
    assert line(rows, "what layer 1 writes into massive tokens", "its FFN's part")["now"] == 0.96


def test_the_answers_are_one_for_each_question_and_none_without_an_me_layer() -> None:
    answers = headlines(findings(cases.tables(), made_up_report()))
    assert [answer["experiment"] for answer in answers] == [
        *("necessity", "sufficiency", "location", "specificity", "quadratic")
    ]
    assert {answer["metric"].partition(",")[0] for answer in answers[:4]} == {"sink mass"}
    report = made_up_report().to_dict() | {"found": False, "layer": None}
    table = cases.layers(massive=False).query("state == 'off'")
    rows = findings({"layers": table}, MELayerReport.from_dict(report))
    assert headlines(rows) == []
    assert line(rows, "as it is", "sink mass of the first token")["now"] == pytest.approx(0.07)


@pytest.mark.parametrize("name", cases.tables())
def test_holes_make_no_claims_and_no_nan(name: str) -> None:
    table = cases.tables()[name]
    holes = [table.head(1), table.head(0)]
    if "value" in table:
        holes += [table[table["group"] != group] for group in table["group"].unique()]
        assert found(name, table.assign(value=math.nan)) == []
    for given in holes:
        rows = found(name, given)
        json.dumps(rows, allow_nan=False)
        for row in rows:
            assert "nan" not in sentence(row).replace(",", " ").split()
