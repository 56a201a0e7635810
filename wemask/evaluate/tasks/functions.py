"""What the task files of this folder call: datasets, prompts, few-shot examples and scoring.

Every task of ours hands lm-eval documents of one shape:
`{"id": str, "question": str, "prompt": str, "gold": str}`; `prompt` is the user's turn. Where items
share a source there is a "cluster": str too.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from datasets import Dataset

from wemask.embedded import problems
from wemask.errors import DataError
from wemask.evaluate.scoring import answers
from wemask.evaluate.tasks.local import WHERE, column
from wemask.evaluate.tasks.samples import Answer, unique_id

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
EXAMPLES = 8  # few-shot examples that a task of ours can show at most

Row = Mapping[str, Any]


class Item(NamedTuple):
    """What a row of a data file holds, not yet checked."""

    question: object
    gold: object
    cluster: str | None = None  # what the item shares with others


Read = Callable[[Row, str], Item | None]
"""From a row and its place to its item; None: the row is another task's."""


def docs_of(read: Read, instruction: str = "") -> Callable[..., Dataset]:
    """Make a task file's `process_docs`, from rows to documents.

    What it returns takes `plain`, whether prompts are for a model without a chat template, and
    another `instruction`; it raises DataError for a row without a question or an answer, and where
    there is no row at all.

    Args:
        read: what a row holds.
        instruction: text behind the question, verbatim.
    """

    def build(
        rows: Iterable[Row], *, plain: bool = False, instruction: str = instruction
    ) -> Dataset:
        docs, seen = list[dict[str, Any]](), dict[str, int]()
        for number, row in enumerate(rows, start=1):
            where = row.get(WHERE, f"item {number}")
            item = read(row, where)
            if item is None:
                continue
            if not isinstance(item.question, str) or not item.question.strip():
                raise DataError(f"{where}: expected text as the question, found {item.question!r}.")
            target = "" if item.gold is None else str(item.gold).strip()
            if not target:
                raise DataError(f"{where}: expected an answer, found {item.gold!r}.")
            doc = {
                "id": unique_id(item.question, seen),
                "question": item.question,
                "prompt": _prompt(item.question, plain, instruction),
                "gold": target,
            }
            docs.append(doc if item.cluster is None else doc | {"cluster": item.cluster})
        if not docs:
            raise DataError("no items. Expected at least one.")
        return Dataset.from_list(docs)

    return build


def _columns(question: str, gold: str) -> Callable[[Row, str], Item]:
    return lambda row, where: Item(column(row, question, where), column(row, gold, where))


def _prompt(question: str, plain: bool, instruction: str) -> str:
    return f"Question: {question}{instruction}\nAnswer:" if plain else question + instruction


# --- documents ------------------------------------------------------------------------------------


def _gsm8k(row: Row, where: str) -> Item:
    """GSM8K (Cobbe et al. 2021): the gold answer is what follows `####`."""
    question, answer, _ = _columns("question", "answer")(row, where)
    return Item(question, None if answer is None else str(answer).rpartition("####")[2])


def _gsm8k_cot(row: Row, where: str) -> Item:
    """Chat records: the one user turn, verbatim, and `reward_model.ground_truth`."""
    turns = column(row, "prompt", where)
    whole = isinstance(turns, list) and all(isinstance(turn, Mapping) for turn in turns)
    roles = [turn.get("role") for turn in turns] if whole else turns
    if not whole or roles != ["user"]:
        raise DataError(f"{where}: expected one user turn in 'prompt', found {roles!r:.60}.")
    reward = column(row, "reward_model", where)
    if not isinstance(reward, Mapping):
        raise DataError(f"{where}: expected an object in 'reward_model', found {reward!r}.")
    return Item(turns[0].get("content"), column(reward, "ground_truth", where))


def _aime24(row: Row, where: str) -> Item:
    """AIME 2024: the answer is a whole number from 0 to 999, as 033 or 33."""
    problem, answer, _ = _columns("problem", "answer")(row, where)
    digits = str(answer).strip()
    if not re.fullmatch("[0-9]{1,3}", digits):
        raise DataError(f"{where}: expected a whole number 0 to 999, found {answer!r}.")
    return Item(problem, int(digits))


synthetic_docs = docs_of(_columns("question", "gold"))
gsm8k_docs, gsm8k_cot_docs = docs_of(_gsm8k), docs_of(_gsm8k_cot)
math500_docs = docs_of(_columns("problem", "answer"), BOXED)  # Lightman et al. 2023
aime24_docs = docs_of(_aime24, BOXED)


def synthetic_dataset(n: int, seed: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """Return `n` word problems of the embedded generator that no training set contains."""
    rows = problems.generate(n, split="test", family="sft", seed=seed)
    return {"test": [dict(row) for row in rows]}


# --- few-shot examples ----------------------------------------------------------------------------


def synthetic_examples(*, plain: bool = False, instruction: str = "") -> list[dict[str, str]]:
    """Few-shot examples from the generator's training split."""
    rows = problems.generate(EXAMPLES, split="train", family="sft", seed=0)
    return [_example(row["question"], row["answer"], plain, instruction) for row in rows]


def gsm8k_examples(*, plain: bool = False, instruction: str = "") -> list[dict[str, str]]:
    """The eight chain-of-thought examples of Wei et al. 2022, read from lm-eval's own task file."""
    import lm_eval

    source = Path(cast(str, lm_eval.__file__)).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    samples = yaml.safe_load(source.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    return [_example(row["question"], row["target"], plain, instruction) for row in samples]


def _example(question: str, target: str, plain: bool, instruction: str) -> dict[str, str]:
    return {"prompt": _prompt(question, plain, instruction), "target": target}


# --- scoring --------------------------------------------------------------------------------------


def find(outputs: Iterable[Sequence[str]], _docs: object) -> list[Answer]:
    """The answer in each output; see `wemask.evaluate.scoring.answers`."""
    found = [answers.extract_answer(output[0]) for output in outputs]
    return [(one.value, one.reason if one.value is None else None) for one in found]


def score(doc: Row, results: Sequence[Answer]) -> dict[str, float]:
    """1.0 when what `find` found equals the gold answer, else 0.0."""
    value, _ = results[0]
    return {"exact_match": float(answers.matches(value, doc["gold"]))}
