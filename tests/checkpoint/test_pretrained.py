"""Loading: one sentence per way in which a model can be missing, and no pickle is opened."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, logits, sequence
from transformers import AutoModelForCausalLM

from wemask.checkpoint.pretrained import load_model, load_tokenizer, resolve_path
from wemask.embedded import TINY_PATH
from wemask.errors import ModelError


@pytest.fixture
def folder(tmp_path) -> Path:
    build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_tiny_is_the_embedded_model(tiny):
    model: Any = load_model("tiny", dtype="float32")
    assert model.config._name_or_path == "tiny"  # not this machine's folder
    assert resolve_path("tiny") == str(TINY_PATH) and resolve_path("ORG/NAME") == "ORG/NAME"
    ids = torch.arange(8)[None]
    assert torch.equal(logits(model, ids), logits(tiny.model, ids))
    assert load_tokenizer("tiny")("a b")["input_ids"] == tiny.tokenizer("a b")["input_ids"]


def test_a_folder_with_options(folder):
    model: Any = load_model(
        str(folder), dtype="bfloat16", attn_implementation="eager", parts={"layers": "model.layers"}
    )
    assert model.dtype == torch.bfloat16 and not model.training
    assert model.config._attn_implementation == "eager"
    assert model.wemask_parts == {"layers": "model.layers"}
    plain = load_model(str(folder))
    assert torch.equal(logits(plain, sequence()), logits(build("llama"), sequence()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", r"The model folder /nowhere/model does not exist"),
        ("./model", r"The model folder \./model does not exist"),
        (
            "meta-llama/Llama-3.2-1B",
            r"not in the local cache and HF_HUB_OFFLINE is set.*model\.path",
        ),
        ("llama3", r"not in the local cache and HF_HUB_OFFLINE is set"),
    ],
)
def test_a_model_that_is_not_there(name, message):
    with pytest.raises(ModelError, match=message) as raised:
        load_model(name)
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match=r"not in the local cache|does not exist"):
        load_tokenizer(name)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no weights: model\.safetensors was sought; copy"):
        load_model(str(folder))


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no model folder: config\.json was sought, found \['gen"):
        load_model(str(folder))


def test_an_empty_folder_and_a_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"no model folder: .* found nothing"):
        load_model(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match=r"is a file; a model is a folder"):
        load_model(str(tmp_path / "file"))


class Bomb:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(tmp_path / "opened")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        load_model(str(folder))
    assert not (tmp_path / "opened").exists()


CONFIG = "config.json"
DAMAGED = r"safetensors refuses .*damaged or cut short"
CANNOT = r"cannot be loaded \(model_type"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (CONFIG, "{", "no JSON that can be read"),
        (CONFIG, "[" * 10**5, "no JSON that can be read"),
        (CONFIG, "[1]", "must hold an object, found list"),
        (CONFIG, "null", "must hold an object, found NoneType"),
        (CONFIG, '{"model_type": "lama"}', CANNOT),
        (CONFIG, "{}", CANNOT),
        (CONFIG, {"num_hidden_layers": "x"}, CANNOT),
        (CONFIG, {"num_hidden_layers": 10**9}, r"says num_hidden_layers=1,000,000,000; no model"),
        (CONFIG, {"num_hidden_layers": 0}, "says that the model has no layers"),
        (CONFIG, {"num_attention_heads": 0}, CANNOT),
        (CONFIG, {"dtype": "float99"}, CANNOT),
        (CONFIG, {"quantization_config": {"quant_method": "bogus"}}, "quantised by 'bogus'"),
        (CONFIG, {"quantization_config": [1]}, CANNOT),
        ("generation_config.json", "[]", "must hold an object, found list"),
        ("model.safetensors", "", DAMAGED),
        ("model.safetensors", "no tensors here, only text", DAMAGED),
    ],
)
def test_damaged_files(folder, name, text, message):
    if isinstance(text, dict):
        text = json.dumps(json.loads((folder / name).read_text()) | text)
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer.json", [1], CANNOT),
        ("tokenizer_config.json", [1], "must hold an object, found list"),
        ("tokenizer_config.json", {"tokenizer_class": 5}, CANNOT),
        ("special_tokens_map.json", 3, "must hold an object, found int"),
    ],
)
def test_damaged_tokenizers(tmp_path, file, values, message):
    shutil.copytree(TINY_PATH, tmp_path / "model")
    (tmp_path / "model" / file).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=message):
        load_tokenizer(str(tmp_path / "model"))


@pytest.mark.parametrize("name", [None, 3, "x" * 5000, "a\0b", "/dev/zero", "/dev/null/x"])
def test_names_that_name_nothing(name):
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError) as raised:
            load(name)
        assert len(str(raised.value)) < 1000


def test_weights_of_another_shape(folder):
    build("llama", hidden_size=16).save_pretrained(folder)
    build("llama").config.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"cannot be loaded \(model_type llama\)"):
        load_model(str(folder))


def test_a_tensor_that_is_missing_is_not_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("down_proj.weight"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 of the model's tensors"):
        load_model(str(folder))


def test_unknown_dtype(folder):
    for dtype in ("float33", "nn", "Tensor"):
        with pytest.raises(ModelError, match=f"dtype is auto, .*; got '{dtype}'"):
            load_model(str(folder), dtype=dtype)


def test_remote_code_does_not_run_unless_asked(folder, tmp_path):
    config = folder / "config.json"
    text = config.read_text().replace('"llama"', '"strange"').rstrip().removesuffix("}")
    remote = '"auto_map": {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}}'
    config.write_text(f"{text}, {remote}")
    (folder / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match=r"cannot be loaded \(model_type strange\)"):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_is_damaged_or_missing(folder):
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(folder))
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(folder))


def test_deepspeed_is_not_imported(folder, tmp_path):
    code = (
        "import sys; from wemask.checkpoint.pretrained import load_model;"
        "m = load_model(sys.argv[1]);"
        "m.save_pretrained(sys.argv[2]); assert 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "out")], check=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None
