"""What the experiments on the cause say in words: necessity and sufficiency.

Each function takes the tidy table of an experiment and returns sentences, the last of which is the
reading. A reading never goes beyond its controls: where another layer, other dims or another token
do as much, it says so, and where an intervention did not do what it should, nothing follows.
"""

import math

import pandas as pd

from wemask.analyse.cause_plots import restored_share
from wemask.analyse.rows import (
    AS_MUCH,
    NEGLIGIBLE,
    change,
    change_words,
    chosen,
    from_to,
    intact,
    moved_metrics,
    span_words,
    value,
    values,
)
from wemask.report.style import size_words

FEW_SINKS = 0.02  # mean attention below which there is no sink mass to lose


# -------------------------------------------------------------------------------------- necessity


def necessity(table: pd.DataFrame, me_layer: int | None) -> list[str]:
    """Sentences on what the ME Layer's FFN is needed for, other layers beside it."""
    group = "ffn_output" if values(table, "sink_mass", "ffn_output") else "ffn_input"
    moved = moved_metrics(table, group, amount=0.0)
    if not moved:
        return [f"What the FFN of layer {me_layer} writes could not be taken away."]
    did = "writes into" if group == "ffn_output" else "reads of"
    sentences = [
        f"Without what the FFN of layer {me_layer} {did} the massive tokens (c = 0), later on, as "
        f"a mean over the layers after it: {'; '.join(moved)}."
    ]
    if half := moved_metrics(table, group, ("massive_magnitude", "sink_mass"), amount=0.5):
        sentences.append(f"With half of it left (c = 0.5): {'; '.join(half)}.")
    sentences += _other_layers(table, me_layer)
    return [*sentences, _necessity_reading(table, group, me_layer)]


def _others(table: pd.DataFrame, metric: str) -> dict[int, float]:
    """Relative change by the layer whose FFN's write was taken away instead."""
    whole = intact(table, metric)
    rows = chosen(table, metric, "other_layer")
    found = {int(r["at"]): change(float(r["value"]), whole) for _, r in rows.iterrows()}
    return {layer: moved for layer, moved in found.items() if math.isfinite(moved)}


def _other_layers(table: pd.DataFrame, me_layer: int | None) -> list[str]:
    if me_layer is None:
        return []
    others = _others(table, "sink_mass")
    parts = []
    for words, side in (("before it", -1), ("after it", 1)):
        own = {k: v for k, v in others.items() if side * (k - me_layer) > 0}
        if own:
            most = max(own, key=lambda layer: abs(own[layer]))
            count = f"{len(own)} layer{'s' * (len(own) > 1)}"
            parts.append(f"{count} {words}, at most {change_words(own[most])} (layer {most})")
    if not parts:
        return []
    return [f"The same taken away in another layer changes the sink mass: {'; '.join(parts)}."]


def _necessity_reading(table: pd.DataFrame, group: str, me_layer: int | None) -> str:
    whole = intact(table, "sink_mass")
    moved = change(value(table, "sink_mass", group, amount=0.0), whole)
    magnitude = change(
        value(table, "massive_magnitude", group, amount=0.0), intact(table, "massive_magnitude")
    )
    name = f"what the FFN of layer {me_layer} writes into the massive tokens"
    if not math.isfinite(moved) or whole < FEW_SINKS:
        return "There is no sink mass to lose on these texts, so necessity was not tested."
    if math.isfinite(magnitude) and magnitude > -NEGLIGIBLE:
        return (
            f"Taking away {name} leaves the massive magnitude where it was "
            f"({change_words(magnitude)}): whether the sinks need it was not tested."
        )
    if moved > NEGLIGIBLE:
        return f"The sinks do not need {name}: without it their mass grows ({change_words(moved)})."
    if moved >= -NEGLIGIBLE:
        return (
            f"The sinks do not need {name} ({change_words(moved)} of their mass): for them, the ME "
            "Layer is a bystander."
        )
    lost = (
        f"Of the sink mass after the ME Layer, {-moved:.0%} needs {name}; the other "
        f"{1 + moved:.0%} is there without it."
        if moved > -1 + NEGLIGIBLE
        else f"The sink mass needs {name}: without it {1 + moved:.0%} is left."
    )
    return f"{lost} {_rivals(table, moved, me_layer)}"


def _rivals(table: pd.DataFrame, moved: float, me_layer: int | None) -> str:
    """Which other layers do as much, and what that takes away from the ME Layer's claim."""
    others = _others(table, "sink_mass")
    if not others or me_layer is None:
        return "No other layer was tried, so it is not shown that this is special to the ME Layer."
    rivals = {layer: v for layer, v in others.items() if v <= AS_MUCH * moved}
    if not rivals:
        return f"None of the {len(others)} other layers that were tried does {AS_MUCH:.0%} as much."
    sentences = []
    after = [layer for layer in rivals if layer > me_layer]
    for layer in sorted(set(rivals) - set(after), key=lambda k: rivals[k])[:1]:
        count = len(rivals) - len(after)
        more = "" if count == 1 else f" ({count} layers before it do; this one the most)"
        sentences.append(
            f"Taking away layer {layer}'s write, before the ME Layer, does as much{more}: "
            f"{change_words(rivals[layer])}{_by_which_way(table, layer)}."
        )
    if after:
        named = ", ".join(f"{layer} ({change_words(rivals[layer])})" for layer in after[:3])
        sentences.append(
            f"So much is lost without the write of layer {named}, after the ME Layer, too: the "
            "effect is not the ME Layer's alone."
        )
    return " ".join(sentences)


