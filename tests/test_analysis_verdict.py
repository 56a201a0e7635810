"""What may be said of tables whose answer is known: both ways, and not where nothing follows."""

import math
from typing import Any

import analysis_cases as cases
import pandas as pd
import pytest
from report_cases import made_up_report

from wemask.analyse.verdict import findings
from wemask.detection.me_layer import MELayerReport


def said(name: str, table: Any, **more: pd.DataFrame) -> list[str]:
    return findings({name: table, **more}, made_up_report())[name]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.necessity(0.8), ["80% needs what the FFN of layer 1 writes", "other 20% is there"]),
        (cases.necessity(0.8), ["None of the 2 other layers that were tried does 80% as much"]),
        (cases.necessity(1.0), ["without it 0% is left"]),
        (cases.necessity(0.03), ["The sinks do not need", "the ME Layer is a bystander"]),
        (cases.necessity(-0.5), ["their mass grows (+50%)"]),
        (cases.necessity(0.8, {}), ["No other layer was tried"]),
        (
            cases.necessity(0.5, {0: 0.6, 2: 0.0}),
            ["Taking away layer 0's write, before the ME Layer, does as much: -60%", "own"],
        ),
        (
            cases.necessity(0.5, {0: 0.0, 2: 0.45}),
            ["without the write of layer 2 (-45%), after the ME Layer", "not the ME Layer's alone"],
        ),
        (cases.necessity(0.8, massive_magnitude=1.0), ["was not tested"]),
    ],
    ids=["cause", "alone", "all", "bystander", "grows", "no control", "before", "after", "unmoved"],
)
def test_necessity_is_no_more_than_its_controls_allow(table: Any, words: list[str]) -> None:
    reading = said("necessity", table)[-1]
    assert all(word in reading for word in words), reading


def test_a_layer_before_that_takes_the_magnitude_too_is_not_told_apart() -> None:
    table = cases.necessity(0.5, {0: 0.6})
    rows = (table["group"] == "other_layer") & (table["metric"] == "massive_magnitude")
    table.loc[rows, "value"] = 20.0
    assert (
        "so it may feed the ME Layer, and the two are not told apart here"
        in (said("necessity", table)[-1])
    )


def test_necessity_gives_the_numbers_and_never_those_of_single_layers() -> None:
    first, half, others, _ = said("necessity", cases.necessity(0.8, {0: 0.1, 2: 0.0}))
    assert "massive magnitude 200 to 20 (-90%); sink mass 0.4 to 0.08 (-80%)" in first
    assert "(c = 0.5): massive magnitude 200 to 110 (-45%)" in half
    assert "1 layer before it, at most -10% (layer 0); 1 layer after it, at most 0%" in others


def test_without_sinks_nothing_is_said_of_them() -> None:
    table = cases.necessity()
    table.loc[table["metric"] == "sink_mass", "value"] *= 0.01
    assert said("necessity", table)[-1].startswith("There is no sink mass to lose")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.sufficiency(1.0), ["is enough to bring the lost sinks back"]),
        (cases.sufficiency(0.6), ["brings 60% of the lost sink mass, not all of it"]),
        (cases.sufficiency(0.0), ["does not bring the sinks back (0%)"]),
        (cases.sufficiency(0.9, (0.1, 0.2)), ["10% to 20%: none of 2 draws does 80% as much"]),
        (cases.sufficiency(0.9, (0.1, 0.9)), ["other dims do as much", "any dims would do"]),
        (cases.sufficiency(other_token=0.0), ["makes no sink of it (from 0.04 to 0.04, 0%"]),
        (cases.sufficiency(other_token=0.9), ["makes that one a sink as well"]),
        (cases.sufficiency(other_token=0.3), ["makes less of a sink of it"]),
        (cases.sufficiency(reached=False), ["so this control says nothing"]),
    ],
    ids=["all", "part", "none", "dims", "any dims", "token", "any token", "less", "not reached"],
)
def test_sufficiency_stands_beside_other_dims_and_another_token(
    table: Any, words: list[str]
) -> None:
    reading = said("sufficiency", table)[-1]
    assert all(word in reading for word in words), reading


