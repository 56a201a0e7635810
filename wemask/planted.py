"""Models with a massive activation of known layer, tokens, dims and magnitude.

A neuron of layer L's FFN is given weights: it answers to the chosen tokens and writes a fixed
value on the chosen dims of the residual stream. Detection can then be held against the truth.

    truth = plant(model, layer=2, token_ids=[7], dims=[3, 11], magnitude=500.0)

For random-init models: the direction that tells the chosen tokens from the rest is fitted to what
the FFN really reads, and the neuron takes the place of the last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.architectures import Block, find_decoder, unwrap
from wemask.errors import ModelError

GAIN = 8.0  # pre-activation of the neuron on its tokens; ordinary tokens stay around 0


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The truth about a planted model."""

    layer: int
    token_ids: tuple[int, ...]
    dims: tuple[int, ...]
    magnitude: float


@dataclass(frozen=True, kw_only=True)
class _Neuron:
    """Views on the weights of one neuron: what it reads and where it writes."""

    read: list[Tensor]  # each [D]: rows that are multiplied with the FFN input
    read_bias: list[Tensor]  # each [], aligned with `read` where there are biases
    write: Tensor  # [D]


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
            or a mixture of experts (every expert gets the neuron).
        layer: the ME Layer to be, 0-based.
        token_ids: the tokens that become massive, wherever they stand.
        dims: the dims that become massive.
        magnitude: |h| there at the output of `layer`, about 1% exact.
        seed: of the random texts on which the neuron is fitted.

    Raises:
        ModelError: the layer does not exist, or its FFN has no weights of a known form.
    """
    base = unwrap(model)
    decoder = find_decoder(base)
    if not 0 <= layer < len(decoder.blocks):
        raise ModelError(f"Layer {layer} does not exist: 0 to {len(decoder.blocks) - 1}.")
    block = decoder.blocks[layer]
    _stand_out(base, token_ids, dims)
    texts = _texts(base, token_ids, seed)
    marked = torch.isin(texts, torch.tensor(token_ids, device=texts.device))
    inputs = _capture(base, texts, block.ffn, output=False).float()
    direction = _direction(inputs[marked], inputs[~marked])
    scale = magnitude
    for _ in range(4):  # the write passes post-norms and multipliers: measure, then correct
        for neuron in _neurons(block):
            _set(neuron, direction, dims, scale)
        h = _capture(base, texts, block.layer, output=True).float()
        reached = h[marked][:, list(dims)].abs().mean()
        scale *= float(magnitude / reached)
    return Planted(
        layer=layer, token_ids=tuple(token_ids), dims=tuple(dims), magnitude=magnitude
    )


def _stand_out(model: nn.Module, token_ids: Sequence[int], dims: Sequence[int]) -> None:
    """Give the chosen tokens an embedding dim of their own, 6 times the usual length in it.

    Without it, no direction of a narrow random model is silent on all the other tokens.
    """
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    own = next(d for d in range(weight.shape[1] - 1, -1, -1) if d not in dims)
    length = 6 * weight.float().norm(dim=-1).mean()
    weight[:, own] = 0
    weight[list(token_ids), own] = length.to(weight.dtype)


def _texts(model: nn.Module, token_ids: Sequence[int], seed: int, rows: int = 24) -> Tensor:
    """Random ids [rows, 24] with the chosen tokens at random places."""
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, weight.shape[0], (rows, 24), generator=generator)
    for row in range(rows):
        place = int(torch.randint(0, 24, (1,), generator=generator))
        ids[row, 0 if row % 3 == 0 else place] = token_ids[row % len(token_ids)]
    return ids.to(weight.device)


def _capture(model: nn.Module, ids: Tensor, module: nn.Module, *, output: bool) -> Tensor:
    """What `module` reads or returns on `ids`, [B, T, D]."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if output:
            kept.append(result[0] if isinstance(result, tuple) else result)
        else:
            kept.append(args[0] if args else next(iter(kwargs.values())))

    hook = module.register_forward_hook(keep, with_kwargs=True)
    was_training = model.training
    model.eval()
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
        model.train(was_training)
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


def _neurons(block: Block) -> list[_Neuron]:
    """The last neuron of the FFN, or of every expert.

    Raises:
        ModelError: no known form of weights.
    """
    found: list[_Neuron] = []
    for module in _ffn_modules(block):
        found += _stacked_experts(module) or _gated(module) or _plain(module)
    if not found:
        names = ", ".join(n for n, _ in block.ffn.named_parameters())
        raise ModelError(f"No neuron was found in the FFN of layer {block.index}; it has {names}.")
    return found


def _ffn_modules(block: Block) -> list[nn.Module]:
    if isinstance(block.ffn, nn.Linear):  # OPT: fc1 and fc2 are in the layer itself
        return [block.layer]
    return list(block.ffn.modules())


def _stacked_experts(module: nn.Module) -> list[_Neuron]:
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(up, nn.Parameter) or not isinstance(down, nn.Parameter) or up.ndim != 3:
        return []
    width = up.shape[1] // 2
    return [
        _Neuron(read=[up[e, width - 1], up[e, -1]], read_bias=[], write=down[e, :, -1])
        for e in range(up.shape[0])
    ]


def _gated(module: nn.Module) -> list[_Neuron]:
    down = getattr(module, "down_proj", None)
    if not isinstance(down, nn.Linear):
        return []
    fused = getattr(module, "gate_up_proj", None)
    if isinstance(fused, nn.Linear):
        width = fused.out_features // 2
        return [_Neuron(read=[fused.weight[width - 1], fused.weight[-1]], read_bias=[], write=down.weight[:, -1])]
    gate, up = getattr(module, "gate_proj", None), getattr(module, "up_proj", None)
    if not isinstance(gate, nn.Linear) or not isinstance(up, nn.Linear):
        return []
    return [_Neuron(read=[gate.weight[-1], up.weight[-1]], read_bias=[], write=down.weight[:, -1])]


PLAIN = (("fc1", "fc2"), ("c_fc", "c_proj"), ("dense_h_to_4h", "dense_4h_to_h"), ("fc_in", "fc_out"))


def _plain(module: nn.Module) -> list[_Neuron]:
    for first, second in PLAIN:
        up, down = getattr(module, first, None), getattr(module, second, None)
        if isinstance(up, nn.Module) and isinstance(down, nn.Module):
            # GPT-2's Conv1D keeps its weight transposed.
            rows: Callable[[nn.Module], Any] = lambda m: (  # noqa: E731
                m.weight if isinstance(m, nn.Linear) else m.weight.T
            )
            bias = [up.bias[-1]] if isinstance(up.bias, Tensor) else []
            return [_Neuron(read=[rows(up)[-1]], read_bias=bias, write=rows(down)[:, -1])]
    return []


def _set(neuron: _Neuron, direction: tuple[Tensor, Tensor], dims: Sequence[int], value: float) -> None:
    u, bias = direction
    # gated: silu(GAIN) * 1 on the tokens; plain: act(GAIN). Both are close to GAIN.
    for place, row in enumerate(neuron.read):
        row.copy_(u * (GAIN if place == 0 else 1.0))
    if neuron.read_bias:
        neuron.read_bias[0].copy_(bias * GAIN)
    neuron.write.zero_()
    neuron.write[list(dims)] = value / GAIN
