"""A finished study -> W&B: each arm a run, all of them in one group with a run for the comparison.

Keys (docs/wandb.md): `bench/<task>/<metric>` for every metric, with `accuracy`, `low` and `high`;
`compare/<task>/{delta,lo,hi,p}` for an arm against its reference. Differences are a - b in shares.
"""

import html
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from wemask.compare.results import Results
from wemask.compare.verdict import headline, over_reference
from wemask.files import digest
from wemask.train.wandb_service import Say, close_run, open_run

if TYPE_CHECKING:
    import wandb

PAIR_COLUMNS = (
    *("task", "a", "b", "kind", "delta", "low", "high", "p_value", "p_holm"),
    *("unit", "units", "minimum_detectable", "effect_size"),
)


def log_study(results: Results, folder: Path, logger: Mapping[str, Any], say: Say = print) -> None:
    """Write a study to W&B, where `logger=wandb`; offline unless `logger.mode=online`.

    Args:
        results: what `results.json` holds.
        folder: of the study, with figures/ and report.html; its name is the group.
        logger: name, project and mode.
        say: for a line about a W&B that cannot be reached.
    """
    if logger["name"] != "wandb":
        return
    for arm, info in results["arm_info"].items():
        config = {
            **info,
            "settings": results["settings"][arm],
            "tasks": dict(results["tasks"]),
            "versions": results["versions"],
            "me_layer": results["me_layer"]["layer"],
        }
        with _run(folder, logger, say, arm, job_type="evaluate", config=config) as run:
            if logger["mode"] == "online" and run.offline:  # no long wait for W&B after another
                say(f"So do the other runs of this study: wandb sync {folder}/wandb/offline-run-*")
                logger = {**logger, "mode": "offline"}
            _log_seeds(run, results, arm)
            run.summary.update(dict(_summary(results, arm)))
    config = {"command": results["command"]}
    with _run(folder, logger, say, "comparison", job_type="compare", config=config) as run:
        run.log(_overview(results, folder))


def log_analysis(
    facts: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    folder: Path,
    logger: Mapping[str, Any],
    say: Say = print,
) -> None:
    """Write a finished analysis to W&B: its tables, figures, page and findings, as one run.

    `facts` is what analysis.json holds, `tables` what tables/ does; the rest is as in `log_study`.
    Summary: `analysis/<off or on>/<metric>`, the mean over the layers after the ME Layer.
    """
    if logger["name"] != "wandb":
        return
    import wandb

    config = {key: facts[key] for key in ("command", "model", "settings", "texts", "versions")}
    name = facts["model"]["name"]
    with _run(folder, logger, say, name, job_type="analyse", config=config) as run:
        shown = {f"tables/{name}": _table(frame) for name, frame in tables.items()}
        shown |= {**_figures(folder), "findings": _table(pd.DataFrame(facts["findings"]))}
        page = wandb.Html(str(folder / "analysis.html"), inject=False)
        run.log({**shown, "analysis": page})
        layers, after = tables["layers"], facts["me_layer"]["layer"]
        later = layers[layers["layer"] > (-1 if after is None else after)].drop(columns="layer")
        for state, rows in later.groupby("state"):
            means = rows.mean(numeric_only=True).dropna().items()
            run.summary.update({f"analysis/{state}/{metric}": float(v) for metric, v in means})


def _table(frame: pd.DataFrame) -> Any:
    """A table without lists, and with None where a value is missing."""
    import wandb

    kept = frame.drop(columns=["sink_mass_by_head"], errors="ignore").astype(object)
    return wandb.Table(dataframe=kept.where(kept.notna(), None))


def _figures(folder: Path) -> dict[str, Any]:
    import wandb

    pictures = sorted((folder / "figures").glob("*.png"))
    return {f"figures/{path.stem}": wandb.Image(str(path)) for path in pictures}


def run_id(folder: Path, name: str) -> str:
    """From the study, not by chance: the same command continues the same runs."""
    return digest([folder.name, name])


@contextmanager
def _run(
    folder: Path, logger: Mapping[str, Any], say: Say, name: str, **given: Any
) -> Iterator["wandb.Run"]:
    run = open_run(
        say,
        project=logger["project"],
        mode=logger["mode"],
        group=folder.name,
        name=name,
        id=run_id(folder, name),
        resume="allow",
        dir=folder,
        reinit="finish_previous",
        settings={"x_disable_stats": True},
        **given,
    )
    try:
        yield run
    finally:
        close_run(run, say)


def _log_seeds(run: "wandb.Run", results: Results, arm: str) -> None:
    """One step per seed, so that a chart shows how they spread."""
    rows: dict[int, dict[str, float]] = {}
    for task, score in results["arms"][arm].items():
        for step, one in enumerate(score["runs"]):
            row = rows.setdefault(step, {})
            row |= {"seed": one["seed"] or 0, f"bench/{task}/accuracy": one["mean"]}
    for step, row in sorted(rows.items()):
        run.log(row, step=step)


def _summary(results: Results, arm: str) -> Iterator[tuple[str, float]]:
    for task, score in results["arms"][arm].items():
        values = {**score["metrics"], "accuracy": score["mean"]}
        values |= {"low": score["low"], "high": score["high"]}
        yield from ((f"bench/{task}/{name}", value) for name, value in values.items())
        names = {"delta": "delta", "lo": "low", "hi": "high", "p": "p_value"}
        for row in over_reference(results, task, arm)[:1]:
            yield from ((f"compare/{task}/{key}", row[name]) for key, name in names.items())


def _overview(results: Results, folder: Path) -> dict[str, Any]:
    """Tables, figures, the page, and the verdict."""
    import wandb

    arms = [
        {
            "arm": arm,
            "task": task,
            **{key: score[key] for key in ("mean", "low", "high", "n")},
            "seeds": len(score["runs"]),
            "extraction_failures": sum(run["extraction_failures"] for run in score["runs"]),
        }
        for arm, scores in results["arms"].items()
        for task, score in scores.items()
    ]
    return {
        "arms": _table(pd.DataFrame(arms)),
        "comparisons": _table(pd.DataFrame(results["comparisons"], columns=list(PAIR_COLUMNS))),
        "verdict": wandb.Html("".join(f"<p>{html.escape(s)}</p>" for s in headline(results))),
        "report": wandb.Html(str(folder / "report.html"), inject=False),
        **_figures(folder),
    }
