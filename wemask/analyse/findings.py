"""What an analysis found, as rows: what was done, what it changed, over which range, what follows.

The tables are measurements of one model on one fixed set of texts, not samples of a population:
there are no p-values. The range of a change is that of its draws, layers or strengths. A reading
stands only where the experiment has controls for it, and is one of:

    could not have seen a difference   there was nothing to lose, or the intervention did not take
    no difference seen                 the change is within `NEGLIGIBLE`
    not told apart from                the nearest control has `AS_MUCH` of the change or more
    told apart from every control      it has not
    no control was measured
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import pandas as pd

from wemask.analyse.rows import (
    JUDGED,
    OVERALL,
    change_words,
    changed,
    group_words,
    has_rows,
    levels,
    metric_words,
    overall,
    tidy_layers,
)
from wemask.detection.me_layer import MELayerReport
from wemask.operator.settings import WeMaskConfig
from wemask.report.style import size_words

NEGLIGIBLE = 0.05  # a relative change within this is called none
AS_MUCH = 0.8  # a control with this part of a change does "as much"
FEW_SINKS = 0.02  # mean attention below which there is no sink mass to lose

BLIND = "could not have seen a difference"
NONE = "no difference seen"
SIZE = "massive_magnitude"
DIRECTION = "one direction per massive dim"
SET = ("set_zero", "set_mean")  # the same target, met harder: what there is to gain, no control
QUESTIONED = ("necessity", "sufficiency", "location", "specificity", "quadratic")

Tables = Mapping[str, pd.DataFrame]


class Finding(TypedDict):
    """One line of evidence. None where a number does not apply or was not measured."""

    experiment: str  # "necessity", ..., or "metrics"
    done: str  # "layer 1's FFN writes nothing (c = 0)"
    metric: str  # "sink mass"
    before: float | None  # without what was done
    now: float | None
    change: float | None  # relative to `before`: -0.5 is half; the mean where there are several
    low: float | None  # smallest and largest change
    high: float | None
    over: str  # of what: "3 layers", "3 draws"; "" without a range
    reading: str  # as above; "" where none follows


def findings(tables: Tables, report: MELayerReport) -> list[Finding]:
    """All findings, in the order of the page.

    Args:
        tables: by name, as the analysis wrote them; those that are missing or empty are left out.
        report: the detection of the same model.
    """
    read = (_metrics, _necessity, _sufficiency, _location, _specificity, _dose, _quadratic)
    named = [(lines.__name__.removeprefix("_"), lines) for lines in read]
    return [
        {**row, "experiment": name}
        for name, lines in named
        if has_rows(tables, "layers" if name == "metrics" else name)
        for row in lines(tables, report)
    ]


def headlines(found: Sequence[Finding]) -> list[Finding]:
    """The first reading of each experiment that asks whether something matters."""
    read = {f["experiment"]: f for f in reversed(found) if f["reading"]}
    return [read[name] for name in QUESTIONED if name in read]


def sentence(*found: Finding, short: bool = False) -> str:
    """Findings of one thing that was done, in words; `short` leaves out ranges."""
    words = f"{found[0]['done']}: {', '.join(_said(finding, short) for finding in found)}"
    return f"{words[:1].upper()}{words[1:]}"


def _said(finding: Finding, short: bool) -> str:
    change = finding["change"]
    said = " to ".join(size_words(n) for k in ("before", "now") if (n := finding[k]) is not None)
    if change is not None:
        said += f" ({change_words(change) if short else span(finding)})"
    return f"{finding['metric']} {said}{'; ' * bool(finding['reading'])}{finding['reading']}"


def span(finding: Finding) -> str:
    """The change and its range: -58%, -70% to -9.2% over 3 layers."""
    low, high = (change_words(finding[end]) for end in ("low", "high"))
    known = f", {low} to {high} over {finding['over']}" if finding["over"] else ""
    return f"{change_words(finding['change'])}{known}"


# ---------------------------------------------------------------------------------- how it is read


def _lines(
    done: str,
    rows: Any,
    metrics: Iterable[str] = JUDGED,
    *,
    after: int | None = None,
    each: str = "of them",
    against: Any = None,
    blind: str = "",
    words: str = "",
    reading: str = "",
) -> list[Finding]:
    """Findings of some conditions, one per metric; those that were not measured are left out.

    Args:
        done: what was done.
        rows: theirs, of `changed`.
        metrics: names of metrics.
        after: the ME Layer; a single condition's range is over the layers after it.
        each: what several conditions are; their range is over these.
        against: rows of the controls; None: nothing is to be read off.
        blind: why no difference could have been seen.
        words: what to call the metric, if not as usual.
        reading: what is to be read off, where that is known.
    """
    found = []
    for metric in metrics:
        own = rows[(rows["metric"] == metric) & rows["value"].notna()]
        means = overall(own)
        if not len(means):
            continue
        before, now, change = (
            float(mean) if math.isfinite(mean := means[key].mean()) else None
            for key in ("before", "value", "change")
        )
        later = own[own["layer"].fillna(OVERALL) > (OVERALL if after is None else after)]
        whole = None if words else before  # in other terms it is not the intact model's
        line = Finding(
            experiment="",
            done=done,
            metric=words or metric_words(metric),
            before=before,
            now=now,
            change=change,
            **_range(means, each) if len(means) > 1 else _range(later, "layers"),
            reading=reading or _reading(metric, whole, change, against, blind),
        )
        found.append(line)
    return found


def _range(rows: Any, each: str) -> dict[str, Any]:
    changes = rows["change"]
    changes = changes[np.isfinite(changes)]  # half precision can overflow
    if len(changes) < 2:
        return {"low": None, "high": None, "over": ""}
    return {"low": changes.min(), "high": changes.max(), "over": f"{len(changes)} {each}"}


def _reading(
    metric: str, whole: float | None, change: float | None, against: Any, blind: str
) -> str:
    """What follows from a change beside its controls, of which the nearest draw counts."""
    if against is None:
        return f"{BLIND}: {blind}" if blind else ""
    if metric == "sink_mass" and whole is not None and whole < FEW_SINKS:
        blind = blind or "there is no sink mass to lose on these texts"
    if blind or change is None:
        return f"{BLIND}: {blind or 'nothing to compare with'}"
    if abs(change) <= NEGLIGIBLE:
        return NONE
    controls = overall(against, metric).dropna(subset=["change"])
    if not len(controls):
        return "no control was measured"
    nearest = controls.loc[(controls["change"] / change).idxmax()]
    named = f"{_control_words(nearest)}, {change_words(nearest['change'])}"
    if nearest["change"] / change >= AS_MUCH:
        return f"not told apart from {named}"
    return f"told apart from every control; the nearest is {named}"


def _control_words(row: Any) -> str:
    if row["group"] == "other_layer":
        return f"layer {row['at']}'s FFN"
    draw = "" if pd.isna(row["seed"]) else f" (draw {row['seed']})"
    return f"{group_words(row['group'])}{draw}"


def _of(rows: Any, *groups: str) -> Any:
    return rows[rows["group"].isin(groups)]


# --------------------------------------------------------------------------------- the experiments


def _metrics(tables: Tables, report: MELayerReport) -> list[Finding]:
    tidy, me = tidy_layers(tables["layers"], report.layer), report.layer
    off: Any = _of(tidy, "intact").assign(before=math.nan, change=math.nan)
    shared = ("effective_rank", "anisotropy", "mean_cosine")
    on = _of(changed(tidy), "wemask")
    found = _lines("softening on", on, ("sink_mass", "sink_rate", *shared), after=me)
    found = found or _lines("as it is", off, ("sink_mass_first", "sink_rate_first", *shared))
    done, metric = "what attention reads, between inputs", "attention_input_rigidity"
    found += _lines(done, off, (metric,), words="cosine of massive tokens")
    found += _lines(done, off, (f"{metric}_ordinary",), words="cosine of ordinary tokens")
    own = off[off["layer"] == me].assign(layer=pd.NA)
    done = f"what layer {me} writes into massive tokens"
    return found + _lines(done, own, ("ffn_share",), words="its FFN's part")


def _necessity(tables: Tables, report: MELayerReport) -> list[Finding]:
    rows, me = changed(tables["necessity"]), report.layer
    writes = _of(rows, "ffn_output")["value"].notna().any()
    own, others = _of(rows, "ffn_output" if writes else "ffn_input"), _of(rows, "other_layer")
    nothing, half = own[own["amount"] == 0], own[own["amount"] == 0.5]
    name = f"layer {me}'s FFN {'writes' if writes else 'reads'}"
    moved = overall(nothing, SIZE)["change"].mean()
    stayed = f"the massive magnitude stayed ({change_words(moved)})" if moved > -NEGLIGIBLE else ""
    look: Any = {"after": me, "against": others, "blind": stayed}
    both = ("sink_mass", SIZE)
    return [
        *_lines(f"{name} nothing (c = 0)", nothing, (*both, *JUDGED[1:]), **look),
        *_lines(f"{name} half (c = 0.5)", half, both, after=me),
        *_lines("an FFN before it writes nothing", others[others["at"] < me], both, after=me),
        *_lines("an FFN after it writes nothing", others[others["at"] > me], both, after=me),
    ]


def _sufficiency(tables: Tables, report: MELayerReport) -> list[Finding]:
    """What is written back is told in parts of what the removal took, where it took anything."""
    table, me = tables["sufficiency"], report.layer
    whole = levels(table)
    lost = whole - levels(table, "removed")
    lost = lost.where(lost / whole.abs() > NEGLIGIBLE)
    rows, back = changed(table), changed(table, "removed", lost)
    again, other = _of(back, "restored"), _of(back, "other_dims")
    token = _of(changed(table, "other_token_before", lost), "other_token")
    grown: Any = overall(token, SIZE)
    still = (grown["value"] <= (1 + NEGLIGIBLE) * grown["before"]).any()
    none = ("sink_mass", OVERALL) not in lost.dropna()
    look: Any = {"against": other, "blind": "removing it lost no sink mass" if none else ""}
    part: Any = {"metrics": ("sink_mass",), "words": "sink mass, of what was lost", "after": me}
    full = _of(rows, "restored")
    return [
        *_lines("massive vector removed", _of(rows, "removed"), (SIZE, "sink_mass"), after=me),
        *_lines("massive vector written back", again[again["amount"] == 1], **part, **look),
        *_lines("massive vector written back", full[full["amount"] == 1], (SIZE,), after=me),
        *_lines("a part of it written back", again[again["amount"] < 1], each="parts", **part),
        *_lines("the same values on other dims", other, each="draws", **part),
        *_lines(
            "written to an ordinary token",
            token,
            blind="that token's magnitude did not grow" if still else "",
            **part,
        ),
    ]


def _location(tables: Tables, report: MELayerReport) -> list[Finding]:
    rows, me = changed(tables["location"]), report.layer
    places = _of(rows, "before", "at")  # random layers mostly come after, too: no other place
    done = "softened in all layers after the ME Layer"
    return [
        *_lines(done, _of(rows, "after"), after=me, against=places),
        *_lines("in the ME Layer", _of(rows, "at"), after=me),
        *_lines("in all layers before it", _of(rows, "before"), after=me),
        *_lines("in random layers, as many", _of(rows, "random_layers"), each="draws"),
        *_lines("in one layer alone", _of(rows, "one_layer"), each="layers tried"),
    ]


def _specificity(tables: Tables, report: MELayerReport) -> list[Finding]:
    rows, me = changed(tables["specificity"]), report.layer
    names = [name for name in dict.fromkeys(rows["group"]) if name not in ("intact", "wemask")]
    controls = _of(rows, *(name for name in names if name not in SET))
    found = _lines("the operator", _of(rows, "wemask"), after=me, against=controls)
    for name in names:
        found += _lines(group_words(name), _of(rows, name), JUDGED[:1], after=me, each="draws")
    return found


def _dose(tables: Tables, report: MELayerReport) -> list[Finding]:
    rows = _of(changed(tables["dose"]), "wemask")
    rate, strength = rows["rate"].max(), rows["amount"].max()
    most = rows[(rows["rate"] == rate) & (rows["amount"] == strength)]
    found = _lines(f"rate {rate:g}, strength {strength:g}", most, after=report.layer)
    for rate, own in rows.groupby("rate"):
        k = WeMaskConfig(rate=rate).budget(report.hidden_size)  # rates of one k are one dose
        done = f"rate {rate:g} ({k} of {report.hidden_size} dims)"
        found += _lines(done, own, ("sink_mass", "perplexity"), each="strengths")
    return found


def _quadratic(tables: Tables, _: MELayerReport) -> list[Finding]:
    tokens: Any = tables["quadratic"].assign(metric="", layer=pd.NA)
    seen, near = tokens["observed"].abs(), tokens["alignment"].abs()
    told = tokens["leading"].where(tokens["observed"] >= 0, -tokens["leading"])
    part = told / seen.where(seen > 0)
    both = tokens.assign(before=seen, value=told, change=part - 1)
    right = abs(part.mean() - 1) <= NEGLIGIBLE
    words: Any = {"words": "predicted part of what is written", "each": "tokens and dims"}
    words["reading"] = f"{'' if right else 'not '}predicted within {NEGLIGIBLE:.0%}"
    found = _lines(DIRECTION, both.assign(before=math.nan, value=part), ("",), **words)
    for dim, own in both.groupby("dim", sort=False):
        found += _lines(f"dim {dim}", own, ("",), words="written, then predicted", each="tokens")
    if (forms := tables.get("quadratic_dims")) is None:
        return found
    most = tokens["dim"].map(forms.set_index("dim")["ordinary_alignment_max"])
    lie = tokens.assign(before=most, value=near, change=(near - most) / most)
    closer = (near > most)[most.notna()].all()
    words["words"] = "cosine with it, of the nearest ordinary token and of massive ones"
    words["reading"] = "some ordinary token is as close as a massive one"
    if closer:
        words["reading"] = "every massive token is closer than any ordinary one"
    return found + _lines(DIRECTION, lie[most.notna()], ("",), **words)
