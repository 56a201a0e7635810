"""The generator of word problems: disjoint splits, determinism, answers checked independently."""

import random
import re
import subprocess
import sys
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wemask.embedded.problems import (
    FAMILIES,
    LARGEST,
    SPLITS,
    Family,
    Split,
    generate,
    split_of,
)
from wemask.errors import DataError

SYMBOLS = {"plus": "+", "less": "-"}
LINE = re.compile(r"(\d+) ([-+*/]|plus|less) (\d+) (?:=|makes|leaves) (\d+)\.?")


def evaluate(line: str) -> tuple[Fraction, Fraction, Fraction]:
    """Return (quantity before, result by exact arithmetic, result as written)."""
    match = LINE.fullmatch(line)
    assert match, line
    before, operand, written = Fraction(match[1]), Fraction(match[3]), Fraction(match[4])
    op = SYMBOLS.get(match[2], match[2])
    result = {
        "+": before + operand,
        "-": before - operand,
        "*": before * operand,
        "/": before / operand,
    }
    return before, result[op], written


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_right(family, split):
    for problem in generate(2000, family=family, split=split, seed=3):
        *lines, last = problem["answer"].split("\n")
        value = None
        for line in lines:
            before, result, written = evaluate(line)
            assert result == written, line
            assert value is None or before == value, problem
            assert 2 <= written <= LARGEST
            value = written
        assert last == f"#### {value}" == f"#### {problem['gold']}"
        assert len(lines) == problem["steps"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_the_solution_comes_from_the_question_or_a_line_before(family):
    for problem in generate(1000, family=family, seed=4):
        known = re.findall(r"\d+", problem["question"])
        for line in problem["answer"].split("\n"):
            *used, result = re.findall(r"\d+", line)
            assert set(used) <= set(known), problem
            known.append(result)


def test_splits_are_disjoint_over_families_and_seeds():
    questions: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in get_args(Split):
        for family in get_args(Family):
            for seed in range(3):
                problems = generate(4000, family=family, split=split, seed=seed)
                questions[split] |= {p["question"] for p in problems}
    assert not questions["train"] & questions["test"]
    assert all(split_of(q) == split for split in SPLITS for q in questions[split])


def test_families_share_no_question_and_no_step_line():
    sft, pretrain = (generate(3000, family=f) for f in ("sft", "pretrain"))
    assert not {p["question"] for p in sft} & {p["question"] for p in pretrain}
    lines = [{x for p in ps for x in p["answer"].split("\n")[:-1]} for ps in (sft, pretrain)]
    assert not lines[0] & lines[1]


def test_sft_has_one_to_four_steps_and_all_operations():
    problems = generate(2000)
    assert {p["steps"] for p in problems} == {1, 2, 3, 4}
    text = "\n".join(p["answer"] for p in problems)
    assert all(f" {op} " in text for op in "+-*/")
    assert any("\n" in p["question"] for p in problems)


def test_the_test_split_holds_the_stated_share():
    questions = [f"question {i}" for i in range(20000)]
    share = sum(split_of(q) == "test" for q in questions) / len(questions)
    assert share == pytest.approx(0.2, abs=0.01)


@given(seed=st.integers(0, 10**6), n=st.integers(0, 30), m=st.integers(0, 30))
def test_a_shorter_draw_is_a_prefix_of_a_longer_one(seed, n, m):
    shorter, longer = sorted((n, m))
    assert generate(longer, seed=seed)[:shorter] == generate(shorter, seed=seed)
    assert len(generate(longer, seed=seed)) == longer


def test_questions_of_one_draw_are_unique_and_seeds_differ():
    first, second = (generate(3000, seed=s) for s in (0, 1))
    assert len({p["question"] for p in first}) == len({p["id"] for p in first}) == 3000
    assert first != second


def test_generation_ignores_the_global_random_state():
    random.seed(1)
    first = generate(5)
    random.seed(2)
    assert generate(5) == first


def test_pinned_and_the_same_in_a_fresh_process():
    # Published numbers depend on these items: a change here is a new dataset.
    code = "from wemask.embedded.problems import generate; print(generate(1, split='test'))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(generate(1, split="test"))
    assert generate(1)[0] == {
        "question": "There are 25 coins in a box at the park. The number of coins in the box grows "
        "2 times. The coins are split into 5 equal boxes and Tom keeps one box. Ray has 4 apples. "
        "The coins are split into 2 equal boxes and Tom keeps one box.\n"
        "How many coins are in the box now?",
        "answer": "25 * 2 = 50\n50 / 5 = 10\n10 / 2 = 5\n#### 5",
        "gold": "5",
        "steps": 3,
        "id": "sft-b2e4ba6e5c8f",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "from 0 to 1,000,000, found -1"),
        ({"n": 10**12}, "from 0 to 1,000,000, found 1,000,000,000,000"),
        ({"n": 1, "split": "tets"}, "Did you mean 'test'"),
        ({"n": 1, "family": "sftt"}, "Did you mean 'sft'"),
    ],
)
def test_wrong_arguments_say_what_is_possible(arguments, message):
    with pytest.raises(DataError, match=re.escape(message)):
        generate(**arguments)