def test_where_nothing_was_lost_nothing_is_restored() -> None:
    table = cases.sufficiency()
    table.loc[table["metric"] == "sink_mass", "value"] = 0.4
    (only,) = said("sufficiency", table)
    assert "loses no sink mass (0.4 to 0.4 (0%)), so there is none to restore" in only


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (cases.location(-0.5, 0.0), "Where it is done matters: no other place"),
        (cases.location(-0.5, -0.45), "not what matters: all layers before it (-45%) does as much"),
        (cases.location(-0.01), "hardly an effect whose place could matter"),
    ],
    ids=["matters", "does not", "no effect"],
)
def test_location_holds_places_against_each_other(table: Any, words: str) -> None:
    sentences = said("location", table)
    assert words in sentences[-1]
    assert any("up to the ME Layer the tokens are not massive yet" in s for s in sentences)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            cases.specificity(-0.5, set_zero=0.9),
            ["is specific among these controls", "random dims"],
        ),
        (cases.specificity(-0.5, uniform=-0.45), ["is not specific: uniform damping (-45%)"]),
        (cases.specificity(-0.5, (-0.6, 0.1)), ["not specific", "one of 2 draws of random dims"]),
        (cases.specificity(-0.02), ["hardly an effect that could be specific"]),
        (cases.specificity(-0.5, ()), ["was not tested"]),
    ],
    ids=["specific", "not", "within the draws", "no effect", "no control"],
)
def test_specificity_is_told_by_the_controls(table: Any, words: list[str]) -> None:
    reading = said("specificity", table)[-1]
    assert all(word in reading for word in words), reading


def test_specificity_ranks_the_operator_and_claims_no_p_values() -> None:
    sentences = said("specificity", cases.specificity(-0.5, set_zero=0.9))
    assert (
        "from 0.4 to 0.2 (-50%), by size number 2 of 3, after massive set to zero +90%"
        in (sentences[0])
    )
    assert "told apart from the drawn controls (-2.0% to +1.0%, 2 draws)" in sentences[0]
    assert any("no p-values" in sentence for sentence in sentences)


def test_doses_that_round_to_the_same_dims_are_named() -> None:
    sentences = said("dose", cases.dose((0.01, 0.02, 0.5)))  # of 16 dims: 1, 1, 8
    assert "Of 16 dims, the rates 0.01, 0.02 all soften 1: they are one dose." in sentences
    assert sentences[-1].startswith("More strength lowers the sink mass further")
    assert "0.2 (rate 0.5, strength 1) to 0.398 (rate 0.01, strength 0.5)" in sentences[0]
    table = cases.dose((0.5,))
    row = (table["metric"] == "sink_mass") & table["layer"].isna() & (table["amount"] == 1.0)
    table.loc[row, "value"] = 0.39
    assert "raises" in said("dose", table)[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (cases.quadratic(1.0), ["within 5% (100%", "closer to it than any ordinary one"]),
        (cases.quadratic(0.5), ["predicts 50% of what"]),
        (cases.quadratic(1.0, ordinary=0.9), ["some ordinary token lies as close"]),
    ],
    ids=["holds", "half", "not aligned"],
)
def test_the_quadratic_form_is_held_against_what_was_written(given: Any, words: list[str]) -> None:
    reading = said("quadratic", given["quadratic"], quadratic_dims=given["quadratic_dims"])[-1]
    assert all(word in reading for word in words), reading
    assert said("quadratic", given["quadratic"])  # without the table of dims


def test_rigidity_says_what_a_first_token_cannot_show() -> None:
    sentences = findings({"layers": cases.layers()}, made_up_report())["metrics"]
    assert any("cosine of 0.750, of ordinary tokens 0.250" in s for s in sentences)
    assert any("the same in every input by construction" in s for s in sentences)
    without = findings({"layers": cases.layers(massive=False)}, made_up_report())["metrics"]
    assert not any("construction" in s for s in without)


def test_the_verdict_is_made_of_readings_and_without_an_me_layer_of_the_detection() -> None:
    given = cases.tables()
    found = findings(given, made_up_report())
    assert 2 <= len(found["verdict"]) <= 4
    assert found["verdict"][0] == found["necessity"][-1]
    report = made_up_report().to_dict() | {"found": False, "layer": None}
    nothing = findings({"layers": cases.layers(massive=False)}, MELayerReport.from_dict(report))
    assert nothing["verdict"][0].startswith("No ME Layer")


@pytest.mark.parametrize("name", cases.tables())
def test_holes_make_no_claims_and_no_nan(name: str) -> None:
    table = cases.tables()[name]
    if name.startswith("quadratic"):
        return
    if "value" in table:
        holes = [table.assign(value=math.nan), table.head(1), table.head(0)]
        holes += [table[table["group"] != group] for group in table["group"].unique()]
    else:
        holes = [table.head(1), table.head(0)]
    for given in holes:
        for sentences in findings({name: given}, made_up_report()).values():
            assert all("nan" not in sentence.split() for sentence in sentences), sentences
            assert "nan" not in " ".join(sentences).replace(",", " ").split()
