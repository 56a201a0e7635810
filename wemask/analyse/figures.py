"""The figures of an analysis, each with what a reader needs who cannot see it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from wemask.analyse import cause_plots as experiment_plots
from wemask.analyse import model_plots as analysis_plots
from wemask.analyse import operator_plots
from wemask.analyse.rows import (
    from_to,
    group_words,
    has_rows,
    intact,
    later_mean,
    layer_values,
    metric_words,
    span_words,
    values,
)
from wemask.detection.me_layer import MELayerReport
from wemask.report import plots
from wemask.report.figures import ReportFigure, described
from wemask.report.softening_plots import SINK, has_sink_maps, sink_maps, sink_words
from wemask.report.style import size_words

CAPTIONS = {
    "diversity": "How many directions the tokens of a text use in what attention reads: effective "
    "rank (exp of the matrix entropy), share of the energy in the leading direction, and mean "
    "cosine between tokens. Means over texts.",
    "rigidity": "Above: cosine of a massive token's state with its own a layer before. Below: mean "
    "cosine between massive tokens of all inputs in what attention reads, and the same between "
    "ordinary tokens. A token that is first sees no other, and so is the same in every input by "
    "construction.",
    "sinks": "Sink mass: attention that later tokens pay to massive ones, mean over heads. Sink "
    f"rate: share of (token, head) pairs above {SINK}. Diamonds: the first token, massive or not.",
    "writes": "Share of what each layer writes into massive tokens that its attention and its FFN "
    "wrote; they add up to 1, and one that works against the other is below 0.",
    "necessity": "What the ME Layer's FFN reads (circles) or writes (squares) for massive tokens, "
    "multiplied by c; dotted: intact. Triangles: what another layer's FFN writes, taken away.",
    "sufficiency": "The massive vector removed, written back at a part of its size, and the same "
    "values on other dims (one point per draw) or on an ordinary token, which is then the one that "
    "is measured. Dotted lines: intact and removed.",
    "location": "Change against intact. Left: one layer softened alone. Right: all layers before "
    "the ME Layer, the ME Layer, all layers after it, and as many random layers (one ring per "
    "draw).",
    "specificity": "Change against intact. Rings are draws and bars their means; the grey band "
    "spans all draws of the controls that are drawn.",
    "dose": "Means over the layers after the ME Layer. Colours show the change against intact, "
    "orange below it and violet above, on a scale of its own in each panel.",
    "quadratic": "Above: what the form, its leading pair alone and the FFN's own formula predict "
    "for each massive token and dim. Below: how closely tokens lie to the leading direction; bars "
    "span ordinary tokens from their mean to the largest.",
}
Tables = Mapping[str, pd.DataFrame]


def build_analysis_figures(
    tables: Tables, report: MELayerReport, softened: Sequence[int] = ()
) -> list[ReportFigure]:
    """All figures of an analysis, in reading order.

    Args:
        tables: by name; those that are missing or empty have no figure.
        report: the detection, with its relief if that is in memory.
        softened: the layers that the operator softened, to be marked in the sink maps.
    """
    figures = _where_it_lives(report)
    if has_rows(tables, "layers"):
        figures += _metric_figures(tables["layers"], report.layer, softened)
    draw: dict[str, Callable[[pd.DataFrame], Figure]] = {
        "necessity": lambda table: experiment_plots.necessity(table, report.layer),
        "sufficiency": experiment_plots.sufficiency,
        "location": lambda table: experiment_plots.location(table, report.layer),
        "specificity": operator_plots.specificity,
        "dose": operator_plots.dose,
    }
    for name, drawn in draw.items():
        if has_rows(tables, name):
            figures.append(_figure(name, name, drawn(tables[name]), _numbers(tables[name])))
    if has_rows(tables, "quadratic"):
        rows, dims = (_records(tables, name) for name in ("quadratic", "quadratic_dims"))
        figure = analysis_plots.quadratic(rows, dims)
        figures.append(_figure("quadratic", "quadratic", figure, _form_numbers(rows)))
    return figures


def _figure(name: str, section: str, figure: Figure, numbers: str) -> ReportFigure:
    return described(name, section, figure, CAPTIONS[name], numbers)


def _where_it_lives(report: MELayerReport) -> list[ReportFigure]:
    caption = (
        "Largest and median magnitude of the hidden state after every layer, over all calibration "
        "texts. Vertical axes are logarithmic; emb is the embedding output."
    )
    figure = plots.magnitude_by_layer(report)
    found = [described("magnitude_by_layer", "layers", figure, caption)]
    if report.relief is not None:
        caption = (
            "The hidden state of the strongest token: one curtain per layer, the embedding output "
            "at the back. The walls follow the massive dimensions through the layers."
        )
        found.append(described("relief", "layers", plots.relief(report), caption))
    return found


def _metric_figures(
    layers: pd.DataFrame, me_layer: int | None, softened: Sequence[int]
) -> list[ReportFigure]:
    figures = []
    for name, column in (
        ("sinks", "sink_mass"),
        ("diversity", "effective_rank"),
        ("rigidity", "attention_input_rigidity"),
        ("writes", "ffn_share"),
    ):
        _, numbers = layer_values(layers, "off", column)
        known = any(map(math.isfinite, numbers))
        if known or name in ("sinks", "diversity"):
            figure = getattr(analysis_plots, name)(layers, me_layer)
            figures.append(_figure(name, "metrics", figure, _means(layers, column, me_layer)))
    return figures + _maps(layers, softened)


def _means(layers: pd.DataFrame, column: str, me_layer: int | None) -> str:
    off, on = (later_mean(layers, state, column, me_layer) for state in ("off", "on"))
    words = metric_words(column)
    if not math.isfinite(off):
        return f"{words}: not measured"
    if not math.isfinite(on):
        return f"{words} {size_words(off)}, mean over layers"
    return f"{words}, softening off to on: {from_to(off, on)}, mean over layers"


def _maps(layers: pd.DataFrame, softened: Sequence[int]) -> list[ReportFigure]:
    """Sink maps by head, where both states were measured."""
    metrics: Any = {
        state: [
            {"layer": row["layer"], "sink_mass_by_head": _list(row.get("sink_mass_by_head"))}
            for row in layers[layers["state"] == state].sort_values("layer").to_dict("records")  # pyright: ignore
        ]
        for state in ("off", "on")
    }
    if not metrics["off"] or not metrics["on"] or not has_sink_maps(metrics):
        return []
    bar = " The blue bar beside the right map marks the softened layers." if softened else ""
    caption = (
        "Sink mass of every head: the mean attention that later tokens give to the massive ones. "
        f"The sink rate here is the share of (layer, head) pairs above {SINK}.{bar}"
    )
    softening: Any = {"metrics": metrics, "layers": list(softened)}
    figure = sink_maps(softening)
    return [described("sink_maps", "metrics", figure, caption, sink_words(metrics))]


def _list(value: Any) -> list[float] | None:
    """A table's cell as a list; parquet hands back arrays."""
    return None if value is None or isinstance(value, float) else [float(v) for v in value]


