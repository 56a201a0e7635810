"""Figures of the detection: magnitudes by layer, and the layer x dimension relief of the paper.

Every function is pure and returns a matplotlib `Figure` (object API, no pyplot, no global state).
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from wemask.detection.me_layer import MELayerReport
from wemask.report import style
from wemask.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, WIDTH

DIM_COLOURS = (RED, PURPLE, ORANGE, GREEN)  # the four strongest massive dims, strongest first
MAX_BINS = 256  # more columns than this cannot be told apart on paper or screen


@style.styled
def magnitude_by_layer(report: MELayerReport) -> Figure:
    """Largest and median abs(h) per layer and their ratio (log axes), with the ME Layer marked.

    Layer -1, the embedding output, is drawn as "emb". Dashed lines are the criterion's thresholds.
    """
    rows, criterion = report.layers, report.criterion
    x = [row.layer for row in rows]
    largest, median = style.drawable(r.max for r in rows), style.drawable(r.median for r in rows)
    figure, (top, bottom) = style.panels(5.2, 2, sharex=True, height_ratios=(1.15, 1))
    look: dict[str, Any] = {"marker": "o", "markersize": 5 if len(rows) < 20 else 3}
    top.plot(x, largest, color=RED, label="largest abs(h)", **look)
    top.plot(x, median, color=GREY, label="median abs(h)", **look)
    top.fill_between(x, median, largest, color=RED, alpha=0.07, linewidth=0)
    bottom.plot(
        x, style.drawable(r.ratio for r in rows), color=BLUE, label="largest / median", **look
    )
    look = {"color": INK, "linewidth": 1.1, "linestyle": (0, (4, 3))}
    if criterion.min_magnitude > 0:
        top.axhline(criterion.min_magnitude, **look)
    words = "\n".join(textwrap.wrap(f"criterion: {criterion.describe()}", 38))
    bottom.axhline(criterion.min_ratio, label=words, **look)
    top.set_ylabel("abs(h)")
    bottom.set(ylabel="largest / median", xlabel="output of decoder layer")
    _mark_layers((top, bottom), report)
    style.layer_axis((top, bottom), x)
    style.log_axis(top)
    style.log_axis(bottom)
    figure.legend(loc="outside lower left", ncols=2)
    return style.titled(figure, _magnitude_title(report))


def _magnitude_title(report: MELayerReport) -> str:
    if not report.found or report.layer is None:
        best = max(report.layers, key=lambda row: row.ratio)
        where = "the embedding output" if best.layer < 0 else f"layer {best.layer}"
        size = style.size_words(best.ratio)
        return f"No massive activation: the largest ratio is {size}, at {where}"
    ratio = next(row.ratio for row in report.layers if row.layer == report.layer)
    erased = report.erased_at
    end = "lasts to the end" if erased is None else f"is erased by layer {erased}"
    return (
        f"The massive activation is born in layer {report.layer} "
        f"({style.size_words(ratio)} times the median) and {end}"
    )


def _mark_layers(panels: Sequence[Axes], report: MELayerReport) -> None:
    """Shade the ME Layer and the layer that erases; the labels stand above the upper panel."""
    places, first = range(len(report.layers)), report.layer
    if first is not None:
        style.mark_layer(panels, first, f"ME Layer {first}", places)
    if (erased := report.erased_at) is not None:
        crowded = first is not None and abs(erased - first) < 0.25 * max(places[-1], 1)
        up = 15 if crowded else 3
        style.mark_layer(panels, erased, f"erased in {erased}", places, PURPLE, up)


@style.styled
def relief(report: MELayerReport) -> Figure:
    """The layer x dimension relief: abs(h) of the strongest token, one curtain per layer.

    Expects `report.relief` of shape [layers + 1, D], row 0 the embedding output. More than 256
    dimensions are max-pooled into at most 256 columns, so no peak is lost. Raises ValueError when
    the report carries no relief (one that was read from a file).
    """
    if report.relief is None:
        raise ValueError("this report carries no relief (it is not saved); run detect again")
    heights = np.asarray(report.relief.detach().float().cpu().numpy(), dtype=float)
    pooled, edges = pool_dims(heights)
    figure = Figure(figsize=(WIDTH, 4.5))
    figure.set_layout_engine("none")  # constrained layout does not know 3D axes
    box = (-0.08, 0.0, 1.04, 0.98)  # 3D axes leave wide margins inside their box
    axes: Any = figure.add_axes(box, projection="3d", computed_zorder=False)
    dims = report.dims if report.found else [int(heights.max(axis=0).argmax())]
    _draw_curtains(axes, pooled, edges, report.layer)
    _draw_ridges(axes, heights, dims)
    rows, width = heights.shape
    axes.set(xlabel="hidden dimension", ylabel="layer")
    axes.set(xlim=(0, width), ylim=(rows - 1.5, -1.5), zlim=(0, max(heights.max() * 1.05, 1e-6)))
    _relief_look(axes, len(dims) - len(DIM_COLOURS))
    return style.titled(figure, _relief_title(report, heights))


def pool_dims(heights: np.ndarray, bins: int = MAX_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Max-pool [rows, D] into at most `bins` columns; return it and the columns' edges (in dims).

    Every column keeps its largest value, so no peak is lost.

    >>> pooled, edges = pool_dims(np.array([[1.0, 9.0, 2.0, 3.0]]), bins=2)
    >>> pooled.tolist(), edges.tolist()
    ([[9.0, 3.0]], [0, 2, 4])
    """
    width = heights.shape[1]
    edges = np.round(np.linspace(0, width, min(bins, width) + 1)).astype(int)
    return np.maximum.reduceat(heights, edges[:-1], axis=1), edges


