"""One forward pass over a model in which every layer leaves only reductions of its output behind.

N is the number of real tokens of the batch, D the hidden size, K the number of tracked dims.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wemask.decoder.parts import Decoder, unwrap
from wemask.decoder.passage import (
    Passage,
    checking_flow,
    evaluating,
    rows_of,
    watching,
    without_logits,
)
from wemask.decoder.sharded import runnable
from wemask.detection.emergence import jumps
from wemask.detection.me_layer import Criterion
from wemask.errors import ModelError

SAMPLED = 4096  # values that say about where the median is
TRACKED_DIMS = 64  # columns kept per layer; a massive dim outside them is not massive there
NEWBORN = 64  # of the tokens that are born at a layer: who wrote so many of the strongest


@dataclass(kw_only=True)
class Trace:
    """What one layer's output h[l] leaves behind; layer -1 is the embedding output."""

    layer: int
    median: float
    token_max: Tensor  # largest |h| per real token, float32 [N]
    dims: Tensor  # dims with the largest |h|, int64 [K], descending
    columns: Tensor  # |h| in these dims, float32 [N, K]
    strongest: Tensor  # |h| of the strongest token, float32 [D]: one line of the relief
    strongest_state: Tensor  # that token's state, signed, float32 [D]
    cosine: float | None = None  # of the strongest token of THIS layer, to its state a layer on
    ffn_share: Tensor | None = None
    """Share of the layer's write that the FFN did, [K], at the strongest token."""
    newborn_by_ffn: float | None = None
    """Share of the tokens born here whose largest coordinate the FFN wrote (more than half of)."""
    newborn_state: Tensor | None = None  # state of the strongest one born here, float32 [D]


def _trace(layer: int, h: Tensor, places: Tensor) -> Trace:
    """Reduce h [B, T, D]; `places` [N] says where in B * T the real tokens are."""
    h = h.reshape(-1, h.shape[-1])
    if len(places) < len(h):
        h = h.index_select(0, places.to(h.device))  # device_map may have put this layer elsewhere
    h = h.float()
    magnitude = h.abs()
    token_max = magnitude.amax(-1)
    dims = magnitude.amax(0).topk(min(TRACKED_DIMS, h.shape[-1])).indices
    strongest = int(token_max.argmax())
    if not torch.isfinite(token_max).all():
        where = "the embedding output" if layer < 0 else f"the output of layer {layer}"
        raise ModelError(
            f"There are NaN or infinite values in {where}: the model overflows in this dtype. Load "
            "it in bfloat16 or float32."
        )
    return Trace(
        layer=layer,
        median=_median(magnitude),
        token_max=token_max.cpu(),
        dims=dims.cpu(),
        columns=magnitude[:, dims].cpu(),
        # clone: on a CPU, a row would be a view that keeps the whole layer alive
        strongest=magnitude[strongest].clone().cpu(),
        strongest_state=h[strongest].clone().cpu(),
    )


def _median(values: Tensor) -> float:
    """The lower median, exactly that of torch.median.

    On a CPU a sample says between which values it lies, and only those are put in order: ten times
    faster, where the median would be the dearest part of detection.
    """
    flat = values.flatten()
    middle = (len(flat) - 1) // 2
    if flat.device.type != "cpu":
        return float(flat.median())
    sample = flat[:: max(1, len(flat) // SAMPLED) | 1].sort().values  # odd: not always one dim
    low, high = (sample[int(share * (len(sample) - 1))] for share in (0.45, 0.55))
    below, inside = int((flat < low).sum()), flat[(flat >= low) & (flat <= high)]
    if below <= middle < below + len(inside):
        flat, middle = inside, middle - below
    return float(np.partition(flat.numpy(), middle)[middle])


class _Recorder:
    """Turns each layer's output into a `Trace` as soon as it is there."""

    def __init__(self, real: Tensor, criterion: Criterion) -> None:
        self._places = real.flatten().nonzero().flatten()  # [N]: of the real tokens in B * T
        self._criterion = criterion
        self.traces: list[Trace] = []

    def start(self, h: Tensor) -> None:
        self.traces.append(_trace(-1, h, self._places))

    def leave(self, passage: Passage) -> None:
        trace = _trace(passage.block.index, passage.left, self._places)
        self._compare(trace, passage)
        self._see_newborn(trace, passage)
        self.traces.append(trace)

    def _compare(self, trace: Trace, passage: Passage) -> None:
        """Cosine of the layer before, and who wrote this layer's strongest token."""
        before = self.traces[-1]
        row = self._places[int(before.token_max.argmax())].reshape(1)
        after = rows_of(passage.left, row)[0]
        cosine = nn.functional.cosine_similarity(before.strongest_state, after, dim=0)
        before.cosine = float(cosine)
        strongest = self._places[int(trace.token_max.argmax())].reshape(1)
        if (writes := passage.writes(strongest)) is not None:  # else leave the share open
            trace.ffn_share = _ffn_share(*writes)[0, trace.dims]

    def _see_newborn(self, trace: Trace, passage: Passage) -> None:
        """Who wrote the tokens that are born here."""
        before = self.traces[-1].token_max
        born = jumps(before, trace.token_max, trace.median, self._criterion).nonzero().flatten()
        if not len(born):
            return
        order = trace.token_max[born].argsort(descending=True, stable=True)[:NEWBORN]
        places = self._places[born[order]]
        states = rows_of(passage.left, places)
        trace.newborn_state = states[0].clone()
        if (writes := passage.writes(places)) is not None:
            shares = _ffn_share(*writes).gather(1, states.abs().argmax(1, keepdim=True))
            trace.newborn_by_ffn = float((shares >= 0.5).float().mean())


def _ffn_share(attention: Tensor, ffn: Tensor) -> Tensor:
    """The FFN's share of what a layer wrote, [n, D]."""
    write = attention + ffn
    return ffn / torch.where(write == 0, 1, write)


@torch.no_grad()
def trace_layers(
    model: nn.Module,
    decoder: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor,
    criterion: Criterion,
) -> list[Trace]:
    """Run `model` once; trace l + 1 of the result is layer l, trace 0 the embedding output.

    Pads, 0 in the mask [B, T], are in no reduction; births by the criterion are looked at closely.

    Raises:
        ModelError: values that are not finite, parts in another order than their names promise, or
            not every layer ran with our hooks (a compiled or replaced forward).
    """
    base = unwrap(model)
    recorder = _Recorder(attention_mask.bool(), criterion)
    with (
        evaluating(runnable(model, base)),
        checking_flow(decoder),
        watching(decoder, recorder.leave, recorder.start),
    ):
        runnable(model, base)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            use_cache=False,
            **without_logits(base),
        )
    if len(recorder.traces) != len(decoder.blocks) + 1:
        raise ModelError(
            f"{len(recorder.traces) - 1} of {len(decoder.blocks)} layers ran in a forward pass. "
            "Was the model compiled or its forward replaced? Detect before that."
        )
    return recorder.traces
