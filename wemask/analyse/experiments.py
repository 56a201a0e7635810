"""The causal experiments: is the ME Layer the cause or a bystander, and is the softening specific?

    necessity    scale what the ME Layer's FFN reads or writes for the massive token by c, all else
                 fixed: do later massive activations and sinks vanish? Other layers are the control
    sufficiency  write the massive vector into a model from which it was removed: do they return?
                 Controls: other dims, another token
    location     the same softening in every layer alone, and before, at, after the ME Layer
    specificity  the operator beside its controls of equal budget
    dose         rate x strength

Each is a typed config in and a tidy table out, with one row per condition, metric and layer:

    experiment, group, at, amount, rate, seed    what was done: kind, in which layer, how much
    metric, layer, value                         what was measured; without a layer, the mean over
                                                 the layers after the ME Layer (or the whole model)
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from wemask.analyse.conditions import IMPOSSIBLE, Condition, Subject, condition_rows
from wemask.analyse.interventions import (
    FFN_SITES,
    massive,
    ordinary,
    scale_ffn,
    soften_input,
    together,
    write_state,
)
from wemask.analyse.rows import table
from wemask.decoder.parts import effective_scale
from wemask.errors import ConfigError
from wemask.evaluate.arms import CONTROLS, DRAWN, control_changes
from wemask.measure.measurement import Where, entering
from wemask.operator.dims import random_dims
from wemask.operator.equation import top_dims
from wemask.operator.settings import WeMaskConfig

TRIED = 100  # draws of random dims, to find some without a massive dim


@dataclass(frozen=True, kw_only=True)
class Necessity:
    """Take away what the ME Layer's FFN writes into the massive token, by and by."""

    scales: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    other_layers: int = 16
    """In how many other layers, evenly spread, the FFN's write is taken away as a control."""

    def conditions(self, subject: Subject) -> list[Condition]:
        me, decoder = subject.me_layer, subject.decoder
        others = [layer for layer in range(len(decoder.blocks)) if layer != me]
        wanted = [(f"ffn_{site}", me, c, site) for site, c in product(FFN_SITES, self.scales)]
        wanted += [("other_layer", i, 0.0, "output") for i in spread(others, self.other_layers)]
        condition = partial(Condition, experiment="necessity")
        return [
            condition(group=group, at=at, amount=c, around=scale_ffn(decoder, at, c, site))
            for group, at, c, site in wanted
        ]


@dataclass(frozen=True, kw_only=True)
class Sufficiency:
    """Write the massive vector back into a model from which it was removed."""

    fractions: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    seeds: int = 3
    """Draws of other dims."""

    def conditions(self, subject: Subject) -> list[Condition]:
        me, decoder, dims = subject.me_layer, subject.decoder, subject.report.dims
        vector = massive_vector(subject)
        removed = scale_ffn(decoder, me, 0.0, "output")
        condition = partial(Condition, experiment="sufficiency", at=me)

        def back(dims: Sequence[int], amount: float, where: Where = massive) -> dict[str, Any]:
            written = write_state(decoder, me, dims, amount * vector, where)
            return {"amount": amount, "around": together(removed, written)}

        without: Any = {"amount": 0.0, "around": removed}
        found = [condition(group="intact"), condition(group="removed", **without)]
        found += [condition(group="restored", **back(dims, part)) for part in self.fractions]
        for seed in range(self.seeds):
            other = other_dims(dims, decoder.hidden_size, seed)
            found.append(condition(group="other_dims", seed=seed, **back(other, 1.0)))
        instead = partial(condition, measured_on=ordinary)
        found.append(instead(group="other_token_before", **without))
        return [*found, instead(group="other_token", **back(dims, 1.0, ordinary))]


@dataclass(frozen=True, kw_only=True)
class Location:
    """The same softening of the massive token's attention input in different layers."""

    strength: float = 1.0
    every: int = 32
    """How many layers are softened alone, evenly spread."""
    seeds: int = 3
    """Draws of as many random layers as come after the ME Layer."""

    def conditions(self, subject: Subject) -> list[Condition]:
        me, decoder, dims = subject.me_layer, subject.decoder, softened_dims(subject)
        count = len(decoder.blocks)

        def condition(group: str, layers: Sequence[int], **more: Any) -> Condition:
            more |= {"around": soften_input(decoder, layers, dims, self.strength)}
            return Condition(experiment="location", group=group, amount=self.strength, **more)

        found = [Condition(experiment="location", group="intact", amount=0.0)]
        found += [condition("one_layer", [i], at=i) for i in spread(range(count), self.every)]
        after = range(me + 1, count)
        places = {"before": range(me), "at": [me], "after": after}
        found += [condition(group, layers) for group, layers in places.items() if layers]
        for seed in range(self.seeds):
            drawn = sorted(random.Random(seed).sample(range(count), len(after)))
            found.append(condition("random_layers", drawn, seed=seed))
        return found