def _draw_curtains(axes: Any, pooled: np.ndarray, edges: np.ndarray, me_layer: int | None) -> None:
    """One filled outline per layer, far to near, so that each hides what lies behind it."""
    rows = len(pooled)
    shades = mpl.colormaps["cividis"](np.linspace(0.15, 0.8, rows))
    x = np.repeat(edges, 2).astype(float)
    for row in range(rows):
        look: dict[str, Any] = {"color": [shades[row]], "linewidths": 0.8}
        if row - 1 == me_layer:
            look = {"color": [BLUE], "linewidths": 1.6, "label": f"ME Layer {me_layer}"}
        outline = np.column_stack([x, np.r_[0.0, np.repeat(pooled[row], 2), 0.0]])
        # in an SVG, thousands of tiny edges become one picture
        curtain = PolyCollection([outline], rasterized=True, **look)
        axes.add_collection3d(curtain, zs=row - 1, zdir="y")
        curtain.set_zorder(2 * row)


def _draw_ridges(axes: Any, heights: np.ndarray, dims: Sequence[int]) -> None:
    """Follow the four strongest massive dims through the layers, and name each where it is born."""
    rows, width = heights.shape
    layers = np.arange(rows) - 1
    peak = max(float(heights.max()), 1e-6)
    named: list[tuple[float, float]] = []
    for dim, colour in zip(dims, DIM_COLOURS, strict=False):
        track, top = heights[:, dim], float(heights[:, dim].max())
        label = f"dim {dim}, up to {style.size_words(top)}"
        wall = np.column_stack([np.r_[-1, layers, rows - 2], np.r_[0, track, 0]])
        shade = PolyCollection([wall], facecolors=[colour], alpha=0.15, linewidths=0)
        axes.add_collection3d(shade, zs=dim + 0.5, zdir="x")
        shade.set_zorder(2 * rows)
        look: dict[str, Any] = {"color": colour, "linewidth": 1.6, "zorder": 2 * rows}
        axes.plot(np.full(rows, dim + 0.5), layers, track, label=label, **look)
        born = int(np.argmax(track >= 0.9 * top))
        place = (dim / width, top / peak)
        if any(abs(place[0] - x) < 0.2 and abs(place[1] - z) < 0.3 for x, z in named):
            continue  # two names would lie on each other; the legend has it
        named.append(place)
        look = {"fontsize": 9, "fontweight": "bold", "zorder": 2 * rows + 1}
        look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
        at = (dim + 0.5, born - 1, 1.03 * track[born])
        axes.text(*at, f"dim {dim}", ha="center", va="bottom", **look)


def _relief_look(axes: Any, hidden_dims: int) -> None:
    axes.view_init(elev=22, azim=-56)
    axes.set_box_aspect((1.35, 1.15, 0.8), zoom=1.02)
    axes.zaxis.set_rotate_label(False)
    axes.set_zlabel("abs(h)", rotation=90)
    for axis, bins in ((axes.xaxis, 5), (axes.yaxis, 7), (axes.zaxis, 5)):
        axis.set_major_locator(MaxNLocator(integer=axis is not axes.zaxis, nbins=bins))
        axis.pane.set(facecolor="#FAFAFA", edgecolor="#DDDDDD")
    axes.yaxis.set_major_formatter(style.layer_name)
    more = f"and {hidden_dims} more massive dims" if hidden_dims > 0 else None
    axes.legend(loc="upper right", bbox_to_anchor=(1.02, 0.93), title=more)


def _relief_title(report: MELayerReport, heights: np.ndarray) -> str:
    width = heights.shape[1]
    if not report.found or not report.dims:
        return f"No dimension of {width} stands out by the criterion in any layer"
    count = len(report.dims)
    which = f"{count} of {width} dimensions " + ("carry" if count > 1 else "carries")
    token = f" of {report.tokens[0].string!r}" if report.tokens else ""
    return f"{which} the massive activation{token}, from layer {report.layer} on"
