import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from run_support import quick, trained
from safetensors.torch import save_file

from wemask.errors import ConfigError, RunFolderError
from wemask.files import saving
from wemask.settings import run_folder as runs
from wemask.settings.run_folder import open_folder, open_run_folder
from wemask.train.saved_state import is_whole, last_checkpoint


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"w": torch.ones(4)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, path / name)
    (path / "trainer_state.json").write_text("{}")
    return path


# --- whose folder ---------------------------------------------------------------------------------


def test_a_new_folder_holds_its_settings_and_the_environment(tmp_path: Path) -> None:
    config = quick(tmp_path)
    folder = open_run_folder(config)
    stored = yaml.safe_load((folder / "config.resolved.yaml").read_text())
    assert stored == json.loads(json.dumps(config.identity(), default=str))
    versions = json.loads((folder / "env.json").read_text())["versions"]
    assert versions["torch"] == importlib.metadata.version("torch")
    assert set(versions) == set(runs.PACKAGES)


def test_the_same_settings_open_it_again(tmp_path: Path) -> None:
    config = quick(tmp_path, "peft=lora", "trainer.learning_rate=1e-5", "operator.layers=[2,3]")
    assert open_run_folder(config) == open_run_folder(config)


def test_a_folder_of_other_settings_names_what_differs(tmp_path: Path) -> None:
    here = f"paths.run_dir={tmp_path / 'run'}"
    open_run_folder(quick(tmp_path, here))
    with pytest.raises(RunFolderError) as error:
        open_run_folder(quick(tmp_path, here, "operator.rate=0.5", "trainer.max_steps=9"))
    message = str(error.value)
    assert "operator.rate: 0.03 there, 0.5 now" in message
    assert "trainer.max_steps: 4 there, 9 now" in message
    assert "seed" not in message


def test_another_logger_is_no_other_run(tmp_path: Path) -> None:
    here = f"paths.run_dir={tmp_path / 'run'}"
    open_run_folder(quick(tmp_path, here))
    open_run_folder(quick(tmp_path, here, "logger=wandb"))


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunFolderError, match="not empty and holds no run"):
        open_run_folder(quick(tmp_path, f"paths.run_dir={tmp_path}"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    config = quick(tmp_path)
    (open_run_folder(config) / "config.resolved.yaml").write_text("{ not yaml")
    with pytest.raises(RunFolderError, match=r"config.resolved.yaml is damaged"):
        open_run_folder(config)


def test_a_file_in_the_way_is_one_message_and_stays(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunFolderError, match=r"cannot be written .* MiB free"):
        open_run_folder(quick(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_cannot_be_made_is_one_message() -> None:
    with pytest.raises(RunFolderError, match="cannot be written"):
        open_run_folder(quick("/proc/wemask-nowhere"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match="cannot be written"):
        open_run_folder(quick(tmp_path / "out"))


def test_settings_that_did_not_fit_the_disk_leave_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    config = quick(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RunFolderError, match="No space left"):
            open_run_folder(config)
    assert list(config.folder().iterdir()) == []
    open_run_folder(config)  # there is room again: the same command goes on


def test_a_folder_of_anything_else_is_held_to_its_identity(tmp_path: Path) -> None:
    open_folder(tmp_path / "x", {"arms": ["base"], "limit": None}, explicit=True)
    with pytest.raises(RunFolderError, match="limit: None there, 8 now"):
        open_folder(tmp_path / "x", {"arms": ["base"], "limit": 8}, explicit=True)


# --- errors of writing ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "wemask-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["torch", "safetensors", "text"])
def test_every_writer_on_a_full_disk_is_one_message(small_disk: Path, kind: str) -> None:
    large, path = torch.zeros(200_000), small_disk / "file"
    writers: dict[str, Any] = {
        "torch": lambda: torch.save(large, path),
        "safetensors": lambda: save_file({"w": large}, path),
        "text": lambda: path.write_text("x" * 1_000_000),
    }
    with pytest.raises(RunFolderError, match=r"0 MiB free\)\. Make room"), saving(small_disk):
        writers[kind]()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        ValueError("x"),
        ConfigError("x"),
        RunFolderError("PytorchStreamWriter failed"),  # already a message: not wrapped again
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_errors_that_are_not_of_writing_pass_unchanged(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught, saving(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ],
    ids=repr,
)
def test_errors_of_writing_are_one_message(tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "not" / "there"
    with pytest.raises(RunFolderError, match="same command resumes") as caught, saving(folder):
        raise error
    assert caught.value.exit_code == 2


# --- which checkpoint -----------------------------------------------------------------------------


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) == (None, [])


def test_the_newest_is_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        checkpoint(tmp_path, step)
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
    checkpoint(tmp_path, 5)
    (checkpoint(tmp_path, 10) / name).unlink()
    newest, broken = last_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-5"
    assert broken == ["checkpoint-10"]


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json"])
def test_half_a_file_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    path = checkpoint(tmp_path, 10)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[: len(whole) // 2])
    assert last_checkpoint(tmp_path) == (None, ["checkpoint-10"])


@pytest.mark.parametrize("words", [("method=wemask",), ("method=wemask", "peft=lora")], ids=str)
def test_what_a_training_saves_is_whole(words: tuple[str, ...]) -> None:
    folder, _ = trained(*words)
    newest, broken = last_checkpoint(folder)
    assert newest is not None
    assert is_whole(newest)
    assert broken == []
