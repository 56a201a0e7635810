"""The look of every figure: colours, fonts, titles, and how a figure is written to disk.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; no meaning rests
on colour alone. Figures are narrow, so that their letters stay readable on a phone.
"""

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

ORANGE, GREEN, BLUE, RED, PURPLE = "#E69F00", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
INK, GREY = "#222222", "#6B6B6B"
WIDTH = 5.4  # inches; wider figures have letters too small to read on a phone
DPI = 160

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.07,
    "svg.hashsalt": "wemask",  # with no date in the file, equal figures are equal bytes
}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under our style and hand matplotlib's settings back as they were."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def save_figure(figure: Figure, path_without_suffix: str | Path) -> list[Path]:
    """Write PNG (160 dpi) and SVG beside each other; return both paths.

    The folder is created. A dot in the name is part of the name, never taken for a suffix.
    """
    stem = Path(path_without_suffix)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with mpl.rc_context(_STYLE):
        figure.savefig(png, dpi=DPI)
    svg.write_text(svg_text(figure), encoding="utf-8")
    return [png, svg]


def svg_text(figure: Figure) -> str:
    """Return the figure as SVG, with letters as outlines, so that it needs no fonts."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", dpi=DPI, metadata={"Date": None})
    return buffer.getvalue().decode("utf-8")


def panels(height: float, rows: int = 1, columns: int = 1, **look: Any) -> tuple[Figure, Any]:
    """A figure of our width, `height` inches high, with its axes: one, or an array of them."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, **look)


def titled(figure: Figure, title: str) -> Figure:
    """Put a left-aligned title over the figure, wrapped to its width."""
    figure.suptitle("\n".join(textwrap.wrap(plain(title), 52)), x=0.02, ha="left")
    return figure


def plain(text: str) -> str:
    r"""Text that every font can draw and that matplotlib will not read as mathematics.

    >>> plain("x$y$ \u00e9")
    'x\\$y\\$ \\xe9'
    """
    shown = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)
    return shown.replace("$", r"\$")


def size_words(value: float) -> str:
    """1234.5 -> "1,234", 0.01234 -> "0.0123": three digits, but never an exponent below 1000."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def layer_name(layer: float, _position: object = None) -> str:
    """Axis label of a layer: -1, the embedding output, is "emb"."""
    return "emb" if layer == -1 else f"{layer:g}"


def drawable(values: Iterable[float | None]) -> list[float]:
    """Values for a log axis; what cannot be drawn there (zero, infinity, None) leaves a gap."""
    return [v if v is not None and 0 < v < math.inf else math.nan for v in values]


def log_axis(axes: Axes, which: Literal["x", "y"] = "y", fine: Sequence[float] = (1, 2, 5)) -> None:
    """Make an axis logarithmic, in plain numbers: few enough to read, at least two.

    Call it after drawing: fewer than two decades get the ticks `fine`, more get powers of ten. An
    axis with nothing above zero stays as it is.
    """
    axis = axes.yaxis if which == "y" else axes.xaxis
    if not math.isfinite(axis.get_minpos()):
        return
    axes.set(**{f"{which}scale": "log"})
    axes.margins(x=0.15 if which == "x" else None, y=0.15 if which == "y" else None)
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=fine if high < 100 * low else (1,)))
    axis.set_major_formatter(lambda value, _: size_words(value))
    axis.set_minor_formatter(NullFormatter())


def layer_ticks(layers: Sequence[int]) -> list[int]:
    """Whole layers with room between them; -1 takes the place of 0 where it is crowded.

    >>> layer_ticks(range(-1, 32))
    [-1, 4, 8, 12, 16, 20, 24, 28]
    """
    last = max(layers)
    step = next(s for s in (1, 2, 4, 5, 8, 10, 20, 50, 10**9) if last / s <= 12)
    ticks = [layer for layer in range(0, last + 1, step) if layer in layers]
    return [-1] + (ticks[1:] if last > 18 else ticks) if -1 in layers else ticks


def layer_axis(panels: Sequence[Axes], layers: Sequence[int]) -> None:
    """Name whole layers on the horizontal axis that the panels share; "emb" is -1."""
    ticks = layer_ticks(layers)
    panels[-1].set_xticks(ticks, [layer_name(tick) for tick in ticks])
    for axes in panels:
        axes.grid(axis="x", visible=False)


def mark_layer(
    panels: Sequence[Axes],
    layer: int,
    words: str,
    layers: Sequence[int],
    colour: str = BLUE,
    up: float = 3,
) -> None:
    """Shade a layer in all panels; its words stand above the first, inside its width."""
    for axes in panels:
        axes.axvline(layer, color=colour, linewidth=7, alpha=0.16, zorder=0)
    place = (layer - layers[0]) / max(layers[-1] - layers[0], 1)
    look: Any = {"fontsize": 9, "fontweight": "bold", "xycoords": ("data", "axes fraction")}
    side = "right" if place > 0.85 else "left" if place < 0.1 else "center"
    note(panels[0], words, (layer, 1), (0, up), ha=side, **look)


def note(
    axes: Axes, words: str, place: tuple[float, float], by: tuple[float, float], **look: Any
) -> None:
    """Write words beside a place, `by` points right of it and above it."""
    axes.annotate(words, place, by, textcoords="offset points", **look)


def interval(
    axes: Axes, y: float, row: Mapping[str, Any], colour: str, marker: str = "s", **look: Any
) -> float:
    """Draw a difference or a mean, shares, with its interval, in percent; return it in percent."""
    size = "mean" if "mean" in row else "delta"
    middle, low, high = (100 * row[key] for key in (size, "low", "high"))
    axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.55)
    axes.plot(middle, y, marker, color=colour, markersize=7, **look)
    return middle


def one_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below for all panels, in place of theirs."""
    found = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        if legend := axes.get_legend():
            legend.remove()
    if found:
        figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=2)
