"""Attention sinks that a planted massive activation causes, and nothing else does.

    truth = plant(model, layer=1, token_ids=[7], dims=[3, 17], magnitude=5000.0)
    sinks = plant_sinks(model, truth)

In every layer after the ME Layer, chosen heads sink on the massive token as long as it is massive;
take the massive activation away, and its key is zero: it gets no more than an equal share. Causal
experiments can then be held against the truth.

One embedding dim is set to the same constant in every token, and no layer writes on it; on the
massive dims nothing but the planted neuron writes. A chosen head's query reads the constant, its
key reads the massive dims, both at the place of the head that rotary embeddings turn slowest, so
that the logit hardly depends on the distance. After a norm, the massive dims of the massive token
are about sqrt(D / number of dims) whatever its magnitude; those of the other tokens are what the
neuron leaks, small beside that. D is the hidden size, H that of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.parts import Block, Decoder, find_decoder, unwrap
from wemask.errors import ModelError
from wemask.planted import (
    Planted,
    capture,
    fitting_texts,
    free_dims,
    plant,
    silence_block,
)

SINK_LOGIT = 9.0  # e^9 = 8103: at least 0.99 of the attention among 64 keys of logit 0
CONSTANT = 1.0  # of the reserved dim, in units of the usual length of an embedding

# Heads of one q_proj and k_proj, rotated by halves: place j turns with place j + H / 2.
SUPPORTED = "llama mistral mixtral qwen2 qwen2_moe granite granitemoe smollm3".split()
# The same with a norm on queries and keys, whose weight all heads share.
SUPPORTED_NORMED = "qwen3 qwen3_moe".split()


@dataclass(frozen=True, kw_only=True)
class PlantedSinks:
    """The truth about the sinks of a planted model."""

    planted: Planted
    layers: tuple[int, ...]
    """Layers with sinks: all after the ME Layer."""
    heads: tuple[int, ...]
    """The query heads that sink, the same in each of `layers`."""
    dim: int
    """The dim of the residual stream that is the same constant in every token and layer."""


@dataclass(frozen=True, kw_only=True)
class _Heads:
    """How a layer's heads lie in the rows of its projections."""

    size: int  # H
    queries: tuple[int, ...]  # chosen query heads
    keys: tuple[int, ...]  # chosen key-value heads

    @property
    def place(self) -> int:
        """Place in a head that rotary embeddings turn slowest."""
        return self.size // 2 - 1


@torch.no_grad()
def plant_sinks(
    model: nn.Module,
    truth: Planted,
    *,
    key_value_heads: Sequence[int] | None = None,
    seed: int = 0,
) -> PlantedSinks:
    """Give a planted model attention sinks on its massive tokens, in place.

    The massive activation is planted anew, as `truth` says, since the reserved dim is part of what
    the ME Layer reads. Good for texts of up to about 64 tokens.

    Args:
        model: what `plant` returned `truth` for.
        truth: layer, tokens, dims and magnitude of the massive activation.
        key_value_heads: whose query heads sink; default the first, or all where queries and keys
            are normed (Qwen3), because the weight of those norms belongs to all heads.
        seed: of the random texts on which the heads are fitted.

    Raises:
        ModelError: another attention than `SUPPORTED` and `SUPPORTED_NORMED`, no layer after the
            ME Layer, or heads that do not exist or cannot be chosen.
    """
    base = unwrap(model)
    decoder = find_decoder(base)
    later = decoder.blocks[truth.layer + 1 :]
    if not later:
        raise ModelError(f"No layer follows the ME Layer {truth.layer}: there is none to sink.")
    heads = _choose_heads(base, later[0], key_value_heads)
    dim = _reserve(base, decoder, truth)
    plant(
        base,
        layer=truth.layer,
        token_ids=truth.token_ids,
        dims=truth.dims,
        magnitude=truth.magnitude,
        seed=seed,
    )
    texts = fitting_texts(base, truth.token_ids, seed)
    massive = torch.isin(texts, torch.tensor(truth.token_ids, device=texts.device))
    for block in later:  # in order: each layer reads what the ones before write now
        attention: Any = block.attention
        x = capture(base, texts, attention.q_proj, output=False).float()
        _sink(attention, heads, x[massive], x[~massive], list(truth.dims), dim)
    layers = tuple(block.index for block in later)
    return PlantedSinks(planted=truth, layers=layers, heads=heads.queries, dim=dim)