def _numbers(table: pd.DataFrame) -> str:
    """Sink mass and perplexity of the groups of an experiment, in words."""
    groups = [g for g in dict.fromkeys(table["group"]) if g != "intact"]
    parts = []
    for metric in ("sink_mass", "perplexity"):
        known = [(g, values(table, metric, g)) for g in groups]
        found = [f"{group_words(g)} {_range_words(v)}" for g, v in known if v]
        whole = intact(table, metric)
        start = f", intact {size_words(whole)}" if math.isfinite(whole) else ""
        if found:
            parts.append(f"{metric_words(metric)}{start}: {', '.join(found)}")
    return "; ".join(parts)


def _range_words(numbers: Sequence[float]) -> str:
    return span_words([size_words(n) for n in (min(numbers), max(numbers))])


def _records(tables: Tables, name: str) -> list[dict[str, Any]]:
    if not has_rows(tables, name):
        return []
    frame = tables[name].astype(object)
    records: Any = frame.where(frame.notna(), None).to_dict("records")
    return records


def _form_numbers(rows: Sequence[Mapping[str, Any]]) -> str:
    dims = list(dict.fromkeys(row["dim"] for row in rows))
    parts = []
    for dim in dims:
        own = [row for row in rows if row["dim"] == dim]
        seen, said = (_range_words([row[key] for row in own]) for key in ("observed", "leading"))
        parts.append(f"dim {dim}: observed {seen}, by the leading pair {said}")
    return "; ".join(parts)
