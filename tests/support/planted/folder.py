"""A model folder whose ME Layer, massive dims and sinks are known: to try any command against.

    PYTHONPATH=tests/support python -m planted.folder FOLDER
    wemask analyse --model FOLDER

A random-init Llama with the tokenizer of `tiny`. Layer 2 makes the first token massive, one head of
each layer after it sinks on what is massive, and the norm weight before the FFN of layer 2 favours
the massive dims: `planted.json` in the folder says which.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from planted.sinks import plant_sinks
from wemask.checkpoint.pretrained import keep_deepspeed_out, load_tokenizer
from wemask.decoder.parts import find_decoder
from wemask.embedded import TINY_PATH
from wemask.errors import RunFolderError
from wemask.planted import plant
from wemask.settings.composition import exit_on_error

ME_LAYER, DIMS, MAGNITUDE = 2, (5, 40), 5000.0
WIDTH, LAYERS, HEADS = 64, 6, 4


def build(seed: int = 0) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its tokenizer, and the truth about it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    keep_deepspeed_out()
    tokenizer = load_tokenizer(str(TINY_PATH))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    _draw_norms(model)
    truth = plant(
        model, layer=ME_LAYER, token_ids=[tokenizer.bos_token_id], dims=DIMS, magnitude=MAGNITUDE
    )
    sinks = plant_sinks(model, truth)
    return model, tokenizer, {**dataclasses.asdict(truth), "sinks": dataclasses.asdict(sinks)}


@torch.no_grad()
def _draw_norms(model: Any) -> None:
    """Norm weights that differ by dim; that of the ME Layer's FFN is heaviest on the massive dims.

    So the operator's own choice of dims (`me_norm`) is right here by construction.
    """
    for block in find_decoder(model).blocks:
        for norm in (block.attention_norm, block.ffn_norm):
            assert norm is not None and isinstance(norm.weight, torch.Tensor)
            norm.weight.uniform_(0.5, 1.5)
            if block.index == ME_LAYER and norm is block.ffn_norm:
                norm.weight[list(DIMS)] = 2.0


def write(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Save the model into a new folder; return the truth about it.

    Raises:
        RunFolderError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty. Give a new folder.")
    model, tokenizer, truth = build(seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "planted.json").write_text(json.dumps(truth, indent=2) + "\n")
    return truth


def main() -> None:
    """Entry point of `PYTHONPATH=tests/support python -m planted.folder`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights [0]")
    options = parser.parse_args()
    with exit_on_error():
        truth = write(options.folder, options.seed)
        sys.stdout.write(f"{json.dumps(truth)}\nWritten: {options.folder}\n")


if __name__ == "__main__":
    main()
