"""A made-up evaluation that the tests of results, verdict and report share."""

import math
from typing import Any

import torch

from wemask.detection.me_layer import (
    Criterion,
    Emergence,
    Gate,
    LayerRow,
    MassiveToken,
    MELayerReport,
)

ARMS = ("base", "training_free", "sft", "wemask_sft")
RIGHT = {"arith": (92, 88, 284, 312), "gsm8k": (0, 0, 1, 0)}
ITEMS = {"arith": 400, "gsm8k": 100}
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&lt;"


def made_up_report() -> MELayerReport:
    relief = torch.ones(4, 16) * 0.2
    relief[2:, 5] = 120.0
    rows = [
        LayerRow(
            layer=i - 1,
            max=float(row.max()),
            median=0.2,
            ratio=float(row.max()) / 0.2,
            jump=None if i == 0 else float(row.max() / relief[i - 1].max()),
            text=0,
            position=0,
            token="<s>",
            dim=5,
            top_dims=[5],
            cosine_next=None,
        )
        for i, row in enumerate(relief)
    ]
    return MELayerReport(
        model={"name": "tiny", "revision": None, "dtype": "float32", "architecture": "Llama"},
        num_layers=3,
        hidden_size=16,
        criterion=Criterion(name="relative"),
        found=True,
        layer=1,
        dims=[5],
        magnitudes=[120.0],
        tokens=[MassiveToken(text=0, position=0, token_id=1, string="<s>", magnitude=120.0)],
        emergences=[
            Emergence(
                layer=1,
                tokens=[],
                count=1,
                dims=[5],
                magnitude=800.0,
                erased_at=None,
                alignment=1.0,
            )
        ],
        gates={2: Gate(dims=[5], thresholds={5: 20.0}, separation=40.0, massive=1, ordinary=9)},
        written_by={"attention": 0.02, "ffn": 0.98},
        other_criterion="sun2024: none",
        layers=rows,
        relief=relief,
    )


def score(task: str, arm: str) -> dict[str, Any]:
    n, right = ITEMS[task], RIGHT[task][ARMS.index(arm)]
    half = 1.96 * math.sqrt(max(right / n * (1 - right / n), 1e-3) / n)
    return {
        "n": n,
        "mean": right / n,
        "low": max(0.0, right / n - half),
        "high": min(1.0, right / n + half),
        "metrics": {"exact_match": right / n},
        "runs": [
            {
                "seed": 0 if "sft" in arm else None,
                "mean": right / n,
                "extraction_failures": 3,
                "seconds": 12.5,
                "samples": f"eval/{task}/{arm}/samples.jsonl",
                "run_folder": f"outputs/demo/{arm}" if "sft" in arm else None,
            }
        ],
    }


def about(arm: str) -> dict[str, Any]:
    return {
        "arm": arm,
        "method": arm,
        "seeds": [0] if "sft" in arm else [],
        "operator": {"rate": 0.001, "strength": 1.0} if "wemask" in arm else None,
        "reference": {"training_free": "base", "wemask_sft": "sft"}.get(arm),
        "control_of": None,
        "again": False,
        "budget": None,
    }


def difference(
    task: str, a: str, b: str, delta: float, half: float, p: float, seen: float | None
) -> dict[str, Any]:
    ends = {"delta": delta, "low": delta - half, "high": delta + half, "p_value": p, "p_holm": p}
    counts = {"n": ITEMS[task], "a_only": 52, "b_only": 24}
    sizes = {"odds_ratio": 52 / 24, "effect_size": 0.16, "minimum_detectable": seen}
    unit = {"unit": "items", "units": ITEMS[task], "others": [], "test": "exact McNemar"}
    return {"task": task, "a": a, "b": b, "kind": "main", **counts, **ends, **sizes, **unit}


def made_up() -> Any:
    """Results of a whole run (not cast to Results: tests break it in many ways)."""
    layer = {"massive_max": 120.0, "massive_ratio": 600.0, "value_norm_ratio": 0.2}
    heads = {"off": [0.9, 0.3], "on": [0.35, 0.05]}
    rows = {
        side: [{"layer": i, "sink_mass": s, "sink_mass_by_head": heads[side], **layer}
               for i in range(3)]
        for side, s in (("off", 0.6), ("on", 0.2))
    }  # fmt: skip
    config = {"rate": 0.001, "layers": "after_me", "strength": 1.0, "seed": None}
    task = {"metric": "exact_match", "source": "embedded", "fewshot": 0, "note": None}
    task |= {"draws": 1, "clusters": None, "items_sha256": "cd" * 32}
    return {
        "schema_version": 2,
        "command": "python evaluate.py model=tiny tasks=[arith,gsm8k] 'note=a ``` fence'",
        "created": "2025-11-23T16:00:00+00:00",
        "wemask_version": "0.1.0",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "machine": "Linux, 2 cores",
        "model": {"name": "tiny", "path": "embedded", "parameters": 1204000, "dtype": "float32"},
        "me_layer": made_up_report().to_dict(),
        "softening": {
            "config": config,
            "layers": [2],
            "dims": {"2": [5]},
            "tokens_touched": {"2": 1},
            "metrics": rows,
        },
        "tasks": {t: {**task, "n": ITEMS[t], "template_sha256": "ab" * 32} for t in ITEMS},
        "settings": {arm: {"model": {"path": "embedded"}, "method": arm} for arm in ARMS},
        "conditions": {t: {"batch_size": 32, "dtype": "torch.float32"} for t in ITEMS},
        "arm_info": {arm: about(arm) for arm in ARMS},
        "absent": {},
        "arms": {arm: {t: score(t, arm) for t in ITEMS} for arm in ARMS},
        "comparisons": [
            difference("arith", "training_free", "base", -0.01, 0.032, 1.0, 0.041),
            difference("arith", "wemask_sft", "sft", 0.07, 0.042, 0.008, 0.06),
            difference("gsm8k", "wemask_sft", "sft", -0.01, 0.02, 1.0, 0.028),
        ],
        "same": [],
        "notes": ["gsm8k: accuracy is near zero on every arm."],
    }


def made_up_samples(results: Any) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Arm k is right on RIGHT items from 5 * k on: in arith every pair disagrees both ways."""
    samples = {}
    for task, n in ITEMS.items():
        for k, arm in enumerate(ARMS):
            right = range(5 * k, 5 * k + RIGHT[task][k])
            samples[arm, task] = [
                {
                    "id": f"{task}-{i}",
                    "task": task,
                    "arm": arm,
                    "prompt": f"\n  Q {i}:\t{ATTACK}\n\n    indented",
                    "output": f"{ATTACK}\n```\n#### {i}" if i in right else "",
                    "extracted": str(i) if i in right else None,
                    "gold": str(i),
                    "correct": i in right,
                    "reason": None if i in right else "no number after ####",
                    "draw": 0,
                    "cluster": None,
                    "metrics": {"exact_match": float(i in right)},
                }
                for i in range(n)
            ]
    return samples
