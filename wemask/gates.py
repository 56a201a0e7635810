"""Tell massive tokens from ordinary ones where they enter a layer: one gate a layer.

The stream grows, its leading dims change, weaker massive tokens are born later: so every layer's
gate is calibrated on its own. In units of the largest ordinary value o_d of each dim, ordinary
tokens are <= 1 and massive ones reach S or more in their best dim; tau_d = o_d * sqrt(S) is the
geometric middle, and S the gate's separation.

A split is trusted only where it holds on texts that did not make it: each half of the calibration
texts makes one, which the other half has to keep.

Shapes: N calibration tokens, K dims.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wemask.me_layer import MIN_SEPARATION, Gate

COMFORTABLE = 2.0  # a ratio from here on needs no second thought
RELATIVE_SHARE = 0.1  # weaker massive tokens are looked for down to this share
MAX_DIMS = 8


@dataclass(frozen=True, kw_only=True)
class States:
    """What calibration keeps of the states that enter a layer."""

    values: Tensor
    """|h| on the dims of the gate, float32 [K, N]."""
    primary: Tensor
    """bool [N]: the massive tokens that the ME Layer makes."""
    half: Tensor
    """bool [N]: in which half of the calibration texts a token is."""
    level: float
    """What passes the criterion there."""
    floor: float
    """Smallest o_d, so that a silent dim gives no threshold of 0."""

    def only(self, tokens: Tensor) -> "States":
        """Those of some of the tokens, bool [N]."""
        return States(
            values=self.values[:, tokens],
            primary=self.primary[tokens],
            half=self.half[tokens],
            level=self.level,
            floor=self.floor,
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Thresholds between the strongest tokens and the rest."""

    thresholds: Tensor
    """tau_d, [K]."""
    ratio: float
    """Smallest massive over largest ordinary value; inf when none is ordinary."""
    above: int
    """How many tokens are massive."""


def leading(columns: Tensor, massive: Tensor, level: float) -> list[int]:
    """Columns [N, K] in which a massive token (bool [N]) passes the criterion, strongest first.

    At most `MAX_DIMS`; the strongest one where none passes.
    """
    strength = columns[massive].amax(0)
    order = strength.argsort(descending=True).tolist()
    return ([k for k in order if strength[k] >= level] or order[:1])[:MAX_DIMS]


def make_gate(states: States, dims: list[int]) -> Gate:
    """The gate of the layer that these states, on these dims, enter."""
    widest, first = widest_split(states), primary_split(states)
    doubt, doubt_first = doubts(states, widest_split), doubts(states, primary_split)
    if doubt and not doubt_first:  # the weaker tokens cannot be told, the primary ones can
        widest, doubt = first, ""
    return Gate(
        dims=dims,
        thresholds={} if doubt else dict(zip(dims, widest.thresholds.tolist(), strict=True)),
        primary={} if doubt_first else dict(zip(dims, first.thresholds.tolist(), strict=True)),
        separation=_finite(widest.ratio),
        primary_separation=_finite(first.ratio),
        massive=widest.above,
        ordinary=len(states.primary) - widest.above,
        note=doubt,
    )


def _finite(ratio: float) -> float | None:
    return ratio if math.isfinite(ratio) else None


def primary_split(states: States) -> Split:
    """Between the primary tokens and all others."""
    massive, others = states.values[:, states.primary], states.values[:, ~states.primary]
    ordered, count = torch.cat([massive, others], 1), massive.shape[1]
    return _split(states, ordered, count, _ratios(states, ordered, count, count)[0])


def widest_split(states: States) -> Split:
    """At or below the weakest primary token, where the gap is widest.

    Below all tokens that pass the criterion where the gap there is comfortable: then weaker
    relatives (a second BOS, a delimiter) are massive too.
    """
    ranked, least = _rank(states)
    score = ranked.amax(0)
    weak = RELATIVE_SHARE * min(states.level, float(score[least - 1]))
    passing = max(least, int((score >= states.level).sum()))
    most = max(passing, min(int((score >= weak).sum()), len(score) - 1))
    passing -= least
    ratios = _ratios(states, ranked, least, most)
    best = passing + int(torch.tensor(ratios[passing:]).argmax())
    if ratios[best] < COMFORTABLE:
        best = int(torch.tensor(ratios).argmax())
    return _split(states, ranked, least + best, ratios[best])


def _rank(states: States) -> tuple[Tensor, int]:
    """The values, strongest token first, and how many are as strong as the weakest primary one."""
    score = states.values.amax(0)
    order = score.argsort(descending=True, stable=True)
    return states.values[:, order], int((score >= score[states.primary].min()).sum())


def _ordinary(states: States, ranked: Tensor, least: int, most: int) -> Tensor:
    """o_d [K, most - least + 1] when the first `least` ... `most` tokens are massive; all: 0."""
    rest = torch.cat([ranked[:, least:], ranked.new_zeros(len(ranked), 1)], 1)
    return rest.flip(1).cummax(1).values.flip(1)[:, : most - least + 1].clamp(min=states.floor)


def _ratios(states: States, ranked: Tensor, least: int, most: int) -> list[float]:
    """The separation when the first `least` ... `most` tokens are massive."""
    ordinary = _ordinary(states, ranked, least, most)
    reached = (ranked[:, :most, None] / ordinary[:, None]).amax(0)  # [most, most - least + 1]
    counts = torch.arange(least, most + 1)
    reached[torch.arange(most)[:, None] >= counts] = math.inf
    ratios = reached.amin(0).tolist()
    return [math.inf if n == ranked.shape[1] else r for n, r in zip(counts, ratios, strict=True)]


def _split(states: States, ranked: Tensor, count: int, ratio: float) -> Split:
    if math.isinf(ratio):  # nothing ordinary was seen: stay below everything massive
        taus = ranked.amin(1).clamp(min=states.floor) / COMFORTABLE
    else:
        taus = _ordinary(states, ranked, count, count)[:, 0] * math.sqrt(ratio)
    return Split(thresholds=taus, ratio=ratio, above=count)


def doubts(states: States, split: Callable[[States], Split]) -> str:
    """Why a split is not to be trusted, "" where it is.

    A half without a primary token makes no split, and one text has no halves: then the ratio alone
    has to do.
    """
    if (ratio := split(states).ratio) < MIN_SEPARATION:
        return (
            f"the smallest massive value is only {ratio:.2f} times the largest ordinary one; "
            f"{MIN_SEPARATION:g} is needed"
        )
    for here in (states.half, ~states.half):
        made, held = states.only(here), states.only(~here)
        if not made.primary.any() or not held.primary.any():
            continue
        units = (held.values / split(made).thresholds[:, None]).amax(0)
        missed = int((units[held.primary] <= 1).sum())
        if missed:
            return f"thresholds of half of the texts miss {missed} massive tokens of the others"
        gap = gap_around(units)
        if gap < MIN_SEPARATION:
            return f"thresholds of half of the texts leave a gap of {gap:.2f} in the others"
    return ""


def gap_around(units: Tensor) -> float:
    """Smallest value above 1 over the largest below, of |h| in units of the thresholds [N].

    inf where all are on one side.
    """
    picked = units > 1
    if picked.all() or not picked.any():
        return math.inf
    return float(units[picked].min() / units[~picked].max())
