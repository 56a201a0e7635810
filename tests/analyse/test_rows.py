"""Reading tables: what a change is a change of, and how it is said."""

import math

import analysis_cases as cases
import pandas as pd
import pytest

from wemask.analyse.rows import (
    COLUMNS,
    OVERALL,
    change_words,
    changed,
    group_words,
    intact,
    levels,
    metric_words,
    overall,
    table,
    tidy_layers,
)


def test_whole_numbers_stay_whole_where_some_are_missing() -> None:
    frame = table([{"metric": "m", "layer": 3, "value": 1}, {"metric": "m", "value": None}])
    assert tuple(frame.columns) == COLUMNS
    assert frame["layer"].dtype == "Int64" and frame["layer"].tolist()[0] == 3
    assert frame["layer"].isna().tolist() == [False, True]
    assert math.isnan(frame["value"].iloc[1])


def test_a_change_is_that_of_the_same_metric_and_layer() -> None:
    rows = changed(cases.specificity(-0.5))
    real = rows[(rows["group"] == "wemask") & (rows["metric"] == "sink_mass")]
    assert real["change"].tolist() == pytest.approx([-0.5, -0.5])  # overall, and layer 2
    assert real["before"].tolist() == pytest.approx([0.4, 2.8])  # which is 7 times as large
    assert (rows[rows["group"] == "intact"]["change"] == 0).all()
    only = changed(cases.specificity().query("group != 'intact'"))
    assert only["before"].isna().all() and only["change"].isna().all()


def test_a_unit_of_nothing_makes_no_change() -> None:
    frame = cases.sufficiency()
    lost = levels(frame) - levels(frame, "removed")  # zero, but for sink mass and magnitude
    rows = changed(frame, "removed", lost)
    assert rows[rows["metric"] == "perplexity"]["change"].isna().all()
    back = rows[(rows["group"] == "intact") & (rows["metric"] == "sink_mass")]
    assert back["change"].tolist() == pytest.approx([1.0, 1.0])


def test_the_model_as_it_is_is_the_ffn_times_one_in_necessity() -> None:
    frame = cases.necessity(0.8)
    assert intact(frame, "sink_mass") == pytest.approx(0.4)
    assert levels(frame)["sink_mass", 2] == pytest.approx(2.8)
    assert intact(frame, "sink_mass") == levels(frame)["sink_mass", OVERALL]
    assert math.isnan(intact(frame, "nothing of this name"))


def test_layers_are_averaged_after_the_me_layer_or_over_all() -> None:
    wide = cases.layers(4, 1).assign(sink_rate=[1.0, 2, 3, 5] * 2)
    for me_layer, mean in ((1, 4.0), (2, 5.0), (3, 2.75), (None, 2.75)):
        rows = overall(tidy_layers(wide, me_layer), "sink_rate")
        assert rows["value"].tolist() == [mean, mean]
        assert rows["group"].tolist() == ["intact", "wemask"]
    assert "sink_mass_by_head" not in set(tidy_layers(wide, 1)["metric"])


@pytest.mark.parametrize(
    ("share", "words"),
    [(-0.574, "-57%"), (0.0213, "+2.1%"), (0.0, "0%"), (-0.0004, "0%"), (80.0, "+8,000%")],
)
def test_changes_in_words(share: float, words: str) -> None:
    assert change_words(share) == words


@pytest.mark.parametrize("share", [None, math.nan, math.inf])
def test_what_was_not_measured_is_said_to_be(share: float | None) -> None:
    assert change_words(share) == "not measured"


def test_names_without_words_of_their_own() -> None:
    assert metric_words("effective_rank") == "effective rank"
    assert metric_words("sink_mass_first") == "sink mass of the first token"
    assert group_words("other_dims") == "other dims" and group_words("at") == "ME Layer"
    assert group_words("uniform") == "uniform damping"
    assert overall(pd.DataFrame({"layer": [None, 1]})).index.tolist() == [0]
