"""Tell massive tokens from ordinary ones by content: one threshold per massive dim.

Shapes: A layers in which the massive activation is alive, K massive dims, N calibration tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COMFORTABLE = 2.0  # a ratio from here on needs no second thought
MIN_SEPARATION = 1.2  # below it there is no threshold worth the name
RELATIVE_SHARE = 0.1  # weaker relatives of the strongest token are looked for down to this share


@dataclass(frozen=True, kw_only=True)
class Separation:
    """A split of the calibration tokens, and how wide the gap is."""

    tokens: Tensor
    """Indices of the massive tokens, strongest first."""
    ratio: float
    """Smallest massive over largest ordinary value, in all A layers; inf when none is ordinary."""
    thresholds: list[float]
    """tau_d for the K dims; empty when the ratio is below MIN_SEPARATION."""
    note: str
    """What a reader must know: no threshold, or massive tokens that had to be left out."""


def separate(values: Tensor, born: Tensor, floor: float) -> Separation:
    """Split the tokens where the gap is widest, over all layers at once.

    In units of the largest ordinary value o_d of each dim, ordinary tokens are <= 1 and massive
    ones reach S or more in their best dim. tau_d = o_d * sqrt(S) is the geometric middle.

    The split keeps all tokens that pass the criterion, and takes in weaker relatives (a second
    BOS, a delimiter) where the gap is wider below them. Only where that leaves no comfortable gap
    are weaker massive tokens counted as ordinary; the note says so.

    Args:
        values: |h| [A, K, N], the ME Layer first.
        born: indices of the tokens that pass the criterion at the ME Layer.
        floor: smallest o_d, so that a silent dim gives no threshold of 0.
    """
    score = (values[0] / values[0].amax(-1, keepdim=True).clamp(min=1e-12)).amax(0)
    order = score.argsort(descending=True)
    ranked = values[:, :, order]
    least = int((score[order] >= score[born].min()).sum())  # all that pass the criterion
    most = int((score[order] >= RELATIVE_SHARE * score[born].min()).sum())
    ratios = torch.tensor(
        [_ratio(ranked, count, floor) for count in range(1, max(least, most) + 1)]
    )
    count = least + int(ratios[least - 1 :].argmax())
    note = ""
    if ratios[count - 1] < COMFORTABLE:
        count = 1 + int(ratios.argmax())
        if count < least:
            note = f"{least - count} weaker massive tokens count as ordinary: no gap below them."
    ratio = float(ratios[count - 1])
    if ratio < MIN_SEPARATION:
        note = (
            f"the smallest massive value is only {ratio:.2f} times the largest ordinary one; "
            f"{MIN_SEPARATION:g} is needed."
        )
        return Separation(tokens=order[:count], ratio=ratio, thresholds=[], note=note)
    if math.isinf(ratio):  # nothing ordinary was seen: stay below everything massive
        taus = ranked.amin((0, 2)).clamp(min=floor) / COMFORTABLE
    else:
        taus = _ordinary(ranked, count, floor) * math.sqrt(ratio)
    return Separation(tokens=order[:count], ratio=ratio, thresholds=taus.tolist(), note=note)


def _ordinary(ranked: Tensor, count: int, floor: float) -> Tensor:
    """o_d [K] when the first `count` tokens are massive."""
    return ranked[:, :, count:].amax((0, 2)).clamp(min=floor)


def _ratio(ranked: Tensor, count: int, floor: float) -> float:
    if count == ranked.shape[-1]:
        return math.inf
    reached = ranked[:, :, :count] / _ordinary(ranked, count, floor)[None, :, None]
    return float(reached.amax(1).min())
