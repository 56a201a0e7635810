"""Tiny random-init models of many architectures, and twins with a planted massive activation.

All are 32 wide with 5 layers. Norm weights are drawn at random, so that the choice of dims means
something, and attention is initialised large enough for the softening to be visible in the logits.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

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
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
_WITHOUT_DROPOUT: dict[str, Any] = {"attention_dropout": 0.0, "hidden_dropout": 0.0}

# model_type -> what its config has beyond the common part
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,  # else the share of the chosen experts varies with the context
        **_EXPERTS,
    },
    "mixtral": {"num_local_experts": 4, "sliding_window": None, **_EXPERTS},
    "phi": {},
    "phi3": {},
    "gemma2": {"head_dim": 8, "sliding_window": 64},
    "gemma3_text": {"head_dim": 8, "sliding_window": 64},
    "gpt_neox": _WITHOUT_DROPOUT,
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_inner": 48,
        "n_positions": 256,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": WIDTH, "dropout": 0.0},
    "falcon": {"multi_query": True, "parallel_attn": True, "bias": False, **_WITHOUT_DROPOUT},
    "olmo": {},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.9, "attention_multiplier": 0.3},
    "cohere2": {"sliding_window": 64},
    "smollm3": {},
    "glm4": {"head_dim": 8, "partial_rotary_factor": 0.5},
}
NORMLESS = ("olmo",)  # its norms have no weight: no me_norm, no attn_norm
POST_NORM = ("olmo2",)  # attention reads the residual itself
MIXTURES = ("qwen3_moe", "mixtral")

CRITERION = Criterion(name="sun2024")


def build(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random-init model in eval mode; `changes` are fields of its config."""
    values = {**_COMMON, **FAMILIES[family], **changes}
    if family in ("gpt2", "opt"):  # their configs have no such field, and keep it as a stray one
        for key in ("num_key_value_heads", "intermediate_size"):
            values.pop(key)
    if family == "gpt2":
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            values.pop(key)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    _draw_weights(model, seed)
    return model.eval()


@torch.no_grad()
def _draw_weights(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parent = model.get_submodule(name.rpartition(".")[0])
        if "norm" in type(parent).__name__.lower() and name.endswith("weight"):
            shift = 1.0 if type(parent).__name__.startswith("Gemma") else 0.0  # scales by 1 + w
            drawn = torch.rand(parameter.shape, generator=generator) + 0.5 - shift
        elif name.endswith("bias"):
            drawn = 0.05 * torch.randn(parameter.shape, generator=generator)
        else:
            drawn = _std(name, model) * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn)


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
