"""The layer x dimension relief: abs(h) of the strongest token, as the paper draws it."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from wemask.detection.me_layer import MELayerReport
from wemask.report.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    WIDTH,
    layer_name,
    size_words,
    styled,
    titled,
)

DIM_COLOURS = (RED, PURPLE, ORANGE, GREEN)  # the four strongest massive dims, strongest first
MAX_BINS = 256  # more columns than this cannot be told apart on paper or screen


@styled
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
    return titled(figure, _relief_title(report, heights))


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
        label = f"dim {dim}, up to {size_words(top)}"
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
    axes.yaxis.set_major_formatter(layer_name)
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
