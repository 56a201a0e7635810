"""Items on which the arms disagree, chosen and made safe to show."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from wemask.compare.results import Results
from wemask.compare.verdict import main_arms, ordered_tasks

PER_PAIR = 5  # shown for every "this arm right, that arm wrong" of a task
HEAD, TAIL = 1000, 1500  # characters kept of a long text; the answer stands at its end

Samples = Mapping[tuple[str, str], Sequence[Mapping[str, object]]]


@dataclass(frozen=True, kw_only=True)
class ArmOutput:
    """What one arm answered."""

    arm: str
    output: str
    extracted: str | None
    correct: bool
    reason: str | None  # why no answer could be extracted


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One item and what every arm made of it."""

    task: str
    id: str
    prompt: str
    gold: str
    outputs: list[ArmOutput]


@dataclass(frozen=True, kw_only=True)
class Disagreements:
    """Some of the items that divide the arms, and how many there are."""

    shown: list[Disagreement]
    total: int


def disagreements(results: Results, samples: Samples, per_pair: int = PER_PAIR) -> Disagreements:
    """Choose items that one main arm gets right and another wrong.

    `samples[(arm, task)]` are the records of samples.jsonl. For every ordered pair of arms of a
    task the first `per_pair` items are taken, so that no pair is crowded out by a stronger one.
    """
    shown: list[Disagreement] = []
    total = 0
    arms = main_arms(results)
    for task in ordered_tasks(results):
        items = _by_item([samples[arm, task] for arm in arms if (arm, task) in samples])
        divided = {
            key: item for key, item in items.items() if len({r["correct"] for r in item}) > 1
        }
        total += len(divided)
        chosen = _spread(divided, arms, per_pair)
        shown += [_example(task, divided[key]) for key in divided if key in chosen]
    return Disagreements(shown=shown, total=total)


def shorten(text: str, head: int = HEAD, tail: int = TAIL) -> str:
    r"""Cut the middle out of a long text and say how much is missing.

    >>> shorten("abcdefgh", head=2, tail=3)
    'ab\n[... 3 characters left out ...]\nfgh'
    """
    missing = len(text) - head - tail
    if missing <= 0:
        return text
    return f"{text[:head]}\n[... {missing:,} characters left out ...]\n{text[len(text) - tail :]}"


def visible(text: str) -> str:
    r"""Show what would be invisible, reorder the page, or not fit into UTF-8; keep \n and \t.

    >>> visible("a\x1b[0m\u202eb")
    'a\\x1b[0m\\u202eb'
    """
    return "".join(c if c in "\n\t" or _is_plain(c) else _escaped(c) for c in text)


def _is_plain(character: str) -> bool:
    # Cc control, Cf format (bidi overrides, zero width), Cs lone surrogate, Zl/Zp separators.
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return (
        character.encode("ascii", "backslashreplace").decode()
        if ord(character) > 127
        else (f"\\x{ord(character):02x}")
    )


def _by_item(
    runs: Sequence[Sequence[Mapping[str, object]]],
) -> dict[str, list[Mapping[str, object]]]:
    """Item id -> one record per arm, in the order of the first arm's file."""
    items: dict[str, list[Mapping[str, object]]] = {}
    for run in runs:
        for record in run:
            records = items.setdefault(str(record["id"]), [])
            if all(record["arm"] != other["arm"] for other in records):
                records.append(record)
    return items


def _spread(
    divided: Mapping[str, Sequence[Mapping[str, object]]], arms: Sequence[str], per_pair: int
) -> set[str]:
    chosen: set[str] = set()
    for right, wrong in permutations(arms, 2):
        matching = [
            key
            for key, item in divided.items()
            if any(r["arm"] == right and r["correct"] for r in item)
            and any(r["arm"] == wrong and not r["correct"] for r in item)
        ]
        chosen.update(matching[:per_pair])
    return chosen


def _example(task: str, item: Sequence[Mapping[str, object]]) -> Disagreement:
    outputs = [
        ArmOutput(
            arm=str(record["arm"]),
            output=shorten(str(record["output"])),
            extracted=_text(record["extracted"]),
            correct=bool(record["correct"]),
            reason=_text(record["reason"]),
        )
        for record in item
    ]
    first = item[0]
    return Disagreement(
        task=task,
        id=str(first["id"]),
        prompt=shorten(str(first["prompt"])),
        gold=str(first["gold"]),
        outputs=outputs,
    )


def _text(value: object) -> str | None:
    return None if value is None else shorten(str(value))
