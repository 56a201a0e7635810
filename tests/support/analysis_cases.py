"""Made-up tables of an analysis, whose answers are known, and the facts of its page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from report_cases import made_up_report

from wemask.analyse.findings import findings
from wemask.analyse.page import AnalysisFacts
from wemask.analyse.rows import table

# The model as it is: what every made-up condition changes by a factor.
INTACT = {
    "massive_magnitude": 200.0,
    "sink_mass": 0.4,
    "sink_rate": 0.5,
    "effective_rank": 20.0,
    "perplexity": 4.0,
}


def rows_of(experiment: str, conditions: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Each condition: its names, and under a metric's name the factor on INTACT (default 1)."""
    rows = []
    for condition in conditions:
        names = {key: condition.get(key) for key in ("at", "amount", "rate", "seed")}
        names |= {"experiment": experiment, "group": condition["group"]}
        for metric, whole in INTACT.items():
            value = whole * condition.get(metric, 1.0)
            rows.append({**names, "metric": metric, "layer": None, "value": value})
            if metric != "perplexity":
                rows.append({**names, "metric": metric, "layer": 2, "value": 7 * value})
    return table(rows)


def necessity(lost: float = 0.8, others: Mapping[int, float] | None = None, **zero: float) -> Any:
    """Without the write, `lost` of the sink mass is gone; in other layers `others`."""
    rest = {"massive_magnitude": 0.1, "sink_mass": 1 - lost, **zero}
    done: list[dict[str, Any]] = []
    for group in ("ffn_input", "ffn_output"):
        for c in (0.0, 0.5, 1.0):
            moved = {m: 1 - (1 - f) * (1 - c) for m, f in rest.items()}
            done.append({"group": group, "at": 1, "amount": c, **moved})
    for layer, gone in ({0: 0.0, 2: 0.0} if others is None else others).items():
        done.append({"group": "other_layer", "at": layer, "amount": 0.0, "sink_mass": 1 - gone})
    return rows_of("necessity", done)


def sufficiency(
    back: float = 0.9,
    other_dims: Sequence[float] = (0.1, 0.2),
    other_token: float = 0.0,
    *,
    reached: bool = True,
) -> Any:
    """Half of the sink mass is lost; these parts of that half are there again."""
    done: list[dict[str, Any]] = [
        {"group": "intact", "at": 1},
        {"group": "removed", "at": 1, "amount": 0.0, "sink_mass": 0.5, "massive_magnitude": 0.1},
    ]
    done += [
        {"group": "restored", "at": 1, "amount": f, "sink_mass": 0.5 + 0.5 * back * f}
        for f in (0.5, 1.0)
    ]
    done += [
        {"group": "other_dims", "at": 1, "amount": 1.0, "seed": s, "sink_mass": 0.5 + 0.5 * part}
        for s, part in enumerate(other_dims)
    ]
    small = {"massive_magnitude": 0.1, "sink_mass": 0.1}
    done.append({"group": "other_token_before", "at": 1, "amount": 0.0, **small})
    big = {"massive_magnitude": 1.0 if reached else 0.1, "sink_mass": 0.1 + 0.5 * other_token}
    return rows_of("sufficiency", [*done, {"group": "other_token", "at": 1, "amount": 1.0, **big}])


def location(after: float = -0.5, before: float = 0.0) -> Any:
    """The change of the sink mass when layers after, or before, the ME Layer are softened."""
    done: list[dict[str, Any]] = [{"group": "intact", "amount": 0.0}]
    for layer, moved in enumerate((before, 0.0, after)):
        done.append({"group": "one_layer", "at": layer, "amount": 1.0, "sink_mass": 1 + moved})
    for group, moved in (("before", before), ("at", 0.0), ("after", after)):
        done.append({"group": group, "amount": 1.0, "sink_mass": 1 + moved})
    done += [
        {"group": "random_layers", "seed": seed, "sink_mass": 1 - 0.01 * seed} for seed in (0, 1)
    ]
    return rows_of("location", done)


def specificity(real: float = -0.5, random: Sequence[float] = (-0.02, 0.01), **fixed: float) -> Any:
    """Changes of the sink mass by the operator, draws of random dims, and controls by name."""
    done: list[dict[str, Any]] = [{"group": "intact"}, {"group": "wemask", "sink_mass": 1 + real}]
    for seed, moved in enumerate(random):
        done.append({"group": "random_dims", "seed": seed, "sink_mass": 1 + moved})
    done += [{"group": name, "sink_mass": 1 + moved} for name, moved in fixed.items()]
    return rows_of("specificity", done)


