"""What the experiments on the operator say in words: location, specificity, dose.

Each function takes the tidy table of an experiment and returns sentences, the last of which is the
reading. "Told apart" means outside the range of all draws of the drawn controls: these are
measurements of one model on one fixed set of texts, so there is nothing to test with a p-value.
"""

import math
from typing import Any

import pandas as pd

from wemask.analyse.operator_plots import drawn_values
from wemask.analyse.rows import (
    AS_MUCH,
    NEGLIGIBLE,
    change,
    change_words,
    changes,
    chosen,
    from_to,
    group_words,
    intact,
    mean,
    metric_words,
    overall,
    span_words,
    value,
)
from wemask.operator.settings import WeMaskConfig
from wemask.report.style import size_words

JUDGED = ("sink_mass", "effective_rank", "perplexity")
PLACES = {"before": "all layers before it", "at": "the ME Layer", "after": "all layers after it"}
SET = ("set_zero", "set_mean")
NO_P_VALUES = (
    "These are measurements of one model on one fixed set of texts, not samples, so there are no "
    "p-values: told apart means outside the range of all draws."
)

# -------------------------------------------------------------------------------------- location


def location(table: pd.DataFrame) -> list[str]:
    """Sentences on where the same softening acts."""
    sentences = [words for metric in JUDGED if (words := _places(table, metric))]
    if not sentences:
        return ["Softening in other places could not be measured."]
    if words := _strongest_layer(table):
        sentences.append(words)
    sentences.append(
        "All of this is measured in the layers after the ME Layer: a late layer has fewer of them "
        "to act on, and up to the ME Layer the tokens are not massive yet."
    )
    return [*sentences, _location_reading(table)]


def _places(table: pd.DataFrame, metric: str) -> str:
    parts = [
        f"{change_words(mean(found) / 100)} in {words}"
        for group, words in PLACES.items()
        if (found := changes(table, metric, group))
    ]
    if drawn := changes(table, metric, "random_layers"):
        span = span_words([change_words(v / 100) for v in (min(drawn), max(drawn))])
        parts.append(f"{span} in as many random layers as come after it ({_draws(len(drawn))})")
    return f"Softening changes the {metric_words(metric)} by {', '.join(parts)}." if parts else ""


def _strongest_layer(table: pd.DataFrame) -> str:
    whole = intact(table, "sink_mass")
    rows = chosen(table, "sink_mass", "one_layer")
    alone = {int(r["at"]): change(float(r["value"]), whole) for _, r in rows.iterrows()}
    alone = {layer: moved for layer, moved in alone.items() if math.isfinite(moved)}
    if not alone:
        return ""
    most = max(alone, key=lambda layer: abs(alone[layer]))
    return (
        f"Of {len(alone)} layers softened alone, layer {most} changes the sink mass most "
        f"({change_words(alone[most])})."
    )


def _location_reading(table: pd.DataFrame) -> str:
    after = mean(changes(table, "sink_mass", "after")) / 100
    if not math.isfinite(after):
        return "Softening after the ME Layer was not measured, so places cannot be compared."
    if abs(after) <= NEGLIGIBLE:
        return (
            f"After the ME Layer, softening changes the sink mass by {change_words(after)}, within "
            f"{NEGLIGIBLE:.0%}: there is hardly an effect whose place could matter."
        )
    rivals = [
        f"{words} ({change_words(v / 100)})"
        for group, words in PLACES.items()
        if group != "after"
        for v in changes(table, "sink_mass", group)
        if v / 100 / after >= AS_MUCH
    ]
    if rivals:
        return f"Where it is done is not what matters: {', '.join(rivals)} does as much."
    tried = [words for group, words in PLACES.items() if changes(table, "sink_mass", group)]
    more = "" if len(tried) > 1 else " (no other place was measured)"
    return (
        f"Where it is done matters: no other place changes the sink mass by {AS_MUCH:.0%} of the "
        f"{change_words(after)} that softening after the ME Layer does{more}. Random layers are "
        "no such place: most of them come after the ME Layer, too."
    )


def _draws(count: int) -> str:
    return f"{count} draw{'s' * (count > 1)}"


# ----------------------------------------------------------------------------------- specificity


def specificity(table: pd.DataFrame) -> list[str]:
    """Sentences on the operator beside its controls."""
    sentences = [words for metric in JUDGED if (words := _beside_controls(table, metric))]
    if not sentences:
        return ["The operator could not be measured beside its controls."]
    return [*sentences, NO_P_VALUES, _specificity_reading(table)]


def _controls(table: pd.DataFrame, metric: str) -> dict[str, float]:
    """Relative change by control, the mean over its draws."""
    names = [g for g in dict.fromkeys(table["group"]) if g not in ("intact", "wemask")]
    found = {name: mean(changes(table, metric, name)) / 100 for name in names}
    return {name: moved for name, moved in found.items() if math.isfinite(moved)}


def _real(table: pd.DataFrame, metric: str) -> float:
    return change(value(table, metric, "wemask"), intact(table, metric))


def _beside_controls(table: pd.DataFrame, metric: str) -> str:
    real, controls = _real(table, metric), _controls(table, metric)
    if not math.isfinite(real):
        return ""
    words = (
        f"The operator changes the {metric_words(metric)} from "
        f"{from_to(intact(table, metric), value(table, metric, 'wemask'))}"
    )
    if not controls:
        return f"{words}; no control was measured."
    larger = {name: v for name, v in controls.items() if abs(v) > abs(real)}
    named = ", ".join(f"{group_words(name)} {change_words(v)}" for name, v in larger.items())
    rank = f"by size number {len(larger) + 1} of {len(controls) + 1}"
    return f"{words}, {rank}{f', after {named}' if named else ''}; {_drawn_words(table, metric)}."


