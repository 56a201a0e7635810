"""A folder is refused before a library reads it; what is whole, is not."""

import json
import os
from pathlib import Path

import pytest
from families import build
from safetensors.torch import save_file

from wemask.checkpoint.model_folder import as_path, check_folder
from wemask.checkpoint.pretrained import load_model
from wemask.errors import ModelError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = tmp_path / "model"
    build("llama").save_pretrained(folder, max_shard_size="40KB")
    check_folder("it", folder)
    return folder


def point_to(name: object):
    def damage(folder: Path) -> None:
        """The index names the first shard, which lies there, by another name."""
        index = json.loads((folder / INDEX).read_text())
        first = min(index["weight_map"].values())
        index["weight_map"] = {
            tensor: name if file == first else file for tensor, file in index["weight_map"].items()
        }
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def pipe(folder: Path) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    os.mkfifo(folder / "tokenizer.json")


DAMAGE = {
    "index to /etc/passwd": (point_to("/etc/passwd"), "leads out of the folder"),
    "index to a parent": (point_to("../elsewhere.safetensors"), "leads out of the folder"),
    "index by a way around": (
        point_to("../model/../elsewhere.safetensors"),
        "leads out of the folder",
    ),
    "index to a number": (point_to(3), "must hold a weight_map of tensors and files"),
    "index to nothing": (point_to("gone.safetensors"), r"gone\.safetensors was sought"),
    "index to settings": (point_to("config.json"), r"safetensors refuses .*config\.json"),
    "a pipe": (pipe, "is a pipe or a device"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name, sharded, tmp_path):
    save_file({}, tmp_path / "elsewhere.safetensors")
    damage, message = DAMAGE[name]
    damage(sharded)
    with pytest.raises(ModelError, match=message):
        load_model(str(sharded))


def test_links_to_the_folder_and_of_its_weights(sharded, tmp_path):
    for place in (sharded / "parts", tmp_path):  # a disk for large files
        place.mkdir(exist_ok=True)
        shard = min(path for path in sharded.glob("*.safetensors") if not path.is_symlink())
        shard.rename(place / "elsewhere")
        shard.symlink_to(place / "elsewhere")
    (tmp_path / "model-too").symlink_to(sharded)
    check_folder("it", tmp_path / "model-too")


@pytest.mark.parametrize("path", [None, 3, ["a"]])
def test_what_is_no_path(path):
    with pytest.raises(ModelError, match="The folder must be a path, got"):
        as_path(path)
