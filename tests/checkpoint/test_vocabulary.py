"""Tokens beyond the embedding: refused with a name, or given rows that come back with the model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import close, logits
from peft import LoraConfig, get_peft_model

import wemask
from wemask.checkpoint.pretrained import load_both, load_tokenizer
from wemask.checkpoint.vocabulary import fit_vocabulary, widen
from wemask.decoder.parts import rows
from wemask.errors import ModelError
from wemask.settings.config import ModelConfig


@pytest.fixture
def folder(fresh_tiny, tmp_path) -> Path:
    """`tiny` with a tokenizer to which somebody added a pad token and another."""
    model, tokenizer = fresh_tiny()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<tool>"])
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(folder: Path, **options: Any) -> ModelConfig:
    return ModelConfig(name="it", path=str(folder), **options)


def test_tokens_beyond_the_model_are_refused(folder, tiny):
    size = len(tiny.tokenizer)
    said = rf"has 2 tokens without a row .*'\[PAD\]' \({size}\), '<tool>' .*model\.resize=true"
    with pytest.raises(ModelError, match=said):
        load_both(settings(folder))


def test_rows_are_added_near_the_mean_and_the_same_each_time(folder, tiny):
    old = rows(tiny.model)
    (model, tokenizer), (again, _) = (load_both(settings(folder, resize=True)) for _ in range(2))
    assert rows(model) == old + 2 == model.config.vocab_size  # pyright: ignore
    before = tiny.model.get_input_embeddings().weight.detach()
    after = model.get_input_embeddings().weight.detach()  # pyright: ignore
    assert torch.equal(after[:old], before)
    assert close(after[old:], before.mean(0).expand(2, -1), 1e-3)
    ids = torch.tensor([tokenizer("Tom <tool>[PAD]")["input_ids"]])
    assert int(ids.max()) == old + 1
    assert torch.equal(logits(model, ids), logits(again, ids))


def test_an_adapter_finds_the_rows_again(folder, tmp_path):
    base, tokenizer = load_both(settings(folder, resize=True))
    report = wemask.detect(base, tokenizer, criterion="relative", min_ratio=60)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model: Any = get_peft_model(base, lora).eval()  # pyright: ignore[reportArgumentType]
    wemask.soften(model, report, wemask.WeMaskConfig(rate=0.03))
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        wemask.save(model, tokenizer, tmp_path / "adapter")
    ids = torch.tensor([tokenizer("<tool> Tom has 5 apples.")["input_ids"]])
    loaded, _ = wemask.load(tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    wemask.merge(tmp_path / "adapter", tmp_path / "merged")
    merged, _ = wemask.load(tmp_path / "merged")
    assert close(logits(merged, ids), logits(model, ids), 1e-5)


def test_no_end_of_rows(fresh_tiny):
    with pytest.raises(ModelError, match="1,000,000,000 tokens are no vocabulary of a model"):
        widen(fresh_tiny().model, 10**9)


def test_a_placeholder_for_images_is_no_token_of_a_text(tiny):
    """The tokenizer of Gemma 3 has one behind the embedding of its text models."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    fit_vocabulary(tiny.model, tokenizer, "it")
    tokenizer.pad_token = "<image_soft_token>"
    with pytest.raises(ModelError, match="has 1 tokens without a row"):
        fit_vocabulary(tiny.model, tokenizer, "it")


def test_a_softened_model_with_anothers_tokenizer(fresh_tiny, folder, tmp_path):
    model, _ = fresh_tiny()
    report = wemask.detect(model, fresh_tiny().tokenizer)
    wemask.soften(model, report, wemask.WeMaskConfig(rate=0.03))
    wemask.save(model, load_tokenizer(str(folder)), tmp_path / "saved")
    with pytest.raises(ModelError, match=r"wemask\.load\(\.\.\., resize=True\)"):
        wemask.load(tmp_path / "saved")
    loaded, tokenizer = wemask.load(tmp_path / "saved", resize=True)
    assert rows(loaded) == len(tokenizer)
