"""Made-up reports and results for the figures, and what their tests read off a figure."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from report_cases import difference, made_up, score

from wemask.compare.results import Results, SofteningMetrics, validate_results
from wemask.detection.me_layer import Criterion, LayerRow, MassiveToken, MELayerReport

NASTY = "$x_1$ \n\x1b[0m \u202e \u4e2d {} %s <s>"
BUDGET = {"layers": 1, "dims": 1, "tokens": 1, "removed_energy": 0.25}


def layered_report(
    layers: int = 5, width: int = 64, *, me: int = 1, erased: int | None = None, dims: Any = (3, 60)
) -> MELayerReport:
    """A report in which layer `me` writes 160, 80, ... into `dims` and `erased` takes it away."""
    generator = torch.Generator().manual_seed(0)
    relief = torch.rand(layers + 1, width, generator=generator) + 0.1
    for order, dim in enumerate(dims):
        relief[me + 1 : None if erased is None else erased + 1, dim] = 160.0 / 2**order
    rows = []
    for layer, row in enumerate(relief.tolist(), start=-1):
        largest, median = max(row), float(np.median(row))
        row_facts = {"text": 0, "position": 0, "token": "<s>", "dim": int(np.argmax(row))}
        rows.append(
            LayerRow(
                layer=layer,
                max=largest,
                median=median,
                ratio=largest / median,
                jump=None,
                top_dims=[],
                cosine_next=None,
                **row_facts,
            )
        )
    token = MassiveToken(text=0, position=0, token_id=1, string="<s>", magnitude=160.0)
    return MELayerReport(
        model={"name": "made-up", "revision": None, "dtype": "float32", "architecture": "Llama"},
        num_layers=layers,
        hidden_size=width,
        criterion=Criterion(name="relative"),
        found=True,
        layer=me,
        dims=list(dims),
        magnitudes=[160.0 / 2**i for i in range(len(dims))],
        tokens=[token],
        erased_at=erased,
        emergences=[],
        layers=rows,
        relief=relief,
    )


def without_massive() -> MELayerReport:
    report = layered_report(dims=())
    return replace(report, found=False, layer=None, tokens=[], emergences=[])


def made_up_metrics(on_sink: float | None = 0.2, on_max: float | None = 160.0) -> SofteningMetrics:
    def rows(largest: float | None, sink: float | None) -> list[dict[str, Any]]:
        values = {"massive_ratio": 400.0, "value_norm_ratio": 0.2, "sink_mass_by_head": None}
        return [{"layer": i, "massive_max": largest, "sink_mass": sink, **values} for i in range(4)]

    return cast(SofteningMetrics, {"off": rows(160.0, 0.6), "on": rows(on_max, on_sink)})


def small_results(task: str = "arith") -> Results:
    def score(mean: float) -> dict[str, Any]:
        rest: dict[str, Any] = {"metrics": {}, "runs": []}
        return {"n": 100, "mean": mean, "low": mean - 0.05, "high": mean + 0.05, **rest}

    def difference(a: str, b: str, delta: float, p: float) -> dict[str, Any]:
        rest = {"a_only": 9, "b_only": 2, "odds_ratio": 4.5, "effect_size": 0.1, "test": "McNemar"}
        ends = {"low": delta - 0.06, "high": delta + 0.06, "p_value": p, "p_holm": p}
        names = {"task": task, "a": a, "b": b, "n": 100, "delta": delta, "kind": "main"}
        names |= {"unit": "items", "units": 100, "others": []}
        return {**names, **ends, **rest, "minimum_detectable": 0.08}

    info = {"metric": "acc", "n": 100, "source": "x", "template_sha256": "0", "fewshot": 0}
    means = {"base": 0.2, "training_free": 0.22, "sft": 0.7, "wemask_sft": 0.8}
    return cast(
        Results,
        {
            "tasks": {task: {**info, "note": None}},
            "arms": {arm: {task: score(mean)} for arm, mean in means.items()},
            "comparisons": [
                difference("training_free", "base", 0.02, 0.6),
                difference("wemask_sft", "sft", 0.1, 0.01),
                difference("base", "sft", -0.5, 0.0001),
            ],
        },
    )


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for axes in figure.axes for t in axes.texts)


def about(arm: str, base: Any, **values: Any) -> Any:
    return {**base, "arm": arm, "method": "training_free", "budget": BUDGET, **values}


def studied(gain: float = 0.2, control: float = 0.0, p: float = 0.001) -> Results:
    """base, training_free and two controls on arith; `control` is what the first control gains."""
    data = made_up()
    info, base = data["arm_info"], data["arm_info"]["base"]
    for arm, reference, real in (
        ("training_free", "base", None),
        ("random_dims", "base", "training_free"),
        ("set_zero", "base", "training_free"),
    ):
        info[arm] = about(arm, base, reference=reference, control_of=real, seeds=[])
        data["arms"][arm] = {"arith": score("arith", "base")}
        data["settings"][arm] = {}
    info["random_dims"]["seeds"] = [0, 1]
    data["comparisons"] = [
        difference("arith", "training_free", "base", gain, 0.05, p, 0.04),
        difference("arith", "training_free", "random_dims", gain - control, 0.05, p, 0.04),
        difference("arith", "random_dims", "base", control, 0.05, 0.9, 0.04),
        difference("arith", "training_free", "set_zero", gain, 0.05, p, 0.04),
        difference("arith", "set_zero", "base", 0.0, 0.05, 0.9, 0.04),
    ]
    for row in data["comparisons"][1:]:
        row["kind"] = "control"
    return validate_results(data)


def dosed() -> Results:
    data = made_up()
    base = data["arm_info"].pop("training_free")
    del data["arms"]["training_free"], data["settings"]["training_free"]
    data["comparisons"] = []
    for rate, strength, delta in ((0.01, 0.5, 0.0), (0.01, 1.0, 0.1), (0.1, 0.5, -0.1)):
        label = f"training_free (rate={rate}, strength={strength})"
        operator = {"rate": rate, "strength": strength}
        data["arm_info"][label] = about("training_free", base, operator=operator)
        data["arms"][label] = {"arith": score("arith", "base")}
        data["settings"][label] = {}
        p = 0.5 if delta == 0 else 0.001
        data["comparisons"].append(difference("arith", label, "base", delta, 0.05, p, 0.04))
    return validate_results(data)
