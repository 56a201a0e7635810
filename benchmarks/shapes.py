"""Models to time: real shapes with random weights and a massive activation planted in layer 1."""

import copy
from typing import Any

import torch
from torch import nn

import wemask
from wemask.planted import plant

BOS, ME_LAYER, DIMS, MAGNITUDE = 1, 1, (3, 17), 20_000.0

_LLAMA: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 8192}
_QWEN: dict[str, Any] = {"model_type": "qwen3", "max_position_embeddings": 8192, "head_dim": 128}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-toy": {  # to try a benchmark, not to measure anything
        **_LLAMA,
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "llama-30m": {
        **_LLAMA,
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama3-1b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "llama3-8b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama3-70b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "qwen3-4b": {
        **_QWEN,
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": {
        **_QWEN,
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}


def build(shape: str, device: str, dtype: torch.dtype, layers: int | None = None) -> nn.Module:
    """A model of this shape in evaluation mode, with `BOS` as its massive token.

    `layers` keeps only so many of its layers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    plant(model, layer=ME_LAYER, token_ids=[BOS], dims=DIMS, magnitude=MAGNITUDE)
    return model


def twin(model: nn.Module) -> nn.Module:
    """A second model on the very same weights."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def ids(model: nn.Module, length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Token ids [rows, length] that begin with the massive token, as a BOS does."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary: int = model.config.vocab_size  # pyright: ignore
    drawn = torch.randint(2, vocabulary, (rows, length), generator=generator)
    drawn[:, 0] = BOS
    return drawn.to(next(model.parameters()).device)


def detect(model: nn.Module) -> wemask.MELayerReport:
    """The planted layer, found again: a benchmark of a softening that does not fire is none."""
    report = wemask.detect(model, input_ids=ids(model, 24, rows=16))
    assert report.layer == ME_LAYER and set(report.dims) == set(DIMS), report.verdict
    return report
