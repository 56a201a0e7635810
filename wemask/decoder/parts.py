"""Where things are in a decoder: layers, attention, FFN and the norms before them.

One rule for all architectures: exactly one stack of `num_hidden_layers` blocks, and in each block
one attention and one FFN, known by the names that the field uses. Where the rule does not match
once, the error says which part and what to assign to override it:

    model.wemask_parts = {"layers": "model.blocks", "attention": "mixer", "ffn_norm": "norm_2"}

Where layers differ, a part may have several names, of which each layer has one; a norm that is not
there is None:

    model.wemask_parts = {"attention": ["self_attn", "linear_attn"], "attention_norm": None}
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
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
        "attention_layernorm",
        "attn_norm",
        "operator_norm",
        "norm_1",
    ),
    "ffn": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2"),
    "ffn_norm": (
        "pre_feedforward_layernorm",
        "pre_mlp_layernorm",
        "pre_ff_layernorm",
        "feedforward_layernorm",
        "ln_2",
        "ln_mlp",
        "final_layer_norm",
        "ffn_norm",
        "norm_2",
        "post_attention_layernorm",
    ),
}
# Norms that follow a part, or feed neither attention nor FFN.
OTHER_NORMS = (
    "post_attention_layernorm",
    "post_self_attn_layernorm",
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "post_per_layer_input_norm",
)
# Between FFN and residual stream: Gemma-2, OLMo-2, GLM-4.
POST_FFN_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
ADDED_INSIDE = ("dense_4h_to_h", "down_proj")  # last projections of FFNs that add the residual

Overrides = Mapping[str, str | Sequence[str] | None]


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

    def name_of(self, part: nn.Module | None) -> str | None:
        """What the layer calls `part`; None where it is no child of it."""
        return next((n for n, child in self.layer.named_children() if child is part), None)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The text decoder inside a model."""

    blocks: tuple[Block, ...]
    hidden_size: int
    layers_name: str  # path of the stack of blocks from the model, e.g. `model.layers`


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside torch.compile, DDP and PEFT wrappers.

    Raises:
        ModelError: it is no model at all, but its name, say.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"A loaded transformers model was sought, got {model!r:.80}. Load it first: "
            "AutoModelForCausalLM.from_pretrained(NAME), or wemask.load(FOLDER) of a softened one."
        )
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        elif isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()  # pyright: ignore[reportCallIssue, reportAssignmentType]
        else:
            return model


def without_weights(model: nn.Module) -> bool:
    """True on the meta device; accelerate's offloaded layers have weights, kept elsewhere."""
    return any(p.is_meta for p in model.parameters()) and not hasattr(model, "hf_device_map")


def positions(model: nn.Module) -> int:
    """Tokens that the model was made for; a very large number where its config does not say."""
    config: Any = unwrap(model).config
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**20


def rows(model: nn.Module) -> int:
    """Rows of the input embedding: the tokens that the model can read."""
    embedding: Any = unwrap(model).get_input_embeddings()  # pyright: ignore[reportCallIssue]
    return getattr(embedding, "num_embeddings", None) or len(embedding.weight)


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
    name, layers = _find_layers(model, text_config.num_hidden_layers, overrides)
    blocks = tuple(_block(i, layer, overrides) for i, layer in enumerate(layers))
    return Decoder(blocks=blocks, hidden_size=text_config.hidden_size, layers_name=name)


def _overrides(model: nn.Module) -> Overrides:
    parts: Any = getattr(model, "wemask_parts", {})
    known = ["layers", *NAMES]
    for key in parts:
        if key not in known:
            raise ModelError(
                f"model.wemask_parts has the key {key!r}; there are {', '.join(known)}."
                + nearest(key, known)
            )
    return dict(parts)


def _find_layers(model: nn.Module, count: int, overrides: Overrides) -> tuple[str, nn.ModuleList]:
    name = overrides.get("layers")
    if isinstance(name, str):
        return name, _named_layers(model, name)
    get_decoder = getattr(model, "get_decoder", None)
    text = get_decoder() if callable(get_decoder) else None  # of a VLM, beside a vision tower
    inside = set((text if isinstance(text, nn.Module) else model).modules())
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and module in inside
        # in a hybrid (Qwen3-Next, Jamba) the first layer has no attention
        and any(_child(layer, "attention", overrides) is not None for layer in module)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(name for name, _ in found) or "none"
    raise ModelError(
        f"Sought the one stack of {count} decoder layers with attention "
        f"({', '.join(_names('attention', overrides))}) in {type(model).__name__}, found "
        f"{names}. Name it: "
        'model.wemask_parts = {"layers": "model.layers", "attention": "NAME"}'
    )


