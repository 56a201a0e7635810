"""Where massive activations are born: one rule on numbers per layer.

    born      a token passes the criterion at the output of layer l, grew there at least `min_jump`
              times, and is alive one layer later. Growth of a massive token is no birth
    plateau   the median of the stream's maximum over the layers from the first birth on
    ME Layer  the first birth whose tokens reach half of the plateau before they are born again

Where no birth reaches it, the first one (docs/detection.md). The rule needs the largest |h| of each
token (or of the whole stream, as one token: what is published of a model), and the median |h|, of
every layer. L layers, N tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from wemask.detection.me_layer import ALIVE_SHARE, Criterion

PLATEAU_SHARE = 0.5  # of the plateau: from here on a birth is what makes it


@dataclass(frozen=True, kw_only=True)
class Births:
    """Where tokens become massive, and which of these layers is the ME Layer."""

    born: Tensor  # bool [L, N]: token n is born at layer l
    layers: tuple[int, ...]  # those with a birth
    me_layer: int | None
    plateau: float  # 0 where nothing is born


def find_births(
    maxima: Tensor, medians: Tensor, criterion: Criterion, allowed: Tensor | None = None
) -> Births:
    """Apply the rule.

    Args:
        maxima: largest |h| of each token, [L + 1, N]; row 0 is the embedding output.
        medians: of |h| over all tokens and dims, [L + 1].
        criterion: what massive means.
        allowed: bool [L]: layers whose births count (those whose FFN wrote them); default all.
    """
    born = jumps(maxima[:-1], maxima[1:], medians[1:, None], criterion)
    born[:-1] &= maxima[2:] >= ALIVE_SHARE * maxima[1:-1]
    born[-1] = False  # the last layer's output enters none: what is born there acts on nothing
    if allowed is not None:
        born &= allowed[:, None]
    layers = tuple(born.any(1).nonzero().flatten().tolist())
    if not layers:
        return Births(born=born, layers=(), me_layer=None, plateau=0.0)
    stream = maxima[1:].amax(1)
    plateau = float(stream[layers[0] : max(layers[0] + 1, len(stream) - 1)].median())
    reached = [layer for layer in layers if _peak(maxima, born, layer) >= PLATEAU_SHARE * plateau]
    me_layer = reached[0] if reached else layers[0]
    return Births(born=born, layers=layers, me_layer=me_layer, plateau=plateau)


def jumps(before: Tensor, after: Tensor, median: Tensor | float, criterion: Criterion) -> Tensor:
    """Tokens that pass the criterion after a layer and grew `min_jump` times in it; bool."""
    return criterion.is_massive(after, median) & (after >= criterion.min_jump * before)


def _peak(maxima: Tensor, born: Tensor, layer: int) -> float:
    """The largest |h| that the tokens born at `layer` reach before they are born again."""
    again = born[layer + 1 :].cumsum(0) > 0
    path = maxima[layer + 1 :].clone()
    path[1:][again] = 0
    return float(path[:, born[layer]].max())


def growth(maxima: Tensor, medians: Tensor, criterion: Criterion) -> int | None:
    """The first layer where something passes the criterion without a jump; None: there is none.

    Gemma 2 9B and Gemma 2B are such: their stream grows to a thousand medians, step by step.
    """
    massive = criterion.is_massive(maxima[1:-1], medians[1:-1, None]).any(1).nonzero()
    return int(massive[0]) if len(massive) else None


def erased_at(values: Tensor, layer: int) -> int | None:
    """The first layer after their birth where half of the tokens have lost 3/4 of their peak.

    From the largest |h| of the massive tokens, [L + 1, n]; row 0 is the embedding output.
    """
    path = values[layer + 1 :]
    left = (path / path.cummax(0).values.clamp(min=1e-12)).median(1).values
    lost = (left < ALIVE_SHARE).nonzero()
    return layer + int(lost[0]) if len(lost) else None
