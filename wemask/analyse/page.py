"""Facts and tables of an analysis -> analysis.html, one page that can be sent to a colleague."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, TypedDict

import pandas as pd

from wemask.analyse.findings import AS_MUCH, NEGLIGIBLE, Finding, headlines, sentence
from wemask.analyse.rows import change_words, group_words, has_rows, metric_words, overall
from wemask.detection.me_layer import MELayerReport
from wemask.report.figures import ReportFigure
from wemask.report.page import render


class Cost(TypedDict):
    """What one part of the analysis took."""

    part: str  # "detection", "necessity", ...
    seconds: float
    forwards: int | None  # forward passes, of batches
    peak_memory: int | None  # bytes; None where it was not measured
    device: str  # "cpu, 1 thread", "cuda:0 NVIDIA H100"


class AnalysisFacts(TypedDict):
    """All that the page says beside tables and figures."""

    model: dict[str, Any]  # name (as asked for), path (loaded from), parameters, dtype
    command: str  # that makes this analysis again
    created: str  # ISO 8601, with the time zone
    machine: str  # system, cores, GPUs
    wemask_version: str
    versions: dict[str, str]  # package -> version
    settings: dict[str, Any]  # of texts, operator and experiments, plain values for YAML
    texts: dict[str, Any]  # description, count, tokens (real ones), massive_tokens (of these)
    costs: list[Cost]
    impossible: list[dict[str, str]]  # experiment, condition, reason (the error's own words)
    notes: list[str]  # what a reader must know first; [] for none
    findings: list[Finding]  # of `findings.findings`, in the order of the page
    me_layer: dict[str, Any]  # `MELayerReport.to_dict()`
    files: list[str]  # written beside the page: "tables/necessity.parquet", ...


class Question(NamedTuple):
    """A section of the page that asks one question."""

    question: str
    did: str  # what was done, in one sentence
    amount: str = "strength"  # what the column `amount` of its table holds


QUESTIONS = {
    "necessity": Question(
        question="Do the sinks need what the ME Layer writes?",
        did="For massive tokens alone, what the ME Layer's FFN reads or writes was multiplied by "
        "c, all else as it was; as a control, what the FFN of another layer writes was taken away.",
        amount="c",
    ),
    "sufficiency": Question(
        question="Is the massive vector enough to bring them back?",
        did="The ME Layer's FFN was kept from writing into the massive tokens, and the mean "
        "massive vector was then set in their residual stream, at parts of its size; as controls, "
        "the same values on as many other dims, and on the first ordinary token of each text.",
        amount="part",
    ),
    "location": Question(
        question="Does it matter where the softening is?",
        did="The massive tokens' attention input was softened on the same dims in one layer at a "
        "time, and in groups of layers.",
    ),
    "specificity": Question(
        question="Is the softening specific?",
        did="The operator stood beside controls of the same budget that change one choice each: "
        "other dims, another token, other layers, or the residual stream itself.",
    ),
    "dose": Question(
        question="How much softening does how much?",
        did="The operator was run at every pair of rate (share of dims) and strength.",
    ),
    "quadratic": Question(
        question="Do the FFN's weights foretell it?",
        did="From gate, up and down of the ME Layer's FFN follows a quadratic form of its input "
        "for each massive dim (arXiv 2603.05498); its prediction was held against what the FFN "
        "wrote.",
    ),
}
COLUMNS = {"at": "layer", "amount": "", "rate": "rate", "seed": "draw"}
FORM_COLUMNS = {
    "dim": "dim",
    "eigenvalue": "eigenvalue",
    "share": "share of norm",
    "massive_alignment": "massive tokens: cosine",
    "ordinary_alignment": "ordinary: mean",
    "ordinary_alignment_max": "ordinary: largest",
    "leading_over_observed": "pair / observed",
    "whole_over_observed": "form / observed",
}


def render_analysis(
    facts: AnalysisFacts, tables: Mapping[str, pd.DataFrame], figures: Sequence[ReportFigure]
) -> str:
    """Render the analysis as one page that loads nothing: style and figures are inside."""
    report = MELayerReport.from_dict(facts["me_layer"])
    sections = [_section(name, facts, tables) for name in QUESTIONS]
    return render(
        "analysis.html",
        report,
        figures,
        facts=facts,
        me=report,
        number=number,
        change=change_words,
        answers=[sentence(finding, short=True) for finding in headlines(facts["findings"])],
        sections=[section for section in sections if section["deeds"] or section["impossible"]],
        deeds=_deeds("metrics", facts),
        metrics=layer_summary(tables["layers"]) if has_rows(tables, "layers") else None,
        total=sum(cost["seconds"] for cost in facts["costs"]),
        negligible=NEGLIGIBLE,
        as_much=AS_MUCH,
    )


def _deeds(name: str, facts: AnalysisFacts) -> list[list[Finding]]:
    """The findings of an experiment, together by what was done."""
    own = (finding for finding in facts["findings"] if finding["experiment"] == name)
    return [list(lines) for _, lines in groupby(own, key=itemgetter("done"))]


def _section(name: str, facts: AnalysisFacts, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What the template reads of one question."""
    summary, shown = None, "quadratic_dims" if name == "quadratic" else name
    if has_rows(tables, shown):
        own, amount = tables[shown], QUESTIONS[name].amount
        summary = condition_summary(own, amount) if shown == name else form_summary(own)
    return {
        "name": name,
        "about": QUESTIONS[name],
        "deeds": _deeds(name, facts),
        "summary": summary,
        "impossible": [row for row in facts["impossible"] if row["experiment"] == name],
    }