def _drawn_words(table: pd.DataFrame, metric: str) -> str:
    drawn, whole = drawn_values(table, metric), intact(table, metric)
    if not drawn:
        return "no control was drawn"
    span = span_words([change_words(change(v, whole)) for v in (min(drawn), max(drawn))])
    verdict = "told apart from" if _apart(table, metric) else "within the range of"
    return f"{verdict} the drawn controls ({span}, {_draws(len(drawn))})"


def _apart(table: pd.DataFrame, metric: str) -> bool:
    real, drawn = value(table, metric, "wemask"), drawn_values(table, metric)
    return bool(drawn) and (real < min(drawn) or real > max(drawn))


def _specificity_reading(table: pd.DataFrame) -> str:
    """A control counts by the draw that comes nearest: one that does as much is enough.

    Setting the massive activation itself to zero or to its mean is no rival: it is the same target,
    met harder, and shows what there is to gain.
    """
    real, controls = _real(table, "sink_mass"), _nearest_draws(table, "sink_mass")
    if not math.isfinite(real) or not controls:
        return "Without sink mass, or without a control, specificity was not tested."
    if abs(real) <= NEGLIGIBLE:
        return (
            f"The operator changes the sink mass by {change_words(real)}, within {NEGLIGIBLE:.0%}: "
            "there is hardly an effect that could be specific."
        )
    named = {
        name: f"{_draw_words(table, name)} ({change_words(v)})" for name, v in controls.items()
    }
    rivals = [named[name] for name, v in controls.items() if v / real >= AS_MUCH]
    if rivals:
        return (
            f"The operator's effect on the sink mass ({change_words(real)}) is not specific: "
            f"{', '.join(rivals)} does {AS_MUCH:.0%} as much or more."
        )
    nearest = max(controls, key=lambda name: controls[name] / real)
    return (
        f"By the sink mass ({change_words(real)}) the operator is specific among these controls: "
        f"none does {AS_MUCH:.0%} as much; the nearest is {named[nearest]}."
    )


def _nearest_draws(table: pd.DataFrame, metric: str) -> dict[str, float]:
    """Relative change by control, of the draw that is most like the operator's."""
    real = _real(table, metric)
    names = [g for g in dict.fromkeys(table["group"]) if g not in ("intact", "wemask", *SET)]
    found = {name: [v / 100 for v in changes(table, metric, name)] for name in names}
    return {name: max(draws, key=lambda v: v / real) for name, draws in found.items() if draws}


def _draw_words(table: pd.DataFrame, name: str) -> str:
    count = len(changes(table, "sink_mass", name))
    return group_words(name) if count == 1 else f"one of {count} draws of {group_words(name)}"


# ------------------------------------------------------------------------------------------ dose


def dose(table: pd.DataFrame, hidden_size: int) -> list[str]:
    """Sentences on rate and strength; rates that round to the same number of dims are named."""
    sentences = [words for metric in JUDGED if (words := _extremes(table, metric))]
    if not sentences:
        return ["No dose could be measured."]
    sentences += _same_budget(table, hidden_size)
    return [*sentences, _dose_reading(table)]


def _extremes(table: pd.DataFrame, metric: str) -> str:
    rows = overall(table, metric)
    rows = rows[(rows["group"] != "intact") & rows["value"].notna()]
    if not len(rows):
        return ""
    ends = [rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]]
    named = " to ".join(
        f"{size_words(float(row['value']))} (rate {row['rate']:g}, strength {row['amount']:g})"
        for row in ends
    )
    whole = intact(table, metric)
    known = f"; intact {size_words(whole)}" if math.isfinite(whole) else ""
    return f"Over {len(rows)} doses the {metric_words(metric)} ranges from {named}{known}."


def _same_budget(table: pd.DataFrame, hidden_size: int) -> list[str]:
    budgets: dict[int, list[float]] = {}
    rates: Any = table["rate"].dropna()
    for rate in sorted(set(rates)):
        budgets.setdefault(WeMaskConfig(rate=rate).budget(hidden_size), []).append(rate)
    return [
        f"Of {hidden_size} dims, the rates {', '.join(f'{rate:g}' for rate in rates)} all soften "
        f"{k}: they are one dose."
        for k, rates in budgets.items()
        if len(rates) > 1
    ]


def _dose_reading(table: pd.DataFrame) -> str:
    rows = chosen(table, "sink_mass", "wemask").dropna(subset=["value", "rate"])
    lower = higher = tried = 0
    for _, own in rows.groupby("rate"):
        steps = own.sort_values("amount")["value"].diff().dropna()
        if len(steps):
            tried += 1
            lower += bool((steps <= 0).all() and (steps < 0).any())
            higher += bool((steps >= 0).all() and (steps > 0).any())
    if not tried:
        return "With one strength for each rate, nothing is known of how the effect grows."
    rates = f"{tried} rate{'s' * (tried > 1)}"
    if tried in (lower, higher):
        moves = "lowers" if lower else "raises"
        return f"More strength {moves} the sink mass further, step by step, at all {rates}."
    return (
        f"The sink mass does not simply follow the strength: of {rates} it falls step by step at "
        f"{lower} and rises at {higher}."
    )
