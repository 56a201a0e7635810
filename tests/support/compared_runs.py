"""Made-up evaluated runs: what each item scored, and what is said of the arm."""

from pathlib import Path
from typing import Any

import numpy as np
from report_cases import made_up_report

from wemask.compare.evaluated_runs import Entry
from wemask.evaluate.tasks.stored import TaskResult

MODEL = {"name": "tiny", "path": "tiny", "parameters": 10, "dtype": "float32"}


def result(
    correct: list[bool], name: str = "t", clusters: list[str] | None = None, **conditions: Any
) -> TaskResult:
    samples: Any = [
        {
            "id": str(i),
            "task": name,
            "arm": "x",
            "prompt": "?",
            "output": "!",
            "gold": "1",
            "extracted": None,
            "draw": 0,
            "correct": right,
            "reason": None,
            "cluster": clusters[i] if clusters else None,
            "metrics": {"exact_match": float(right)},
        }
        for i, right in enumerate(correct)
    ]
    return TaskResult(
        name=name,
        metric="exact_match",
        samples=samples,
        seconds=1.0,
        source="here",
        template_sha256="s",
        fewshot=0,
        note=None,
        path=Path(f"run/{np.random.default_rng().integers(1 << 60)}/eval/t/samples.jsonl"),
        reused=False,
        conditions={"items_sha256": "i", "batch_size": 8, "arm": "x", **conditions},
        about={},
    )


def entry(
    arm: str, correct: list[bool], seed: int | None = None, task: Any = None, **settings: Any
) -> Entry:
    method = {"sft": "sft", "wemask_sft": "wemask"}.get(arm, "base")
    about = {
        "arm": arm,
        "method": method,
        "seed": seed,
        "settings": {"model": MODEL, **settings},
        "operator": None,
        "run_folder": f"run/{arm}/{seed}" if method != "base" else None,
        "budget": None,
        "model": MODEL,
    }
    return Entry(about=about, results={"t": task or result(correct)})


def facts() -> dict[str, Any]:
    return {
        "command": "c",
        "created": "2026-11-24T00:00:00+00:00",
        "wemask_version": "0",
        "model": MODEL,
        "me_layer": made_up_report().to_dict(),
        "softening": None,
        "absent": {},
        "notes": [],
    }
