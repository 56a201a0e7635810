"""Save and load: the operator comes back, bit for bit; stock loaders do not drop it silently."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import adapter, softened
from families import logits, planted, sequence, settings
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import wemask
from wemask import WeMaskConfig, WeMaskWarning
from wemask.checkpoint.pretrained import load_model
from wemask.checkpoint.save_load import CONFIG_NAME
from wemask.errors import ModelError, PatchError

CHILD = """
import sys, wemask, torch
from safetensors.torch import load_file, save_file
model, _ = wemask.load(sys.argv[1])
with torch.no_grad():
    out = model(input_ids=load_file(sys.argv[2])["ids"], use_cache=False).logits
save_file({"logits": out.float()}, sys.argv[3])
"""


def in_a_fresh_process(folder: Path) -> torch.Tensor:
    """Logits of `sequence()` by a loaded model in another interpreter."""
    ids, out = folder.parent / "ids.safetensors", folder.parent / "out.safetensors"
    save_file({"ids": sequence()}, ids)
    subprocess.run([sys.executable, "-c", CHILD, str(folder), str(ids), str(out)], check=True)
    return load_file(out)["logits"]


def test_a_fresh_process_gives_the_same_bits(tmp_path):
    _, on = softened(tmp_path)
    assert torch.equal(in_a_fresh_process(tmp_path / "model"), on)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "olmo2", "mixtral"])
def test_round_trip(family, tmp_path):
    case, on = softened(tmp_path, family, strength=0.75)
    loaded: Any = wemask.load(tmp_path / "model")[0]
    assert torch.equal(logits(loaded, sequence()), on)
    handle = loaded.wemask_handle
    original: Any = case.model.wemask_handle
    assert (handle.layers, handle.dims) == (original.layers, original.dims)
    assert (handle.config, handle.strength) == (original.config, 0.75)
    assert handle.report == case.report
    handle.remove()
    original.remove()
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))


def test_a_save_from_before_calibrations_were_kept_loads_as_it_was(tmp_path):
    _, on = softened(tmp_path)
    path = tmp_path / "model" / CONFIG_NAME
    values = json.loads(path.read_text())
    assert "recalibrate" not in values["operator"]
    for key in ("tokens_touched", "touched_first", "calibrated"):
        del values[key]
    path.write_text(json.dumps(values))
    loaded: Any = wemask.load(tmp_path / "model")[0]
    assert torch.equal(logits(loaded, sequence()), on)
    assert loaded.wemask_handle.silent == []


def test_a_softening_that_fired_when_it_was_saved_and_does_no_more_is_refused(tmp_path):
    case, _ = softened(tmp_path)
    path = tmp_path / "model" / CONFIG_NAME
    values = json.loads(path.read_text())
    for gate in values["report"]["gates"].values():
        gate["thresholds"] = dict.fromkeys(gate["thresholds"], 1e9)
    path.write_text(json.dumps(values))
    with pytest.raises(PatchError, match=r"touches nothing.*wemask recalibrate .*model$"):
        wemask.load(tmp_path / "model")
    loaded: Any = wemask.load(tmp_path / "model", may_touch_nothing=True)[0]
    assert loaded.wemask_handle.silent == case.model.wemask_handle.layers


def test_saved_dims_are_kept_when_training_moved_the_norms(tmp_path):
    case = planted("llama")
    handle = wemask.soften(case.model, case.report, settings(dims="attn_norm"))
    model: Any = case.model
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.copy_(layer.input_layernorm.weight.flip(0))
    wemask.save(model, None, tmp_path)
    loaded: Any = wemask.load(tmp_path)[0]
    assert loaded.wemask_handle.dims == handle.dims
    assert torch.equal(logits(loaded, sequence()), logits(model, sequence()))


def test_without_a_report(tmp_path):
    case = planted("llama")
    config = WeMaskConfig(layers=[2], tokens="position0", dims="batch_activation", rate=0.1)
    with pytest.warns(WeMaskWarning):
        wemask.soften(case.model, config=config)
    wemask.save(case.model, None, tmp_path)
    with pytest.warns(WeMaskWarning):
        loaded, _ = wemask.load(tmp_path)
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))


def test_saving_twice_and_saving_what_was_loaded(tmp_path):
    _, on = softened(tmp_path)
    loaded, _ = wemask.load(tmp_path / "model")
    wemask.save(loaded, None, tmp_path / "again")
    wemask.save(loaded, None, tmp_path / "again")
    again, _ = wemask.load(tmp_path / "again")
    assert torch.equal(logits(again, sequence()), on)


def test_options_reach_the_loader(tmp_path):
    softened(tmp_path)
    loaded: Any = wemask.load(tmp_path / "model", dtype="bfloat16", attn_implementation="eager")[0]
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "eager"


def test_the_tokenizer_is_beside_it(fresh_tiny, tmp_path):
    model, tokenizer = fresh_tiny()
    config = WeMaskConfig(layers=[1], tokens="first", dims="attn_norm", rate=0.1)
    with pytest.warns(WeMaskWarning):
        wemask.soften(model, config=config)
    wemask.save(model, tokenizer, tmp_path)
    with pytest.warns(WeMaskWarning):
        loaded, again = wemask.load(tmp_path)
    ids = again("Tom has 5 apples.", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [tokenizer("Tom has 5 apples.")["input_ids"]]
    assert torch.equal(logits(loaded, ids), logits(model, ids))


@pytest.mark.parametrize("stock", [AutoModelForCausalLM, AutoModel, AutoConfig])
def test_stock_loaders_fail_loudly(stock, tmp_path):
    softened(tmp_path)
    with pytest.raises((ValueError, KeyError, OSError), match="wemask_llama"):
        stock.from_pretrained(tmp_path / "model")


def test_a_stock_class_that_ignores_model_type_finds_no_weights(tmp_path):
    softened(tmp_path)
    from transformers import LlamaForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about model_type first
        with pytest.raises(OSError, match=r"model\.safetensors"):
            LlamaForCausalLM.from_pretrained(tmp_path / "model")


def test_our_plain_loader_names_the_other(tmp_path):
    softened(tmp_path)
    with pytest.raises(ModelError, match=r"is a softened model\. Load it with wemask\.load"):
        load_model(str(tmp_path / "model"))


def test_a_plain_model_is_not_saved():
    with pytest.raises(PatchError, match=r"not softened, so there is no operator to save"):
        wemask.save(planted("llama").model, None, "never")
    assert not Path("never").exists()


# --- adapters -----------------------------------------------------------------------------------


def test_adapter_round_trip(tmp_path):
    _, on = adapter(tmp_path)
    files = {p.name for p in (tmp_path / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", CONFIG_NAME} <= files
    assert "model.safetensors" not in files
    loaded, _ = wemask.load(tmp_path / "model")
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded, sequence()), on)


def test_stock_peft_fails_loudly_on_an_adapter(tmp_path):
    adapter(tmp_path)
    base: Any = load_model(str(tmp_path / "base"))
    with pytest.raises((KeyError, ValueError, TypeError), match="WEMASK_LORA"):
        PeftModel.from_pretrained(base, str(tmp_path / "model"))
    with pytest.raises((KeyError, ValueError, TypeError, OSError)):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_an_adapter_whose_base_is_gone(tmp_path):
    adapter(tmp_path)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ModelError, match=r"model folder .*base does not exist"):
        wemask.load(tmp_path / "model")


def test_merged_adapter_is_saved_as_a_whole_model(tmp_path):
    model, _ = adapter(tmp_path)
    merged = model.merge_and_unload()
    wemask.save(merged, None, tmp_path / "merged")
    loaded, _ = wemask.load(tmp_path / "merged")
    assert torch.equal(logits(loaded, sequence()), logits(merged, sequence()))


def test_shards_round_trip(tmp_path):
    case = planted("llama")
    wemask.soften(case.model, case.report, settings())
    wemask.save(case.model, None, tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 5
    on = logits(case.model, sequence())
    assert torch.equal(logits(wemask.load(tmp_path / "model")[0], sequence()), on)


def test_a_learned_strength_comes_back_and_is_no_longer_trained(tmp_path):
    case = planted("llama")
    handle = wemask.soften(case.model, case.report, settings(strength="learnable"))
    learned = {layer: 0.001 * layer for layer in handle.layers}
    handle.learned = learned
    wemask.save(case.model, None, tmp_path / "model")
    on = logits(case.model, sequence())
    loaded: Any = wemask.load(tmp_path / "model")[0]
    assert torch.equal(logits(loaded, sequence()), on)
    again = loaded.wemask_handle
    assert again.learned == pytest.approx(learned) and again.strengths == handle.strengths
    assert not any(p.requires_grad for s in again.softenings() for p in s.parameters())
    handle.set_strength(0.25)  # a number in its place is what is in force, and what is saved
    wemask.save(case.model, None, tmp_path / "number")
    loaded = wemask.load(tmp_path / "number")[0]
    assert loaded.wemask_handle.strength == 0.25
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))


def test_a_learned_strength_comes_back_with_an_adapter(tmp_path):
    model, _ = adapter(tmp_path, strength="learnable")
    handle = model.base_model.model.wemask_handle
    handle.learned = {layer: -0.002 * layer for layer in handle.layers}
    wemask.save(model, None, tmp_path / "model")
    loaded = wemask.load(tmp_path / "model")[0]
    assert torch.equal(logits(loaded, sequence()), logits(model, sequence()))
