"""What is watched of a model in training: the `wemask/*` keys, from one forward over fixed texts.

    probe = fixed_probe(model, tokenizer, report, handle)   # before training
    values = probe.measure(model)                           # at any time later

The texts and their massive tokens are chosen once: where training takes the massive activation
away, the attention to these same tokens is still what is measured.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from wemask.detection.calibration import CALIBRATION_TEXTS, calibration_inputs, padded
from wemask.detection.gates import still_tells
from wemask.detection.me_layer import MIN_SEPARATION, MELayerReport
from wemask.measure.layer_sums import Batch
from wemask.measure.measurement import measure, probe_batches
from wemask.operator.handle import SoftenHandle, observing
from wemask.operator.layers import Observation

TEXTS = CALIBRATION_TEXTS[:4]  # beside the report's probe prompt
LENGTH = 64  # tokens of a text at most: T of the sink rate by convention (arXiv 2410.10781)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Fixed texts, and what is said of a model on them."""

    batch: Batch
    layer: int | None  # the ME Layer; None: the model has none
    handle: SoftenHandle | None  # of the model, where it is softened
    picked: Mapping[int, Tensor] = field(default_factory=dict)
    """Softened layer whose gate told them before training -> the tokens, bool [texts, T]."""
    lost: set[int] = field(default_factory=set)
    """The layers whose gate, when last measured, told these tokens from the others no more."""

    def measure(self, model: nn.Module) -> dict[str, float]:
        """The `wemask/*` keys of a model as it stands, in one forward; docs/wandb.md has them.

        Under ZeRO-3 all ranks must come here together.

        Raises:
            ModelError: the model's attention cannot be read.
            DetectionError: states without a spectrum, e.g. not finite ones.
        """
        mask = self.batch.attention_mask
        with observing(self.handle, mask) if self.handle else nullcontext({}) as observed:
            measured = measure(model, [self.batch])
        rows, after = measured.layers, -1 if self.layer is None else self.layer
        values: dict[str, float] = {} if self.layer is None else {"me_layer": float(self.layer)}
        # At the ME Layer's output; without one, where the largest activation is.
        row = max(rows, key=lambda r: r.massive_max) if self.layer is None else rows[self.layer]
        for name in ("massive_max", "massive_ratio", "massive_magnitude"):
            values[name] = getattr(row, name)
        # Means over later layers. Without massive tokens, the first is where a sink would be.
        end = "" if measured.massive_tokens else "_first"
        for name in ("effective_rank", "anisotropy", f"sink_mass{end}", f"sink_rate{end}"):
            values[name] = measured.later(name, after)
        values["probe_perplexity"] = measured.perplexity
        if self.handle is not None:
            values |= strengths(self.handle)
            values["tokens_touched"] = float(sum(o.tokens for o in observed.values()))
            values |= self._gates(observed)
        return {f"wemask/{k}": v for k, v in values.items() if math.isfinite(v)}

    def _gates(self, observed: Mapping[int, Observation]) -> dict[str, float]:
        """How clearly gates still tell the tokens of `picked`, and how many do; {} without gates.

        A gate tells them while the smallest |h| of these is 1.2 times the largest of the others, as
        calibration asks, and there is such a gap at its thresholds.
        """
        real, separation = self.batch.attention_mask.bool(), {}
        self.lost.clear()
        for index, picked in self.picked.items():
            seen = observed[index].units
            assert seen is not None
            units = seen.cpu()
            separation[index] = float(units[picked].min() / units[real & ~picked].max())
            if separation[index] < MIN_SEPARATION or not still_tells(units[real]):
                self.lost.add(index)
        if not separation:
            return {}
        told = len(separation) - len(self.lost)
        return {"separation": min(separation.values()), "gates": float(told)}


def strengths(handle: SoftenHandle) -> dict[str, float]:
    """The strength in force, and where it is learned that of each layer.

    Under ZeRO-3 and FSDP2 all ranks must come here together.
    """
    by_layer = handle.strengths
    learned = any(softening.theta is not None for softening in handle.softenings())
    values = {"strength": sum(by_layer.values()) / len(by_layer)}
    return values | {f"strength/layer_{i}": s for i, s in by_layer.items() if learned}


def fixed_probe(
    model: nn.Module, tokenizer: Any, report: MELayerReport, handle: SoftenHandle | None
) -> Probe:
    """Choose the texts: the report's probe prompt and a few calibration texts.

    The model is given before training, and before its parameters are sharded; softened by `handle`,
    if any, with which at strength 0 massive tokens are found.
    """
    ids, mask = probe_texts(tokenizer, report)
    if handle is None:
        (batch,) = probe_batches(model, report, ids, mask, batch_size=len(ids))
        return Probe(batch=batch, layer=report.layer, handle=None)
    with handle.at_strength(0.0), observing(handle) as seen:
        (batch,) = probe_batches(model, report, ids, mask, batch_size=len(ids))
    real = batch.attention_mask.bool()
    picked = {
        index: (units > 1) & real
        for index, o in seen.items()
        if o.units is not None
        and still_tells((units := o.units.cpu())[real])
        # not one that an earlier layer left nothing to touch (site=residual_stream)
        and handle.touched_first.get(index, 1)
    }
    return Probe(batch=batch, layer=report.layer, handle=handle, picked=picked)


def probe_texts(tokenizer: Any, report: MELayerReport) -> tuple[Tensor, Tensor]:
    """Token ids and mask [texts, T], T at most `LENGTH`: the probe prompt first, none twice."""
    ids, mask = calibration_inputs(tokenizer, texts=TEXTS, chats=False)
    rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
    prompt = list(report.probe_ids)
    chosen = [prompt] * bool(prompt) + [row for row in rows if row != prompt]
    return padded([row[:LENGTH] for row in chosen])
