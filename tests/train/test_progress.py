"""How far a training is, from the file that it leaves for `wemask status`."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from wemask.train import progress
from wemask.train.progress import Progress, ProgressCallback


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, steps: int, *, main: bool = True
) -> Progress | None:
    """What is said after so many steps of 20: the first takes a minute, the others two seconds."""
    clock, callback, args = Clock(), ProgressCallback(folder), object()
    monkeypatch.setattr(progress, "time", clock)
    for step in range(1, steps + 1):
        clock.now += 60.0 if step == 1 else 2.0
        state: Any = TrainerState(global_step=step, max_steps=20, is_world_process_zero=main)
        callback.on_step_end(args, state, TrainerControl())
        callback.on_log(args, state, TrainerControl(), {"loss": 1 / step})
        callback.on_log(args, state, TrainerControl(), {"eval_runtime": 1.0})  # not of a step
    return Progress.read(folder)


def test_the_first_step_is_no_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = trained(tmp_path, monkeypatch, 1)
    assert said == Progress(step=1, max_steps=20, loss=1.0, seconds_per_step=None)
    assert said.seconds_left is None


def test_the_pace_is_of_the_steps_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = trained(tmp_path, monkeypatch, 5)
    assert said == Progress(step=5, max_steps=20, loss=0.2, seconds_per_step=2.0)
    assert said.seconds_left == 30.0


def test_only_the_first_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(tmp_path, monkeypatch, 3, main=False) is None
    assert list(tmp_path.iterdir()) == []


def told(**values: Any) -> str:
    known = {"step": 1, "max_steps": 2, "loss": 0.5, "seconds_per_step": 1.0}
    return json.dumps(known | values)


@pytest.mark.parametrize(
    "text",
    [
        *("", '{"step": 1', "[]", "[" * 100_000, '{"of_another_version": 2}'),
        *(told(loss="low"), told(step=-1), told(seconds_per_step=1e308), told(max_steps=None)),
    ],
)
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / progress.NAME).write_text(told())
    assert Progress.read(tmp_path) is not None
    (tmp_path / progress.NAME).write_text(text)
    assert Progress.read(tmp_path) is None
