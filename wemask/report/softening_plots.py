"""What softening does to the model: magnitudes and sinks by layer, and sinks by head."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.compare.results import SofteningMetrics, SofteningRecord
from wemask.report import style
from wemask.report.style import BLUE, INK, ORANGE, PURPLE

SINK = 0.3
"""A (layer, head) pair with more sink mass than this counts as a sink (arXiv 2410.10781)."""
SIDES: tuple[Literal["off", "on"], ...] = ("off", "on")
COLOURS = "cividis"  # perceptually uniform, the same to readers of any colour vision
MOST_NUMBERS = 6  # heads; with more, a number does not fit into its cell
FEW = 20  # layers that have room for large markers
LOOKS: dict[str, tuple[str, str, Any]] = {
    "softening off": (INK, "o", "-"),
    "softening on": (BLUE, "s", (0, (4, 2))),
    "first token off": (PURPLE, "D", (0, (1, 1.5))),
    "ordinary tokens off": (ORANGE, "^", (0, (1, 1.5))),
    "FFN off": (BLUE, "o", "-"),
    "FFN on": (BLUE, "s", (0, (4, 2))),
    "attention off": (ORANGE, "^", "-"),
    "attention on": (ORANGE, "v", (0, (4, 2))),
}
"""Line over layers -> colour, marker, dashes."""


# ------------------------------------------------------------------------------------ by layer


@style.styled
def softening_effect(metrics: SofteningMetrics) -> Figure:
    """Massive magnitude and sink mass per layer, softening off and on, on the same texts.

    `metrics` is `results["softening"]["metrics"]`. A value of None leaves a gap.
    """
    figure, (top, bottom) = style.panels(4.6, 2, sharex=True)
    rows = _tidy(metrics)
    layer_lines(top, rows.assign(value=style.drawable(rows["massive_max"])))
    layer_lines(bottom, rows.assign(value=rows["sink_mass"]))
    top.set_ylabel("massive abs(h)")
    style.log_axis(top)
    bottom.set(ylabel="sink mass", xlabel="decoder layer", ylim=(-0.03, 1.03))
    style.layer_axis((top, bottom), sorted(set(rows["layer"])))
    style.one_legend(figure, (top, bottom))
    return style.titled(figure, _softening_title(rows))


def layer_lines(axes: Axes, rows: Any) -> None:
    """Draw `value` over `layer`, one line for each `line` of `LOOKS`; NaN leaves a gap."""
    size = 6.5 if rows["layer"].nunique() < FEW else 3
    look: Any = {"fillstyle": "none", "markeredgewidth": 1.5, "markersize": size}
    for name, (colour, marker, dashes) in LOOKS.items():
        if len(own := rows[rows["line"] == name].sort_values("layer")):
            look |= {"color": colour, "marker": marker, "linestyle": dashes, "label": name}
            axes.plot(own["layer"], own["value"], **look)


def _tidy(metrics: SofteningMetrics) -> Any:
    """One row for each layer, softening off and on; NaN where nothing was measured."""
    rows = [{**row, "line": f"softening {side}"} for side in SIDES for row in metrics[side]]
    return pd.DataFrame(rows).astype({"massive_max": float, "sink_mass": float})


def _softening_title(rows: Any) -> str:
    sides = [rows[rows["line"] == f"softening {side}"] for side in SIDES]
    off, on = (side["massive_max"].max() for side in sides)
    magnitude = moved_words("the massive activation", off, on, style.size_words)
    off, on = (side["sink_mass"].mean() for side in sides)
    return (
        f"Softening {magnitude} and {moved_words('the mean sink mass', off, on, '{:.2f}'.format)}"
    )


def moved_words(what: str, off: float, on: float, words: Callable[[float], str]) -> str:
    """Say how `on` compares with `off`; a change within 5% is none."""
    if math.isnan(off) or math.isnan(on):
        return f"was not measured on {what}"
    if math.isclose(off, on, rel_tol=0.05):
        return f"leaves {what} at {words(on)}"
    return f"{'lowers' if on < off else 'raises'} {what} from {words(off)} to {words(on)}"


# ------------------------------------------------------------------------------------- by head


@style.styled
def sink_maps(softening: SofteningRecord) -> Figure:
    """Sink mass of every (layer, head), softening off and on side by side, on one colour scale.

    `softening` is `results["softening"]`. A bar marks the softened layers, a line in the scale the
    mass above which a pair counts as a sink. Layers that were not measured are hatched.

    Raises:
        ValueError: no layer was measured by head (see `has_sink_maps`).
    """
    if not has_sink_maps(softening["metrics"]):
        raise ValueError("no layer holds sink_mass_by_head; run `python evaluate.py` again")
    maps = _sink_maps(softening["metrics"])
    figure, panels = style.panels(min(2.3 + 0.24 * len(maps[0]), 6.4), 1, 2, sharey=True)
    rates = []
    for axes, side, sinks in zip(panels, SIDES, maps, strict=True):
        _draw_map(axes, sinks)
        count, pairs = sink_count(sinks)
        rates.append(count / pairs if pairs else math.nan)
        rate = f"{rates[-1]:.0%} of {pairs} pairs" if pairs else "not measured"
        axes.set_title(f"softening {side}\nsink rate {rate}", fontsize=9.5, loc="left")
    panels[0].set_ylabel("decoder layer")
    _mark_softened(panels[1], softening["layers"])
    look: Any = {"orientation": "horizontal", "aspect": 40, "shrink": 0.9}
    scale = figure.colorbar(panels[0].images[0], ax=panels, **look)
    scale.set_label(f"sink mass (share of attention; a sink is above {SINK}, the line)")
    scale.ax.axvline(SINK, color="white", linewidth=4)
    scale.ax.axvline(SINK, color=INK, linewidth=1.5)
    off, on = rates
    moved = moved_words("the sink rate", off, on, "{:.0%}".format)
    return style.titled(figure, f"Softening {moved}")


def has_sink_maps(metrics: SofteningMetrics) -> bool:
    """Tell whether any layer was measured by head."""
    return any(row["sink_mass_by_head"] for side in SIDES for row in metrics[side])


def sink_count(sinks: np.ndarray) -> tuple[int, int]:
    """Pairs whose sink mass is above 0.3, and pairs that were measured, of a map [layers, heads].

    >>> sink_count(np.array([[0.3, 0.31], [0.9, math.nan]]))
    (2, 3)
    """
    return int((sinks > SINK).sum()), int(np.isfinite(sinks).sum())


def sink_words(metrics: SofteningMetrics) -> str:
    """The maps in a sentence, for readers who cannot see them."""
    return "; ".join(map(_side_words, SIDES, _sink_maps(metrics)))


def _side_words(side: str, sinks: np.ndarray) -> str:
    count, pairs = sink_count(sinks)
    if not pairs:
        return f"softening {side}: not measured"
    layer, head = np.unravel_index(np.nanargmax(sinks), sinks.shape)
    return (
        f"softening {side}: {count} of {pairs} (layer, head) pairs above {SINK}, the largest "
        f"sink mass {np.nanmax(sinks):.2f} in layer {layer}, head {head}"
    )


def _sink_maps(metrics: SofteningMetrics) -> list[np.ndarray]:
    """Off and on, [layers, heads]; NaN where nothing was measured or a layer has fewer heads."""
    masses = [[row["sink_mass_by_head"] or [] for row in metrics[side]] for side in SIDES]
    width = max(len(heads) for side in masses for heads in side)
    holes = [math.nan] * width
    return [np.array([[*heads, *holes][:width] for heads in side]) for side in masses]


def _draw_map(axes: Axes, sinks: np.ndarray) -> None:
    layers, heads = sinks.shape
    axes.set_facecolor("#F4F4F4")
    axes.patch.set(hatch="///", edgecolor="#BBBBBB")  # seen where nothing was measured
    look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "zorder": 1}
    axes.imshow(sinks, cmap=COLOURS, vmin=0, vmax=1, **look)
    axes.set(
        xlabel="head",
        xticks=style.layer_ticks(range(heads)),
        yticks=style.layer_ticks(range(layers)),
    )
    axes.grid(visible=False)
    if heads <= MOST_NUMBERS and layers <= 3 * MOST_NUMBERS:
        for (layer, head), mass in np.ndenumerate(sinks):
            if math.isfinite(mass):
                ink = "white" if mass < 0.48 else "black"  # the better contrast
                axes.text(head, layer, f"{mass:.2f}", ha="center", va="center", color=ink, size=8)


def _mark_softened(axes: Axes, layers: list[int]) -> None:
    """A bar beside the map along the softened layers, where they are known."""
    axes.tick_params(left=False)
    if not layers:
        return
    runs = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    look: dict[str, Any] = {"color": BLUE, "linewidth": 4, "clip_on": False}
    low, high = [run[0] - 0.5 for run in runs], [run[-1] + 0.5 for run in runs]
    axes.vlines([-0.04] * len(runs), low, high, transform=axes.get_yaxis_transform(), **look)
