"""Evaluated runs -> results: grouped into arms, compared in pairs on the same items.

Runs that differ in their seed only are repetitions of one arm. Two arms are compared item by item,
each item's score being its mean over the runs; also over clusters where items share a source, and
over seeds where there are several. What decides is the unit over which a difference is least sure:
it has to hold for other items *and* for other seeds.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wemask.compare import paired as statistics
from wemask.compare.evaluated_runs import OWN_CONDITIONS, Entry, Groups, tasks_of
from wemask.compare.results import SCHEMA_VERSION
from wemask.compare.verdict import NEAR_ZERO
from wemask.evaluate.arms import ARMS
from wemask.evaluate.tasks.stored import TaskResult
from wemask.operator.recalibration import finding
from wemask.settings.run_folder import environment

ALL_PAIRS = 5  # with more arms than this, each is compared with its reference only

# --- one pair on one task -------------------------------------------------------------------------


def compare(task: str, a: Sequence[Entry], b: Sequence[Entry]) -> dict[str, Any]:
    """Arm a minus arm b on one task: `results.Comparison` without names, kind and `p_holm`.

    `a` and `b` are the runs of the arms; every run has the task, on the same items.
    """
    scores_a, scores_b = _item_scores(task, a), _item_scores(task, b)
    items = statistics.compare_paired(scores_a, scores_b)
    evidence = [
        _evidence("items", items.n, items, items.minimum_detectable, items.test),
        *_by_clusters(a[0].results[task].clusters, scores_a, scores_b, items),
        *_by_seeds(task, a, b),
    ]
    # An intersection-union test: the least sure unit decides, and the level still holds.
    decides = max(evidence, key=lambda e: (e["p_value"], e["high"] - e["low"]))
    others = [e for e in evidence if e is not decides]
    found = _read(items, "n", "delta", "a_only", "b_only", "odds_ratio", "effect_size")
    return {**found, **decides, "others": others}


def _read(values: object, *names: str) -> dict[str, Any]:
    """Attributes that results.json has under the same names."""
    return {name: getattr(values, name) for name in names}


def _item_scores(task: str, runs: Sequence[Entry]) -> list[float]:
    """Score of every item, mean over the runs."""
    return np.mean([run.results[task].scores for run in runs], axis=0).tolist()


def _evidence(unit: str, units: int, test: Any, seen: float | None, name: str) -> dict[str, Any]:
    sure = _read(test, "low", "high", "p_value")
    return {"unit": unit, "units": units, **sure, "minimum_detectable": seen, "test": name}


def _by_clusters(
    clusters: Sequence[str | None], a: list[float], b: list[float], items: Any
) -> Iterator[dict[str, Any]]:
    known = [cluster for cluster in clusters if cluster is not None]
    if len(known) < len(clusters) or len(set(known)) < 2:
        return
    found = statistics.compare_clustered(a, b, known)
    # What items alone could show, with as many fewer of them as the design effect says.
    seen = items.minimum_detectable
    seen = None if seen is None else seen * max(found.design_effect, 1.0) ** 0.5
    yield _evidence("clusters", found.clusters, found, seen, "clustered t")


def _by_seeds(task: str, a: Sequence[Entry], b: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    means_a, means_b = ({r.seed: r.results[task].accuracy for r in runs} for runs in (a, b))
    # What draws nothing is the same beside every seed of the other.
    if means_a.keys() == {None}:
        means_a = dict.fromkeys(means_b, means_a[None])
    elif means_b.keys() == {None}:
        means_b = dict.fromkeys(means_a, means_b[None])
    seeds = [seed for seed in means_a if seed in means_b and seed is not None]
    if len(seeds) < 2:
        return
    pair = statistics.compare_seeds([means_a[s] for s in seeds], [means_b[s] for s in seeds])
    name = f"{pair.test} over seeds"
    yield _evidence("seeds", pair.n, pair, pair.minimum_detectable, name)


# --- all pairs ------------------------------------------------------------------------------------


def compare_all(groups: Groups, info: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every wanted pair on every task, later arm minus earlier; Holm within each kind of pair."""
    rows = [
        {"task": task, "a": a, "b": b, "kind": kind, **compare(task, groups[a], groups[b])}
        for task in tasks_of(groups)
        for a, b, kind in pairs(info)
        if all(task in run.results for run in (*groups[a], *groups[b]))
    ]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        family = [row for row in rows if row["kind"] == kind]
        for row, p in zip(family, statistics.holm([r["p_value"] for r in family]), strict=True):
            row["p_holm"] = float(p)
    return rows


