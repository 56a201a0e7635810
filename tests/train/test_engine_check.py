import dataclasses
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_support import quick, settings
from safetensors.torch import save_file
from torch import nn

from wemask.errors import ConfigError, RunFolderError
from wemask.settings import engines
from wemask.train import engine_check as running
from wemask.train.engine_check import Engine, check_engine, check_resumable, read_engine
from wemask.train.engine_check import running as runs
from wemask.train.saved_state import is_whole, last_checkpoint, what_is_wrong
from wemask.train.training import arguments_of

PRESETS = ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")


# --- settings -------------------------------------------------------------------------------------


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


# --- what runs ------------------------------------------------------------------------------------


class DeepSpeedEngine(nn.Module):
    def zero_optimization_stage(self) -> int:
        return 2


def fake(model: nn.Module, *, wrapped: Any = None, **arguments: Any) -> Any:
    plugin = SimpleNamespace(zero_stage=3)
    return SimpleNamespace(
        model=model,
        model_wrapped=model if wrapped is None else wrapped,
        args=SimpleNamespace(**{"deepspeed": None, "fsdp": None, **arguments}),
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)),
    )


def test_another_engine_than_was_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    check_engine(fake(model))
    with pytest.raises(ConfigError, match="Asked for DeepSpeed ZeRO-3 on 1 rank, but one process"):
        check_engine(fake(model, deepspeed="a.json"))
    with pytest.raises(ConfigError, match="ZeRO-3 on 1 rank, but DeepSpeed ZeRO-2"):
        check_engine(fake(model, wrapped=DeepSpeedEngine(), deepspeed="a.json"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"DDP on 2 ranks, but one process runs.*launcher"):
        check_engine(fake(model))
    monkeypatch.setattr(running, "running", lambda _: Engine(kind="ddp", ranks=2))
    with pytest.raises(ConfigError, match=r"Asked for FSDP2 on 2 ranks, but DDP.*on CPU ranks"):
        check_engine(fake(model, fsdp=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="Asked for FSDP2"):
        check_engine(fake(model))


def test_fsdp_is_told_by_its_parameters() -> None:
    model = nn.Linear(2, 2)
    shard = SimpleNamespace(is_shard=lambda: True)
    model.weight.placements = (shard,)  # pyright: ignore
    assert runs(fake(model)) == Engine(kind="fsdp", ranks=1)


# --- whose checkpoint -----------------------------------------------------------------------------


def test_another_number_of_ranks_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fake(nn.Linear(2, 2))
    check_resumable(tmp_path, trainer, [])  # without engine.json: one process
    before = Engine(kind="zero", ranks=4, stage=3)
    (tmp_path / "engine.json").write_text(json.dumps(dataclasses.asdict(before)))
    assert read_engine(tmp_path) == before
    typed = ["model=tiny", "launcher.processes=2", "deepspeed=zero2", "seed=1"]
    with pytest.raises(RunFolderError) as error:
        check_resumable(tmp_path, trainer, typed)
    message = str(error.value)
    assert "was written by DeepSpeed ZeRO-3 on 4 ranks; this is one process" in message
    command = "python train.py launcher.processes=4 model=tiny seed=1 deepspeed=zero3 "
    assert command in message
    typed += ["launcher=slurm", "launcher.nodes=8"]
    for here, ranks in (
        ("2", "launcher.nodes=2"),
        ("3", "launcher.nodes=1 launcher.processes_per_"),
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        with pytest.raises(RunFolderError, match=f"began: python train.py {ranks}"):
            check_resumable(tmp_path, trainer, typed)
    del typed[4:]
    (tmp_path / "engine.json").unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunFolderError, match=r"as it began: python train\.py model=tiny seed=1 "):
        check_resumable(tmp_path, trainer, typed)


# --- is it whole? ---------------------------------------------------------------------------------


def checkpoint(folder: Path, kind: str, *, ranks: int = 2, stage: int = 0, step: int = 2) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.ones(4)}, path / "model.safetensors")
    names = ["scheduler.pt", *(f"rng_state_{rank}.pth" for rank in range(ranks))]
    if kind == "zero":
        (path / "latest").write_text("global_step2")
        shards = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(ranks)]
        if stage == 3:
            shards += [name.replace("optim", "model") for name in shards]
        else:
            shards.append("mp_rank_00_model_states.pt")
        names += [f"global_step2/{name}" for name in shards]
        (path / "global_step2").mkdir()
    else:
        names += {"fsdp": ["pytorch_model_fsdp.bin", "optimizer.bin"]}.get(kind, ["optimizer.pt"])
    for name in names:
        torch.save({"v": torch.arange(1000)}, path / name)
    engine = Engine(kind=kind, ranks=ranks, stage=stage)
    (path / "engine.json").write_text(json.dumps(dataclasses.asdict(engine)))
    (path / "trainer_state.json").write_text("{}")
    return path