def dose(rates: Sequence[float] = (0.01, 0.1, 0.5)) -> Any:
    """The sink mass falls by rate * strength."""
    done: list[dict[str, Any]] = [{"group": "intact", "amount": 0.0}]
    for rate in rates:
        for s in (0.5, 1.0):
            fallen = {"sink_mass": 1 - rate * s, "perplexity": 1 + 0.1 * rate * s}
            done.append({"group": "wemask", "rate": rate, "amount": s, **fallen})
    return rows_of("dose", done)


def layers(count: int = 4, me_layer: int = 1, *, massive: bool = True) -> pd.DataFrame:
    """The wide table: after the ME Layer, softening halves the sink mass."""
    rows = []
    for state in ("off", "on"):
        for layer in range(count):
            sink = (0.6 if state == "off" else 0.3) if layer > me_layer else 0.05
            row: dict[str, Any] = {"state": state, "layer": layer, "effective_rank": 10.0 + layer}
            row |= {"anisotropy": 0.2, "mean_cosine": 0.1, "sink_mass_first": 0.07}
            row |= {"sink_rate_first": 0.0, "attention_input_rigidity_ordinary": 0.25}
            known = {"sink_mass": sink, "sink_rate": sink, "rigidity_layers": 0.9}
            known |= {"massive_magnitude": 150.0, "attention_input_rigidity": 0.75}
            known |= {"ffn_share": 0.96, "attention_share": 0.04}
            row |= known if massive else dict.fromkeys(known, math.nan)
            row["sink_mass_by_head"] = [sink, sink] if massive else None
            rows.append(row)
    return pd.DataFrame(rows)


def quadratic(leading: float = 1.0, ordinary: float = 0.2) -> dict[str, pd.DataFrame]:
    """Two tokens on dim 5: the leading pair gives `leading` of what is observed."""
    token = {"dim": 5, "text": 0, "token_id": 1, "alignment": 0.8, "exact": None}
    rows = [
        {**token, "position": p, "observed": o, "whole": 1.1 * o, "leading": leading * o}
        for p, o in ((0, 100.0), (4, 50.0))
    ]
    form = {"dim": 5, "eigenvalue": 2.0, "share": 0.9, "massive_alignment": 0.8}
    form |= {"ordinary_alignment": ordinary / 2, "ordinary_alignment_max": ordinary}
    form |= {"leading_over_observed": leading, "whole_over_observed": 1.1}
    form |= {"massive_tokens": 2, "ordinary_tokens": 30}
    return {"quadratic": pd.DataFrame(rows), "quadratic_dims": pd.DataFrame([form])}


def tables() -> dict[str, pd.DataFrame]:
    """All tables of an analysis."""
    return {
        "layers": layers(),
        "necessity": necessity(),
        "sufficiency": sufficiency(),
        "location": location(),
        "specificity": specificity(set_zero=0.9),
        "dose": dose(),
        **quadratic(),
    }


def facts(given: Mapping[str, pd.DataFrame], **changes: Any) -> AnalysisFacts:
    """What the runner fills in."""
    report = made_up_report()
    cost = {"part": "detection", "seconds": 1.5, "forwards": 2, "peak_memory": 3 * 2**20}
    made: Any = {
        "model": {"name": "tiny", "path": "embedded", "parameters": 1204000, "dtype": "float32"},
        "command": "wemask analyse --model tiny",
        "created": "2025-11-23T16:00:00+00:00",
        "machine": "Linux, 2 cores",
        "wemask_version": "0.1.0",
        "versions": {"torch": "2.13.0"},
        "settings": {"operator": {"rate": 0.001}},
        "texts": {"description": "16 texts", "count": 16, "tokens": 1646, "massive_tokens": 18},
        "costs": [
            {**cost, "device": "cpu"},
            {**cost, "part": "dose", "forwards": None, "peak_memory": None, "device": "cpu"},
        ],
        "impossible": [
            {"experiment": "specificity", "condition": "uniform", "reason": "There is no norm."}
        ],
        "notes": [],
        "findings": findings(given, report),
        "me_layer": report.to_dict(),
        "files": ["tables/layers.parquet"],
    }
    return made | changes