def pairs(info: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (a, b, kind) of all comparisons.

    Main arms among each other, or each with its reference where there are many; the real arm minus
    each control, and each control minus its reference; an A/A arm minus its reference.
    """
    main = [name for name, arm in info.items() if not arm["again"] and not arm["control_of"]]
    if len(main) <= ALL_PAIRS:
        found = [(a, b, "main") for b, a in itertools.combinations(main, 2)]
    else:
        found = [(a, b, "main") for a in main for b in _named(info, info[a]["reference"])]
    for name, arm in info.items():
        if arm["control_of"]:
            found += [(real, name, "control") for real in _named(info, arm["control_of"])]
            found += [(name, b, "control") for b in _named(info, arm["reference"])]
        elif arm["again"]:
            found += [(name, b, "same") for b in _named(info, arm["reference"])]
    return found


def _named(info: Mapping[str, Mapping[str, Any]], arm: str | None) -> list[str]:
    return [name for name, about in info.items() if about["arm"] == arm]


def same_pairs(groups: Groups) -> list[dict[str, Any]]:
    """A/A: neighbouring seeds of every trained arm, item by item, as if they were two methods."""
    rows = []
    for label, runs in groups.items():
        if runs[0].about["run_folder"] is None:
            continue
        for before, after in itertools.pairwise(runs):
            for task in [t for t in after.results if t in before.results]:
                pair = statistics.compare_paired(
                    after.results[task].scores, before.results[task].scores
                )
                of = {"task": task, "arm": label, "seed_a": after.seed, "seed_b": before.seed}
                rows.append({**of, **_read(pair, "delta", "low", "high", "p_value")})
    return rows


# --- results.json ---------------------------------------------------------------------------------


def document(groups: Groups, folder: Path, facts: Mapping[str, Any]) -> Any:
    """The whole of results.json, which will be in `folder`; paths in it are relative to that.

    `facts`: command, created, wemask_version, model, me_layer, softening, absent, notes.
    """
    info = {label: _arm_info(runs) for label, runs in groups.items()}
    first = {task: _runs_of(groups, task)[0].results[task] for task in tasks_of(groups)}
    return {
        "schema_version": SCHEMA_VERSION,
        **environment(),
        **facts,
        "settings": {label: runs[0].about["settings"] for label, runs in groups.items()},
        "conditions": {task: _engine(result) for task, result in first.items()},
        "tasks": {task: _task_info(result) for task, result in first.items()},
        "arm_info": info,
        "arms": {
            label: {task: _score(runs, task, folder) for task in runs[0].results}
            for label, runs in groups.items()
        },
        "comparisons": compare_all(groups, info),
        "same": same_pairs(groups),
        "notes": list(dict.fromkeys([*facts["notes"], *_notes(groups, facts["absent"])])),
    }


def _runs_of(groups: Groups, task: str) -> list[Entry]:
    return [run for runs in groups.values() for run in runs if task in run.results]


def _arm_info(runs: Sequence[Entry]) -> dict[str, Any]:
    about = runs[0].about
    softened = [run.about["softened"] for run in runs if "softened" in run.about]
    return {
        **({"softened": softened} if softened else {}),
        **{key: about[key] for key in ("arm", "method", "operator", "budget")},
        "seeds": [run.seed for run in runs if run.seed is not None],
        **_read(ARMS[runs[0].arm], "reference", "control_of", "again"),
    }


def _engine(result: TaskResult) -> dict[str, Any]:
    return {key: value for key, value in result.conditions.items() if key not in OWN_CONDITIONS}


def _task_info(result: TaskResult) -> dict[str, Any]:
    clusters = {cluster for cluster in result.clusters if cluster is not None}
    return {
        **_read(result, "metric", "source", "template_sha256", "fewshot", "note"),
        "n": len(result.ids),
        "draws": len(result.samples) // len(result.ids),
        "clusters": len(clusters) or None,
        "items_sha256": result.conditions["items_sha256"],
    }


def _score(runs: Sequence[Entry], task: str, folder: Path) -> dict[str, Any]:
    having = [run for run in runs if task in run.results]
    interval = statistics.mean_interval(_item_scores(task, having))
    metrics = [run.results[task].metrics for run in having]
    return {
        **_read(interval, "n", "mean"),
        # a t interval of avg@k over few items may end where no share is
        "low": max(interval.low, 0.0),
        "high": min(interval.high, 1.0),
        "metrics": {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]},
        "runs": [_run_score(run, run.results[task], folder) for run in having],
    }


def _run_score(run: Entry, result: TaskResult, folder: Path) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "mean": result.accuracy,
        **_read(result, "extraction_failures", "seconds"),
        "samples": os.path.relpath(result.path, folder),
        "run_folder": run.about["run_folder"],
    }


def _notes(groups: Groups, absent: Mapping[str, str]) -> list[str]:
    notes = [f"{arm} is not possible here: {why}" for arm, why in absent.items()]
    for label, run in ((label, run) for label, runs in groups.items() for run in runs):
        softened = run.about.get("softened", {})
        if silent := softened.get("silent"):
            where = label if run.seed is None else f"{label}, seed {run.seed}"
            notes.append(f"{where}: {finding(len(silent), softened['layers'])}")
    for task in tasks_of(groups):
        best = max(run.results[task].accuracy for run in _runs_of(groups, task))
        if best < NEAR_ZERO:
            notes.append(
                f"{task}: accuracy is near zero on every arm (at most {best:.1%}). The comparison "
                "shows that the path works; it says nothing about the method."
            )
    models = {json.dumps(r.about["settings"]["model"]["path"]) for g in groups.values() for r in g}
    if len(models) > 1:
        notes.append(f"The runs start from different models: {', '.join(sorted(models))}.")
    return notes


def samples_of(groups: Groups) -> dict[tuple[str, str], list[Any]]:
    """(arm, task) -> the samples of its first run, for the page's examples."""
    return {
        (label, task): list(result.samples)
        for label, runs in groups.items()
        for task, result in runs[0].results.items()
    }
