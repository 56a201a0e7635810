"""Seeded arithmetic word problems: unlimited, checkable, with disjoint train and test.

Two families. `pretrain` is what the embedded model was pre-trained on: additions and subtractions,
solved in words ("12 plus 5 makes 17."). `sft` is what fine-tuning teaches: other openings and
verbs, all four operations, solved in symbols ("12 + 5 = 17"). Both answers end with `#### N`.

The split of a problem is a function of its text (a hash), so train and test are disjoint for every
seed, size and family, without having to remember what was generated before.
"""

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from wemask.errors import DataError, nearest

Split = Literal["train", "test"]
Family = Literal["pretrain", "sft"]

SPLITS: tuple[str, ...] = get_args(Split)
FAMILIES: tuple[str, ...] = get_args(Family)
LARGEST = 99  # of all quantities: two digits at most
TEST_SHARE = 0.2
MOST = 1_000_000  # problems that are made at once, and held in memory

NAMES = tuple("Tom Mia Sam Ann Bob Eva Leo Zoe Max Ivy Dan Kim Joe Amy Ray Sue".split())
ITEMS = tuple("apples pears books coins cards pens cups eggs hats balls stamps shells".split())
PLACES = tuple("shop park school farm beach market".split())


class Problem(TypedDict):
    """One item. `answer` is the step lines, then `#### gold`; `steps` is their number."""

    question: str
    answer: str
    gold: str
    steps: int
    id: str


@dataclass(frozen=True, kw_only=True)
class _Style:
    """What distinguishes a family; `stories.json` has one of each.

    Sentences have {n} and {o}, two people, their {item} and {other_item}, and a {place}.
    """

    openings: list[tuple[str, str]]
    """First sentence ({v} is the quantity, or {a} groups of {b} each), and the kind of story: what
    changes the quantity by {k}, by operation, and the last sentences that ask for it."""
    lines: dict[str, str]
    """Operation -> one step line from {x} (before), {k} (operand) and {y} (after)."""
    distraction: str  # a sentence about somebody else, which changes nothing
    max_steps: int
    starts: tuple[int, int]  # smallest and largest first quantity
    largest: int  # of all quantities
    operands: dict[str, int]  # operation -> largest operand (the smallest is 2)


_STORIES: dict[str, Any] = json.loads(Path(__file__).with_name("stories.json").read_text())
STYLES = {family: _Style(**values) for family, values in _STORIES["styles"].items()}


def generate(
    n: int, *, split: Split = "train", family: Family = "sft", seed: int = 0
) -> list[Problem]:
    """Return `n` different problems; the first `m < n` of them are `generate(m, ...)`.

    Raises `DataError` for an `n` that is not 0..MOST, an unknown split or an unknown family.
    """
    if not 0 <= n <= MOST:
        raise DataError(f"The number of problems must be from 0 to {MOST:,}, found {n:,}.")
    if split not in SPLITS:
        raise DataError(f"No split {split!r}: use one of {SPLITS}.{nearest(split, SPLITS)}")
    if family not in FAMILIES:
        raise DataError(f"No family {family!r}: use one of {FAMILIES}.{nearest(family, FAMILIES)}")
    problems: list[Problem] = []
    seen: set[str] = set()
    rng = random.Random(f"{family}/{split}/{seed}")
    while len(problems) < n:
        problem = _problem(rng, STYLES[family], family)
        if split_of(problem["question"]) == split and problem["question"] not in seen:
            seen.add(problem["question"])
            problems.append(problem)
    return problems


def split_of(question: str) -> Split:
    """Return the split a question belongs to: a pure function of its text."""
    return "test" if int(_digest(question), 16) % 1000 < TEST_SHARE * 1000 else "train"


def _digest(question: str) -> str:
    # Not hash(): that one is salted anew in every process.
    return hashlib.blake2b(question.encode(), digest_size=6).hexdigest()


def _problem(rng: random.Random, style: _Style, family: str) -> Problem:
    name, other = rng.sample(NAMES, 2)
    item, other_item = rng.sample(ITEMS, 2)
    first, story = rng.choice(style.openings)
    events, asks = _STORIES["events"][story], _STORIES["asks"][story]
    words = {"n": name, "o": other, "item": item, "other_item": other_item}
    sentences, lines, value = _open(rng, first, style, words)
    for _ in range(rng.randint(1, style.max_steps) - len(lines)):
        op, operand, after = _step(rng, value, style)
        words["place"] = rng.choice(PLACES)
        sentences.append(rng.choice(events[op]).format(k=operand, **words))
        lines.append(style.lines[op].format(x=value, k=operand, y=after))
        value = after
    if rng.random() < 0.2:
        place = rng.randint(1, len(sentences))
        sentences.insert(place, style.distraction.format(v=rng.randint(2, 20), **words))
    question = " ".join(sentences) + rng.choice((" ", " ", "\n"))
    question += rng.choice(asks).format(**words)
    return {
        "question": question,
        "answer": "\n".join([*lines, f"#### {value}"]),
        "gold": str(value),
        "steps": len(lines),
        "id": f"{family}-{_digest(question)}",
    }


def _open(
    rng: random.Random, first: str, style: _Style, words: dict[str, str]
) -> tuple[list[str], list[str], int]:
    """Return the first sentence, the step lines it already needs, and the quantity after them."""
    place = rng.choice(PLACES)
    if "{a}" not in first:
        value = rng.randint(*style.starts)
        return [first.format(v=value, place=place, **words)], [], value
    groups = rng.randint(2, 9)
    each = rng.randint(2, min(9, style.largest // groups))
    line = style.lines["*"].format(x=groups, k=each, y=groups * each)
    return [first.format(a=groups, b=each, **words)], [line], groups * each


def _step(rng: random.Random, value: int, style: _Style) -> tuple[str, int, int]:
    """Return (operation, operand, result): exact, and with 2 <= result <= style.largest."""
    limits = {"+": style.largest - value, "-": value - 2, "*": style.largest // value}
    choices: dict[str, list[int]] = {}
    for op, largest in sorted(style.operands.items()):
        operands = range(2, min(largest, limits.get(op, value // 2)) + 1)
        choices[op] = [k for k in operands if op != "/" or value % k == 0]
    op = rng.choice([op for op in choices if choices[op]])
    k = rng.choice(choices[op])
    results = {"+": value + k, "-": value - k, "*": value * k, "/": value // k}
    return op, k, results[op]