@dataclass(frozen=True, kw_only=True)
class Specificity:
    """The operator beside its controls of equal budget (docs/controls.md)."""

    controls: tuple[str, ...] = CONTROLS
    seeds: int = 3
    """Draws of the controls that are drawn."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.controls if name not in CONTROLS]:
            raise ConfigError(f"Unknown controls {unknown}; there are {', '.join(CONTROLS)}.")

    def conditions(self, subject: Subject) -> list[Condition]:
        real = subject.operator
        _ = subject.me_layer
        condition = partial(Condition, experiment="specificity")
        found = [condition(group="intact"), condition(group="wemask", operator=real)]
        for name in self.controls:
            for seed in self._draws(name, subject):
                changes = {**real.to_dict(), **control_changes(name), "seed": seed}
                operator = WeMaskConfig.from_dict(changes)
                draw = seed if name in DRAWN else None
                found.append(condition(group=name, operator=operator, seed=draw))
        return found

    def _draws(self, name: str, subject: Subject) -> list[int]:
        """Seeds of a control; random dims that hold a massive dim are no control, and left out.

        Unless they are so many that hardly a draw is without one: then the first seeds.
        """
        count = self.seeds if name in DRAWN else 1
        if name != "random_dims":
            return list(range(count))
        size = subject.decoder.hidden_size
        k, dims = subject.operator.budget(size), set(subject.report.dims)
        free = [s for s in range(TRIED) if not dims & set(random_dims(size, k, s))]
        return free[:count] if len(free) >= count else list(range(count))


@dataclass(frozen=True, kw_only=True)
class Dose:
    """How much of it: the share of dims times the strength."""

    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    def conditions(self, subject: Subject) -> list[Condition]:
        _ = subject.me_layer
        condition = partial(Condition, experiment="dose")
        found = [condition(group="intact", amount=0.0)]
        for rate, strength in product(self.rates, self.strengths):
            operator = replace(subject.operator, rate=rate, strength=strength)
            found.append(condition(group="wemask", amount=strength, rate=rate, operator=operator))
        return found


Experiment = Necessity | Sufficiency | Location | Specificity | Dose
EXPERIMENTS: dict[str, type[Experiment]] = {
    kind.__name__.lower(): kind for kind in (Necessity, Sufficiency, Location, Specificity, Dose)
}


def run_experiment(experiment: Experiment, subject: Subject) -> pd.DataFrame:
    """Measure every condition of an experiment.

    Returns:
        The tidy table of the module's docstring. Conditions that are impossible in this model (a
        control without a norm weight, say) are left out.

    Raises:
        DetectionError: no ME Layer, or no massive token in the texts.
    """
    rows: list[dict[str, Any]] = []
    for condition in experiment.conditions(subject):
        try:
            rows += condition_rows(condition, subject.measure(condition), subject.me_layer)
        except IMPOSSIBLE:
            continue
    return table(rows)


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of the items, evenly spread, ends included.

    >>> spread(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most)]


def other_dims(dims: Sequence[int], hidden_size: int, seed: int) -> list[int]:
    """As many dims as the massive ones, none of which is one of them."""
    free = [dim for dim in range(hidden_size) if dim not in set(dims)]
    return random.Random(seed).sample(free, len(dims))


def softened_dims(subject: Subject) -> list[int]:
    """The operator's dims: heaviest in the ME Layer's pre-FFN norm; without a weight, the massive.

    One set for all layers, so that only the place of the softening changes.
    """
    norm = subject.decoder.blocks[subject.me_layer].ffn_norm
    if norm is None or getattr(norm, "weight", None) is None:
        return list(subject.report.dims)
    k = subject.operator.budget(subject.decoder.hidden_size)
    return top_dims(effective_scale(norm, "The ME Layer"), k).tolist()


def massive_vector(subject: Subject) -> Tensor:
    """Mean of h[L] over the massive tokens of all texts, on the massive dims: float32 [dims]."""
    me, dims = subject.me_layer, subject.report.dims
    total, count = torch.zeros(len(dims), dtype=torch.float64), 0
    for batch in subject.batches:
        mask, ask = batch.attention_mask, {me + 1: lambda h: h[..., dims].float()}
        left = entering(subject.model, ask, batch.input_ids, mask)[me + 1]
        chosen = left[batch.massive.cpu() & mask.bool().cpu()]
        total, count = total + chosen.double().sum(0), count + len(chosen)
    return (total / count).float()
