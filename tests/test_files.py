"""Files that are whole or not there, errors of writing, and names for folders."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wemask.errors import ConfigError, RunFolderError
from wemask.files import digest, saving

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
