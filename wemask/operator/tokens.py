"""Which tokens are softened: massive ones by content, or the one at a place of every document.

Shapes: B batch, T tokens, D hidden size, K massive dims.
"""

import torch
from torch import Tensor

from wemask.errors import ConfigError


def massive_tokens(residual: Tensor, dims: Tensor, thresholds: Tensor) -> Tensor:
    """Tokens that are massive by content: any |h[t, d]| > tau_d over the massive dims; bool [B, T].

    Of the residual h[l-1] that enters layer l, [B, T, D], by dims int64 [K] and thresholds tau [K].
    Position, padding, packing and cache play no part in it.
    """
    return (residual.index_select(-1, dims).abs() > thresholds).any(-1)


def tokens_at(
    residual: Tensor, mask: object, position_ids: Tensor | None, past_length: int, position: int = 0
) -> Tensor:
    """The real token at one place of every sequence and of every packed document.

    Read from what the layer itself was given, so pads, packing, chunks and cache are all in it: a
    4-D attention mask row with position + 1 visible keys (the first token sees only itself), else
    (no padding) the position. In a layer with a sliding window of W keys every later row sees W of
    them, so position + 1 must be below W; `patch.py` checks that.

    Args:
        residual: [B, T, D], for shape and device.
        mask: the layer's attention mask: bool or additive [B or 1, heads or 1, T, keys], the 2-D
            padding mask of flash attention [B, keys], or None.
        position_ids: [B or 1, T] or None. Trap: `generate` fills left pads with 0, so they are
            used only where there is no mask.
        past_length: number of cached tokens before this forward.
        position: 0 for the first token.

    Returns:
        bool [B, T] or [1, T].

    Raises:
        ConfigError: a mask that cannot be read (flex attention's BlockMask).
    """
    length = residual.shape[1]
    if isinstance(mask, Tensor) and mask.ndim == 4:
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        seen = visible.sum(-1)[:, 0]
        gate = seen == position + 1
        if position:  # a pad on the right sees as much as the last real token: take the first
            gate[:, 1:] &= seen[:, :-1] == position
        return gate
    index = torch.arange(length, device=residual.device).unsqueeze(0)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        real = mask.to(torch.int64)
        start = real.argmax(-1, keepdim=True)
        gate = index + (mask.shape[-1] - length) == start + position
        return gate & (real[:, -length:] > 0) if position else gate
    if mask is not None:
        raise ConfigError(
            f"tokens=first and tokens=wrong cannot read a {type(mask).__name__} attention mask. "
            "Type operator.tokens=massive, or load the model with attn_implementation=sdpa."
        )
    return (position_ids if position_ids is not None else index + past_length) == position
