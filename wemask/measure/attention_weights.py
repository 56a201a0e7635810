"""Attention weights of every layer, one layer at a time, whatever kernel the model runs.

Kernels such as sdpa and flash never form the weights. They are computed again, from the queries and
keys that the kernel is given, in blocks of queries that are handed over and forgotten: the model
keeps its kernel, its logits and its speed, and memory grows with T, not with T^2.

Models whose attention calls no such kernel (GPT-J, BLOOM, MPT, Falcon) are run with their own eager
attention, and their weights are taken from each layer as it returns.

B batch, T tokens, H query heads, d head size.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Block, Decoder
from wemask.decoder.passage import hooked
from wemask.errors import ModelError

BLOCK = 2**24  # attention weights that are held at once, 64 MiB in float32


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """Weights of some queries of one layer."""

    layer: int
    first_query: int
    weights: Tensor
    """float32 [B, H, queries, T], rows sum to 1 (less with a learned sink, as in GPT-OSS)."""


@contextmanager
def reading_attention(
    model: nn.Module,
    decoder: Decoder,
    attention_mask: Tensor,
    seen: Callable[[AttentionBlock], None],
    seen_values: Callable[[int, Tensor], None] | None = None,
    block: int = BLOCK,
) -> Iterator[dict[str, Any]]:
    """Within it, a forward without cache hands over the attention weights of every layer.

    Args:
        model: a transformers causal language model.
        decoder: its parts.
        attention_mask: of the forwards to come, [B, T], 1 for real tokens.
        seen: gets the weights. A layer without attention weights (linear attention) gives none.
        seen_values: gets layer and values [B, key-value heads, T, d], where a kernel has them.
        block: weights that are held at once.

    Yields:
        Arguments that the forward needs beside `input_ids` and `attention_mask`.

    Raises:
        ModelError: a kernel's arguments are not [B, H, T, d].
    """
    kernels, own = [], []
    for part in decoder.blocks:  # whether its attention asks transformers for a kernel
        home = sys.modules[type(part.attention).__module__]
        (kernels if hasattr(home, "ALL_ATTENTION_FUNCTIONS") else own).append(part)
    layers = {module: part.index for part in kernels for module in part.attention.modules()}
    reader = _Reader(layers, attention_mask, seen, seen_values, block)
    with reader.in_place_of_kernels():
        if not own:
            yield {}
            return
        with _own_attention(model, own, seen):
            yield {"output_attentions": True}


@dataclass
class _Reader:
    """Stands between the layers and their kernels."""

    layers: dict[nn.Module, int]
    mask: Tensor
    seen: Callable[[AttentionBlock], None]
    seen_values: Callable[[int, Tensor], None] | None
    block: int

    @contextmanager
    def in_place_of_kernels(self) -> Iterator[None]:
        """Every kernel that a layer asks for is ours, which calls that one."""
        from transformers.modeling_utils import AttentionInterface

        original = AttentionInterface.get_interface

        def get_interface(*args: Any, **kwargs: Any) -> Callable:
            return partial(self._attend, original(*args, **kwargs))

        AttentionInterface.get_interface = get_interface  # pyright: ignore
        try:
            yield
        finally:
            AttentionInterface.get_interface = original

    def _attend(self, kernel: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = kernel(module, *args, **kwargs)
        layer = self.layers.get(module)
        if layer is None:  # a vision tower
            return output
        q, k, v, *more = args
        self._read(layer, q, k, more[0] if more else kwargs.get("attention_mask"), kwargs)
        if self.seen_values is not None:
            self.seen_values(layer, v)
        return output

    def _read(self, layer: int, q: Tensor, k: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
        batch, length = self.mask.shape
        if q.ndim != 4 or (q.shape[0], q.shape[2]) != (batch, length) or k.shape[2] != length:
            raise ModelError(
                f"Layer {layer} gives its attention kernel queries {list(q.shape)} and keys "
                f"{list(k.shape)}; [{batch}, heads, {length}, head size] was expected, without a "
                "cache. Its attention weights cannot be read."
            )
        step = max(1, self.block // (batch * q.shape[1] * length))
        # Under autocast the scores, and the sums of whoever sees the weights, have three digits.
        with torch.autocast(q.device.type, enabled=False):
            for first in range(0, length, step):
                rows = slice(first, min(first + step, length))
                weights = self._weights(q[:, :, rows], k, mask, rows, kwargs)
                self.seen(AttentionBlock(layer=layer, first_query=first, weights=weights))

    def _weights(
        self, q: Tensor, k: Tensor, mask: Any, rows: slice, kwargs: dict[str, Any]
    ) -> Tensor:
        """Softmax of the scores of some queries, float32 [B, H, queries, T]."""
        batch, heads, count, size = q.shape
        scaling = kwargs.get("scaling")
        grouped = q.float().reshape(batch, k.shape[1], heads // k.shape[1] * count, size)
        scores = (
            grouped @ k.float().transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
        )
        scores = scores.reshape(batch, heads, count, -1)
        if (cap := kwargs.get("softcap")) is not None:
            scores = cap * torch.tanh(scores / cap)
        if (bias := kwargs.get("position_bias")) is not None:
            scores = scores + bias[..., rows, :].float()
        scores = scores + self._additive(mask, rows, scores, kwargs.get("sliding_window"))
        if (sinks := kwargs.get("s_aux")) is None:
            return scores.softmax(-1)
        column = sinks.float().reshape(1, -1, 1, 1).expand(batch, heads, count, 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1]

    def _additive(self, mask: Any, rows: slice, scores: Tensor, window: int | None) -> Tensor:
        """0 where a query sees a key, the lowest number elsewhere; broadcasts to the scores."""
        lowest = torch.finfo(torch.float32).min
        if isinstance(mask, Tensor) and mask.ndim == 4:
            part = mask[..., rows, : scores.shape[-1]].to(scores.device)
            if part.dtype != torch.bool:
                return part.float().clamp(min=lowest)
            return torch.zeros_like(part, dtype=torch.float32).masked_fill(~part, lowest)
        # No mask, or that of flash attention (padding) or flex attention (a BlockMask): causal.
        keys = torch.arange(scores.shape[-1], device=scores.device)
        queries = keys[rows, None]
        visible = keys <= queries
        if window is not None:
            visible = visible & (keys > queries - window)
        visible = visible & self.mask.to(scores.device).bool()[:, None, None, :]
        return torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, lowest)


@contextmanager
def _own_attention(
    model: nn.Module, blocks: list[Block], seen: Callable[[AttentionBlock], None]
) -> Iterator[None]:
    """Let the model run its own eager attention, whose weights do not pile up."""

    def take_out(block: Block, module: nn.Module, args: tuple, output: Any) -> Any:
        if not isinstance(output, tuple):
            return output
        left = list(output)
        for i, part in enumerate(output):
            if isinstance(part, Tensor) and part.ndim == 4 and part.shape[-1] == part.shape[-2]:
                seen(AttentionBlock(layer=block.index, first_query=0, weights=part.float()))
                left[i] = None
        return tuple(left)

    taken = (b.attention.register_forward_hook(partial(take_out, b)) for b in blocks)
    config: Any = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")  # pyright: ignore[reportCallIssue]
    try:
        with hooked(taken):
            yield
    finally:
        model.set_attn_implementation(before)  # pyright: ignore[reportCallIssue]
