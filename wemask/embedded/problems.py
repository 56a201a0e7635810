"""Seeded arithmetic word problems: unlimited, checkable, with disjoint train and test.

Two families. `pretrain` is what the embedded model was pre-trained on: additions and subtractions,
solved in words ("12 plus 5 makes 17."). `sft` is what fine-tuning teaches: other openings and
verbs, all four operations, solved in symbols ("12 + 5 = 17"). Both answers end with `#### N`.

The split of a problem is a function of its text (a hash), so train and test are disjoint for every
seed, size and family, without having to remember what was generated before.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from wemask.errors import DataError, nearest

Split = Literal["train", "test"]
Family = Literal["pretrain", "sft"]

SPLITS: tuple[str, ...] = get_args(Split)
FAMILIES: tuple[str, ...] = get_args(Family)
LARGEST = 99  # of all quantities: two digits at most
TEST_SHARE = 0.2

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
class _Opening:
    """How a story starts, what may happen in it, and how it asks."""

    first: str
    """First sentence; `{v}` is the quantity, or `{a}` groups of `{b}` for a story of groups."""
    events: dict[str, tuple[str, ...]]
    """Operation -> sentences that change the quantity by `{k}`."""
    asks: tuple[str, ...]
    """Last sentences."""


@dataclass(frozen=True, kw_only=True)
class _Style:
    """What distinguishes a family."""

    openings: tuple[_Opening, ...]
    lines: dict[str, str]
    """Operation -> one step line from `{x}` (before), `{k}` (operand) and `{y}` (after)."""
    distraction: str
    """A sentence about somebody else, which changes nothing."""
    max_steps: int
    starts: tuple[int, int]
    """Smallest and largest first quantity."""
    largest: int
    """Of all quantities."""
    operands: dict[str, int]
    """Operation -> largest operand (the smallest is 2)."""


_HOLDER_EVENTS = {
    "+": (
        "{n} buys {k} more {item} at the {place}.",
        "{n} finds {k} {item}.",
        "{o} gives {k} {item} to {n}.",
    ),
    "-": (
        "{n} sells {k} {item} at the {place}.",
        "{n} loses {k} {item}.",
        "{n} gives {k} {item} to {o}.",
    ),
    "*": ("Now {n} has {k} times as many {item}.", "A trick makes it {k} times as many."),
    "/": (
        "{n} shares the {item} equally among {k} friends and keeps one share.",
        "{n} puts the {item} into {k} equal rows and keeps one row.",
    ),
}
_BOX_EVENTS = {
    "+": ("{n} puts {k} more into the box.", "{o} adds {k} {item}."),
    "-": ("{n} takes {k} {item} out.", "Then {k} {item} break."),
    "*": ("The number of {item} in the box grows {k} times.",),
    "/": ("The {item} are split into {k} equal boxes and {n} keeps one box.",),
}
_HOLDER_ASKS = ("How many {item} does {n} have now?", "How many {item} are left with {n}?")

STYLES: dict[str, _Style] = {
    "sft": _Style(
        openings=(
            _Opening(first="{n} has {v} {item}.", events=_HOLDER_EVENTS, asks=_HOLDER_ASKS),
            _Opening(
                first="{n} fills {a} bags with {b} {item} each.",
                events=_HOLDER_EVENTS,
                asks=_HOLDER_ASKS,
            ),
            _Opening(
                first="There are {v} {item} in a box at the {place}.",
                events=_BOX_EVENTS,
                asks=("How many {item} are in the box now?", "How many {item} does the box hold?"),
            ),
        ),
        lines={op: f"{{x}} {op} {{k}} = {{y}}" for op in "+-*/"},
        distraction="{o} has {v} {other_item}.",
        max_steps=4,
        starts=(4, 30),
        largest=60,
        operands={"+": 9, "-": 9, "*": 4, "/": 5},
    ),
    "pretrain": _Style(
        openings=(
            _Opening(
                first="{n} starts with {v} {item}.",
                events={
                    "+": ("{n} gets {k} more.", "{n} finds {k} {item}.", "{o} brings {k} {item}."),
                    "-": ("{n} uses {k} of them.", "{n} loses {k} {item}.", "{o} takes {k} away."),
                },
                asks=("Count the {item} of {n}.",),
            ),
        ),
        lines={"+": "{x} plus {k} makes {y}.", "-": "{x} less {k} leaves {y}."},
        distraction="{o} owns {v} {other_item}.",
        max_steps=3,
        starts=(4, 40),
        largest=LARGEST,
        operands={"+": 12, "-": 12},
    ),
}


def generate(
    n: int, *, split: Split = "train", family: Family = "sft", seed: int = 0
) -> list[Problem]:
    """Return `n` different problems; the first `m < n` of them are `generate(m, ...)`.

    Raises `DataError` for a negative `n`, an unknown split or an unknown family.
    """
    if n < 0:
        raise DataError(f"The number of problems must be 0 or more, found {n}.")
    if split not in SPLITS:
        raise DataError(f"No split {split!r}: use one of {SPLITS}.{nearest(split, SPLITS)}")
    if family not in FAMILIES:
        raise DataError(f"No family {family!r}: use one of {FAMILIES}.{nearest(family, FAMILIES)}")
    problems: list[Problem] = []
    seen: set[str] = set()
    for problem in _stream(random.Random(f"{family}/{split}/{seed}"), family):
        if len(problems) == n:
            break
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


def _stream(rng: random.Random, family: str) -> Iterator[Problem]:
    style = STYLES[family]
    while True:
        yield _problem(rng, style, family)


def _problem(rng: random.Random, style: _Style, family: str) -> Problem:
    name, other = rng.sample(NAMES, 2)
    item, other_item = rng.sample(ITEMS, 2)
    opening = rng.choice(style.openings)
    words = {"n": name, "o": other, "item": item, "other_item": other_item}
    sentences, lines, value = _open(rng, opening, style, words)
    for _ in range(rng.randint(1, style.max_steps) - len(lines)):
        op, operand, after = _step(rng, value, style)
        words["place"] = rng.choice(PLACES)
        sentences.append(rng.choice(opening.events[op]).format(k=operand, **words))
        lines.append(style.lines[op].format(x=value, k=operand, y=after))
        value = after
    if rng.random() < 0.2:
        place = rng.randint(1, len(sentences))
        sentences.insert(place, style.distraction.format(v=rng.randint(2, 20), **words))
    question = " ".join(sentences) + rng.choice((" ", " ", "\n"))
    question += rng.choice(opening.asks).format(**words)
    return {
        "question": question,
        "answer": "\n".join([*lines, f"#### {value}"]),
        "gold": str(value),
        "steps": len(lines),
        "id": f"{family}-{_digest(question)}",
    }


def _open(
    rng: random.Random, opening: _Opening, style: _Style, words: dict[str, str]
) -> tuple[list[str], list[str], int]:
    """Return the first sentence, the step lines it already needs, and the quantity after them."""
    place = rng.choice(PLACES)
    if "{a}" not in opening.first:
        value = rng.randint(*style.starts)
        return [opening.first.format(v=value, place=place, **words)], [], value
    groups = rng.randint(2, 9)
    each = rng.randint(2, min(9, style.largest // groups))
    line = style.lines["*"].format(x=groups, k=each, y=groups * each)
    return [opening.first.format(a=groups, b=each, **words)], [line], groups * each


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
