import re
from typing import Any

import pytest
from report_cases import ARMS, made_up, made_up_report

from wemask.compare.results import Results, validate_results
from wemask.compare.verdict import (
    birth_sentence,
    find_comparison,
    headline,
    judgement_of,
    p_words,
    points,
)


@pytest.fixture(scope="module")
def results() -> Results:
    return validate_results(made_up())


# ------------------------------------------------------------------------------- the verdict


def test_the_verdict_is_two_sentences_with_all_numbers(results: Results) -> None:
    birth, helped = headline(results)
    assert birth == (
        "In tiny the massive activation is born in layer 1: in dimension 5, abs(h) of token "
        "'<s>' reaches 120 (600 times the median); it lasts to the end."
    )
    assert helped == (
        "On arith, WeMask-SFT scored 7.0 points higher than SFT: 78.0% against 71.0% (95% "
        "interval of the difference +2.8 to +11.2, p = 0.008, n = 400); on gsm8k, accuracy is "
        "near zero on every arm (at most 1.0%, n = 100), which tells nothing about the method."
    )


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "better"),
        ({"delta": -0.07, "low": -0.11, "high": -0.03}, "worse"),
        ({"p_holm": 0.06}, "unclear"),  # the interval is clear of zero, but not after Holm
        ({"low": -0.01}, "blind"),  # p below 0.05, but the interval holds zero
        ({"p_holm": 0.4, "low": -0.02, "minimum_detectable": 0.05}, "no_difference"),
        ({"p_holm": 0.4, "low": -0.02, "minimum_detectable": 0.051}, "blind"),
        ({"p_holm": 0.4, "low": -0.02, "minimum_detectable": None}, "blind"),
    ],
)
def test_no_difference_is_not_could_not_have_seen_one(change: dict[str, Any], outcome: str) -> None:
    data = made_up()
    data["comparisons"][1].update(change)
    assert judgement_of(data, data["comparisons"][1]).outcome == outcome
    sentence = headline(validate_results(data))[1]
    words = {
        "better": "7.0 points higher than SFT",
        "worse": "7.0 points lower than SFT",
        "unclear": "is not clear once the number of comparisons is counted",
        "no_difference": "WeMask-SFT and SFT do not differ",
        "blind": "no difference between WeMask-SFT and SFT was seen",
    }
    assert words[outcome] in sentence
    if outcome == "no_difference":
        assert "a difference of 5.0 points would have been seen" in sentence
    if outcome == "blind" and data["comparisons"][1]["minimum_detectable"]:
        assert re.search(r"but only one of [56]\.\d points or more could have been", sentence)


@pytest.mark.parametrize(("mean", "outcome"), [(0.01, "floor"), (0.99, "ceiling"), (0.5, "blind")])
def test_a_task_at_its_floor_or_ceiling_tells_nothing(mean: float, outcome: str) -> None:
    data = made_up()
    for scores in data["arms"].values():
        scores["arith"].update(mean=mean, low=mean - 0.01, high=mean + 0.01)
    data["comparisons"][1].update(low=-0.1, high=0.1, delta=0.0, p_holm=1.0)
    assert judgement_of(data, data["comparisons"][1]).outcome == outcome


def test_a_clear_difference_near_zero_still_counts() -> None:
    data = made_up()
    for arm, mean in zip(ARMS, (0.0, 0.0, 0.01, 0.04), strict=True):
        data["arms"][arm]["arith"].update(mean=mean, low=0.0, high=0.05)
    data["comparisons"][1].update(delta=0.03, low=0.015, high=0.045, p_holm=0.001)
    assert judgement_of(data, data["comparisons"][1]).outcome == "better"


def test_the_question_is_the_same_whichever_arm_comes_first(results: Results) -> None:
    turned = made_up()
    for c in turned["comparisons"]:
        c.update(a=c["b"], b=c["a"], delta=-c["delta"], low=-c["high"], high=-c["low"])
        c.update(a_only=c["b_only"], b_only=c["a_only"], odds_ratio=1 / c["odds_ratio"])
        c.update(effect_size=-c["effect_size"])
    assert headline(validate_results(turned)) == headline(results)
    found: Any = find_comparison(turned, "arith", "wemask_sft", "sft")
    expected: Any = dict(results["comparisons"][1])
    assert found.pop("others") == expected.pop("others")
    assert found == pytest.approx(expected)


def test_without_trained_arms_the_training_free_arm_answers() -> None:
    data = made_up()
    data["comparisons"] = data["comparisons"][:1]
    assert headline(data)[1].startswith(
        "On arith, training-free WeMask and base do not differ: 22.0% against 23.0%, -1.0 points"
    )
    data["comparisons"] = []
    assert headline(data)[1].startswith("Whether WeMask helps was not tested: no pair of arms")


def test_many_tasks_are_grouped_by_what_was_found() -> None:
    data = made_up()
    for i in range(3):
        data["tasks"][f"t{i}"] = data["tasks"]["arith"]
        for scores in data["arms"].values():
            scores[f"t{i}"] = dict(scores["arith"])
        copied = {**data["comparisons"][1], "task": f"t{i}"}
        if i:
            copied.update(p_holm=0.5, low=-0.1, minimum_detectable=0.2)
        data["comparisons"].append(copied)
    assert headline(validate_results(data))[1] == (
        "WeMask-SFT against SFT: better on arith (+7.0), t0 (+7.0); could not have seen a "
        "difference on t1, t2; tells nothing: accuracy near zero on gsm8k."
    )


def test_no_massive_activation_is_a_clear_answer() -> None:
    me_layer = made_up_report().to_dict()
    me_layer.update(found=False, layer=None, tokens=[], nearest_miss="Layer 2, ratio 12.")
    assert birth_sentence(me_layer, "stories") == (
        "No massive activation was found in stories (nearest miss: Layer 2, ratio 12)."
    )


def test_an_erased_massive_activation_and_an_infinite_ratio() -> None:
    me_layer = made_up_report().to_dict()
    me_layer.update(erased_at=2, dims=[5, 6, 7])
    me_layer["layers"][2]["ratio"] = None  # to a median of zero
    assert birth_sentence(me_layer, "m") == (
        "In m the massive activation is born in layer 1: in dimension 5, abs(h) of token '<s>' "
        "reaches 120; massive as well: 6, 7; layer 2 erases it."
    )


@pytest.mark.parametrize(("share", "words"), [(0.015, "+1.5"), (-0.0701, "-7.0"), (-1e-9, "0.0")])
def test_points(share: float, words: str) -> None:
    assert points(share) == words


@pytest.mark.parametrize(
    ("p", "words"), [(1.0, "p = 1"), (0.42, "p = 0.42"), (0.0421, "p = 0.042"), (0, "p < 0.001")]
)
def test_p_words(p: float, words: str) -> None:
    assert p_words(p) == words
