"""wemask_config.json: what it says; edited, mixed up or cut short it is one clear error."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_support import (
    WEIGHTS,
    change,
    change_report,
    not_a_number,
    remove,
    softened,
    truncate,
    write,
)
from families import logits, planted, sequence, settings

import wemask
from wemask.checkpoint.save_load import CONFIG_NAME, read_config
from wemask.errors import ModelError, WemaskError

DIMS = {"2": [1], "3": [1], "4": [1]}
GATE = {"dims": [3], "thresholds": {"3": 9.0}, "primary": {"3": 9.0}}
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no operator": (remove(CONFIG_NAME), r"was sought and not found: .* holds no softened model"),
    "empty": (write(CONFIG_NAME, ""), r"is damaged"),
    "half": (truncate(CONFIG_NAME), r"is damaged"),
    "a list": (write(CONFIG_NAME, "[]"), r"must hold an object, found list.* is damaged"),
    "deep": (write(CONFIG_NAME, "[" * 10**5), r"no JSON that can be read.* is damaged"),
    "a folder": (
        lambda folder: [remove(CONFIG_NAME)(folder), (folder / CONFIG_NAME).mkdir()][0],
        r"is a folder; a regular file was sought.* is damaged",
    ),
    "keys gone": (write(CONFIG_NAME, '{"schema_version": 1}'), r"lacks operator, strength, layers"),
    "touched of words": (change("tokens_touched", {"2": "a"}), r"tokens_touched must be a list"),
    "touched a number": (change("tokens_touched", 3), r"is damaged"),
    "calibrated of words": (change("calibrated", "yes"), r"calibrated must be an object"),
    "calibrated by half": (change("calibrated", {"step": 3}), r"an object of .*\['step'\]"),
    "calibrated at no step": (
        change("calibrated", {"step": -1, "first": {}, "found": {}}),
        r"calibrated\.step must be",
    ),
    "calibrated on nothing": (
        change("calibrated", {"step": 1, "first": {}, "found": {}}),
        r"is damaged: An ME Layer report of schema",
    ),
    "newer": (change("schema_version", 3), r"schema version 3, this wemask reads .* Upgrade"),
    "version of truth": (change("schema_version", True), r"schema version True"),
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
    "dims below zero": (change("dims", {**DIMS, "3": [-1]}), r"dims of layer 3 must be .*\[-1\]"),
    "dims of one number": (change("dims", {**DIMS, "3": 1}), r"dims of layer 3 must be a list"),
    "dims of text": (change("dims", {**DIMS, "3": ["1"]}), r"dims of layer 3 must be .*'1'"),
    "half of the dims": (change("dims", {**DIMS, "3": None}), r"dims of layer 3 must be a list"),
    "no dims": (change("dims", {}), r"does not fit this model\. .* layer 2 it gives None"),
    "dims twice": (change("dims", {**DIMS, "3": [1, 1]}), r"does not fit .*different .*\[1, 1\]"),
    "dims empty": (
        change("dims", {layer: [] for layer in DIMS}),
        r"does not fit .*for layer 2 it gives \[\]",
    ),
    "dims above the rate": (
        change("dims", {**DIMS, "3": [*range(9)]}),
        r"does not fit .*Layer 3 has 9 dims, where 8 were softened",
    ),
    "dims above the rate of 0.1": (
        lambda folder: [
            change("budget", 0)(folder),
            change("dims", {**DIMS, "3": [*range(9)]})(folder),
        ][0],
        r"does not fit .*Layer 3 has 9 dims, where 8 were softened",
    ),
    "budget of text": (change("budget", "8"), r"budget must be a list of whole numbers"),
    "dims null": (change("dims", dict.fromkeys(DIMS)), r"dims=activation, but dims of no layer"),
    "dims a list": (change("dims", [1]), r"is damaged"),
    "other layers": (change("layers", [2, 3]), r"names the layers \[2, 3\], .* \[2, 3, 4\]"),
    "layers a number": (change("layers", 2), r"layers must be a list of whole numbers"),
    "layers out of range": (
        change("operator", {**settings().to_dict(), "layers": [2, 50]}),
        r"does not fit this model\. Layer 50 does not exist: the model has layers 0 to 4",
    ),
    "learned of words": (change("learned", {"2": "a"}), r"learned of layer 2 must be a number"),
    "learned of nothing": (change("learned", {"2": math.nan}), r"learned of layer 2 .* got nan"),
    "learned that is not": (change("learned", {"2": 0.1}), r"does not fit .*Learned strengths"),
    "strength a text": (change("strength", "1"), r"strength must be a number"),
    "wrong width": (
        change_report("hidden_size", 64),
        r"does not fit this model\. .*5 layers of width 64, this one has 5 of 32",
    ),
    "width of text": (change_report("hidden_size", "32"), r"report is damaged"),
    "layer of text": (change_report("layer", "1"), r"report is damaged"),
    "layer out of range": (
        change_report("layer", 9),
        r"layer 2: there may be gates of 10 to 4",
    ),
    "layer of no number": (change_report("layer", None), r"its layer is no layer"),
    "threshold of no dim": (
        change_report("gates", {"2": {**GATE, "thresholds": {"99": 1.0}}}),
        r"gates of layer 2: dim 99 of a width of 32",
    ),
    "gate of no layer": (change_report("gates", {"7": GATE}), r"gates of layer 7: .* 2 to 4"),
    "no gates left": (change_report("gates", {}), r"the report has no gate for it"),
    "probe of no token": (change_report("probe_ids", [7, 99]), r"token 99, .* tokens 0 to 63"),
    "sample of words": (change("weights_sample", {"norms": ["a"]}), r"is damaged"),
    "sample of another": (
        change("weights_sample", {"embeddings": [1.0] * 32, "norms": [1.0] * 32}),
        r"was not saved beside these weights",
    ),
    "rows of text": (change("vocabulary", "64"), r"vocabulary must be a list of whole numbers"),
    "base of numbers": (change("base_model", 3), r"base_model must be a text"),
    "report": (
        change("report", {"schema_version": 9}),
        r"version 1 or 2 was expected, found 9",
    ),
    "report gone": (change("report", None), r"does not fit this model\. .*need a detected ME"),
    "no config": (remove("config.json"), r"no model folder: config\.json was sought"),
    "config": (write("config.json", "{"), r"config\.json is no JSON that can be read"),
    "config of no type": (write("config.json", "{}"), r"config\.json is of a plain model \(none\)"),
    "config of many layers": (
        write("config.json", '{"model_type": "wemask_llama", "num_hidden_layers": 1000000000}'),
        r"says num_hidden_layers=1,000,000,000",
    ),
    "heads of text": (
        write("config.json", '{"model_type": "wemask_llama", "num_attention_heads": "x"}'),
        r"transformers refuses .*config\.json",
    ),
    "unknown type": (
        write("config.json", '{"model_type": "wemask_lama"}'),
        r"model_type 'lama' is unknown to this transformers",
    ),
    "no weights": (remove(WEIGHTS), r"has no weights: model\.safetensors was sought"),
    "half the weights": (truncate(WEIGHTS), r"safetensors refuses .*damaged or cut short"),
    "empty weights": (write(WEIGHTS, ""), r"safetensors refuses .*damaged or cut short"),
    "weights of nothing": (not_a_number, r"are not all numbers, in model\.layers\.3\.mlp"),
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


def test_the_strength_in_force_is_saved(tmp_path):
    case = planted("llama")
    handle = wemask.soften(case.model, case.report, settings())
    handle.set_strength(0.5)
    wemask.save(case.model, None, tmp_path)
    loaded: Any = wemask.load(tmp_path)[0]
    assert loaded.wemask_handle.strength == 0.5
    assert torch.equal(logits(loaded, sequence()), logits(case.model, sequence()))


def test_names_of_parts_come_back(tmp_path):
    case = planted("llama")
    model: Any = case.model
    model.wemask_parts = {"layers": "model.layers"}
    wemask.soften(model, case.report, settings())
    wemask.save(model, None, tmp_path)
    loaded: Any = wemask.load(tmp_path)[0]
    assert loaded.wemask_parts == {"layers": "model.layers"}
    other: Any = wemask.load(tmp_path, parts={"attention": "self_attn"})[0]
    assert other.wemask_parts == {"attention": "self_attn"}


def test_what_the_file_says(tmp_path):
    case, _ = softened(tmp_path)
    values = read_config(tmp_path / "model")
    assert values["schema_version"] == 2
    assert values["operator"] == settings().to_dict()
    assert values["layers"] == [2, 3, 4]
    assert values["report"]["layer"] == case.report.layer
    assert set(values["dims"]) == {"2", "3", "4"}
