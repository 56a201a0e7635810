"""What softening does to the model: magnitudes and sinks by layer, and sinks by head."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wemask.report.style import (
    BLUE,
    INK,
    WIDTH,
    drawable,
    layer_axis,
    layer_ticks,
    log_axis,
    size_words,
    styled,
    titled,
)

if TYPE_CHECKING:
    from wemask.compare.results import LayerRow, SofteningMetrics, SofteningRecord

SINK = 0.3
"""A (layer, head) pair with more sink mass than this counts as a sink (arXiv 2410.10781)."""
SIDES: tuple[Literal["off", "on"], ...] = ("off", "on")
COLOURS = "cividis"  # perceptually uniform, the same to readers of any colour vision
MOST_NUMBERS = 6  # heads; with more, a number does not fit into its cell


# ------------------------------------------------------------------------------------ by layer


@styled
def softening_effect(metrics: "SofteningMetrics") -> Figure:
    """Massive magnitude and sink mass per layer, softening off and on, on the same texts.

    `metrics` is `results["softening"]["metrics"]`. A value of None leaves a gap.
    """
    figure = Figure(figsize=(WIDTH, 4.6))
    top, bottom = figure.subplots(2, 1, sharex=True)
    layers = [row["layer"] for row in metrics["off"]]
    size = 6.0 if len(layers) < 20 else 3.5
    on: dict[str, Any] = {"marker": "s", "markersize": size, "markerfacecolor": "white"}
    for rows, look in (
        (metrics["off"], {"color": INK, "marker": "o", "markersize": size + 2}),
        (metrics["on"], {"color": BLUE, "linestyle": "--", **on}),
    ):
        x = [row["layer"] for row in rows]
        name = "softening off" if rows is metrics["off"] else "softening on"
        top.plot(x, drawable(row["massive_max"] for row in rows), label=name, **look)
        bottom.plot(x, [math.nan if (m := row["sink_mass"]) is None else m for row in rows], **look)
    top.set_ylabel("massive abs(h)")
    log_axis(top)
    bottom.set(ylabel="sink mass", xlabel="decoder layer", ylim=(-0.03, 1.03))
    layer_axis((top, bottom), layers)
    figure.legend(loc="outside lower left", ncols=2)
    return titled(figure, _softening_title(metrics))


def _softening_title(metrics: "SofteningMetrics") -> str:
    sinks_off, sinks_on = (_mean_of(metrics[side], "sink_mass") for side in ("off", "on"))
    peak_off, peak_on = (_peak_of(metrics[side]) for side in ("off", "on"))
    magnitude = moved_words("the massive activation", peak_off, peak_on, size_words)
    sinks = moved_words("the mean sink mass", sinks_off, sinks_on, "{:.2f}".format)
    return f"Softening {magnitude} and {sinks}"


def moved_words(what: str, off: float, on: float, words: Callable[[float], str]) -> str:
    """Say how `on` compares with `off`; a change within 5% is none."""
    if math.isnan(off) or math.isnan(on):
        return f"was not measured on {what}"
    if math.isclose(off, on, rel_tol=0.05):
        return f"leaves {what} at {words(on)}"
    return f"{'lowers' if on < off else 'raises'} {what} from {words(off)} to {words(on)}"


def _mean_of(rows: "list[LayerRow]", key: Literal["sink_mass"]) -> float:
    values = [row[key] for row in rows if row[key] is not None]
    return float(np.mean(np.array(values, dtype=float))) if values else math.nan


def _peak_of(rows: "list[LayerRow]") -> float:
    return max((m for row in rows if (m := row["massive_max"]) is not None), default=math.nan)


# ------------------------------------------------------------------------------------- by head


@styled
def sink_maps(softening: "SofteningRecord") -> Figure:
    """Sink mass of every (layer, head), softening off and on side by side, on one colour scale.

    `softening` is `results["softening"]`. A bar marks the softened layers, a line in the scale the
    mass above which a pair counts as a sink. Layers that were not measured are hatched.

    Raises:
        ValueError: no layer was measured by head (see `has_sink_maps`).
    """
    if not has_sink_maps(softening["metrics"]):
        raise ValueError("no layer holds sink_mass_by_head; run `python evaluate.py` again")
    maps = _sink_maps(softening["metrics"])
    layers = len(maps[0])
    figure = Figure(figsize=(WIDTH, min(2.3 + 0.24 * layers, 6.4)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, side, sinks in zip(panels, SIDES, maps, strict=True):
        _draw_map(axes, sinks)
        count, pairs = sink_count(sinks)
        rate = f"{count / pairs:.0%} of {pairs} pairs" if pairs else "not measured"
        axes.set_title(f"softening {side}\nsink rate {rate}", fontsize=9.5, loc="left")
    panels[0].set_ylabel("decoder layer")
    _mark_softened(panels[1], softening["layers"])
    scale = figure.colorbar(
        panels[0].images[0], ax=panels, orientation="horizontal", aspect=40, shrink=0.9
    )
    scale.set_label(f"sink mass (share of attention; a sink is above {SINK}, the line)")
    scale.ax.axvline(SINK, color="white", linewidth=4)
    scale.ax.axvline(SINK, color=INK, linewidth=1.5)
    return titled(figure, _sink_title(maps))


def has_sink_maps(metrics: "SofteningMetrics") -> bool:
    """Tell whether any layer was measured by head."""
    return any(row["sink_mass_by_head"] for side in SIDES for row in metrics[side])


def sink_count(sinks: np.ndarray) -> tuple[int, int]:
    """Pairs whose sink mass is above 0.3, and pairs that were measured, of a map [layers, heads].

    >>> sink_count(np.array([[0.3, 0.31], [0.9, math.nan]]))
    (2, 3)
    """
    return int((sinks > SINK).sum()), int(np.isfinite(sinks).sum())


def sink_words(metrics: "SofteningMetrics") -> str:
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


def _sink_maps(metrics: "SofteningMetrics") -> list[np.ndarray]:
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
    axes.set_xlabel("head")
    axes.set_xticks(layer_ticks(range(heads)))
    axes.set_yticks(layer_ticks(range(layers)))
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


def _sink_title(maps: list[np.ndarray]) -> str:
    counts = [sink_count(sinks) for sinks in maps]
    off, on = (count / pairs if pairs else math.nan for count, pairs in counts)
    return f"Softening {moved_words('the sink rate', off, on, '{:.0%}'.format)}"
