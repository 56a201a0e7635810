import importlib.metadata
import json
import os
from pathlib import Path

import pytest
import yaml
from run_support import quick

from wemask.errors import RunFolderError
from wemask.settings import run_folder as runs
from wemask.settings.run_folder import open_folder, open_run_folder

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


BOMB = "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9 if i else 'x'}]" for i in range(99))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{ not yaml", "is damaged"),
        (b"\x80", "cannot be read as text in UTF-8"),
        (BOMB.encode(), "is damaged: an alias"),
        (b"&a {b: *a}", "is damaged: an alias"),
        (b"a: " + b"[" * 100_000, "is damaged: maximum recursion"),
        (b"a: 9999-99-99", "is damaged"),
        (b"a" * 2**21, "at most 1,048,576 are read"),
    ],
    ids=["no YAML", "binary", "bomb", "itself", "deep", "date", "long"],
)
def test_damaged_settings_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    config = quick(tmp_path)
    path = open_run_folder(config) / "config.resolved.yaml"
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match=words) as error:
        open_run_folder(config)
    assert str(path) in str(error.value)


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
