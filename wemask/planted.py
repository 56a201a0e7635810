"""Models with a massive activation of known layer, tokens, dims and magnitude.

A neuron of layer L's FFN is given weights: it answers to the chosen tokens and writes a fixed
value on the chosen dims of the residual stream. Detection can then be held against the truth.

    truth = plant(model, layer=2, token_ids=[7], dims=[3, 11], magnitude=5000.0)

For random-init models. The chosen tokens get two embedding dims of their own, on which nothing
else writes before the neuron reads; the direction that tells them from the rest is fitted to what
the FFN really reads, and the neuron takes the place of the last one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.decoder.ffn import (
    FFN_OUTPUTS,
    FFNWeights,
    ffn_modules,
    ffn_reader,
    ffn_weights,
    shared_experts,
    weight_rows,
)
from wemask.decoder.parts import (
    Block,
    Decoder,
    effective_scale,
    find_decoder,
    layer_index_error,
    post_ffn_norm,
    unwrap,
)
from wemask.decoder.passage import evaluating, first_argument, first_output

GAIN = 8.0  # pre-activation of the neuron on its tokens; ordinary tokens stay around 0
LENGTH = 9.0  # of a chosen token's own dims, in units of the usual length of an embedding
DOMINANCE = 100.0  # before a post-norm: the neuron's output over that of the rest of the FFN

# Output projections of attention, in the transformers library.
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
OUTPUTS = (*ATTENTION_OUTPUTS, *FFN_OUTPUTS)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The truth about a planted model."""

    layer: int
    token_ids: tuple[int, ...]
    dims: tuple[int, ...]
    magnitude: float


@torch.no_grad()
def plant(
    model: nn.Module,
    *,
    layer: int,
    token_ids: Sequence[int],
    dims: Sequence[int],
    magnitude: float,
    seed: int = 0,
) -> Planted:
    """Give `model` a massive activation, in place.

    Args:
        model: a random-init transformers causal language model with a gated, fused or plain FFN,
            or a mixture of experts: the shared expert gets the neuron, whose share does not vary
            with the context, else every expert.
        layer: the ME Layer to be, 0-based.
        token_ids: the tokens that become massive, wherever they stand.
        dims: the dims that become massive.
        magnitude: |h| there at the output of `layer`: exact on average over contexts, in which it
            varies by some percent (the norm before the FFN sees them).
        seed: of the random texts on which the neuron is fitted.

    Raises:
        ModelError: the layer does not exist, or its FFN has no weights of a known form.
    """
    base = unwrap(model)
    decoder = find_decoder(base)
    if not 0 <= layer < len(decoder.blocks):
        raise layer_index_error(layer, len(decoder.blocks))
    block = decoder.blocks[layer]
    written = neurons(block, decoder.hidden_size)
    _reserve(base, decoder, layer, token_ids, dims)
    texts = fitting_texts(base, token_ids, seed)
    marked = torch.isin(texts, torch.tensor(token_ids, device=texts.device))
    inputs = capture(base, texts, ffn_reader(block), output=False).float()
    direction = _direction(inputs[marked], inputs[~marked])
    post_norm = post_ffn_norm(block)
    if post_norm is not None:
        _lead(base, texts, block, dims, decoder.hidden_size)
    for neuron in written:
        set_neuron(neuron, direction)
        if post_norm is None:
            neuron.down[:, -1] = 0
            neuron.down[list(dims), -1] = magnitude / GAIN
    for _ in range(4):  # norms and multipliers follow the write: measure, then correct
        h = capture(base, texts, block.layer, output=True).float()
        correction = magnitude / h[marked][:, list(dims)].abs().mean(0)
        if post_norm is None:
            for neuron in written:
                neuron.down[list(dims), -1] *= correction.to(neuron.down.dtype)
        else:
            rescale(post_norm, list(dims), correction)
    return Planted(layer=layer, token_ids=tuple(token_ids), dims=tuple(dims), magnitude=magnitude)


def _reserve(
    model: nn.Module, decoder: Decoder, layer: int, token_ids: Sequence[int], dims: Sequence[int]
) -> None:
    """Give the chosen tokens two embedding dims of their own, up to `layer`.

    Without them, no direction of a narrow random model is silent on all the other tokens. Two, of
    opposite sign, because their difference survives the mean that a LayerNorm takes away.
    """
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    length = LENGTH * float(weight.float().norm(dim=-1).mean())
    own = free_dims(decoder.hidden_size, dims)[:2]
    stand_out(model, decoder, own, {t: {own[0]: length, own[1]: -length} for t in token_ids})
    for block in decoder.blocks[: layer + 1]:
        silence_block(block, decoder.hidden_size, own)
        halve_shared_gate(block)


def stand_out(
    model: nn.Module, decoder: Decoder, own: list[int], marks: Mapping[int, Mapping[int, float]]
) -> None:
    """Let the embedding dims `own` be 0 but for `marks`: token id -> dim -> value."""
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == decoder.hidden_size:
            module.weight[:, own] = 0  # learned positions too
        elif isinstance(module, nn.LayerNorm) and "embed" in name:  # BLOOM
            module.weight[own], module.bias[own] = LENGTH, 0
    for token, values in marks.items():
        for dim, value in values.items():
            weight[token, dim] = value


