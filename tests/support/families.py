"""Tiny random-init models of many architectures, and twins with a planted massive activation.

All are 32 wide with 5 layers. Norm weights are drawn at random, so that the choice of dims means
something, and attention is initialised large enough for the softening to be visible in the logits.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

import wemask
from wemask import Criterion, MELayerReport, WeMaskConfig
from wemask.planted import Planted, plant

WIDTH, LAYERS, HEADS, VOCABULARY = 32, 5, 4, 64
MASSIVE = 7  # the token that plant() makes massive
ME_LAYER, DIMS, MAGNITUDE = 1, (3, 17), 5000.0

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Shares of the chosen experts that add up to 1 do not vary with the context.
_NORMED_EXPERTS: dict[str, Any] = {"num_experts": 4, "norm_topk_prob": True, **_EXPERTS}
_WITHOUT_DROPOUT: dict[str, Any] = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_ROPE_SECTIONS = {**_ROPE, "mrope_section": [2, 1, 1]}

# model_type -> what its config has beyond the common part
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen2_moe": {"shared_expert_intermediate_size": 24, **_NORMED_EXPERTS},
    "qwen3_moe": {"head_dim": 8, **_NORMED_EXPERTS},
    "qwen3_next": {
        "head_dim": 8,
        "shared_expert_intermediate_size": 24,
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        **_NORMED_EXPERTS,
    },
    "mixtral": {"num_local_experts": 4, "sliding_window": None, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": HEADS,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        **_EXPERTS,
    },
    "llama4_text": {
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 64,
    },
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 64,
        "rope_parameters": _ROPE,
    },
    "olmoe": _NORMED_EXPERTS,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {},
    "phi3": {},
    "gemma2": {"head_dim": 8, "sliding_window": 64},
    "gemma3_text": {"head_dim": 8, "sliding_window": 64},
    "gpt_neox": _WITHOUT_DROPOUT,
    "gpt2": {"n_inner": 48, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gptj": {
        "n_inner": 48,
        "rotary_dim": 4,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    "bloom": _WITHOUT_DROPOUT,
    "mpt": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "dropout": 0.0},
    "falcon": {"multi_query": True, "parallel_attn": True, "bias": False, **_WITHOUT_DROPOUT},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 64},
    "granite": {"residual_multiplier": 0.9, "attention_multiplier": 0.3},
    "cohere2": {"sliding_window": 64},
    "smollm3": {},
    "glm4": {"head_dim": 8, "partial_rotary_factor": 0.5},
    "stablelm": {},
    "starcoder2": {"embedding_dropout": 0.0, "residual_dropout": 0.0},
    "nemotron": {"head_dim": 8},
    "apertus": {"rope_parameters": _ROPE},
    "exaone4": {"sliding_window": 64},
    # Text backbones inside vision-language models, run on text; their towers are in VISION.
    "gemma3": {"head_dim": 8, "sliding_window": 64},
    "qwen2_5_vl": {"rope_parameters": _ROPE_SECTIONS},
    "qwen3_vl": {"head_dim": 8, "rope_parameters": _ROPE_SECTIONS},
}
NORMLESS = ("olmo",)  # its norms have no weight: no me_norm, no attn_norm
POST_NORM = ("olmo2", "olmo3", "exaone4")  # attention reads the residual itself
MIXTURES = (
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "mixtral",
    "deepseek_v3",
    "llama4_text",
    "gpt_oss",
    "olmoe",
    "granitemoe",
)
_TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
VISION: dict[str, dict[str, Any]] = {
    "gemma3": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": LAYERS,  # as many as the text model: not to be taken for it
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    },
    "qwen2_5_vl": {**_TOWER, "out_hidden_size": WIDTH, "fullatt_block_indexes": [0]},
    "qwen3_vl": {**_TOWER, "out_hidden_size": WIDTH, "deepstack_visual_indexes": [0]},
}
# Unpatched, these let packed documents see each other: their masks do not read position_ids.
NO_PACKING = ("qwen3_next", "gpt_oss", "bloom", "mpt", "opt", "falcon", "qwen2_5_vl")
# Their masks mark what is hidden, so tokens=first is refused.
HIDDEN_MASKS = ("mpt",)
# Families whose parts must be named: model.wemask_parts
PARTS: dict[str, dict[str, Any]] = {"qwen3_next": {"attention": ["self_attn", "linear_attn"]}}

CRITERION = Criterion(name="sun2024")


def build(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random-init model in eval mode; `changes` are fields of its (text) config."""
    own = {**FAMILIES[family], **changes}
    torch.manual_seed(seed)
    if family in VISION:
        values = {"text_config": {**_COMMON, **own}, "vision_config": VISION[family]}
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **values))
    else:
        config = AutoConfig.for_model(family, **{**_known_to(family), **own})
        model = AutoModelForCausalLM.from_config(config)
    _draw_weights(model, seed)
    if family in PARTS:
        model.wemask_parts = PARTS[family]  # pyright: ignore
    return model.eval()


