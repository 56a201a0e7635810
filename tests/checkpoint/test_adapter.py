"""An adapter is loaded whole or not at all, and no pickle of one is opened."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import adapter, remove, write
from safetensors.torch import load_file, save_file

import wemask
from wemask.checkpoint.model_folder import ADAPTER, ADAPTER_CONFIG
from wemask.checkpoint.pretrained import load_model
from wemask.errors import ModelError


def says(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / ADAPTER_CONFIG).read_text())
        (folder / ADAPTER_CONFIG).write_text(json.dumps(values | changes))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]):
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / ADAPTER)), folder / ADAPTER)

    return damage


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / ADAPTER), folder / "adapter_model.bin")
    (folder / ADAPTER).unlink()


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("exploded"),)


def bomb(folder: Path) -> None:
    (folder / ADAPTER).unlink()
    torch.save({"weight": Bomb()}, folder / "adapter_model.bin")


REFUSES = r"PEFT refuses the adapter .*"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not JSON": (write(ADAPTER_CONFIG, "{"), "no JSON that can be read"),
    "a list": (write(ADAPTER_CONFIG, "[1]"), "must hold an object, found list"),
    "empty": (write(ADAPTER_CONFIG, "{}"), REFUSES),
    "type unknown": (says(peft_type="BOGUS"), REFUSES + "'BOGUS'"),
    "type a number": (says(peft_type=3), REFUSES + "'3'"),
    "r negative": (says(r=-1), REFUSES + "positive"),
    "r of text": (says(r="x"), REFUSES),
    "r of a gigabyte a row": (says(r=10**9), REFUSES),
    "r of another": (says(r=2), REFUSES),
    "target unknown": (says(target_modules=["nosuch"]), REFUSES + "nosuch"),
    "target of another": (says(target_modules=["k_proj"]), REFUSES + "missing adapter keys"),
    "targets more": (says(target_modules=["q_proj", "k_proj"]), REFUSES + "missing adapter keys"),
    "targets fewer": (says(layers_to_transform=[0, 1]), "10 tensors of an adapter, .* has 4"),
    "weights missing": (remove(ADAPTER), r"no weights: adapter_model\.safetensors was sought"),
    "weights empty": (write(ADAPTER, ""), "safetensors refuses"),
    "weights a pickle": (pickled, r"adapter_model\.bin is a pickle, which can run code"),
    "weights a bomb": (bomb, r"adapter_model\.bin is a pickle, which can run code"),
    "weights of other names": (
        tensors(lambda old: {f"x.{name}": tensor for name, tensor in old.items()}),
        REFUSES,
    ),
    "half of the weights": (
        tensors(lambda old: dict(list(old.items())[: len(old) // 2])),
        REFUSES + "missing adapter keys",
    ),
    "weights of no number": (
        tensors(lambda old: {name: tensor * torch.nan for name, tensor in old.items()}),
        "are not all numbers",
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    adapter(folder)
    return folder / "model"


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_error(name, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, message = DAMAGE[name]
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model")
    for use in (wemask.load, lambda folder: wemask.merge(folder, tmp_path / "out")):
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # what stands below must not depend on it
            with pytest.raises(ModelError, match=message):
                use(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}  # no bomb, no half a folder


def test_a_pickle_is_not_opened_by_the_plain_loader(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "model")
    bomb(tmp_path / "model")
    says(peft_type="LORA")(tmp_path / "model")
    with pytest.raises(ModelError, match="pickle, which can run code"):
        load_model(str(tmp_path / "model"))
    assert not Path("exploded").exists()
