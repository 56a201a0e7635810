"""A finished task: what it says, and the folder it is written to and read back from."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # typing's is not enough for pydantic before Python 3.12

from wemask.data.schema import OPEN, STRICT, Whole, problems
from wemask.errors import DataError, RunFolderError
from wemask.evaluate.tasks.samples import Sample
from wemask.files import parse_json, read_json, read_text, regular, write_whole

SAMPLES, META = "samples.jsonl", "meta.json"
DAMAGED = ".damaged"  # ending of a file that was set aside
LARGEST_SAMPLES = 4 * 2**30  # bytes


class Told(TypedDict):
    """What meta.json says under `result`; `TaskResult` says what it means."""

    metric: str
    seconds: Annotated[float, Field(ge=0)]
    source: str
    template_sha256: str
    fewshot: Whole
    note: str | None


@with_config(OPEN)
class _Named(TypedDict):
    name: str


@with_config(OPEN)
class _Key(TypedDict):
    """Of the conditions, what is read back here; the others are only compared."""

    task: _Named
    items_sha256: str


@with_config(STRICT)
class _Meta(TypedDict):
    key: _Key
    result: Told
    about: dict[str, Any]
    samples_sha256: str


_META = TypeAdapter(_Meta)
_SAMPLES = TypeAdapter(list[Sample])


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One arm on one task.

    An item is asked once, or drawn `n_samples` times; `samples` holds its draws side by side. What
    is "per item" has one value for each item, in their order.
    """

    name: str
    metric: str
    samples: list[Sample]
    seconds: float
    """Wall time of asking and scoring, over all runs that a killed task took."""
    source: str
    """Dataset id, local file or generator."""
    template_sha256: str
    """Of the chat template and the first prompt; equal in two arms means equal prompts."""
    fewshot: int
    note: str | None
    """What a reader of the numbers must know, such as prompts that had to be cut."""
    path: Path
    """The samples.jsonl."""
    reused: bool
    """Read back, not run."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Everything that could have changed the result: meta.json's `key`."""
    about: dict[str, Any] = field(default_factory=dict)
    """What the caller said of the arm."""

    @property
    def ids(self) -> list[str]:
        """Id of every item."""
        return list(self._items())

    @property
    def scores(self) -> list[float]:
        """Share of each item's draws that is right, 0 to 1."""
        items = self._items().values()
        return [sum(sample["correct"] for sample in draws) / len(draws) for draws in items]

    @property
    def clusters(self) -> list[str | None]:
        """What each item shares with others: its subtask in a group, its type in XSTest."""
        return [draws[0]["cluster"] for draws in self._items().values()]

    @property
    def accuracy(self) -> float:
        """Mean of the scores, 0 to 1; with several draws this is avg@k."""
        return sum(self.scores) / len(self.scores)

    @property
    def metrics(self) -> dict[str, float]:
        """Every metric of the items, averaged.

        A metric with several values per item (IFEval's instructions) is the mean of all values, as
        lm-eval has it: an item with three instructions counts three times.
        """
        values = dict[str, list[float]]()
        for sample in self.samples:
            for name, value in sample["metrics"].items():
                values.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        return {name: sum(found) / len(found) for name, found in values.items() if found}

    @property
    def extraction_failures(self) -> int:
        """Outputs in which no answer was found (they count as wrong)."""
        return sum(sample["reason"] is not None for sample in self.samples)

    def _items(self) -> dict[str, list[Sample]]:
        items = dict[str, list[Sample]]()
        for sample in self.samples:
            items.setdefault(sample["id"], []).append(sample)
        return items


def write_result(result: TaskResult) -> None:
    """Write samples.jsonl, then meta.json: only a finished task has a meta.json that matches.

    Raises:
        RunFolderError: they cannot be written.
    """
    folder = result.path.parent
    text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in result.samples)
    told = {name: getattr(result, name) for name in Told.__annotations__}
    meta: dict[str, Any] = {"key": result.conditions, "result": told, "about": result.about}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(result.path, text)
        meta["samples_sha256"] = hashlib.sha256(result.path.read_bytes()).hexdigest()
        write_whole(folder / META, json.dumps(meta, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(f"The results cannot be written to {folder}: {error}.") from error


def read_result(folder: Path) -> TaskResult:
    """Read a finished task, `<run>/eval/<task>`, without running anything.

    Raises:
        DataError: it is missing, unfinished or damaged.
    """
    path, meta_path = folder / SAMPLES, folder / META
    if not (path.exists() and meta_path.exists()):
        raise DataError(
            f"{folder} holds no finished task: {META} and {SAMPLES} were sought. "
            "Run its evaluation to the end."
        )
    try:
        meta: Any = read_json(meta_path)
    except DataError as error:
        raise DataError(f"{_damaged(meta_path)} {error}") from error
    check_shape(_META, meta, meta_path)
    regular(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != meta["samples_sha256"]:
        raise DataError(f"{_damaged(path)} Its hash is not the one in {META}.")
    return TaskResult(
        name=meta["key"]["task"]["name"],
        samples=read_samples(path),
        path=path,
        reused=True,
        conditions=meta["key"],
        about=meta["about"],
        **meta["result"],
    )


def read_samples(path: Path) -> list[Sample]:
    """Read a samples.jsonl.

    Raises:
        DataError: it is missing, empty, or not what an evaluation writes.
    """
    lines = read_text(path, limit=LARGEST_SAMPLES).split("\n")
    samples = [
        parse_json(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line
    ]
    if not samples:
        raise DataError(f"{_damaged(path)} It is empty.")
    check_shape(_SAMPLES, samples, path)
    return samples


def set_aside(folder: Path) -> None:
    """Rename the files of a damaged task, so that it can be run again and nothing is lost."""
    for path in (folder / META, folder / SAMPLES):
        if path.exists():
            path.replace(path.with_name(path.name + DAMAGED))


def check_shape(shape: TypeAdapter[Any], values: Any, path: Path) -> None:
    """Raise DataError, with what is wrong, unless the values of a file have a shape."""
    try:
        shape.validate_python(values)
    except ValidationError as error:
        found = problems(error, path.stem, values)
        shown = " ".join([*found[:5], *["..."][: len(found) - 5]])
        raise DataError(f"{_damaged(path)} {shown}") from error


def _damaged(path: Path) -> str:
    return f"{path} is damaged, or of another version: run its evaluation again."
