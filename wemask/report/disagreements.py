"""Items on which the arms disagree, chosen and made safe to show."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, permutations

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
        items: dict[str, dict[object, Mapping[str, object]]] = {}
        for record in (record for arm in arms for record in samples.get((arm, task), ())):
            items.setdefault(str(record["id"]), {}).setdefault(record["arm"], record)
        right = {key: {arm for arm in by if by[arm]["correct"]} for key, by in items.items()}
        divided = [key for key, by in items.items() if 0 < len(right[key]) < len(by)]
        total += len(divided)
        chosen: set[str] = set()
        for a, b in permutations(arms, 2):
            told = (
                key for key in divided if a in right[key] and b in items[key].keys() - right[key]
            )
            chosen.update(islice(told, per_pair))
        shown += [_example(task, [*items[key].values()]) for key in divided if key in chosen]
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
    return "".join(c if c in "\n\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """A character as ASCII where it is a control (Cc), a format such as a bidi override or one of
    zero width (Cf), a lone surrogate (Cs) or a separator of lines (Zl, Zp).
    """
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 128 else ascii(character)[1:-1]


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
    names = {key: str(item[0][key]) for key in ("id", "gold")}
    prompt = shorten(str(item[0]["prompt"]))
    return Disagreement(task=task, prompt=prompt, outputs=outputs, **names)


def _text(value: object) -> str | None:
    return None if value is None else shorten(str(value))
