"""Engines as settings: presets, what is passed on, and what cannot run."""

from pathlib import Path

import pytest
from run_support import quick, settings

from wemask.errors import ConfigError
from wemask.settings import engines

PRESETS = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_deepspeeds_own_json(name: str) -> None:
    values = settings(f"deepspeed={name}").deepspeed
    assert values is not None
    assert values["name"] == name
    assert values["zero_optimization"]["stage"] == int(name[4])
    assert ("offload_optimizer" in values["zero_optimization"]) == name.endswith("offload")
    assert "optimizer" not in values  # fused_adam would be built
    assert values["train_batch_size"] == values["gradient_clipping"] == "auto"
    gathers = "stage3_gather_16bit_weights_on_model_save"
    assert values["zero_optimization"].get(gathers, False) == (name[4] == "3")


def test_other_fields_of_theirs_are_passed_on() -> None:
    words = ("deepspeed=zero3", "deepspeed.zero_optimization.sub_group_size=1000")
    values = engines.engine_arguments(settings(*words).deepspeed, None)["deepspeed"]
    assert values["zero_optimization"]["sub_group_size"] == 1000
    assert "name" not in values
    sharded = settings("fsdp=full_shard", "fsdp.cpu_offload=true").fsdp
    made = engines.engine_arguments(None, sharded)
    assert made["fsdp"] is True
    assert made["fsdp_config"]["cpu_offload"] is True
    assert engines.engine_arguments(None, None) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deepspeed=zero4"], r"deepspeed=zero4 does not exist.*zero3_offload"),
        (["fsdp=full"], r"fsdp=full does not exist.*full_shard"),
        (["deepspeed=zero3", "fsdp=full_shard"], "deepspeed=zero3 and fsdp=full_shard are 2"),
        (["deepspeed=zero3", "trainer.deepspeed=a.json"], r"and trainer\.deepspeed are 2 engines"),
        (["deepspeed.zero_optimization.stage=3"], "deepspeed=none has no settings.*zero3"),
        (["fsdp.version=2"], "fsdp=none has no settings.*full_shard"),
        (["fsdp=full_shard", "fsdp.reshard_after_foward=1"], "Did you mean 'reshard_after_forward"),
        (["fsdp=full_shard", "fsdp.version=1"], "deprecated"),
        (["deepspeed=zero3", "deepspeed.zero_optimization.stage=5"], "0, 1, 2 or 3; got 5"),
    ],
)
def test_what_cannot_run_is_one_message(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*words)


def test_without_deepspeed_installed_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'wemask\[deepspeed\]'"):
        settings("deepspeed=zero2")
    assert settings().deepspeed is None


def test_an_engine_is_no_other_run(tmp_path: Path) -> None:
    words = ("fsdp=full_shard", *(f"deepspeed={name}" for name in PRESETS))
    folders = {quick(tmp_path, word).folder() for word in words}
    folders.add(quick(tmp_path, "trainer.deepspeed=a.json").folder())
    assert folders == {quick(tmp_path).folder()}