def _named_layers(model: nn.Module, name: str) -> nn.ModuleList:
    try:
        layers = model.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"model.wemask_parts names the layers {name!r}: {error}.") from error
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ModelError(
            f"model.wemask_parts names the layers {name!r}: a ModuleList of decoder layers was "
            f"expected, found {type(layers).__name__}."
        )
    return layers


def _names(part: str, overrides: Overrides) -> Sequence[str]:
    name = overrides.get(part, NAMES[part])
    return (name,) if isinstance(name, str) else name or ()


def _child(layer: nn.Module, part: str, overrides: Overrides) -> nn.Module | None:
    children = (getattr(layer, name, None) for name in _names(part, overrides))
    return next((child for child in children if isinstance(child, nn.Module)), None)


def _block(index: int, layer: nn.Module, overrides: Overrides) -> Block:
    parts: dict[str, Any] = {part: _child(layer, part, overrides) for part in NAMES}
    for part in ("attention", "ffn"):
        if parts[part] is None:
            children = ", ".join(name for name, _ in layer.named_children())
            raise ModelError(
                f"Layer {index} ({type(layer).__name__}) has no {part}: sought "
                f"{', '.join(_names(part, overrides))}, found {children}. Name it: "
                f'model.wemask_parts = {{"{part}": "NAME"}}, or ["NAME", "OTHER"] where layers '
                "differ."
            )
    if "attention_norm" not in overrides and "ffn_norm" not in overrides:
        parts |= _norms(index, layer, parts["attention_norm"], parts["ffn_norm"])
    return Block(index=index, layer=layer, **parts)


def _norms(
    index: int, layer: nn.Module, attention_norm: nn.Module | None, ffn_norm: nn.Module | None
) -> dict[str, nn.Module | None]:
    """Which of the norms found by name feed attention and FFN."""
    if attention_norm is None and ffn_norm is getattr(layer, "post_attention_layernorm", None):
        ffn_norm = None  # post-norm (OLMo-2): it follows attention
    if getattr(layer, "do_layer_norm_before", True) is False:
        return {"attention_norm": None, "ffn_norm": None}  # OPT-350m: post-norm, pre-norm names
    unknown = [
        name
        for name, child in layer.named_children()
        if "norm" in type(child).__name__.lower()
        and child is not attention_norm
        and child is not ffn_norm
        and name not in OTHER_NORMS
    ]
    if unknown:  # a norm under a name of its own may be the one that was sought: ask
        raise ModelError(
            f"Layer {index} ({type(layer).__name__}) has norms of unknown place: "
            f"{', '.join(unknown)}. Say which norms feed attention and FFN (None: no norm does): "
            'model.wemask_parts = {"attention_norm": "NAME", "ffn_norm": "NAME"}'
        )
    # Parallel block: one norm feeds attention and FFN.
    return {
        "attention_norm": attention_norm,
        "ffn_norm": attention_norm if ffn_norm is None else ffn_norm,
    }


def post_ffn_norm(block: Block) -> nn.Module | None:
    """The norm between FFN and residual stream, or None."""
    norms = (getattr(block.layer, name, None) for name in POST_FFN_NORMS)
    return next((norm for norm in norms if norm is not None), None)


def ffn_writer(block: Block) -> nn.Module:
    """The last module before the residual add: what it returns is what the FFN half writes.

    The norm after the FFN, where there is one, else the FFN; where that adds the residual itself
    (BLOOM, MPT), its output projection. A factor of the layer's own (Granite's
    `residual_multiplier`) still follows.

    Raises:
        ModelError: an FFN that adds the residual itself, with no known output projection.
    """
    if "residual" not in inspect.signature(block.ffn.forward).parameters:
        return post_ffn_norm(block) or block.ffn
    names = [name for name in ADDED_INSIDE if hasattr(block.ffn, name)]
    if len(names) != 1:
        raise ModelError(
            f"The FFN of layer {block.index} adds the residual itself; sought its output projection"
            f" ({', '.join(ADDED_INSIDE)}), found {', '.join(names) or 'none'}."
        )
    return getattr(block.ffn, names[0])


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
    probe = _copy_on_cpu(norm)
    v = torch.ones(1, 1, weight.shape[0])
    v[..., 1::2] = -1
    return ((probe(v) - probe(-v)) / (2 * v)).abs().flatten()


def _copy_on_cpu(norm: nn.Module) -> nn.Module:
    """A float32 copy, also of a norm whose weight accelerate keeps elsewhere (device_map)."""
    if not hasattr(norm, "_hf_hook"):
        return copy.deepcopy(norm).float().cpu()
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import align_module_device

    with align_module_device(norm, torch.device("cpu")):
        probe = copy.deepcopy(norm)
    return remove_hook_from_module(probe).float().cpu()


def layer_index_error(index: int, count: int) -> ModelError:
    """The error of a layer number that the model does not have."""
    return ModelError(f"Layer {index} does not exist: the model has layers 0 to {count - 1}.")
