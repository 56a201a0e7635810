"""GGUF files: the weights and tokenizer of the model that was written, and a message per damage."""

import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from families import logits
from gguf_support import F32, Q8_0, as_stored, write_gguf
from peft import LoraConfig, get_peft_model
from run_support import fit, quick
from transformers import AutoModelForCausalLM

import wemask
from wemask.checkpoint.gguf_file import read_header
from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.cli import main
from wemask.detection.me_layer import MELayerReport
from wemask.errors import ModelError
from wemask.evaluate.arm_run import ArmRun
from wemask.train.memory import on_meta, shape_of

RELATIVE = ("--criterion", "relative", "--min-ratio", "60", "--min-jump", "5")
AS_TINY = {"name": "relative", "min_ratio": 60, "min_jump": 5}
TEXT = "Tom has 12 apples. He buys 5 more."
IDS = torch.tensor([[1, *range(40, 64)]])  # begins as its massive token does


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "small.gguf", load_model("tiny"), load_tokenizer("tiny"))


@pytest.fixture
def softened(file: Path) -> Any:
    model, tokenizer = load_model(str(file)), load_tokenizer(str(file))
    report = wemask.detect(model, tokenizer, criterion=wemask.Criterion(**AS_TINY))
    wemask.soften(model, report, wemask.WeMaskConfig(rate=0.03))
    return model


# --- what is loaded -------------------------------------------------------------------------------


def test_the_weights_are_those_that_were_written(file, tiny):
    model: Any = load_model(str(file))
    wanted = tiny.model.state_dict()
    assert model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(model.state_dict()[key], wanted[key]) for key in wanted)
    # the file has the norm's epsilon in float32
    assert torch.allclose(logits(model, IDS), logits(tiny.model, IDS), atol=1e-4)
    assert model.config._name_or_path == str(file) and not model.training


def test_quantised_weights_are_dequantised(tmp_path, tiny):
    path = write_gguf(tmp_path / "q8.gguf", tiny.model, tiny.tokenizer, kind=Q8_0)
    model: Any = load_model(str(path))
    name = "model.layers.2.mlp.down_proj.weight"
    stored = as_stored(tiny.model, Q8_0)[name]
    wanted = gguf.dequantize(stored, Q8_0)
    found = model.state_dict()[name]
    assert np.array_equal(found.numpy(), wanted) and found.dtype == torch.float32
    assert not np.array_equal(wanted, as_stored(tiny.model, F32)[name])


def test_the_tokenizer_is_that_of_the_file(file, tiny):
    tokenizer = load_tokenizer(str(file))
    assert tokenizer(TEXT)["input_ids"] == tiny.tokenizer(TEXT)["input_ids"]
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    assert tokenizer.pad_token == tiny.tokenizer.pad_token and tokenizer.name_or_path == str(file)


def test_what_lies_beside_the_file_is_not_read(file, tmp_path, tiny):
    """transformers would take the template, or the adapter, of the folder."""
    shutil.copy(file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "a", "chat_template": "no"}')
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "adapter_config.json").write_text("{")
    tokenizer = load_tokenizer(str(tmp_path / file.name))
    assert tokenizer.chat_template == tiny.tokenizer.chat_template
    assert tokenizer.pad_token == tiny.tokenizer.pad_token
    copied, alone = load_model(str(tmp_path / file.name)), load_model(str(file))
    assert torch.equal(logits(copied, IDS), logits(alone, IDS))


def test_a_file_of_the_working_folder(file, monkeypatch):
    """transformers takes a bare name for a hub id."""
    monkeypatch.chdir(file.parent)
    model: Any = load_model(file.name)
    assert model.config._name_or_path == file.name
    assert load_tokenizer(file.name)(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_dtype_is_float32_unless_asked_for(file, dtype, wanted):
    assert {p.dtype for p in load_model(str(file), dtype=dtype).parameters()} == {wanted}


def test_its_shape_is_known_without_its_weights(file, tiny):
    bare: Any = on_meta(str(file), "auto", local_files_only=True)
    assert shape_of(bare, None).total == sum(p.numel() for p in tiny.model.parameters())


# --- a plain model afterwards ---------------------------------------------------------------------


def test_it_is_saved_as_a_stock_model(file, tmp_path):
    model: Any = load_model(str(file))
    assert getattr(model, "hf_quantizer", None) is None
    assert not [key for key in model.config.to_dict() if "quant" in key]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))


