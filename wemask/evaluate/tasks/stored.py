"""A finished task: what it says, and the folder it is written to and read back from."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wemask.errors import DataError, RunFolderError
from wemask.evaluate.tasks.samples import Sample
from wemask.files import write_whole

SAMPLES, META = "samples.jsonl", "meta.json"
TOLD = ("metric", "seconds", "source", "template_sha256", "fewshot", "note")  # meta.json's `result`


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
    told = {name: getattr(result, name) for name in TOLD}
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
    try:
        content, meta = path.read_bytes(), json.loads(meta_path.read_bytes())
        whole = meta["samples_sha256"] == hashlib.sha256(content).hexdigest()
        samples = [json.loads(line) for line in content.split(b"\n") if line] if whole else []
        result = TaskResult(
            name=meta["key"]["task"]["name"],
            samples=samples,
            path=path,
            reused=True,
            conditions=meta["key"],
            about=meta["about"],
            **meta["result"],
        )
    except OSError as error:
        raise DataError(
            f"{folder} holds no finished task: {META} and {SAMPLES} were sought ({error}). "
            "Run its evaluation to the end."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{_damaged(folder, META)} ({type(error).__name__}: {error})") from error
    if not samples:
        raise DataError(_damaged(folder, SAMPLES))
    return result


def _damaged(folder: Path, file: str) -> str:
    return (
        f"{folder / file} is damaged: it is not what an evaluation of this version wrote. "
        "Run its evaluation again."
    )