def _by_which_way(table: pd.DataFrame, layer: int) -> str:
    magnitude = _others(table, "massive_magnitude").get(layer, math.nan)
    if not math.isfinite(magnitude):
        return ""
    if magnitude < -NEGLIGIBLE:
        return (
            f"; it takes the massive magnitude away too ({change_words(magnitude)}), so it may "
            "feed the ME Layer, and the two are not told apart here"
        )
    return (
        f", with the massive magnitude in place ({change_words(magnitude)}): the sinks need it by "
        "a way of its own"
    )


# ------------------------------------------------------------------------------------ sufficiency


def sufficiency(table: pd.DataFrame) -> list[str]:
    """Sentences on what the massive vector brings back, other dims and another token beside it."""
    whole, removed = intact(table, "sink_mass"), value(table, "sink_mass", "removed")
    if not math.isfinite(whole) or not math.isfinite(removed):
        return ["Sufficiency was not tested: there is no pair of intact and removed."]
    if whole - removed <= NEGLIGIBLE * abs(whole):
        return [
            "Removing the massive vector loses no sink mass "
            f"({from_to(whole, removed)}), so there is none to restore."
        ]
    back = value(table, "sink_mass", "restored", amount=1.0)
    share = restored_share(table, "sink_mass", back)
    first = (
        f"Removed, the massive vector takes the sink mass from {size_words(whole)} to "
        f"{size_words(removed)}"
    )
    if not math.isfinite(back):
        return [f"{first}; it was not written back."]
    magnitude = value(table, "massive_magnitude", "restored", amount=1.0)
    sentences = [
        f"{first}; written back, it is {size_words(back)}: {share:.0%} of what was lost. The "
        f"massive magnitude is then {size_words(magnitude)} "
        f"({size_words(intact(table, 'massive_magnitude'))} intact). Removed is all that the FFN "
        "wrote, written back are the massive dims alone."
    ]
    sentences += _smaller_doses(table)
    reading = [_enough(share), _dims_matter(table, share), _token_matters(table, whole - removed)]
    return [*sentences, " ".join(part for part in reading if part)]


def _smaller_doses(table: pd.DataFrame) -> list[str]:
    rows = chosen(table, "sink_mass", "restored").sort_values("amount")
    shares = [
        f"{restored_share(table, 'sink_mass', float(row['value'])):.0%} at {row['amount']:.0%}"
        for _, row in rows.iterrows()
        if row["amount"] < 1 and math.isfinite(row["value"])
    ]
    return [f"At a part of its magnitude it restores {', '.join(shares)}."] if shares else []


def _enough(share: float) -> str:
    if share >= 1 - NEGLIGIBLE:
        return "Written back, the massive vector is enough to bring the lost sinks back."
    if share <= NEGLIGIBLE:
        return f"Written back, the massive vector does not bring the sinks back ({share:.0%})."
    return (
        f"Written back, the massive vector brings {share:.0%} of the lost sink mass, not all of it."
    )


def _dims_matter(table: pd.DataFrame, share: float) -> str:
    others = [
        restored_share(table, "sink_mass", v) for v in values(table, "sink_mass", "other_dims")
    ]
    if not others:
        return ""
    span = span_words([f"{v:.0%}" for v in (min(others), max(others))])
    draws = f"{len(others)} draw{'s' * (len(others) > 1)}"
    if share <= NEGLIGIBLE:
        return f"The same values on other dims: {span} ({draws})."
    if max(others) >= AS_MUCH * share:
        return f"The same values on other dims do as much ({span}, {draws}): any dims would do."
    return (
        f"The same values on other dims bring {span}: none of {draws} does {AS_MUCH:.0%} as much, "
        "so the dims matter."
    )


def _token_matters(table: pd.DataFrame, lost: float) -> str:
    groups = ("other_token_before", "other_token")
    before, now = (value(table, "sink_mass", group) for group in groups)
    if not math.isfinite(before) or not math.isfinite(now):
        return ""
    sizes = [value(table, "massive_magnitude", group) for group in groups]
    if change(sizes[1], sizes[0]) <= NEGLIGIBLE:
        return (
            "Written to an ordinary token, the vector did not raise that token's magnitude "
            f"({size_words(sizes[0])} before and {size_words(sizes[1])} with it), so this control "
            "says nothing."
        )
    gain = (now - before) / lost
    numbers = (
        f"from {size_words(before)} to {size_words(now)}, {gain:.0%} of what the massive ones lost"
    )
    if gain >= AS_MUCH * restored_share(
        table, "sink_mass", value(table, "sink_mass", "restored", amount=1.0)
    ):
        return f"Written to an ordinary token, it makes that one a sink as well ({numbers})."
    if gain <= NEGLIGIBLE:
        return f"Written to an ordinary token, it makes no sink of it ({numbers})."
    return f"Written to an ordinary token, it makes less of a sink of it ({numbers})."