KINDS = [("ddp", 0), ("fsdp", 0), ("zero", 1), ("zero", 2), ("zero", 3)]


@pytest.mark.parametrize(("kind", "stage"), KINDS)
def test_every_file_that_resuming_reads_is_missed(tmp_path: Path, kind: str, stage: int) -> None:
    path = checkpoint(tmp_path, kind, stage=stage)
    assert what_is_wrong(path) is None
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != "engine.json"):
        content = file.read_bytes()
        file.unlink()
        assert file.name in (what_is_wrong(path) or ""), file
        file.write_bytes(content)
    assert is_whole(path)


@pytest.mark.parametrize(("kind", "stage"), KINDS)
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_shard_is_named(tmp_path: Path, kind: str, stage: int, how: str) -> None:
    path = checkpoint(tmp_path, kind, stage=stage)
    for file in sorted(p for p in path.rglob("*") if p.suffix in (".pt", ".bin", ".pth")):
        content = file.read_bytes()
        with zipfile.ZipFile(file) as archive:
            (part,) = [p for p in archive.infolist() if p.filename.endswith("data/0")]
        middle = part.header_offset + 2000  # inside the tensor
        broken = bytearray(content)
        broken[middle] ^= 1
        file.write_bytes(content[: len(content) // 2] if how == "cut" else broken)
        assert f"{file.name} is damaged" in (what_is_wrong(path) or ""), file
        file.write_bytes(content)


def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, "zero", stage=3)
    newer = checkpoint(tmp_path, "zero", stage=3, step=4)
    next((newer / "global_step2").iterdir()).write_bytes(b"rubbish")
    assert last_checkpoint(tmp_path) == (whole, ["checkpoint-4"])


def test_bf16_shards_have_a_name_of_their_own(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "zero", stage=2)
    for file in path.glob("global_step2/zero_pp*"):
        file.rename(file.with_name(f"bf16_{file.name}"))
    assert is_whole(path)
    next(path.glob("global_step2/bf16*")).unlink()
    assert "bf16_zero_pp_rank" in (what_is_wrong(path) or "")


@pytest.mark.parametrize("text", ["", "../..", "global_step2\nx"])
def test_a_strange_latest_is_no_path(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, "zero", stage=2)
    (path / "latest").write_text(text)
    assert "latest names no step" in (what_is_wrong(path) or "")


def test_settings_reach_trl(tmp_path: Path) -> None:
    loss: Any = SimpleNamespace(completion_only=None, assistant_only=None)
    model: Any = nn.Linear(2, 2)
    model.config = SimpleNamespace()
    made = arguments_of(quick(tmp_path, "deepspeed=zero2"), model, loss, tmp_path)
    assert made["deepspeed"]["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(
    "said",
    [
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation",
        "Application timeout caused pair closure",
        "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)",
    ],
)
def test_a_wait_in_vain_is_one_message(said: str) -> None:
    with pytest.raises(RunFolderError, match=r"waited in vain.*ddp_timeout"), running.waiting():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another bug"), running.waiting():
        raise RuntimeError("another bug")