def test_softened_it_is_saved_loaded_and_exported(softened, file, tmp_path):
    on = logits(softened, IDS)
    assert not torch.equal(on, logits(load_model(str(file)), IDS))
    tokenizer = load_tokenizer(str(file))
    wemask.save(softened, tokenizer, tmp_path / "saved")
    loaded, words = wemask.load(tmp_path / "saved")
    assert torch.equal(logits(loaded, IDS), on)
    assert words(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    wemask.export(tmp_path / "saved", tmp_path / "out")
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert torch.equal(logits(remote, IDS), on)
    assert f"| base model | {file} |" in (tmp_path / "out" / "README.md").read_text()


def test_an_adapter_finds_its_base_in_the_file(softened, file, tmp_path):
    model: Any = get_peft_model(softened, LoraConfig(target_modules=["q_proj"]))
    torch.nn.init.normal_(
        model.base_model.model.model.layers[3].self_attn.q_proj.lora_B.default.weight
    )
    on = logits(model, IDS)
    wemask.save(model, None, tmp_path / "adapter")
    loaded, _ = wemask.load(tmp_path / "adapter")
    assert torch.equal(logits(loaded, IDS), on)
    wemask.merge(tmp_path / "adapter", tmp_path / "merged")
    merged, _ = wemask.load(tmp_path / "merged")
    assert torch.allclose(logits(merged, IDS), on, atol=1e-4)


def test_an_adapter_whose_file_is_another_now(softened, file, tmp_path, tiny):
    path = shutil.copy(file, tmp_path / "base.gguf")
    softened.config._name_or_path = str(path)
    model: Any = get_peft_model(softened, LoraConfig(target_modules=["q_proj"]))
    wemask.save(model, None, tmp_path / "adapter")
    path.unlink()
    write_gguf(path, tiny.model, tiny.tokenizer, kind=Q8_0)
    with pytest.raises(ModelError, match=r"calibrated on .*base\.gguf, on other weights"):
        wemask.load(tmp_path / "adapter")


# --- commands and runs ----------------------------------------------------------------------------


def test_detect_names_its_folder_by_the_stem(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["detect", "--model", str(file), *RELATIVE])
    assert end.value.code == 0
    report = MELayerReport.load(tmp_path / "outputs" / "detect" / "small" / "me_layer.json")
    assert report.found and report.model["name"] == str(file)
    assert f"Model: {file}" in capsys.readouterr().out.replace("\n", "")
    assert report.layer == wemask.detect(load_model("tiny"), load_tokenizer("tiny")).layer


@pytest.mark.parametrize("words", [("method=wemask", "peft=lora"), ("method=sft", "peft=none")])
def test_it_is_trained_and_answers_again(words, file, tmp_path):
    relative = [f"model.criterion.{key}={value}" for key, value in AS_TINY.items()]
    config = quick(tmp_path, f"model.path={file}", "operator.rate=0.03", *relative, *words)
    folder, log = fit(config)
    assert folder.name.startswith("small__") and str(file) in log.replace("\n", "")
    arm = "wemask_sft" if config.softens else "sft"
    trained, tokenizer = ArmRun.of(arm, config).load()
    assert not torch.equal(logits(trained, IDS), logits(load_model(str(file)), IDS))
    assert tokenizer.chat_template


# --- files that cannot be loaded ------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_model(str(path))
    with pytest.raises(ModelError):
        load_tokenizer(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 no model at all"])
def test_another_file(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    assert "this begins with no GGUF. Give " in refused(tmp_path / "model.gguf")


@pytest.mark.parametrize("keep", [4, 20, 2000, -4, -100_000])
def test_a_truncated_file(keep, file, tmp_path):
    (tmp_path / "model.gguf").write_bytes(file.read_bytes()[:keep])
    message = refused(tmp_path / "model.gguf")
    assert "is truncated: it" in message and message.endswith("Download it again.")
    assert ("within its header" in message) == (keep > 0)


@pytest.mark.parametrize(
    ("at", "form", "value"), [(4, "I", 1), (4, "I", 50_331_648), (16, "Q", 10**15)]
)
def test_a_damaged_header(at, form, value, file, tmp_path):
    content = bytearray(file.read_bytes())
    struct.pack_into(f"<{form}", content, at, value)
    (tmp_path / "model.gguf").write_bytes(content)
    message = refused(tmp_path / "model.gguf")
    assert "damaged GGUF file" in message or "truncated" in message
    assert at != 4 or f"version is {value}, known are (2, 3)" in message


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"architecture": "rwkv7"},
            r"architecture 'rwkv7', and .* of .*llama, .*Give the model as",
        ),
        ({"split__count": 3}, r"one of 3 parts of a split model.*llama-gguf-split --merge"),
        ({"general__type": "adapter"}, r"holds no model but 'adapter'"),
    ],
)
def test_a_file_that_holds_something_else(metadata, message, tmp_path, tiny):
    path = write_gguf(tmp_path / "model.gguf", tiny.model, tiny.tokenizer, **metadata)
    with pytest.raises(ModelError, match=message):
        load_model(str(path))


@pytest.mark.parametrize("architecture", ["qwen2moe", "gpt-oss", "gemma3", "llama"])
def test_names_that_llama_cpp_writes_are_known(architecture, tmp_path, tiny):
    from wemask.checkpoint.gguf_file import check

    path = write_gguf(
        tmp_path / "model.gguf", tiny.model, tiny.tokenizer, architecture=architecture
    )
    check("model", path)
    assert read_header("model", path).metadata["general.architecture"] == architecture


def test_the_package_that_reads_it_is_missing(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(file).endswith("Type: pip install 'wemask[gguf]'")


def test_a_file_that_is_not_there():
    for name in ("/nowhere/model.gguf", "model.gguf", "ORG/NAME/model.gguf"):
        with pytest.raises(ModelError, match=r"model\.gguf does not exist.*hf download"):
            load_model(name)


def test_a_folder_with_the_file_in_it(file):
    with pytest.raises(ModelError, match=rf"config\.json was sought.*Give the file: {file}"):
        load_model(str(file.parent))


def test_the_header_is_the_library_s(file):
    """Against gguf's own reader, which takes seconds for a real vocabulary."""
    header, reader = read_header("small", file), gguf.GGUFReader(file)
    assert header.start == reader.data_offset
    assert [(t.name, t.n_elements, int(t.tensor_type), t.data_offset) for t in reader.tensors] == [
        (name, count, kind, header.start + offset) for name, count, kind, offset in header.tensors
    ]
    known = {key for key in reader.fields if not key.startswith("GGUF.")}
    assert header.metadata.keys() == known
    assert header.metadata["llama.block_count"] == 5
    assert header.metadata["tokenizer.ggml.tokens"] == 566
