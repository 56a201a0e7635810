"""The weights of a decoder layer's FFN, whatever its form, as views: writing changes the model.

    gated   y = down (act(gate x + gate_bias) * (up x + up_bias)) + down_bias
    plain   y = down act(up x + up_bias) + down_bias

D is the hidden size, F the number of neurons. Known forms: separate projections (GATED, PLAIN),
GPT-2's Conv1D that keeps its weight transposed, gate and up fused in one projection (Phi-3), and
experts stacked in one tensor: gate first (Mixtral), rows of gate and up by turns (GPT-OSS), input
dim first (Llama-4). Weights that accelerate keeps elsewhere are on the meta device here: bring them
back first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wemask.decoder.parts import Block
from wemask.errors import ModelError

# FFNs without a gate: (first, second) projection. With one: (gate, up, down).
PLAIN = (
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc_in", "fc_out"),
    ("up_proj", "down_proj"),
)
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
FUSED = ("gate_up_proj", "down_proj")
ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")
FFN_OUTPUTS = tuple(dict.fromkeys(names[-1] for names in (*PLAIN, *GATED)))
"""Names of the projections that write an FFN's output."""


@dataclass(frozen=True, kw_only=True)
class FFNWeights:
    """Views on the weights of one FFN, or of one expert of a mixture."""

    gate: Tensor | None  # [F, D]; None in a plain FFN
    up: Tensor  # [F, D]
    down: Tensor  # [D, F]
    gate_bias: Tensor | None  # [F], as `up_bias`; `down_bias` is [D]. None where there is none
    up_bias: Tensor | None
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor] | None
    """None where the module does not keep it, or computes more than act(gate) * up (GPT-OSS)."""
    module: nn.Module  # the module that holds them
    expert: int | None = None
    """Its place in `module`, where that stacks the experts of a mixture in one tensor."""


def ffn_weights(block: Block, hidden_size: int) -> list[FFNWeights]:
    """The weights of `block`'s FFN: one of a dense FFN, one per expert of a mixture.

    Raises:
        ModelError: no known form of weights, or packed ones (quantised), or ones under an adapter.
    """
    found = _weights_of(ffn_modules(block), hidden_size)
    if not found:
        names = ", ".join(n for n, _ in block.ffn.named_parameters())
        raise ModelError(f"No neuron was found in the FFN of layer {block.index}; it has {names}.")
    return found


def shared_experts(block: Block, hidden_size: int) -> list[FFNWeights]:
    """Of a mixture, the experts that see every token; empty where there are none.

    Raises:
        ModelError: packed weights (quantised), or ones under an adapter.
    """
    shared = [child for name, child in block.ffn.named_children() if "shared" in name]
    return [w for child in shared for w in _weights_of(child.modules(), hidden_size)]


def ffn_modules(block: Block) -> list[nn.Module]:
    """The modules among which the FFN's projections are children."""
    if isinstance(block.ffn, nn.Linear):  # OPT: fc1 and fc2 are in the layer itself
        return [block.layer]
    return list(block.ffn.modules())


def ffn_reader(block: Block) -> nn.Module:
    """The module whose input the FFN's neurons read."""
    return block.layer.fc1 if isinstance(block.ffn, nn.Linear) else block.ffn  # pyright: ignore


def weight_rows(projection: Any) -> Tensor:
    """Weight [out, in] of a projection; GPT-2's Conv1D keeps its own transposed."""
    weight: Tensor = projection.weight.detach()
    return weight if isinstance(projection, nn.Linear) else weight.T


def _weights_of(modules: Iterable[nn.Module], hidden_size: int) -> list[FFNWeights]:
    found: list[FFNWeights] = []
    for module in modules:
        found += _stacked_experts(module, hidden_size) or _dense(module)
    return found


def _stacked_experts(module: nn.Module, hidden_size: int) -> list[FFNWeights]:
    fused, down = (getattr(module, name, None) for name in FUSED)
    if not isinstance(fused, nn.Parameter) or not isinstance(down, nn.Parameter) or fused.ndim != 3:
        return []
    fused, down = fused.detach(), down.detach()
    if fused.shape[2] != hidden_size or down.shape[1] != hidden_size:  # Llama-4: input dim first
        fused, down = fused.mT, down.mT
    neurons = fused.shape[1] // 2
    rows = (slice(neurons), slice(neurons, None))
    if not getattr(module, "is_concatenated", True):  # GPT-OSS: rows of gate and up by turns
        rows = (slice(0, None, 2), slice(1, None, 2))
    biases, down_biases = (_bias(getattr(module, f"{name}_bias", None)) for name in FUSED)
    return [
        FFNWeights(
            gate=fused[e, rows[0]],
            up=fused[e, rows[1]],
            down=down[e],
            gate_bias=None if biases is None else biases[e, rows[0]],
            up_bias=None if biases is None else biases[e, rows[1]],
            down_bias=None if down_biases is None else down_biases[e],
            activation=_activation(module),
            module=module,
            expert=e,
        )
        for e in range(fused.shape[0])
    ]


def _dense(module: nn.Module) -> list[FFNWeights]:
    """The FFN whose projections are children of `module`, if any are."""
    for names in (FUSED, *GATED, *PLAIN):
        kind = nn.Linear if names is FUSED else nn.Module
        found: list[Any] = [getattr(module, name, None) for name in names]
        if not all(isinstance(projection, kind) for projection in found):
            continue
        _check_plain_weights(module, names)
        *reads, down = found
        rows, biases = [weight_rows(m) for m in reads], [_bias(m) for m in reads]
        if names is FUSED:
            half = reads[0].out_features // 2
            rows = [rows[0][:half], rows[0][half:]]
            biases = [None, None] if biases[0] is None else [biases[0][:half], biases[0][half:]]
        return [
            FFNWeights(
                gate=rows[0] if len(rows) > 1 else None,
                up=rows[-1],
                down=weight_rows(down),
                gate_bias=biases[0] if len(rows) > 1 else None,
                up_bias=biases[-1],
                down_bias=_bias(down),
                activation=_activation(module),
                module=module,
            )
        ]
    return []


def _bias(holder: Any) -> Tensor | None:
    """The bias of a projection, or a bias by itself, as a view."""
    bias = holder if isinstance(holder, Tensor) else getattr(holder, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _activation(module: nn.Module) -> Any:
    functions = (getattr(module, name, None) for name in ACTIVATIONS)
    return next((function for function in functions if callable(function)), None)


def _check_plain_weights(module: nn.Module, names: Sequence[str]) -> None:
    """Views say nothing true about a weight that is packed or only a part of what is multiplied.

    Raises:
        ModelError: one of the projections is quantised or carries an adapter.
    """
    for name in names:
        projection: Any = getattr(module, name)
        kind = type(projection).__name__
        if hasattr(projection, "base_layer"):
            raise ModelError(
                f"{name} is {kind}: an adapter adds to its weight. Merge it first, e.g. "
                "`model = model.merge_and_unload()`."
            )
        weight = getattr(projection, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.element_size() < 2:
            raise ModelError(
                f"{name} ({kind}) has no weight [out, in] of 16 or 32 bits: it is quantised. Load "
                "the model in bfloat16 or float32."
            )
