"""Save and load: the operator comes back, bit for bit; stock loaders do not drop it silently."""

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Case, logits, planted, sequence, settings
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import wemask
from wemask import WeMaskConfig, WeMaskWarning
from wemask.checkpoint import CONFIG_NAME, read_config
from wemask.errors import ModelError, PatchError, WemaskError
from wemask.loading import load_model


def softened(tmp_path: Path, family: str = "llama", **changes: Any) -> tuple[Case, torch.Tensor]:
    """A softened model saved to tmp_path / "model", and its logits."""
    case = planted(family)
    wemask.soften(case.model, case.report, settings(**changes))
    wemask.save(case.model, None, tmp_path / "model")
    return case, logits(case.model, sequence())


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


def test_the_strength_in_force_is_saved(tmp_path):
    case = planted("llama")
    handle = wemask.soften(case.model, case.report, settings())
    handle.set_strength(0.5)
    wemask.save(case.model, None, tmp_path)
    loaded: Any = wemask.load(tmp_path)[0]
    assert loaded.wemask_handle.strength == 0.5
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))


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


def adapter(tmp_path: Path) -> tuple[Any, torch.Tensor]:
    """A softened LoRA of a base that lies in tmp_path / "base", saved to tmp_path / "model"."""
    planted("llama").model.save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"))
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model: Any = get_peft_model(base, lora)  # pyright: ignore[reportArgumentType]
    wemask.soften(model, planted("llama").report, settings())
    model.eval()
    wemask.save(model, None, tmp_path / "model")
    return model, logits(model, sequence())


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


# --- damage -------------------------------------------------------------------------------------


def change(key: str, value: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / CONFIG_NAME).read_text())
        values[key] = value
        (folder / CONFIG_NAME).write_text(json.dumps(values))

    return apply


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None  # pyright: ignore


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return apply


WEIGHTS = "model.wemask.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no operator": (remove(CONFIG_NAME), r"was sought and not found: .* holds no softened model"),
    "empty": (write(CONFIG_NAME, ""), r"is damaged"),
    "half": (truncate(CONFIG_NAME), r"is damaged"),
    "a list": (write(CONFIG_NAME, "[]"), r"is damaged \(no JSON object\)"),
    "keys gone": (write(CONFIG_NAME, '{"schema_version": 1}'), r"lacks operator, strength, layers"),
    "newer": (change("schema_version", 2), r"schema version 2, this wemask reads .* Upgrade"),
    "version of words": (change("schema_version", "one"), r"schema version one"),
    "unknown setting": (change("operator", {"rat": 1}), r"operator\.rat .*Did you mean 'rate'"),
    "operator of numbers": (change("operator", 3), r"is damaged"),
    "strength": (change("strength", 7), r"strength must be a number from 0 to 1"),
    "dims of words": (change("dims", {"two": [1]}), r"is damaged"),
    "dims gone": (
        change("dims", {"2": [1]}),
        r"does not fit this model\. .* layer 3 it gives None",
    ),
    "dims too large": (change("dims", {str(i): [99] for i in (2, 3, 4)}), r"does not fit .*\[99\]"),
    "report": (change("report", {"schema_version": 9}), r"schema version 1 was expected, found 9"),
    "report gone": (change("report", None), r"does not fit this model\. .*need a detected ME"),
    "no config": (remove("config.json"), r"config\.json cannot be read"),
    "config": (write("config.json", "{"), r"config\.json cannot be read"),
    "unknown type": (
        write("config.json", '{"model_type": "wemask_lama"}'),
        r"model_type 'lama' is unknown to this transformers",
    ),
    "no weights": (remove(WEIGHTS), r"has no weights: model\.safetensors was sought"),
    "half the weights": (truncate(WEIGHTS), r"cannot be loaded"),
    "empty weights": (write(WEIGHTS, ""), r"cannot be loaded"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    softened(folder)
    return folder / "model"


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_error(name, saved, tmp_path):
    damage, message = DAMAGE[name]
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(WemaskError, match=message) as raised:
        wemask.load(folder)
    assert raised.value.exit_code == 2


def test_a_report_of_another_model(tmp_path):
    softened(tmp_path)
    change("report", planted("llama", num_hidden_layers=4).report.to_dict())(tmp_path / "model")
    with pytest.raises(WemaskError, match=r"wemask_config\.json does not fit this model"):
        wemask.load(tmp_path / "model")


def test_a_folder_that_does_not_exist():
    with pytest.raises(ModelError, match=r"nowhere/wemask_config\.json was sought and not found"):
        wemask.load("nowhere")


def test_what_the_file_says(tmp_path):
    case, _ = softened(tmp_path)
    values = read_config(tmp_path / "model")
    assert values["schema_version"] == 1
    assert values["operator"] == settings().to_dict()
    assert values["layers"] == [2, 3, 4]
    assert values["report"]["layer"] == case.report.layer
    assert set(values["dims"]) == {"2", "3", "4"}
