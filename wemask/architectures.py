"""Where things are in a decoder: layers, attention, FFN and the norms before them.

One rule for all architectures: exactly one stack of `num_hidden_layers` blocks, and in each block
one attention and one FFN, known by the names that the field uses. Where the rule does not match
once, the error says which part and what to assign to override it:

    model.wemask_parts = {"layers": "model.blocks", "attention": "mixer", "ffn_norm": "norm_2"}
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wemask.errors import ModelError, nearest

# Names of the parts of a block, in the transformers library. Order matters only in FFN_NORM:
# Gemma-2 has both `pre_feedforward_layernorm` and a post-norm called `post_attention_layernorm`.
NAMES: dict[str, tuple[str, ...]] = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "attention_norm": (
        "input_layernorm",
        "ln_1",
        "ln_attn",
        "self_attn_layer_norm",
        "attention_norm",
        "attn_norm",
    ),
    "ffn": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2"),
    "ffn_norm": (
        "pre_feedforward_layernorm",
        "ln_2",
        "ln_mlp",
        "final_layer_norm",
        "ffn_norm",
        "post_attention_layernorm",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """The parts of one decoder layer."""

    index: int
    layer: nn.Module
    attention: nn.Module
    attention_norm: nn.Module | None
    """None in post-norm models (OLMo-2): attention reads the residual itself."""
    ffn: nn.Module
    ffn_norm: nn.Module | None
    """None in post-norm models. In parallel blocks (Phi, Cohere) the same module as above."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The text decoder inside a model."""

    blocks: tuple[Block, ...]
    hidden_size: int
    layers_name: str
    """Path of the stack of blocks from the model, e.g. `model.layers`."""


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside torch.compile, DDP and PEFT wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()  # pyright: ignore[reportCallIssue, reportAssignmentType]
        else:
            return model


def find_decoder(model: nn.Module) -> Decoder:
    """Find the blocks of a causal language model, also inside a VLM.

    Raises:
        ModelError: a part was found not once; the message says which and how to name it.
    """
    model = unwrap(model)
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ModelError(
            f"A transformers model was expected, with a `.config`; got {type(model).__name__}."
        )
    text_config = config.get_text_config(decoder=True)
    overrides = _overrides(model)
    name, layers = _find_layers(model, text_config.num_hidden_layers, overrides.get("layers"))
    blocks = tuple(_block(i, layer, overrides) for i, layer in enumerate(layers))
    return Decoder(blocks=blocks, hidden_size=text_config.hidden_size, layers_name=name)


def _overrides(model: nn.Module) -> dict[str, str]:
    parts: Any = getattr(model, "wemask_parts", {})
    known = ["layers", *NAMES]
    for key in parts:
        if key not in known:
            raise ModelError(
                f"model.wemask_parts has the key {key!r}; there are {', '.join(known)}."
                + nearest(key, known)
            )
    return dict(parts)


def _find_layers(model: nn.Module, count: int, override: str | None) -> tuple[str, nn.ModuleList]:
    if override is not None:
        return override, _named_layers(model, count, override)
    inside = _text_decoder(model)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and _child(module[0], "attention") is not None
        and any(module is m for m in inside.modules())
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(name for name, _ in found) or "none"
    raise ModelError(
        f"Sought the one stack of {count} decoder layers with attention in "
        f"{type(model).__name__}, found {names}. Name it: "
        'model.wemask_parts = {"layers": "model.layers"}'
    )


def _named_layers(model: nn.Module, count: int, name: str) -> nn.ModuleList:
    try:
        layers = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"model.wemask_parts names the layers {name!r}: {error}.") from error
    if not isinstance(layers, nn.ModuleList) or len(layers) != count:
        raise ModelError(
            f"model.wemask_parts names the layers {name!r}: a ModuleList of {count} was expected, "
            f"found {type(layers).__name__}."
        )
    return layers


def _text_decoder(model: nn.Module) -> nn.Module:
    """The language model of a VLM (its vision tower may have as many layers), else the model."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    return decoder if isinstance(decoder, nn.Module) else model


def _child(layer: nn.Module, part: str, override: str | None = None) -> nn.Module | None:
    names = (override,) if override else NAMES[part]
    for name in names:
        child = getattr(layer, name, None)
        if isinstance(child, nn.Module):
            return child
    return None


def _block(index: int, layer: nn.Module, overrides: dict[str, str]) -> Block:
    attention, ffn = (_required(index, layer, p, overrides) for p in ("attention", "ffn"))
    attention_norm = _child(layer, "attention_norm", overrides.get("attention_norm"))
    ffn_norm = _child(layer, "ffn_norm", overrides.get("ffn_norm"))
    if hasattr(layer, "post_feedforward_layernorm") and not hasattr(
        layer, "pre_feedforward_layernorm"
    ):
        ffn_norm = None  # post-norm (OLMo-2): `post_attention_layernorm` follows attention
    if getattr(layer, "do_layer_norm_before", True) is False:
        attention_norm = ffn_norm = None  # OPT-350m is post-norm under the pre-norm names
    elif ffn_norm is None and attention_norm is not None:
        ffn_norm = attention_norm  # parallel block: one norm feeds attention and FFN
    return Block(
        index=index,
        layer=layer,
        attention=attention,
        attention_norm=attention_norm,
        ffn=ffn,
        ffn_norm=ffn_norm,
    )


def _required(index: int, layer: nn.Module, part: str, overrides: dict[str, str]) -> nn.Module:
    child = _child(layer, part, overrides.get(part))
    if child is None:
        children = ", ".join(name for name, _ in layer.named_children())
        raise ModelError(
            f"Layer {index} ({type(layer).__name__}) has no {part}: sought "
            f"{overrides.get(part) or ', '.join(NAMES[part])}, found {children}. Name it: "
            f'model.wemask_parts = {{"{part}": "NAME"}}'
        )
    return child


@torch.no_grad()
def effective_scale(norm: nn.Module | None, what: str) -> Tensor:
    """|scale| that a norm applies per dim, float32 [D] on the CPU, whatever its form.

    Found by asking the norm, not by its class: for v of alternating +-1, norm(v) = w * v + b up to
    a common factor, so (norm(v) - norm(-v)) / (2 v) is w. That covers RMSNorm, LayerNorm, the
    `1 + weight` of Gemma, and biases.

    Raises:
        ModelError: there is no norm, or it has no weight (OLMo-1).
    """
    weight = getattr(norm, "weight", None)
    if norm is None or weight is None:
        raise ModelError(
            f"{what} has no norm weight, so dims=me_norm and dims=attn_norm do not exist here. "
            "Type operator.dims=massive or operator.dims=activation."
        )
    probe = copy.deepcopy(norm).float().cpu()
    v = torch.ones(1, 1, weight.shape[0])
    v[..., 1::2] = -1
    return ((probe(v) - probe(-v)) / (2 * v)).abs().flatten()


def layer_index_error(index: int, count: int) -> ModelError:
    """The error of a layer number that the model does not have."""
    return ModelError(f"Layer {index} does not exist: the model has layers 0 to {count - 1}.")
