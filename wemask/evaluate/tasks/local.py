"""Local files in place of the datasets of lm-eval's tasks, and of ours.

A row keeps the place that it was read from, for messages; no item ever holds it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset

from wemask.data import folders, records
from wemask.errors import DataError, nearest
from wemask.files import parse_json

WHERE = "wemask_where"
SUBJECT = "subject"  # the column that says which subtask of a group a row belongs to

Row = dict[str, Any]


def column(row: Mapping[str, Any], name: str, where: str, use: str = "") -> Any:
    """Return what `row` has under `name`; DataError with the nearest column where it has not."""
    if name not in row:
        found = [other for other in row if other != WHERE]
        raise DataError(f"{where}: no column {name!r} among {found}{use}.{nearest(name, found)}")
    return row[name]


def read_rows(path: str) -> list[Row]:
    """Read a local data file (or the test files of a folder); every row keeps its place.

    Lists and objects in the cells of a CSV file are JSON.
    """
    rows = list[Row]()
    for file in folders.find_files(Path(path).expanduser(), "test"):
        found = [{**fields, WHERE: where} for where, fields in records.read_records(file)]
        if records.extension(file) in (".csv", ".tsv"):
            found = [{name: _cell(value) for name, value in row.items()} for row in found]
        rows += found
    return rows


def _cell(value: str) -> Any:
    if not value.startswith(("[", "{")):
        return value
    try:
        return parse_json(value, "the cell", kind=None)
    except DataError:  # a text that happens to begin with a bracket
        return value


def own_split(path: str, **_: Any) -> dict[str, list[Row]]:
    """Return the rows of a local file as every split of a task of ours; lm-eval calls this."""
    rows = read_rows(path)
    return {"test": rows, "train": rows}


def fit(spec: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Dataset]:
    """Return `rows` under every split that `spec`, the YAML of a task of lm-eval's, names.

    Raises:
        DataError: a column holds values of different types in different rows.
    """
    plain = [{k: v for k, v in row.items() if k != WHERE} for row in rows]
    if "ifeval" in str(spec["task"]):  # copies of its data leave out the number of the item
        plain = [{"key": number, **row} for number, row in enumerate(plain)]
    target = spec.get("doc_to_target")
    if spec.get("output_type") == "multiple_choice" and isinstance(target, str):
        numbers = [row.get(target) for row in plain]
        # the number of the right option, which CSV holds as text
        if all(isinstance(number, str) and number.isdecimal() for number in numbers):
            plain = [row | {target: int(row[target])} for row in plain]
    names = list(dict.fromkeys(name for row in plain for name in row))
    try:
        table = Dataset.from_dict({name: [row.get(name) for row in plain] for name in names})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise DataError(
            f"a column holds values of different types in different rows: {error}"
        ) from error
    splits = ("test_split", "validation_split", "training_split", "fewshot_split")
    return dict.fromkeys({str(spec[name]) for name in splits if spec.get(name)}, table)


def by_subject(rows: Iterable[Row], subjects: Iterable[str]) -> dict[str, list[Row]]:
    """Split the rows of a group such as mmlu: subject -> rows, without subjects that have none.

    Raises:
        DataError: no column `subject`, or one that is not among `subjects`.
    """
    parts: dict[str, list[Row]] = {subject: [] for subject in subjects}
    for row in rows:
        subject = str(column(row, SUBJECT, row[WHERE], ", which says a row's subtask"))
        if subject not in parts:
            raise DataError(
                f"{row[WHERE]}: subject {subject!r} is none of the {len(parts)} that this group "
                f"has.{nearest(subject, parts)}"
            )
        parts[subject].append(row)
    return {subject: part for subject, part in parts.items() if part}
