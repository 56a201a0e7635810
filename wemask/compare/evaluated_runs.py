"""Evaluated runs: which are repetitions of one arm, which may be compared, and how to find them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, with_config
from typing_extensions import TypedDict  # typing's is not enough for pydantic before Python 3.12

from wemask.compare.results import Budget, Json, ModelInfo, Results, load_results
from wemask.data.schema import OPEN
from wemask.errors import DataError, nearest
from wemask.evaluate.arms import ARMS
from wemask.evaluate.tasks.stored import META, TaskResult, check_shape, read_result
from wemask.files import digest
from wemask.settings.run_folder import flat

# Conditions that may differ between arms: they name the arm, or follow from those that may not.
OWN_CONDITIONS = ("arm", "fingerprint", "chat_template_sha256")

Groups = dict[str, list["Entry"]]


def _known(arm: str) -> str:
    if arm not in ARMS:
        raise ValueError(f"must be an arm.{nearest(arm, ARMS)} There are {', '.join(ARMS)}")
    return arm


@with_config(OPEN)
class _Model(TypedDict):
    path: str


@with_config(OPEN)
class _Settings(TypedDict):
    model: _Model


@with_config(OPEN)
class About(TypedDict):
    """What meta.json says of an arm: `ArmRun.about`, and the model that all arms start from."""

    arm: Annotated[str, AfterValidator(_known)]
    method: str
    seed: int | None
    settings: _Settings
    operator: dict[str, Json] | None
    run_folder: str | None
    budget: Budget | None
    model: ModelInfo


_ABOUT = TypeAdapter(About)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of one arm with its results."""

    about: Mapping[str, Any]
    """`ArmRun.about`."""
    results: Mapping[str, TaskResult]
    """Task -> result."""

    @property
    def arm(self) -> str:
        return self.about["arm"]

    @property
    def seed(self) -> int | None:
        return self.about["seed"]


# --- which runs are repetitions of which arm ------------------------------------------------------


def group(entries: Sequence[Entry]) -> Groups:
    """Arm -> its runs by seed, in the order of first appearance.

    Arms of one name whose settings differ are told apart by what differs:
    `training_free (rate=0.01)`.

    Raises:
        DataError: two different runs have the same settings and seed.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        runs = groups.setdefault((entry.arm, digest(entry.about["settings"])), [])
        same = next((run for run in runs if run.seed == entry.seed), None)
        if same is None:
            runs.append(entry)
        elif _place(same) != _place(entry):
            raise DataError(
                f"{_place(same)} and {_place(entry)} are the same arm ({entry.arm}) with the same "
                "settings and seed. Leave one of them out."
            )
    for runs in groups.values():
        runs.sort(key=lambda run: -1 if run.seed is None else run.seed)
    return dict(zip(_labels(groups), groups.values(), strict=True))


def _place(entry: Entry) -> Path:
    """The folder with the results of the first task."""
    return next(iter(entry.results.values())).path.parent.resolve()


def _labels(groups: Mapping[tuple[str, str], list[Entry]]) -> Iterator[str]:
    settings = {key: _flat(runs[0].about["settings"]) for key, runs in groups.items()}
    for (name, _), values in settings.items():
        alike = [s for (other, _), s in settings.items() if other == name]
        keys = dict.fromkeys(key for s in alike for key in s)
        different = [k for k in keys if len({json.dumps(s.get(k)) for s in alike}) > 1]
        words = ", ".join(f"{k.rpartition('.')[2]}={values.get(k)}" for k in different)
        yield f"{name} ({words})" if words else name


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys and plain values, alike whether they were just made or read from a file."""
    return flat(json.loads(json.dumps(values, default=str)))


# --- what may be compared -------------------------------------------------------------------------


