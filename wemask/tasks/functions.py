"""What the task files of this folder call: datasets, prompts, few-shot examples and scoring.

Every task of ours hands lm-eval documents of one shape:
`{"id": str, "question": str, "prompt": str, "gold": str}`; `prompt` is the user's turn.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import pyarrow
import yaml
from datasets import Dataset

from wemask import answers, records
from wemask.embedded import problems
from wemask.errors import DataError, nearest
from wemask.tasks.samples import unique_id

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
EXAMPLES = 8  # few-shot examples that a task of ours can show at most
WHERE = "wemask_where"  # the place a row was read from; for messages, no part of the item

Row = Mapping[str, Any]


def local_rows(path: str) -> list[dict[str, Any]]:
    """Read a local data file (or the test files of a folder); every row keeps its place."""
    return [
        {**fields, WHERE: where}
        for file in records.find_files(Path(path).expanduser(), "test")
        for where, fields in records.read_records(file)
    ]


def local_split(path: str, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of a local file as the test split of a task of ours.

    lm-eval calls this with the task's metadata as further keywords, which are of no use here.
    """
    return {"test": local_rows(path)}


def local_dataset(path: str, splits: Iterable[str], **_: Any) -> dict[str, Dataset]:
    """Return the rows of a local file under every name in `splits`, for a task of lm-eval's."""
    rows = [{k: v for k, v in row.items() if k != WHERE} for row in local_rows(path)]
    try:
        dataset = Dataset.from_list(rows)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            f"{path}: a column holds values of different types in different rows: {error}"
        ) from error
    return dict.fromkeys(splits, dataset)


def synthetic_dataset(n: int, seed: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """Return `n` word problems of the embedded generator that no training set contains."""
    rows = problems.generate(n, split="test", family="sft", seed=seed)
    return {"test": [dict(row) for row in rows]}


def synthetic_docs(rows: Iterable[Row], *, plain: bool = False, instruction: str = "") -> Dataset:
    """Documents of the embedded word problems."""
    return _docs(rows, ("question", "gold"), str, plain, instruction)


def synthetic_examples(*, plain: bool = False, instruction: str = "") -> list[dict[str, str]]:
    """Few-shot examples from the generator's training split."""
    rows = problems.generate(EXAMPLES, split="train", family="sft", seed=0)
    return [_example(row["question"], row["answer"], plain, instruction) for row in rows]


def gsm8k_docs(rows: Iterable[Row], *, plain: bool = False, instruction: str = "") -> Dataset:
    """Documents of GSM8K (Cobbe et al. 2021): the gold answer is what follows `####`."""

    def gold(answer: object) -> str:
        return str(answer).rpartition("####")[2]

    return _docs(rows, ("question", "answer"), gold, plain, instruction)


def gsm8k_examples(*, plain: bool = False, instruction: str = "") -> list[dict[str, str]]:
    """The eight chain-of-thought examples of Wei et al. 2022, read from lm-eval's own task file."""
    import lm_eval

    assert lm_eval.__file__ is not None
    source = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml"
    samples = yaml.safe_load(source.read_text(encoding="utf-8"))["fewshot_config"]["samples"]
    return [_example(row["question"], row["target"], plain, instruction) for row in samples]


def math500_docs(rows: Iterable[Row], *, plain: bool = False, instruction: str = BOXED) -> Dataset:
    """Documents of MATH-500 (Lightman et al. 2023)."""
    return _docs(rows, ("problem", "answer"), str, plain, instruction)


def score(doc: Row, results: list[str]) -> dict[str, float]:
    """1.0 when the answer found in the output equals the gold answer, else 0.0."""
    return {"exact_match": float(answers.is_correct(results[0], doc["gold"]))}


def _docs(
    rows: Iterable[Row],
    columns: tuple[str, str],
    gold_of: Callable[[object], str],
    plain: bool,
    instruction: str,
) -> Dataset:
    """Map rows to documents; `columns` are the names of the question and of the answer."""
    docs: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        where = row.get(WHERE, f"item {number}")
        question, gold = (_field(row, column, where) for column in columns)
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: expected text in {columns[0]!r}, found {question!r}.")
        target = "" if gold is None else gold_of(gold).strip()
        if not target:
            raise DataError(f"{where}: expected an answer in {columns[1]!r}, found {gold!r}.")
        docs.append(
            {
                "id": unique_id(question, seen),
                "question": question,
                "prompt": _prompt(question, plain, instruction),
                "gold": target,
            }
        )
    return Dataset.from_list(cast(list[dict[str, Any]], docs))


def _field(row: Row, column: str, where: str) -> object:
    if column not in row:
        found = [name for name in row if name != WHERE]
        raise DataError(f"{where}: no column {column!r} among {found}.{nearest(column, found)}")
    return row[column]


def _prompt(question: str, plain: bool, instruction: str) -> str:
    return f"Question: {question}{instruction}\nAnswer:" if plain else question + instruction


def _example(question: str, target: str, plain: bool, instruction: str) -> dict[str, str]:
    return {"prompt": _prompt(question, plain, instruction), "target": target}
