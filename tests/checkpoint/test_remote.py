"""How an exported model loads itself, and what it refuses."""

from typing import Any

import pytest
import torch
from checkpoint_support import WEIGHTS, softened
from families import logits, planted, sequence
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import wemask


def test_an_export_does_not_load_without_trust(tmp_path):
    softened(tmp_path)
    wemask.export(tmp_path / "model", tmp_path / "out")
    for stock in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            stock.from_pretrained(tmp_path / "out", trust_remote_code=False)
    from transformers import LlamaForCausalLM

    config = planted("llama").model.config
    with pytest.raises(
        OSError, match=r"model\.safetensors"
    ):  # asked for by name, it has no weights
        LlamaForCausalLM.from_pretrained(tmp_path / "out", config=config)


def test_random_weights_are_no_softened_model(tmp_path):
    from wemask.checkpoint.remote import SoftenedModel

    with pytest.raises(TypeError, match="load it with from_pretrained"):
        SoftenedModel(None)


def test_what_it_loads_it_saves_and_loads_again(tmp_path):
    _, on = softened(tmp_path)
    wemask.export(tmp_path / "model", tmp_path / "out")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(model).__name__ == "WemaskLlamaForCausalLM"
    assert torch.equal(logits(model, sequence()), on)
    model.save_pretrained(tmp_path / "again")
    again: Any = wemask.load(tmp_path / "again")[0]
    assert torch.equal(logits(again, sequence()), on)
    model.wemask_handle.remove()
    assert not torch.equal(logits(model, sequence()), on)


def test_it_opens_no_pickle(tmp_path):
    softened(tmp_path)
    wemask.export(tmp_path / "model", tmp_path / "out")
    torch.save(load_file(tmp_path / "out" / WEIGHTS), tmp_path / "out" / "pytorch_model.wemask.bin")
    (tmp_path / "out" / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"model\.wemask\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
