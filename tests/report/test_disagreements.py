"""Which items are shown, and what is done to a text before it is."""

import re
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import ARMS, ITEMS, made_up, made_up_samples

from wemask.compare.results import Results, validate_results
from wemask.report.disagreements import disagreements, shorten, visible


@pytest.fixture(scope="module")
def results() -> Results:
    return validate_results(made_up())


def test_examples_are_disagreements_and_every_pair_has_some(results: Results) -> None:
    found = disagreements(results, made_up_samples(results), per_pair=2)
    samples = made_up_samples(results)
    expected = {
        sample["id"]
        for task in ITEMS
        for group in zip(*(samples[arm, task] for arm in ARMS), strict=True)
        for sample in group
        if len({s["correct"] for s in group}) == 2
    }
    assert found.total == len(expected)
    assert {example.id for example in found.shown} <= expected
    assert len({(e.task, e.id) for e in found.shown}) == len(found.shown)
    # By construction in arith every pair of arms disagrees in both directions.
    for right, wrong in permutations(ARMS, 2):
        shown = [
            e
            for e in found.shown
            if {o.arm for o in e.outputs if o.correct} >= {right}
            and {o.arm for o in e.outputs if not o.correct} >= {wrong}
        ]
        assert shown, (right, wrong)


def test_no_examples_without_samples_or_disagreement(results: Results) -> None:
    assert disagreements(results, {}).total == 0
    one = {("sft", "arith"): made_up_samples(results)["sft", "arith"]}
    assert disagreements(results, one).total == 0


@given(st.text(), st.integers(0, 20), st.integers(0, 20))
def test_shorten_keeps_both_ends(text: str, head: int, tail: int) -> None:
    short = shorten(text, head, tail)
    if len(text) <= head + tail:
        assert short == text
    else:
        assert short.startswith(text[:head])
        assert short.endswith(text[len(text) - tail :])
        assert f"[... {len(text) - head - tail:,} characters left out ...]" in short


@given(st.text(st.characters()))
def test_visible_text_fits_in_utf8_and_hides_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200b]", shown)


def test_a_lone_surrogate_and_an_escape_sequence_are_shown() -> None:
    assert visible("\ud83d \x1b[31m \r") == "\\ud83d \\x1b[31m \\x0d"


def test_an_item_shows_one_output_of_every_arm_and_the_first_seed_counts(results: Results) -> None:
    samples = made_up_samples(results)
    again = [{**sample, "output": "another seed"} for sample in samples["sft", "arith"]]
    samples["sft", "arith"] += again
    found = disagreements(results, samples)
    assert found == disagreements(results, made_up_samples(results))
    for example in found.shown:
        assert [output.arm for output in example.outputs] == list(ARMS)
        assert example.gold in example.id
