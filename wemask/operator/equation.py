"""The idea, in one equation (WeMask, arXiv 2605.08504).

At a softened layer `l`, for a massive token `t`, the input of attention becomes

    x'[l,t,:] = x[l,t,:] * (1 - s * m)        m in {0,1}^D,  |m| = k,  0 <= s <= 1

and nothing else changes: not the residual stream, not other tokens, not other layers, not the FFN.
With s = 0 it is the identity, bit for bit.

Pure functions of tensors. Which tokens: `tokens.py`; m: `top_dims` of the ME Layer's norm weight
(`dims.py`); s and all other choices: `settings.py`; into a model: `layers.py`, `patch.py`.
Shapes: B batch, T tokens, D hidden size, k softened dims.
"""

from typing import Any

import torch
from torch import Tensor


def soften_dims(x: Tensor, gate: Tensor, dims: Tensor, strength: float | Tensor) -> Tensor:
    """Return x' of the equation above; `x` itself is never written to.

    Only the k chosen columns are computed: the rest is one copy. A token whose gate is False keeps
    its bits, and so does every token at strength 0, which is multiplied by exactly 1.

    Args:
        x: attention input, [B, T, D], any float dtype.
        gate: massive tokens, bool [B, T] or broadcastable, e.g. [1, T].
        dims: the dims where m = 1, int64 [k].
        strength: s, a number or a 0-dim tensor.
    """
    # Without gradients there is nothing to save; a compiler fuses autograd's passes itself.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _equation(x, gate, dims, strength)
    return _Soften.apply(x, gate, dims, strength)


def _equation(x: Tensor, gate: Tensor, dims: Tensor, strength: float | Tensor) -> Tensor:
    column = x.index_select(-1, dims)
    softened = torch.where(gate.unsqueeze(-1), column * (1 - strength), column)
    return x.index_copy(-1, dims, softened)


class _Soften(torch.autograd.Function):
    """Its gradient by hand: x' is diagonal in x, so dL/dx is dL/dx' softened.

    Autograd's own would add three passes over [B, T, D]. Nothing of size D is kept for backward.
    """

    @staticmethod
    def forward(x: Tensor, gate: Tensor, dims: Tensor, strength: float | Tensor) -> Tensor:
        return _equation(x, gate, dims, strength)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, gate, dims, strength = inputs
        learned = ctx.needs_input_grad[3]
        tensor = strength if isinstance(strength, Tensor) else None
        ctx.number = strength if tensor is None else None
        ctx.save_for_backward(gate, dims, tensor, x.index_select(-1, dims) if learned else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        gate, dims, tensor, column = ctx.saved_tensors
        grad_x = grad_strength = None
        if ctx.needs_input_grad[0]:
            grad_x = soften_dims(grad, gate, dims, ctx.number if tensor is None else tensor)
        if column is not None and tensor is not None:  # dx'/ds = -x on these dims of these tokens
            slope = column.to(tensor.dtype) * grad.index_select(-1, dims).to(tensor.dtype)
            grad_strength = -(slope * gate.unsqueeze(-1)).sum()
        return grad_x, None, None, grad_strength


def top_dims(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores [D], ties to the lower index (topk leaves them open)."""
    return torch.sort(scores, descending=True, stable=True).indices[:k]


def batch_activation_dims(x: Tensor, gate: Tensor, k: int) -> Tensor:
    """Top-k dims of mean |x| over the gated tokens of this forward, the authors' selection.

    It depends on batch mates; that is what it is, and why it is not the default.

    Args:
        x: attention input [B, T, D].
        gate: bool [B, T].
        k: how many.
    """
    weight = gate.to(x.dtype).unsqueeze(-1)
    scores = (x.abs() * weight).sum((0, 1)) / weight.sum().clamp(min=1)
    return scores.topk(k).indices


# --- controls ----------------------------------------------------------------------------------
# A control changes one choice and keeps the budget, so that what it does not do can be put down to
# that choice. Most need no equation: other dims, tokens, layers or another site go through
# `soften_dims`.


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
    softened = soften_dims(wide, gate, dims, strength)
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
