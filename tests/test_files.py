"""Files that are whole or not there, errors of writing, and names for folders."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wemask.errors import ConfigError, DataError, ModelError, RunFolderError, judged_by
from wemask.files import DEEPEST, digest, read_json, read_text, saving

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON))
def test_the_digest_does_not_depend_on_the_order_of_keys(values: dict[str, Any]) -> None:
    assert digest(values) == digest(dict(reversed(values.items())))
    assert digest(values) != digest({**values, "one more key": 1})


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


@given(JSON)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, values: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(values))
    assert read_json(path, kind=None) == values


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (_pipe, "a pipe or a device"),
    "a device": (_to_zero, "a pipe or a device"),
    "a folder": (Path.mkdir, "is a folder"),
    "a loop of links": (_loop, "cannot be read: Too many levels"),
    "not there": (lambda path: None, "cannot be read: No such file"),
    "too large": (lambda path: path.write_text("1" * 2000), "2,000 bytes"),
    "binary": (lambda path: path.write_bytes(b"\x80"), "UTF-8"),
    "no JSON": (lambda path: path.write_text("{]"), "is no JSON"),
    "deep": (lambda path: path.write_text("[" * 900 + "]" * 900), f"deeper than {DEEPEST}"),
    "too deep to be parsed": (lambda path: path.write_text("[" * 1999), "is no JSON"),
    "a list": (lambda path: path.write_text("[]"), "must hold an object, found list"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path, how: str) -> None:
    damage, said = DAMAGED[how]
    path = tmp_path / "x.json"
    damage(path)
    with pytest.raises(ModelError, match=said):
        read_json(path, ModelError, limit=1999)


def test_a_name_of_any_length_is_refused_without_printing_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sought and cannot be read") as caught:
        read_text(tmp_path / ("n" * 5000))
    assert len(str(caught.value)) < 500
    with pytest.raises(DataError, match="null"):
        read_text(tmp_path / "a\0b")


def test_what_a_library_raises_is_ours_and_our_own_passes() -> None:
    said = "TRL refuses these settings: no such 'thing'"
    with pytest.raises(ConfigError, match=said), judged_by("TRL"):
        raise RuntimeError("no such\n 'thing'")
    with pytest.raises(ModelError, match="ours"), judged_by("PEFT"):
        raise ModelError("ours")
    with pytest.raises(KeyboardInterrupt), judged_by("PEFT"):
        raise KeyboardInterrupt
