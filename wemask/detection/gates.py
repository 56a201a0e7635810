"""Tell massive tokens from ordinary ones where they enter a layer: one gate a layer.

The stream grows, its leading dims change, weaker massive tokens are born later: so every layer's
gate is calibrated on its own. A token's value is its largest |h| on the layer's leading dims; tau
is the geometric middle between the smallest massive value and the largest ordinary one, whose ratio
is the gate's separation.

A split is trusted only where it holds on texts that did not make it: each half of the calibration
texts makes one, which the other half has to keep.

N calibration tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wemask.detection.emergence import Births
from wemask.detection.me_layer import MIN_SEPARATION, Criterion, Gate

COMFORTABLE = 2.0  # a ratio from here on needs no second thought
RELATIVE_SHARE = 0.1  # weaker massive tokens are looked for down to this share
MAX_DIMS = 8


@dataclass(frozen=True, kw_only=True)
class States:
    """What calibration keeps of the states that enter a layer."""

    values: Tensor  # largest |h| of a token on the dims of the gate, float32 [N]
    primary: Tensor  # bool [N]: the massive tokens that the ME Layer makes
    half: Tensor  # bool [N]: in which half of the calibration texts a token is
    level: float  # what passes the criterion there
    floor: float  # what an ordinary value counts at least, so that silence gives no threshold of 0

    def only(self, tokens: Tensor) -> "States":
        """Those of some of the tokens, bool [N]."""
        here = {name: getattr(self, name)[tokens] for name in ("values", "primary", "half")}
        return replace(self, **here)


@dataclass(frozen=True, kw_only=True)
class GateSplit:
    """A threshold between the strongest tokens and the rest."""

    threshold: float
    ratio: float  # smallest massive over largest ordinary value; inf when none is ordinary
    above: int  # how many tokens are massive


def primary_tokens(maxima: Tensor, medians: Tensor, births: Births, criterion: Criterion) -> Tensor:
    """The tokens, bool [N], that the ME Layer makes massive.

    Those that jump there, lie above the widest gap that any later layer has, and are outdone by no
    ordinary token from the start: at the ME Layer itself ordinary ones may pass the criterion, to
    be left behind (commas in Gemma 3); others grow out of the crowd later (quotes, there). Weaker
    relatives that do not pass the criterion count, too.

    Args:
        maxima: largest |h| of each token, [L + 1, N]; row 0 is the embedding output.
        medians: of |h|, [L + 1].
        births: what `find_births` says of them; there is an ME Layer.
        criterion: what massive means.
    """
    layer = births.me_layer
    assert layer is not None
    grown = maxima[layer + 1] >= max(1.0, criterion.min_jump) * maxima[layer]
    born = births.born[layer]
    elsewhere = (births.born.sum(0) - born.long()) > 0
    candidates = born | (grown & ~elsewhere)
    best, widest, anchor = born, 0.0, layer
    for later in range(layer, max(layer + 1, len(maxima) - 2)):  # the last output enters no layer
        level = criterion.level(float(medians[later + 1]))
        above, ratio = _above_widest_gap(maxima[later + 1], candidates, level)
        if ratio > widest:
            best, widest, anchor = above, ratio, later
    ordinary = ~best & ~elsewhere
    if not ordinary.any():
        return best
    path = maxima[layer + 1 : anchor + 2]
    crowd = path[:, ordinary].amax(1, keepdim=True)
    leads = best & (path >= MIN_SEPARATION * crowd).all(0)
    return leads if leads.any() else best


def _above_widest_gap(score: Tensor, candidates: Tensor, level: float) -> tuple[Tensor, float]:
    """The candidates above the widest gap among all tokens, and how wide it is.

    At least those that pass the criterion are kept above, if the gap below them is comfortable.
    """
    strongest = float(score[candidates].max())
    ordered = score.sort(descending=True).values
    nothing = ordered[-1:] / (COMFORTABLE if ordered[-1] >= level else 0)  # below all of them
    ratios = ordered / torch.cat([ordered[1:], nothing]).clamp(min=1e-12)
    out_of_reach = (ordered > strongest) | (ordered < RELATIVE_SHARE * min(level, strongest))
    ratios[out_of_reach] = 0
    passing = max(1, int((ordered >= level).sum())) - 1
    cut = passing + int(ratios[passing:].argmax())
    if ratios[cut] < COMFORTABLE:
        cut = int(ratios.argmax())
    return candidates & (score >= ordered[cut]), float(ratios[cut])


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
        thresholds={} if doubt else dict.fromkeys(dims, widest.threshold),
        primary={} if doubt_first else dict.fromkeys(dims, first.threshold),
        separation=None if math.isinf(widest.ratio) else widest.ratio,
        primary_separation=None if math.isinf(first.ratio) else first.ratio,
        massive=widest.above,
        ordinary=len(states.primary) - widest.above,
        note=doubt,
        primary_note=doubt_first,
    )


def primary_split(states: States) -> GateSplit:
    """Between the primary tokens and all others."""
    return _split(states, states.values[states.primary], states.values[~states.primary])


def widest_split(states: States) -> GateSplit:
    """At or below the weakest primary token, where the gap is widest.

    Below all tokens that pass the criterion where the gap there is comfortable: then weaker
    relatives (a second BOS, a delimiter) are massive too.
    """
    ranked = states.values.sort(descending=True).values
    weakest = float(states.values[states.primary].min())
    least = int((ranked >= weakest).sum())
    passing = max(least, int((ranked >= states.level).sum()))
    weak = int((ranked >= RELATIVE_SHARE * min(states.level, weakest)).sum())
    most = max(passing, min(weak, len(ranked) - 1))
    below = torch.cat([ranked[least : most + 1], ranked.new_zeros(1)])[: most + 1 - least]
    ratios = ranked[least - 1 : most] / below.clamp(min=states.floor)
    best = passing - least + int(ratios[passing - least :].argmax())
    if ratios[best] < COMFORTABLE:
        best = int(ratios.argmax())
    return _split(states, ranked[: least + best], ranked[least + best :])


def _split(states: States, massive: Tensor, ordinary: Tensor) -> GateSplit:
    smallest, count = float(massive.min()), len(massive)
    if not len(ordinary):  # nothing ordinary was seen: stay below everything massive
        return GateSplit(threshold=smallest / COMFORTABLE, ratio=math.inf, above=count)
    largest = max(states.floor, float(ordinary.max()))
    middle = math.sqrt(smallest * largest)
    return GateSplit(threshold=middle, ratio=smallest / largest, above=count)


def doubts(states: States, split: Callable[[States], GateSplit]) -> str:
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
        units = held.values / split(made).threshold
        missed = int((units[held.primary] <= 1).sum())
        if missed:
            return f"thresholds of half of the texts miss {missed} massive tokens of the others"
        taken = int((units[~held.primary] > 1).sum())
        everything = 0 < taken == int((~held.primary).sum())
        if everything or (taken and split is primary_split):
            return f"thresholds of half of the texts take {taken} other tokens of the others"
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


def still_tells(units: Tensor) -> bool:
    """Whether thresholds, on states they may not be made of, tell some tokens from the rest.

    Of |h| in their units [N]: some are above 1, not all, and there is a gap in between.
    """
    picked = int((units > 1).sum())
    return 0 < picked < len(units) and gap_around(units) >= MIN_SEPARATION