@cache
def _known_to(family: str) -> dict[str, Any]:
    """The common fields that the config of `family` has; others it would keep as strays."""
    config = AutoConfig.for_model(family)
    known = {*config.to_dict(), *config.attribute_map}
    return {k: v for k, v in _COMMON.items() if k in known and k not in FAMILIES[family]}


@torch.no_grad()
def _draw_weights(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parent = model.get_submodule(name.rpartition(".")[0])
        if "norm" in type(parent).__name__.lower() and name.endswith("weight"):
            scale = torch.rand(parameter.shape, generator=generator) + 0.5
            drawn = scale - 1 if _adds_one(parent) else scale
        elif name.endswith("bias"):
            drawn = 0.05 * torch.randn(parameter.shape, generator=generator)
        else:
            drawn = _std(name, model) * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn)


def _adds_one(norm: nn.Module) -> bool:
    """Whether it scales by 1 + its weight."""
    name = type(norm).__name__
    return name.startswith("Gemma") or name in ("NemotronLayerNorm1P", "Qwen3NextRMSNorm")


def _std(name: str, model: nn.Module) -> float:
    if any(part in name for part in ("embed", "wte", "wpe")):
        # Gemma multiplies its embeddings by sqrt(D).
        return WIDTH**-0.5 if type(model).__name__.startswith("Gemma") else 1.0
    return 0.2 if any(part in name for part in ("attn", "attention")) else 0.15


@dataclass(frozen=True)
class Case:
    """A planted model, the truth about it, and what detection says."""

    model: PreTrainedModel
    truth: Planted
    report: MELayerReport


def planted(family: str, seed: int = 0, *, layer: int = ME_LAYER, **changes: Any) -> Case:
    """A fresh model with a massive activation, and its report."""
    model = build(family, seed, **changes)
    truth = plant(model, layer=layer, token_ids=[MASSIVE], dims=DIMS, magnitude=MAGNITUDE)
    return Case(model, truth, detect(model))


@cache
def shared(family: str = "llama", seed: int = 0) -> Case:
    """The same, built once for all tests: leave it unsoftened, as it was."""
    return planted(family, seed)


def texts(rows: int = 8, length: int = 12, seed: int = 0) -> Tensor:
    """Calibration ids [rows, length]; the massive token stands at places 0 to 4, once a row."""
    generator = torch.Generator().manual_seed(seed + 100)
    ids = torch.randint(8, VOCABULARY, (rows, length), generator=generator)
    for row in range(rows):
        ids[row, row % 5] = MASSIVE
    return ids


def detect(model: nn.Module, **options: Any) -> MELayerReport:
    """Detection on `texts()` with the criterion of random models."""
    return wemask.detect(model, **{"input_ids": texts(), "criterion": CRITERION, **options})


def sequence(length: int = 12, seed: int = 0, massive_at: int = 0) -> Tensor:
    """Ids [1, length] with one massive token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(8, VOCABULARY, (1, length), generator=generator)
    ids[0, massive_at] = MASSIVE
    return ids


def settings(**changes: Any) -> WeMaskConfig:
    """A softening that every family has and that shows: a quarter of the dims, massive ones too."""
    return WeMaskConfig(**{"rate": 0.25, "dims": "activation", **changes})


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, **inputs: Any) -> Tensor:
    """float32 [B, T, V], without a cache."""
    return model(input_ids=ids, use_cache=False, **inputs).logits.float()


def close(a: Tensor, b: Tensor, tolerance: float = 2e-4) -> bool:
    """Equal up to rounding: batches of two multiply matrices in another order than batches of one.

    `tolerance` is in units of the largest value; a softening moves logits by 1e-2 and more.
    """
    return float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))
