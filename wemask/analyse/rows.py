"""Reading the tables of an analysis: which rows, which numbers, and how they are called.

A table of an experiment has one row per condition, metric and layer (`experiments.py`); what its
figure draws and its sentences say are the rows without a layer, read here by both of them. A number
that is not there is NaN, never an error: conditions can be impossible in a model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from wemask.compare.verdict import arm_words
from wemask.report.style import size_words

NEGLIGIBLE = 0.05  # a relative change within this is called none
AS_MUCH = 0.8  # another condition with this part of an effect does "as much"

METRIC_WORDS = {
    "massive_magnitude": "massive magnitude",
    "massive_ratio": "massive ratio",
    "sink_mass": "sink mass",
    "sink_mass_first": "sink mass of the first token",
    "sink_rate_first": "sink rate of the first token",
    "sink_rate": "sink rate",
    "value_norm_ratio": "value norm ratio",
    "attention_input_rigidity": "rigidity",
    "matrix_entropy": "matrix entropy",
    "effective_rank": "effective rank",
    "anisotropy": "anisotropy",
    "mean_cosine": "mean cosine",
    "perplexity": "perplexity",
}
GROUP_WORDS = {
    "intact": "intact",
    "removed": "removed",
    "restored": "restored",
    "other_dims": "other dims",
    "other_token_before": "other token, without",
    "other_token": "other token, with it",
    "ffn_input": "what the FFN reads",
    "ffn_output": "what the FFN writes",
    "other_layer": "another layer's FFN",
    "one_layer": "one layer",
    "before": "all before",
    "at": "ME Layer",
    "after": "all after",
    "random_layers": "random layers",
    "wemask": "the operator",
}


def metric_words(metric: str) -> str:
    """How a metric is called; one without words keeps its name."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def group_words(group: str) -> str:
    """How a kind of condition is called."""
    return GROUP_WORDS.get(group) or arm_words(group).replace("_", " ")


def has_rows(tables: Mapping[str, pd.DataFrame], name: str) -> bool:
    """Whether a table is there and holds anything."""
    return name in tables and len(tables[name]) > 0


def overall(table: pd.DataFrame, metric: str | None = None) -> Any:
    """Rows without a layer: means over the layers after the ME Layer, or of the model.

    Like `chosen` a DataFrame; pandas' own types are too wide for a checker to follow.
    """
    rows = table[table["layer"].isna()]
    return rows if metric is None else rows[rows["metric"] == metric]


def chosen(table: pd.DataFrame, metric: str, groups: str | Iterable[str], **where: Any) -> Any:
    """Rows without a layer of one metric and some groups; `where` compares further columns."""
    names = [groups] if isinstance(groups, str) else list(groups)
    rows = overall(table, metric)
    rows = rows[rows["group"].isin(names)]
    for column, value in where.items():
        rows = rows[(rows[column] == value).fillna(False).astype(bool)]
    return rows


def values(table: pd.DataFrame, metric: str, groups: str | Iterable[str], **where: Any) -> list:
    """Their finite values, in the table's order."""
    found = chosen(table, metric, groups, **where)["value"]
    return [float(v) for v in found if math.isfinite(v)]


def value(table: pd.DataFrame, metric: str, groups: str | Iterable[str], **where: Any) -> float:
    """The mean of `values`; NaN where there is none."""
    return mean(values(table, metric, groups, **where))


def mean(numbers: Sequence[float]) -> float:
    """Mean of what is finite; NaN where nothing is.

    >>> mean([1.0, float("nan"), 2.0])
    1.5
    """
    finite = [n for n in numbers if math.isfinite(n)]
    return sum(finite) / len(finite) if finite else math.nan


def intact(table: pd.DataFrame, metric: str) -> float:
    """The model as it is: the group `intact`, or in `necessity` the factor 1."""
    found = value(table, metric, "intact")
    if math.isnan(found):
        found = value(table, metric, ("ffn_input", "ffn_output"), amount=1.0)
    return found


def change(now: float, before: float) -> float:
    """Relative change; NaN where either is missing or there was nothing before.

    >>> change(1.0, 4.0)
    -0.75
    """
    return (now - before) / abs(before) if before and math.isfinite(before) else math.nan


def changes(table: pd.DataFrame, metric: str, group: str, **where: Any) -> list[float]:
    """Changes of a group against intact, in percent, one per condition."""
    whole = intact(table, metric)
    found = [100 * change(v, whole) for v in values(table, metric, group, **where)]
    return [v for v in found if math.isfinite(v)]


def change_words(share: float) -> str:
    """-0.574 -> "-57%", 0.0213 -> "+2.1%", 0 -> "0%", NaN -> "not measured"."""
    if not math.isfinite(share):
        return "not measured"
    words = f"{100 * share:+,.0f}%" if abs(share) >= 0.0995 else f"{100 * share:+.1f}%"
    return "0%" if words in ("+0.0%", "-0.0%") else words


def layer_values(layers: pd.DataFrame, state: str, column: str) -> tuple[list[int], list[float]]:
    """Layers of one state, and a metric in them; NaN where it does not apply or is not there."""
    rows: Any = layers[layers["state"] == state]
    rows = rows.sort_values("layer")
    numbers: Any = pd.to_numeric(rows[column]) if column in rows else [math.nan] * len(rows)
    return [int(layer) for layer in rows["layer"]], [float(n) for n in numbers]


def later_mean(layers: pd.DataFrame, state: str, column: str, after: int | None) -> float:
    """Mean of a metric over the layers after `after`; over all with None or where none is after."""
    places, numbers = layer_values(layers, state, column)
    if not has_later(layers, after):
        return mean(numbers)
    return mean([n for p, n in zip(places, numbers, strict=True) if p > (after or 0)])


def has_later(layers: pd.DataFrame, after: int | None) -> bool:
    """Whether a layer comes after this one."""
    return after is not None and any(layer > after for layer in layers["layer"])


# ------------------------------------------------------------------------------------- sentences


def from_to(before: float, now: float) -> str:
    """Two numbers and their change: 0.279 to 0.119 (-57%)."""
    return f"{size_words(before)} to {size_words(now)} ({change_words(change(now, before))})"


def moved_metrics(
    table: pd.DataFrame,
    group: str,
    metrics: tuple[str, ...] = ("massive_magnitude", "sink_mass", "effective_rank", "perplexity"),
    **where: Any,
) -> list[str]:
    """Name and numbers of each metric that was measured: sink mass 0.279 to 0.119 (-57%)."""
    pairs = [(m, intact(table, m), value(table, m, group, **where)) for m in metrics]
    return [
        f"{metric_words(metric)} {from_to(before, now)}"
        for metric, before, now in pairs
        if math.isfinite(before) and math.isfinite(now)
    ]


def span_words(words: list[str]) -> str:
    """The first and the last of some words, once where they are the same."""
    return words[0] if words[0] == words[-1] else f"{words[0]} to {words[-1]}"
