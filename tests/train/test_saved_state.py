"""Which checkpoint is whole, by what its engine leaves in it."""

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch
from run_support import trained
from safetensors.torch import save_file

from wemask.train.saved_state import Engine, last_checkpoint, read_engine, what_is_wrong


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
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
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
    assert what_is_wrong(path) is None


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
    assert what_is_wrong(path) is None
    next(path.glob("global_step2/bf16*")).unlink()
    assert "bf16_zero_pp_rank" in (what_is_wrong(path) or "")


@pytest.mark.parametrize("text", ["", "../..", "global_step2\nx"])
def test_a_strange_latest_is_no_path(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, "zero", stage=2)
    (path / "latest").write_text(text)
    assert "latest names no step" in (what_is_wrong(path) or "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "ddp"}', '{"rank": 1}'])
def test_an_engine_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    path = checkpoint(tmp_path, "ddp")
    (path / "engine.json").write_text(text)
    assert "engine.json" in (what_is_wrong(path) or "")
    (path / "engine.json").unlink()
    assert read_engine(path) == Engine(kind="single", ranks=1)


def test_what_a_later_version_says_of_an_engine_does_no_harm(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "ddp")
    (path / "engine.json").write_text('{"kind": "ddp", "ranks": 2, "of_tomorrow": 1}')
    assert read_engine(path) == Engine(kind="ddp", ranks=2)


# --- the newest -----------------------------------------------------------------------------------


def of_one_process(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.ones(4)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) == (None, [])


def test_the_newest_is_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        of_one_process(tmp_path, step)
    (tmp_path / "checkpoints" / "checkpoint-best").mkdir()
    (tmp_path / "checkpoints" / "README.md").write_text("")
    newest, broken = last_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-100"
    assert broken == []


FILES = ["model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt"]


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_without_one_of_its_files_is_skipped_and_named(
    tmp_path: Path, name: str
) -> None:
    of_one_process(tmp_path, 5)
    (of_one_process(tmp_path, 10) / name).unlink()
    newest, broken = last_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-5"
    assert broken == ["checkpoint-10"]


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json"])
def test_half_a_file_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = of_one_process(tmp_path, 10)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    assert last_checkpoint(tmp_path) == (None, ["checkpoint-10"])


@pytest.mark.parametrize("words", [("method=wemask",), ("method=wemask", "peft=lora")], ids=str)
def test_what_a_training_saves_is_whole(words: tuple[str, ...]) -> None:
    folder, _ = trained(*words)
    newest, broken = last_checkpoint(folder)
    assert newest is not None
    assert what_is_wrong(newest) is None
    assert broken == []
