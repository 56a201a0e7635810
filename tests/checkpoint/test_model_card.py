"""The README.md of an export: its metadata, and a table of what was softened."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_support import softened
from huggingface_hub import ModelCard

from wemask.checkpoint.manifest import Manifest, read_manifest
from wemask.checkpoint.model_card import write_card
from wemask.operator.settings import LearnableStrength


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("saved")
    softened(folder)
    return read_manifest(folder / "model")


def card(folder: Path, saved: Manifest) -> Any:
    write_card(folder, saved, "llama")
    return ModelCard.load(folder / "README.md")


def row(folder: Path, saved: Manifest, name: str) -> str:
    lines = card(folder, saved).text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {name} ")]
    return line.split(" | ")[1].removesuffix(" |")


@pytest.mark.parametrize(
    ("name", "on_hub"),
    [("someone/tiny", True), ("", False), ("tiny", False), ("./a/b", False), ("/models", False)],
)
def test_only_a_name_of_the_hub_is_a_base_model(name, on_hub, saved, tmp_path):
    written = card(tmp_path, replace(saved, base_model=name))
    assert written.data.base_model == (name if on_hub else None)
    assert written.text.lstrip().startswith(f"# {name or 'llama'}, softened")
    assert {"wemask", "custom_code"} <= set(written.data.tags)


def test_the_table_says_what_was_softened(saved, tmp_path):
    assert row(tmp_path, saved, "softened layers (from 0)") == "2, 3, 4"
    assert row(tmp_path, saved, "ME Layer (where massive activations are born)") == "1"
    assert row(tmp_path, saved, "strength s") == "1"
    assert row(tmp_path, replace(saved, dims=None), "dims").endswith("anew in each forward")
    assert row(tmp_path, replace(saved, dims={2: [1], 3: [4]}), "dims").endswith(
        "by layer, see wemask_config.json"
    )
    many = {i: list(range(20)) for i in (2, 3)}
    assert row(tmp_path, replace(saved, dims=many), "dims").endswith("14, 15, ... (20)")
    config = replace(saved.config, strength=LearnableStrength())
    learned = replace(saved, config=config, learned={2: 0.1}, strength=0.5)
    assert row(tmp_path, learned, "strength s") == "0.5 (learned; the mean over the layers)"


@pytest.mark.parametrize(
    "changes", [{"dims": "random"}, {"site": "residual_stream"}, {"tokens": "wrong"}]
)
def test_a_control_is_called_one(changes, saved, tmp_path):
    assert "make it a control" not in card(tmp_path, saved).text
    control = replace(saved, config=replace(saved.config, **changes))
    assert "make it a control" in card(tmp_path, control).text
