"""A finished task: what it says of its items, and reading it back without running anything."""

import time
from pathlib import Path
from typing import Any

import pytest
from evaluation_support import run, synthetic_oracle

from wemask.errors import ConfigError, DataError
from wemask.evaluate.evaluation import TaskConfig, TaskResult, read_result
from wemask.evaluate.journal import Journal

TASK = TaskConfig(name="synthetic", limit=4)
ABOUT = {"method": "sft", "layers": [3, 4], "operator": {"rate": 0.03}}


def finished(tiny: Any, folder: Path, **kwargs: Any) -> TaskResult:
    return run(synthetic_oracle(tiny, 4, {1}), tiny, [TASK], folder, **kwargs)["synthetic"]


def test_what_was_written_is_read_back(tiny: Any, tmp_path: Path) -> None:
    result = finished(tiny, tmp_path, about=ABOUT)
    again = read_result(tmp_path / "eval" / "synthetic")
    assert vars(again) == vars(result) | {"reused": True}
    assert again.about == ABOUT
    assert again.conditions["fingerprint"] == "f"
    assert again.conditions["task"]["name"] == "synthetic"
    assert again.scores == [0.0, 1.0, 0.0, 0.0]
    assert again.metrics == {"exact_match": 0.25}
    assert again.clusters == [None] * 4


def test_about_is_kept_and_decides_nothing(tiny: Any, tmp_path: Path) -> None:
    first = finished(tiny, tmp_path)
    assert (first.reused, first.about) == (False, {})
    second = finished(tiny, tmp_path, about=ABOUT)
    assert (second.reused, second.about) == (True, ABOUT)
    assert read_result(second.path.parent).about == ABOUT
    third = finished(tiny, tmp_path, about={"method": "other"})
    assert (third.reused, third.about) == (True, ABOUT)
    with pytest.raises(ConfigError, match="about holds something that JSON cannot"):
        finished(tiny, tmp_path, about={"path": Path()})


def sample(item: str, **metrics: float | list[float]) -> dict[str, Any]:
    return {"id": item, "correct": True, "metrics": metrics, "cluster": item, "reason": None}


def test_metrics_with_several_values_count_every_value() -> None:
    samples: Any = [
        sample("a", prompt=0.0, instruction=[1.0, 0.0, 1.0]),
        sample("b", prompt=1.0, instruction=[1.0]),
    ]
    fields = {"metric": "prompt", "source": "", "template_sha256": "", "fewshot": 0, "note": None}
    result = TaskResult(name="t", samples=samples, seconds=0.0, path=Path(), reused=False, **fields)
    assert result.metrics == {"prompt": 0.5, "instruction": 0.75}  # not the mean of 2/3 and 1
    assert (result.ids, result.clusters) == (["a", "b"], ["a", "b"])


@pytest.mark.parametrize("name", ["samples.jsonl", "meta.json"])
def test_a_missing_or_damaged_result_is_an_error(tiny: Any, tmp_path: Path, name: str) -> None:
    folder = finished(tiny, tmp_path).path.parent
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-40])
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        read_result(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match="holds no finished task"):
        read_result(folder)
    (folder / name).write_text("[]")
    with pytest.raises(DataError, match="is damaged"):
        read_result(folder)


def test_seconds_are_those_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    first = Journal(tmp_path / "j.jsonl", 1)
    for unit, seconds in (("a", 2.5), ("b", 4.0)):
        now[0] += seconds
        first.add(unit, unit)
    second = Journal(first.path, 1)
    assert second.seconds == 6.5
    now[0] += 1.5
    second.add("c", "c")
    assert Journal(first.path, 1).seconds == 8.0
    assert second.seconds == 6.5  # its own time is its caller's to measure


def test_a_resumed_task_counts_the_time_before_the_kill(tiny: Any, tmp_path: Path) -> None:
    result = finished(tiny, tmp_path / "whole")
    folder = tmp_path / "killed" / "eval" / "synthetic"
    journal = Journal(folder / "unfinished.jsonl", result.conditions)
    journal._since -= 1000.0  # as if it had taken so long
    journal.add("a batch of a run before", [])
    assert 1000 < finished(tiny, tmp_path / "killed").seconds < 1100
