"""What the tables of an analysis allow one to say, in words, and nothing beyond.

The tables are measurements of one model on one fixed set of texts, not samples of a population:
there are no p-values. What counts as a change or as the same is said by the constants of
`analysis_rows.py`. The last sentence of each section is its reading; the verdict is made of these.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from wemask.analyse import cause_verdict, operator_verdict
from wemask.analyse.rows import (
    NEGLIGIBLE,
    from_to,
    has_rows,
    later_mean,
    layer_values,
    mean,
    metric_words,
    span_words,
)
from wemask.detection.me_layer import MELayerReport
from wemask.report.style import size_words

IN_VERDICT = ("necessity", "sufficiency", "specificity", "quadratic")

Tables = Mapping[str, pd.DataFrame]


def findings(tables: Tables, report: MELayerReport) -> dict[str, list[str]]:
    """Sentences per section: verdict, metrics, the five experiments, quadratic.

    Args:
        tables: by name, as the analysis wrote them; those that are missing or empty are left out.
        report: the detection of the same model.
    """
    sections: dict[str, Callable[[pd.DataFrame], list[str]]] = {
        "metrics": lambda t: _metrics(t, report.layer),
        "necessity": lambda t: cause_verdict.necessity(t, report.layer),
        "sufficiency": cause_verdict.sufficiency,
        "location": operator_verdict.location,
        "specificity": operator_verdict.specificity,
        "dose": lambda t: operator_verdict.dose(t, report.hidden_size),
        "quadratic": lambda t: _quadratic(t, tables.get("quadratic_dims")),
    }
    names = {"metrics": "layers"}
    found = {
        section: say(tables[names.get(section, section)])
        for section, say in sections.items()
        if has_rows(tables, names.get(section, section))
    }
    return {"verdict": _verdict(found, report), **found}


def _verdict(found: dict[str, list[str]], report: MELayerReport) -> list[str]:
    """Two to four sentences: the detection's answer, else the readings of the experiments."""
    readings = [found[name][-1] for name in IN_VERDICT if found.get(name)]
    if readings and report.layer is not None:
        return readings
    return [report.verdict, *found.get("metrics", [])[:2]]


# ------------------------------------------------------------------------- the model's own layers


def _metrics(layers: pd.DataFrame, me_layer: int | None) -> list[str]:
    sentences = []
    where = "all layers" if me_layer is None else "the layers after the ME Layer"
    names = ("sink_mass", "sink_rate", "effective_rank", "anisotropy", "mean_cosine")
    moved = []
    for name in names:
        off, on = (later_mean(layers, state, name, me_layer) for state in ("off", "on"))
        if math.isfinite(off) and math.isfinite(on):
            moved.append(f"{metric_words(name)} {from_to(off, on)}")
    if moved:
        sentences.append(f"With the softening on, as a mean over {where}: {'; '.join(moved)}.")
    else:
        sentences += _unsoftened(layers, where, me_layer)
    names = ("attention_input_rigidity", "attention_input_rigidity_ordinary")
    massive, ordinary = (later_mean(layers, "off", name, me_layer) for name in names)
    if math.isfinite(massive):
        sentences.append(
            f"Between inputs, what attention reads of massive tokens has a mean cosine of "
            f"{massive:.3f}, of ordinary tokens {ordinary:.3f}."
        )
        sentences.append(
            "A first token sees no other token, so its state is the same in every input by "
            "construction: this cosine says something only of massive tokens at other places."
        )
    share = _at_layer(layers, "ffn_share", me_layer)
    if math.isfinite(share):
        sentences.append(
            f"Of what layer {me_layer} writes into massive tokens, its FFN wrote {share:.0%}."
        )
    return sentences or ["None of the metrics applies to this model and these texts."]


def _unsoftened(layers: pd.DataFrame, where: str, me_layer: int | None) -> list[str]:
    """What holds of a model that was not softened: the first token's sink, and diversity."""
    names = ("sink_mass_first", "sink_rate_first", "effective_rank", "anisotropy", "mean_cosine")
    means = {name: later_mean(layers, "off", name, me_layer) for name in names}
    known = [f"{metric_words(n)} {v:.3g}" for n, v in means.items() if math.isfinite(v)]
    return [f"As a mean over {where}: {', '.join(known)}."] if known else []


def _at_layer(layers: pd.DataFrame, column: str, layer: int | None) -> float:
    places, numbers = layer_values(layers, "off", column)
    return mean([n for p, n in zip(places, numbers, strict=True) if p == layer])


# -------------------------------------------------------------------------------- quadratic form


def _quadratic(rows: pd.DataFrame, dims: pd.DataFrame | None) -> list[str]:
    sentences = [] if dims is None else [_form_words(row) for row in dims.to_dict("records")]
    ratios = {}
    for dim in dict.fromkeys(rows["dim"]):
        own: Any = rows[rows["dim"] == dim]
        observed = float(own["observed"].sum())
        ratios[dim] = float(own["leading"].sum()) / observed if observed else math.nan
    known = [v for v in ratios.values() if math.isfinite(v)]
    if not known:
        return [*sentences, "The form could not be held against what the FFN writes."]
    span = span_words([f"{v:.0%}" for v in (min(known), max(known))])
    if all(abs(v - 1) <= NEGLIGIBLE for v in known):
        reading = (
            "By the quadratic form, one direction per massive dim predicts what the FFN writes "
            f"within {NEGLIGIBLE:.0%} ({span}, summed over the massive tokens)"
        )
    else:
        reading = (
            f"By the quadratic form, one direction per massive dim predicts {span} of what the FFN "
            "writes, summed over the massive tokens"
        )
    return [*sentences, f"{reading}{_alignment_words(rows, dims)}."]


def _form_words(row: Mapping[Any, Any]) -> str:
    words = (
        f"Dim {row['dim']}: the leading eigenvalue, {size_words(row['eigenvalue'])}, holds "
        f"{row['share']:.0%} of the form's squared norm; massive tokens lie to its direction at a "
        f"mean cosine of {row['massive_alignment']:.2f}"
    )
    usual, most = row["ordinary_alignment"], row["ordinary_alignment_max"]
    if usual is not None and math.isfinite(usual):
        words += f", ordinary ones at {usual:.2f}, at most {most:.2f}"
    return (
        f"{words}. The pair alone gives {row['leading_over_observed']:.0%} of what is observed, "
        f"the whole form {row['whole_over_observed']:.0%}."
    )


def _alignment_words(rows: pd.DataFrame, dims: pd.DataFrame | None) -> str:
    """Whether every massive token lies closer to the direction than any ordinary one."""
    if dims is None:
        return ""
    most = dict(zip(dims["dim"], dims["ordinary_alignment_max"], strict=True))
    pairs = [(abs(a), most.get(d)) for d, a in zip(rows["dim"], rows["alignment"], strict=True)]
    known = [(a, m) for a, m in pairs if m is not None and math.isfinite(m)]
    if not known:
        return ""
    if all(a > m for a, m in known):
        return ", and every massive token lies closer to it than any ordinary one"
    return ", but some ordinary token lies as close to it as a massive one"
