"""Who waits for a lock of the datasets cache hears of it, and goes on when it is let go."""

import subprocess
import sys
import threading
from pathlib import Path

import datasets
import pytest

from wemask.data import cache_lock
from wemask.data import examples as data
from wemask.data.examples import DataConfig, load_examples

HOLD = """
import sys
from filelock import FileLock
held = [FileLock(path) for path in sys.argv[1:]]
for lock in held:
    lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Data that go to the cache, and are there already."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(data, "MEMORY_ROWS", 2)
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "1+1?", "completion": "2"}\n' * 4)
    config = DataConfig(name="jsonl", path=str(path))
    load_examples(config)
    return config


@pytest.mark.parametrize("patience", [0.3, 60.0])
def test_a_lock_of_another_process_is_named_once_and_waited_for(
    large: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    patience: float,
) -> None:
    monkeypatch.setattr(cache_lock, "SECONDS", patience)
    locks = [str(path) for path in (tmp_path / "cache").rglob("*.lock")]
    assert locks
    command = [sys.executable, "-c", HOLD, *locks]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n"
        threading.Timer(1.5, other.stdin.close).start()  # which ends it
        assert len(load_examples(large)) == 4
    said = [r.getMessage() for r in caplog.records if "Waiting for another" in r.getMessage()]
    assert len(said) == (1 if patience < 1 else 0)
    assert all(any(lock in line for lock in locks) for line in said)
    assert cache_lock.LOGGER.filters == []