def _choose_heads(model: nn.Module, block: Block, chosen: Sequence[int] | None) -> _Heads:
    config: Any = model.config.get_text_config(decoder=True)  # pyright: ignore
    normed = config.model_type in SUPPORTED_NORMED
    if not normed and config.model_type not in SUPPORTED:
        raise ModelError(
            f"Sinks cannot be planted in {config.model_type}: it needs q_proj and k_proj of known "
            f"layout. Take one of {', '.join([*SUPPORTED, *SUPPORTED_NORMED])}."
        )
    keys = config.num_key_value_heads
    group = config.num_attention_heads // keys
    chosen = tuple(chosen if chosen is not None else range(keys if normed else 1))
    if not chosen or not set(chosen) <= set(range(keys)):
        raise ModelError(f"key_value_heads are among 0 to {keys - 1}; got {list(chosen)}.")
    if normed and set(chosen) != set(range(keys)):
        raise ModelError(
            f"In {config.model_type} one norm weight serves all heads: choose all of them "
            f"(key_value_heads=None); got {list(chosen)} of {keys}."
        )
    attention: Any = block.attention
    queries = tuple(key * group + i for key in chosen for i in range(group))
    return _Heads(size=attention.k_proj.out_features // keys, queries=queries, keys=chosen)


def _reserve(model: nn.Module, decoder: Decoder, truth: Planted) -> int:
    """Make one dim a constant, and the massive dims 0, for all tokens through all layers.

    Returns the constant dim.
    """
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    dim = free_dims(decoder.hidden_size, truth.dims)[2]  # `plant` has the first two
    weight[:, list(truth.dims)] = 0
    weight[:, dim] = CONSTANT * weight.float().norm(dim=-1).mean().to(weight.dtype)
    for block in decoder.blocks:
        silence_block(block, decoder.hidden_size, [dim, *truth.dims])
    return dim


def _sink(
    attention: Any, heads: _Heads, massive: Tensor, ordinary: Tensor, dims: list[int], dim: int
) -> None:
    """Rewrite queries and keys of the chosen heads, given attention inputs [tokens, D].

    The weakest ordinary query gives the weakest massive key a logit of SINK_LOGIT.
    """
    signs = massive[:, dims].mean(0).sign()
    key = float((massive[:, dims] * signs).sum(-1).min())
    constant = float(ordinary[:, dim].mean().sign())  # norm weights may be negative
    query = float((ordinary[:, dim] * constant).min())
    if key <= 0 or query <= 0:
        raise ModelError("The massive tokens do not differ from the rest: there is nothing to key.")
    root = (SINK_LOGIT / attention.scaling) ** 0.5
    query_row = torch.zeros(massive.shape[1], device=massive.device)
    key_row = query_row.clone()
    query_row[dim] = constant * root / query
    key_row[dims] = signs * root / key
    if hasattr(attention, "q_norm"):
        _beside_norms(attention, heads, key_row, dim, ordinary, root)
    _rewrite(attention.q_proj, heads.queries, heads, query_row)
    _rewrite(attention.k_proj, heads.keys, heads, key_row)


def _beside_norms(
    attention: Any, heads: _Heads, key_row: Tensor, dim: int, ordinary: Tensor, root: float
) -> None:
    """Norms leave only the sign of a key that has one place: let ordinary ones be negative.

    Massive keys are +sqrt(H), ordinary ones -sqrt(H) times the norm's weight, so the logits differ
    by 2 H * scaling * both weights, of which the query's is set.
    """
    against = 2 * (ordinary @ key_row).max().clamp(min=0.05 * root)  # twice the largest leak
    key_row[dim] = -ordinary[:, dim].mean().sign() * against / ordinary[:, dim].abs().min()
    key_row *= 1e3  # the norm divides it away again, but its eps is nothing beside that
    scale = 2 * heads.size * attention.scaling * attention.k_norm.weight[heads.place].float()
    attention.q_norm.weight[heads.place] = SINK_LOGIT / scale


def _rewrite(projection: Any, chosen: Sequence[int], heads: _Heads, row: Tensor) -> None:
    """Let the chosen heads of a projection [heads * H, D] read `row` at one place, else nothing."""
    for head in chosen:
        start = head * heads.size
        projection.weight[start : start + heads.size] = 0
        projection.weight[start + heads.place] = row.to(projection.weight)
        if projection.bias is not None:
            projection.bias[start : start + heads.size] = 0
