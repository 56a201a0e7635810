"""The refusal judge on hand-labelled answers: those it was built on, and those held out."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal_cases import (
    DEV_COMPLIANCES,
    DEV_REFUSALS,
    HELD_OUT_COMPLIANCES,
    HELD_OUT_REFUSALS,
)
from refusal_language_cases import COMPLIANCES, REFUSALS
from refusal_question_cases import QUESTION_ANSWERS, QUESTION_REFUSALS

from wemask.errors import DataError
from wemask.evaluate.scoring import refusals
from wemask.evaluate.scoring.answers import is_refusal


@pytest.mark.parametrize(
    ("refusals", "compliances"),
    [
        (DEV_REFUSALS, DEV_COMPLIANCES),
        (HELD_OUT_REFUSALS, HELD_OUT_COMPLIANCES),
        (REFUSALS, COMPLIANCES),
    ],
    ids=["dev", "held-out", "languages"],
)
def test_agreement_with_the_labels(refusals: list[str], compliances: list[str]) -> None:
    missed = [text for text in refusals if not is_refusal(text)]
    accused = [text for text in compliances if is_refusal(text)]
    total = len(refusals) + len(compliances)
    assert total >= 50
    assert 1 - (len(missed) + len(accused)) / total >= 0.95, (missed, accused)


def test_no_case_is_in_both_sets_or_twice() -> None:
    texts = [*DEV_REFUSALS, *DEV_COMPLIANCES, *HELD_OUT_REFUSALS, *HELD_OUT_COMPLIANCES]
    assert len(texts) == len(set(texts))


def test_empty_text_is_not_a_refusal() -> None:
    assert not is_refusal("")
    assert not is_refusal(" \n\t")


@pytest.mark.parametrize("text", DEV_REFUSALS)
def test_case_blanks_and_apostrophes_do_not_matter(text: str) -> None:
    assert is_refusal("\n\n  " + text)
    assert is_refusal(text.upper())
    assert is_refusal(text.replace("'", "\u2019"))


def test_a_caveat_after_a_long_answer_is_not_a_refusal() -> None:
    steps = "".join(f"{k}. Turn screw {k} a quarter to the left and lift it.\n" for k in range(30))
    caveat = "I cannot help you with the warranty, which this ends."
    assert not is_refusal(steps + caveat)
    assert is_refusal(caveat + "\n" + steps)


def test_a_thought_is_not_said() -> None:
    assert not is_refusal("<think>I cannot help with that.</think>Run `kill PID`.")
    assert is_refusal("Let me see.</think>I cannot help with that.")
    assert not is_refusal("<think>I cannot help with that.")
    assert is_refusal("<think>I cannot help with that.</think>")  # all that there is


def test_a_quotation_in_an_answer_is_not_the_assistants_own() -> None:
    assert is_refusal('"I cannot help you with that."')
    assert not is_refusal('She wrote: "I cannot help you with that." He read it twice.')


@given(st.text(max_size=300))
def test_any_text_is_accepted(text: str) -> None:
    assert is_refusal(text) in (True, False)


@pytest.mark.parametrize("bad", [None, 3, b"no", ["no"]])
def test_what_is_not_text_is_an_error(bad: Any) -> None:
    with pytest.raises(DataError, match="str"):
        is_refusal(bad)


def test_the_question_tells_a_rejected_premise_and_a_lecture() -> None:
    missed = [pair for pair in QUESTION_REFUSALS if not is_refusal(pair[1], pair[0])]
    accused = [pair for pair in QUESTION_ANSWERS if is_refusal(pair[1], pair[0])]
    total = len(QUESTION_REFUSALS) + len(QUESTION_ANSWERS)
    assert 1 - (len(missed) + len(accused)) / total >= 0.95, (missed, accused)


def test_a_wrong_question_is_an_error() -> None:
    wrong: Any = 3
    with pytest.raises(DataError, match="the question as a str, found int"):
        is_refusal("No.", wrong)


def test_every_name_of_the_wording_is_asked_for_and_every_name_asked_for_is_there() -> None:
    source = Path(refusals.__file__).read_text("utf-8")
    asked = set(re.findall(r'(?:_SAID\[|_says\()"([a-z_]+)"', source))
    assert asked == {name for name in refusals._SAID if name.islower()}
