"""`tiny` as a GGUF file, as llama.cpp's converter writes one of its architecture."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.tensor_mapping import get_tensor_name_map

F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
CONTROL, NORMAL = 3, 1  # kinds of a token


def write_gguf(
    path: Path,
    model: Any,
    tokenizer: Any,
    *,
    kind: GGMLQuantizationType = F32,
    architecture: str = "llama",
    **metadata: Any,
) -> Path:
    """Write a llama model; matrices in `kind`, all else in float32."""
    writer = GGUFWriter(path, architecture)
    _write_config(writer, model.config)
    _write_tokenizer(writer, tokenizer)
    for key, value in metadata.items():
        name = key.replace("__", ".")
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(name, value)
    names = get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, values in as_stored(model, kind).items():
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None, name
        writer.add_tensor(found, values, raw_dtype=kind if values.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_stored(model: Any, kind: GGMLQuantizationType) -> dict[str, np.ndarray]:
    """Weights by their names in transformers, as the file holds them."""
    config, stored = model.config, {}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if name.endswith("q_proj.weight"):
            values = _permuted(values, config.num_attention_heads)
        if name.endswith("k_proj.weight"):
            values = _permuted(values, config.num_key_value_heads)
        stored[name] = gguf.quantize(values, kind) if values.ndim == 2 and kind != F32 else values
    return stored


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp rotates them: pairs side by side, not in two halves."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _write_config(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if i in special else NORMAL for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(tokenizer.chat_template)