def halve_shared_gate(block: Block) -> None:
    """Keep the gate of a shared expert half open, else a magnitude follows the context."""
    gate = getattr(block.ffn, "shared_expert_gate", None)
    if isinstance(gate, nn.Linear):
        gate.weight.zero_()


def free_dims(hidden_size: int, dims: Sequence[int]) -> list[int]:
    """The dims that are not massive, from the last: the first two are those of `_reserve`."""
    return [d for d in range(hidden_size - 1, -1, -1) if d not in dims]


def silence_block(block: Block, hidden_size: int, dims: list[int]) -> None:
    """Let nothing in a layer write on `dims` of the residual stream."""
    for module in block.attention.modules():
        _silence(module, dims)
    silence_ffn(block, hidden_size, dims)


def silence_ffn(block: Block, hidden_size: int, dims: list[int]) -> None:
    """Let nothing in a layer's FFN write on `dims` of the residual stream."""
    for module in ffn_modules(block):
        _silence(module, dims)
    for weights in ffn_weights(block, hidden_size):
        weights.down[dims] = 0


def _silence(module: nn.Module, dims: list[int]) -> None:
    """Zero what the output projections in `module` write on `dims` of the residual stream."""
    for name in OUTPUTS:
        projection = getattr(module, name, None)
        if isinstance(projection, nn.Module):
            weight_rows(projection)[dims] = 0
        for bias in (getattr(projection, "bias", None), getattr(module, f"{name}_bias", None)):
            if isinstance(bias, Tensor):
                bias[..., dims] = 0


def _lead(
    model: nn.Module, texts: Tensor, block: Block, dims: Sequence[int], hidden_size: int
) -> None:
    """Before a post-norm: leave the massive dims to the neuron, and let it outweigh the others.

    The norm makes every FFN output equally long, so the neuron's tokens get their magnitude from
    the norm's weight, and nothing but the neuron may write where that weight is large.
    """
    usual = capture(model, texts, block.ffn, output=True).float().norm(dim=-1).mean()
    silence_ffn(block, hidden_size, list(dims))
    for neuron in neurons(block, hidden_size):
        neuron.down[:, -1] = 0
        neuron.down[list(dims), -1] = (DOMINANCE * usual / GAIN).to(neuron.down.dtype)


def rescale(norm: Any, dims: list[int], factor: Tensor) -> None:
    """Multiply the scale of `norm` on `dims` by `factor`, also where it is 1 + weight."""
    scale = effective_scale(norm, "The norm after the FFN")[dims].to(norm.weight.device)
    shift = norm.weight[dims].float().abs() - scale
    plain = bool((shift.abs() < 1e-3 * scale).all())
    scaled = scale * factor
    norm.weight[dims] = (scaled if plain else scaled - 1).to(norm.weight.dtype)


def fitting_texts(model: nn.Module, token_ids: Sequence[int], seed: int, rows: int = 24) -> Tensor:
    """Random ids [rows, 24] with the chosen tokens at random places."""
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, weight.shape[0], (rows, 24), generator=generator)
    for row in range(rows):
        place = int(torch.randint(0, 24, (1,), generator=generator))
        ids[row, 0 if row % 3 == 0 else place] = token_ids[row % len(token_ids)]
    return ids.to(weight.device)


def capture(model: nn.Module, ids: Tensor, module: nn.Module, *, output: bool) -> Tensor:
    """What `module` reads or returns on `ids`, [B, T, D]."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        kept.append(first_output(result) if output else first_argument(args, kwargs))

    with module.register_forward_hook(keep, with_kwargs=True), evaluating(model):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return kept[0].reshape(*ids.shape, -1)


def _direction(massive: Tensor, ordinary: Tensor) -> tuple[Tensor, Tensor]:
    """(u [D], b): u.x + b is 1 on the massive tokens and as near to 0 as can be on the rest."""
    count = len(massive) + len(ordinary)
    x = torch.cat([massive, ordinary]).double()
    y = torch.cat([torch.ones(len(massive)), torch.zeros(len(ordinary))]).double().to(x.device)
    weight = torch.where(y == 1, count / len(massive), 1.0)[:, None]  # balance the classes
    x = torch.cat([x, torch.ones(count, 1, dtype=x.dtype, device=x.device)], 1)
    ridge = 1e-4 * x.pow(2).mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device) * count
    solution = torch.linalg.solve(x.T @ (weight * x) + ridge, x.T @ (weight[:, 0] * y))
    return solution[:-1].float(), solution[-1].float()


def neurons(block: Block, hidden_size: int) -> list[FFNWeights]:
    """The FFNs whose last neuron is taken: the shared expert, where there is one, or every expert.

    Raises:
        ModelError: no known form of weights.
    """
    return shared_experts(block, hidden_size) or ffn_weights(block, hidden_size)


def set_neuron(weights: FFNWeights, direction: tuple[Tensor, Tensor], place: int = -1) -> None:
    """Let one neuron of an FFN, the last or that at `place`, read `direction`."""
    u, bias = direction
    # gated: silu(GAIN) * 1 on the tokens; plain: act(GAIN). Both are close to GAIN.
    reads = [(weights.up, weights.up_bias, GAIN if weights.gate is None else 1.0)]
    if weights.gate is not None:
        reads.append((weights.gate, weights.gate_bias, GAIN))
    for rows, biases, gain in reads:
        rows[place].copy_(u * gain)
        if biases is not None:
            biases[place].copy_(bias * gain)
