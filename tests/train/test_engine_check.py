import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from wemask.errors import ConfigError, RunFolderError
from wemask.train import engine_check as running
from wemask.train.engine_check import check_engine, check_resumable
from wemask.train.engine_check import running as runs
from wemask.train.saved_state import Engine, read_engine

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


# --- a rank that does not answer ------------------------------------------------------------------


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