Summary = dict[str, list[Any]]
"""A table in words: `head`, the names of its columns, and `rows`."""


def condition_summary(table: pd.DataFrame, amount: str) -> Summary:
    """Conditions by metrics, of the rows without a layer.

    Columns that say the same of all conditions (nothing) are left out.
    """
    rows = overall(table)
    names = {**COLUMNS, "amount": amount}
    used = [key for key in names if rows[key].notna().any()]
    metrics = sorted(dict.fromkeys(rows["metric"]), key="perplexity".__eq__)
    words = []
    for (group, *parts), own in rows.groupby(["group", *used], sort=False, dropna=False):
        values = dict(zip(own["metric"], own["value"], strict=True))
        what = ["" if pd.isna(part) else f"{part:g}" for part in parts]
        words.append([group_words(group), *what, *(number(values.get(m)) for m in metrics)])
    head = ["condition", *(names[key] for key in used), *map(metric_words, metrics)]
    return {"head": head, "rows": words}


def layer_summary(layers: pd.DataFrame) -> Summary:
    """Every metric of every layer, softening off and on; lists are left out."""
    columns = [c for c in layers if c not in ("state", "layer", "sink_mass_by_head")]
    ordered = layers.sort_values(["layer", "state"])
    return {
        "head": ["layer", "softening", *(str(c).replace("_", " ") for c in columns)],
        "rows": [
            [str(row["layer"]), row["state"], *(number(row[c]) for c in columns)]
            for row in ordered.to_dict("records")
        ],
    }


def form_summary(dims: pd.DataFrame) -> Summary:
    """The quadratic form of every massive dim."""
    used = [c for c in FORM_COLUMNS if c in dims]
    rows = [[number(row[c]) for c in used] for row in dims.to_dict("records")]
    return {"head": [FORM_COLUMNS[c] for c in used], "rows": rows}


def number(value: Any) -> str:
    """Four digits, no exponent; "-" for what was not measured.

    >>> number(0.27949), number(123456.0), number(None)
    ('0.2795', '123,456', '-')
    """
    if value is None or pd.isna(value):
        return "-"
    if math.isinf(value):
        return "infinite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
