"""Equations of the controls that are not the operator's own, on tensors.

A control changes one choice of `WeMaskConfig` and keeps the budget, so that what it does not do can
be put down to that choice. Most need no equation: other dims, tokens, layers or another site go
through `operator.soften_dims`. Shapes as there: B batch, T tokens, D hidden size, k softened dims.
"""

import torch
from torch import Tensor

from wemask.operator import settings as operator


def damp_uniformly(x: Tensor, gate: Tensor, dims: Tensor, strength: float | Tensor) -> Tensor:
    """x * |x'| / |x|, where x' is x with `dims` softened: `dims=uniform`.

    Every dim is damped by one factor, which leaves a token the energy that softening its dims would
    have left. At strength 0 the factor is exactly 1. Autograd's own gradient, also through |x'|.

    Args:
        x: attention input [B, T, D], any float dtype; computed in float32 or more.
        gate: tokens to be damped, bool [B, T] or broadcastable.
        dims: what the operator would soften, int64 [k].
        strength: s, a number or a 0-dim tensor.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    softened = operator.soften_dims(wide, gate, dims, strength)
    # vector_norm and not sqrt(sum): its gradient at a token that is all zero is 0, not NaN.
    kept, length = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (softened, wide))
    factor = kept / torch.where(length == 0, 1, length)
    return torch.where(gate.unsqueeze(-1), (wide * factor).to(x.dtype), x)


def fill_dims(
    x: Tensor, gate: Tensor, dims: Tensor, strength: float | Tensor, values: Tensor
) -> Tensor:
    """x * (1 - s * m) + s * m * v: `fill=mean`, v the calibrated mean of each dim.

    At strength 0 it is the identity, bit for bit; at 1 the dims are v.

    Args:
        x: what is softened [B, T, D].
        gate: tokens to be softened, bool [B, T] or broadcastable.
        dims: the dims where m = 1, int64 [k].
        strength: s, a number or a 0-dim tensor.
        values: v, float32 [k].
    """
    column = x.index_select(-1, dims)
    filled = (column * (1 - strength) + strength * values).to(x.dtype)
    touched = gate.unsqueeze(-1) & (strength != 0)  # else -0.0 + 0.0 would lose its sign
    return x.index_copy(-1, dims, torch.where(touched, filled, column))