def check_comparable(groups: Groups) -> None:
    """Paired statistics need the same items, prompts and engine in every arm.

    Raises:
        DataError: whatever differs, all of it, with both values.
    """
    problems = list[str]()
    for task in tasks_of(groups):
        runs = [(label, run) for label, group in groups.items() for run in group]
        (first, expected), *others = [pair for pair in runs if task in pair[1].results]
        for label, run in others:
            problems += _differences(task, first, expected, label, run)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
        raise DataError(
            f"These runs cannot be compared item by item:\n{shown}\n"
            "Evaluate them again under the same settings: python evaluate.py with the same tasks, "
            "limit, batch_size and versions."
        )


def _differences(task: str, first: str, expected: Entry, label: str, run: Entry) -> Iterator[str]:
    ours, theirs = (_flat(e.results[task].conditions) for e in (expected, run))
    again = ARMS[expected.arm].again or ARMS[run.arm].again
    free = (*OWN_CONDITIONS, "batch_size") if again else OWN_CONDITIONS
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in free and ours.get(key) != theirs.get(key):
            found = f"{_short(ours.get(key))} in {first}, {_short(theirs.get(key))} in {label}"
            yield f"{task}: {key} is {found}"
    if run.results[task].ids != expected.results[task].ids:
        yield f"{task}: {first} and {label} have other items, or the same in another order"
    if len(set(run.results[task].ids)) < len(run.results[task].ids):
        yield f"{task}: {label} has items of the same id"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text


def tasks_of(groups: Groups) -> list[str]:
    """Every task that some run has, in order of appearance."""
    return list(dict.fromkeys(t for runs in groups.values() for run in runs for t in run.results))


# --- finished runs, from their folders ------------------------------------------------------------


def read_runs(folders: Sequence[Path]) -> tuple[list[Entry], list[Results]]:
    """Find every arm's results below the given folders.

    Args:
        folders: each a comparison (with results.json) or a run that was evaluated (with eval/).

    Returns:
        The entries, and the results.json that were found.

    Raises:
        DataError: no results, or damaged, or changed since their results.json was written.
    """
    entries, documents = list[Entry](), list[Results]()
    for folder in folders:
        folder = folder.parent if folder.name == "results.json" else folder
        if (folder / "results.json").is_file():
            documents.append(load_results(folder / "results.json"))
            entries += _of_comparison(folder, documents[-1])
        else:
            entries += _of_run(folder)
    return entries, documents


def _of_comparison(folder: Path, results: Results) -> Iterator[Entry]:
    for scores in results["arms"].values():
        places: dict[Path, dict[str, Path]] = {}
        for task, score in scores.items():
            for run in score["runs"]:
                place = (folder / run["samples"]).parent
                places.setdefault(place.parent, {})[task] = place
        for tasks in places.values():
            entry = _entry(tasks.values())
            for task, result in entry.results.items():
                if result.conditions["items_sha256"] != results["tasks"][task]["items_sha256"]:
                    raise DataError(
                        f"{result.path.parent} was evaluated on other items since {folder} was "
                        "made. Run the command of that comparison again."
                    )
            yield entry


def _of_run(folder: Path) -> list[Entry]:
    found = [
        sorted(meta.parent for meta in (folder / name / "eval").glob(f"*/{META}"))
        for name in sorted({arm.subfolder for arm in ARMS.values()})
    ]
    entries = [_entry(places) for places in found if places]
    if not entries:
        raise DataError(
            f"{folder} was sought for results.json or eval/*/meta.json, and has neither. Give "
            "folders that python evaluate.py wrote."
        )
    return entries


def _entry(places: Any) -> Entry:
    results = {result.name: result for result in map(read_result, places)}
    first = next(iter(results.values()))
    if "settings" not in first.about:
        raise DataError(
            f"{first.path.parent / META} does not say which arm it is of (an older version "
            "wrote it). Run python evaluate.py again; finished items are not repeated."
        )
    check_shape(_ABOUT, first.about, first.path.parent / META)
    return Entry(about=first.about, results=results)
