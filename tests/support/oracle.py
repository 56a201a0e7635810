"""The softened forward written again, plainly, from a model's own submodules and nothing of ours.

Slow and differentiable: no tensor is written to, so autograd gives the gradients that a softened
model must have. Run it on the model while it is not softened.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# layer -> (bool [B, T] of the massive tokens, softened dims)
Softened = Mapping[int, tuple[Tensor, Sequence[int]]]


Equation = Callable[[Tensor, Tensor, Sequence[int], Tensor], Tensor]


def soften(x: Tensor, tokens: Tensor, dims: Sequence[int], strength: Tensor) -> Tensor:
    """x * (1 - s * m) [B, T, D], the equation as it stands in the paper."""
    m = torch.zeros_like(x)
    m[..., list(dims)] = 1
    return x * (1 - strength * m * tokens.unsqueeze(-1))


def _attention_input(
    norm: Callable[[Tensor], Tensor],
    h: Tensor,
    chosen: tuple[Tensor, Sequence[int]] | None,
    strength: Tensor,
    site: str,
    equation: Equation,
) -> Tensor:
    if chosen is None or site == "residual_stream":
        return norm(h)
    if site == "residual_copy":
        return norm(equation(h, *chosen, strength))
    return equation(norm(h), *chosen, strength)


def _start(
    base: Any,
    ids: Tensor,
    softened: Softened,
    strength: float | Tensor,
    site: str,
    equation: Equation,
) -> tuple[Tensor, Callable[[int, Tensor], Tensor], Callable[[int, Tensor], Tensor]]:
    """The embedded ids [B, T, D], what enters a layer, and what its attention makes of that."""
    h = base.embed_tokens(ids)
    rotation = base.rotary_emb(h, torch.arange(ids.shape[1]).unsqueeze(0))
    hidden = torch.full((ids.shape[1],) * 2, torch.finfo(h.dtype).min, dtype=h.dtype).triu(1)
    s = torch.as_tensor(strength, dtype=h.dtype).expand(len(base.layers))

    def attend(index: int, h: Tensor) -> Tensor:
        layer = base.layers[index]
        chosen = softened.get(index)
        x = _attention_input(layer.input_layernorm, h, chosen, s[index], site, equation)
        out = layer.self_attn(
            hidden_states=x, position_embeddings=rotation, attention_mask=hidden[None, None]
        )
        return out[0]

    def enter(index: int, h: Tensor) -> Tensor:
        if site == "residual_stream" and index in softened:
            return equation(h, *softened[index], s[index])
        return h

    return h, enter, attend


def llama_oracle(
    model: Any,
    ids: Tensor,
    softened: Softened,
    strength: float | Tensor = 1.0,
    site: str = "attention_input",
    equation: Equation = soften,
) -> Tensor:
    """Logits [B, T, V]; `strength` is one s, or one for each layer of the model [L]."""
    h, enter, attend = _start(model.model, ids, softened, strength, site, equation)
    for index, layer in enumerate(model.model.layers):
        h = enter(index, h)
        h = h + attend(index, h)
        h = h + layer.mlp(layer.post_attention_layernorm(h))
    return model.lm_head(model.model.norm(h))


def phi_oracle(
    model: Any,
    ids: Tensor,
    softened: Softened,
    strength: float | Tensor = 1.0,
    site: str = "attention_input",
    equation: Equation = soften,
) -> Tensor:
    """The same for a parallel block: one norm feeds attention and FFN, which is not softened."""
    h, enter, attend = _start(model.model, ids, softened, strength, site, equation)
    for index, layer in enumerate(model.model.layers):
        h = enter(index, h)
        h = h + attend(index, h) + layer.mlp(layer.input_layernorm(h))
    return model.lm_head(model.model.final_layernorm(h))


ORACLES: dict[str, Callable[..., Tensor]] = {"llama": llama_oracle, "phi": phi_oracle}
