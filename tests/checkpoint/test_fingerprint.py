"""Is it the model beside which the operator was saved? Its weights tell, a dtype does not."""

import math
import shutil
from typing import Any

import pytest
import torch
from checkpoint_support import (
    WEIGHTS,
    adapter,
    change,
    softened,
)
from families import logits, planted, sequence, settings
from safetensors.torch import load_file, save_file

import wemask
from wemask.checkpoint.fingerprint import ROUNDING, SIZE, same_weights, sample_weights
from wemask.checkpoint.pretrained import load_model
from wemask.decoder.parts import find_decoder
from wemask.errors import ModelError


def test_an_adapter_on_another_base_is_refused(tmp_path):
    _, on = adapter(tmp_path)
    planted("llama", seed=1).model.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=r"calibrated on .*base, on other weights.*wemask detect"):
        wemask.load(tmp_path / "model")
    loaded, _ = wemask.load(tmp_path / "model", check_base=False)
    assert not torch.equal(logits(loaded, sequence()), on)


def test_an_adapter_on_a_later_revision_is_refused(tmp_path, monkeypatch):
    """A hub base has a commit; the loader is asked for it, and what came is compared."""
    _, on = adapter(tmp_path)
    change("base_revision", "a" * 40)(tmp_path / "model")
    asked = []

    def from_hub(name: str, revision: str | None = None, **options: Any) -> Any:
        asked.append(revision)
        base: Any = load_model(name, **options)
        base.config._commit_hash = revision
        return base

    monkeypatch.setattr("wemask.checkpoint.save_load.load_model", from_hub)
    assert torch.equal(logits(wemask.load(tmp_path / "model")[0], sequence()), on)
    with pytest.raises(ModelError, match=r"on revision a{40} of it, found revision b{40}\."):
        wemask.load(tmp_path / "model", revision="b" * 40)
    wemask.load(tmp_path / "model", revision="b" * 40, check_base=False)
    assert asked == ["a" * 40, "b" * 40, "b" * 40]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_no_other_base(dtype, tmp_path):
    adapter(tmp_path)
    loaded: Any = wemask.load(tmp_path / "model", dtype=dtype)[0]
    assert loaded.get_base_model().dtype == getattr(torch, dtype)


def test_a_finetuned_norm_is_another_base(tmp_path):
    adapter(tmp_path)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    for name in weights:
        if "layernorm" in name:
            weights[name] *= 1.05
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="other weights than are there now"):
        wemask.load(tmp_path / "model")


def test_norms_trained_with_the_adapter_are_not_the_bases(tmp_path):
    model, on = adapter(tmp_path, modules_to_save=["input_layernorm"])
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data *= 1.3
    wemask.save(model, None, tmp_path / "model")
    loaded, _ = wemask.load(tmp_path / "model")
    assert torch.equal(logits(loaded, sequence()), logits(model, sequence()))
    assert not torch.equal(logits(loaded, sequence()), on)


def test_weights_of_another_model_are_refused(tmp_path):
    softened(tmp_path)
    other = planted("llama", seed=1)
    wemask.soften(other.model, other.report, settings())
    wemask.save(other.model, None, tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS, tmp_path / "model" / WEIGHTS)
    with pytest.raises(ModelError, match="was not saved beside these weights"):
        wemask.load(tmp_path / "model")


def test_full_fine_tuning_moves_the_norms_and_is_saved_as_it_is(tmp_path):
    case, _ = softened(tmp_path)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.01)
    wemask.save(case.model, None, tmp_path / "model")
    loaded, _ = wemask.load(tmp_path / "model")
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))


def test_a_sample_is_spaced_over_all_embeddings_and_norms():
    model: Any = planted("llama").model
    sample = sample_weights(model)
    assert sample is not None and {name: len(v) for name, v in sample.items()} == {
        "embeddings": SIZE,
        "norms": SIZE,
    }
    embeddings = model.get_input_embeddings().weight.flatten()
    assert (sample["embeddings"][0], sample["embeddings"][-1]) == (embeddings[0], embeddings[-1])
    norms = [n.weight for b in find_decoder(model).blocks for n in (b.attention_norm, b.ffn_norm)]
    assert (sample["norms"][0], sample["norms"][-1]) == (norms[0][0], norms[-1][-1])
    model.get_input_embeddings().weight.data[0, 0] = math.nan
    assert sample_weights(model) is None  # JSON has no NaN


def test_samples_are_compared_to_the_rounding_of_a_dtype():
    sample = {"embeddings": [1.0, -2.0], "norms": [0.5]}
    rounded = {"embeddings": [1.0 + ROUNDING / 2, -2.0], "norms": [0.5]}
    other = {"embeddings": [1.0 + 2 * ROUNDING, -2.0], "norms": [0.5]}
    assert same_weights(sample, rounded) and not same_weights(sample, other)
    assert not same_weights(sample, {**sample, "norms": [0.5, 0.5]})
    assert same_weights(None, sample) and same_weights(sample, None)  # not known is no difference
    with pytest.raises(ValueError, match=r"has \['embeddings'\], expected"):
        same_weights({"embeddings": [1.0]}, sample)
