"""Reading the tables of an analysis: which rows, changes against the intact model, and words.

A table of an experiment has one row per condition, metric and layer (`experiments.py`); what its
figure draws and its findings say are the rows without a layer. A number that is not there is NaN,
never an error: conditions can be impossible in a model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from wemask.compare.verdict import arm_words

COLUMNS = (
    *("experiment", "group", "at", "amount", "rate", "seed"),
    *("metric", "layer", "value"),
)
JUDGED = ("sink_mass", "effective_rank", "perplexity")
"""The metrics by which an experiment is read."""
METRIC_WORDS = {
    "sink_mass_first": "sink mass of the first token",
    "sink_rate_first": "sink rate of the first token",
    "attention_input_rigidity": "rigidity",
}
GROUP_WORDS = {
    "other_token_before": "other token, without",
    "other_token": "other token, with it",
    "ffn_input": "what the FFN reads",
    "ffn_output": "what the FFN writes",
    "other_layer": "another layer's FFN",
    "before": "all before",
    "at": "ME Layer",
    "after": "all after",
    "wemask": "the operator",
}
OVERALL = -1  # where a key must be a number: no layer


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows -> the tidy table, whole numbers as whole numbers also where some are missing."""
    kinds = dict.fromkeys(("at", "seed", "layer"), "Int64")
    kinds |= dict.fromkeys(("amount", "rate", "value"), "float64")
    return pd.DataFrame(list(rows), columns=list(COLUMNS)).astype(kinds)


def metric_words(metric: str) -> str:
    """How a metric is called; one without words of its own keeps its name."""
    return METRIC_WORDS.get(metric, metric.replace("_", " "))


def group_words(group: str) -> str:
    """How a kind of condition is called."""
    return GROUP_WORDS.get(group) or arm_words(group).replace("_", " ")


def change_words(share: float | None) -> str:
    """-0.574 -> "-57%", 0.0213 -> "+2.1%", 0 -> "0%", NaN -> "not measured"."""
    if share is None or not math.isfinite(share):
        return "not measured"
    words = f"{100 * share:+,.0f}%" if abs(share) >= 0.0995 else f"{100 * share:+.1f}%"
    return "0%" if words in ("+0.0%", "-0.0%") else words


def has_rows(tables: Mapping[str, pd.DataFrame], name: str) -> bool:
    """Whether a table is there and holds anything."""
    return name in tables and len(tables[name]) > 0


def overall(table: pd.DataFrame, metric: str | None = None) -> Any:
    """Rows without a layer: means over the layers after the ME Layer, or of the model.

    A DataFrame; pandas' own types are too wide for a checker to follow.
    """
    rows = table[table["layer"].isna()]
    return rows if metric is None else rows[rows["metric"] == metric]


def levels(table: pd.DataFrame, group: str = "intact") -> Any:
    """Mean value of a group by metric and layer, `OVERALL` for the rows without one.

    In `necessity`, where no condition is called intact, that is the FFN with factor 1.
    """
    rows: Any = table[table["group"] == group]
    if group == "intact" and not len(rows):
        rows = table[table["group"].str.startswith("ffn_") & (table["amount"] == 1)]
    keys = [rows["metric"], rows["layer"].astype("Int64").fillna(OVERALL)]
    return rows["value"].groupby(keys).mean()


def intact(table: pd.DataFrame, metric: str) -> float:
    """The model as it is, NaN where that was not measured."""
    return float(levels(table).get((metric, OVERALL), math.nan))


def changed(table: pd.DataFrame, base: str = "intact", unit: Any = None) -> Any:
    """All rows, with `before`, what `base` has in the same metric and layer, and `change`.

    Args:
        table: of an experiment.
        base: a group.
        unit: what a change of 1 is, by metric and layer; None: the size of `before`.
    """
    before = levels(table, base)
    unit = before.abs() if unit is None else unit
    keys = pd.MultiIndex.from_arrays(
        [table["metric"], table["layer"].astype("Int64").fillna(OVERALL)]
    )
    rows = table.assign(before=before.reindex(keys).to_numpy())
    parts: Any = unit.where(unit != 0).reindex(keys).to_numpy()
    return rows.assign(change=(rows["value"] - rows["before"]) / parts)


def tidy_layers(layers: pd.DataFrame, me_layer: int | None) -> pd.DataFrame:
    """The wide table of layers, softening off and on, as the table of an experiment.

    Rows without a layer are means over the layers after the ME Layer; over all layers without one,
    or where none comes after it.
    """
    wide = layers.drop(columns=["sink_mass_by_head"], errors="ignore")
    rows: Any = wide.melt(["state", "layer"], var_name="metric")
    rows["group"] = rows["state"].map({"off": "intact", "on": "wemask"})
    rows["value"] = pd.to_numeric(rows["value"])
    after = -1 if me_layer is None or me_layer >= rows["layer"].max() else me_layer
    later = rows[rows["layer"] > after]
    means = later.groupby(["group", "metric"], as_index=False, sort=False)["value"].mean()
    found = pd.concat([rows, means.assign(layer=pd.NA)]).astype({"layer": "Int64"})
    return found.reindex(columns=list(COLUMNS))
