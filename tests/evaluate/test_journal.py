"""A killed task goes on where it was, and ends with what it would have had without the kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from evaluation_support import run, synthetic_oracle, write_jsonl

from wemask.errors import RunFolderError
from wemask.evaluate.evaluation import TaskConfig
from wemask.evaluate.harness import WemaskLM
from wemask.evaluate.journal import Journal

TASK = TaskConfig(name="synthetic", limit=20)


def test_what_was_added_is_there_again_under_the_same_key(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run" / "j.jsonl", {"seed": 0})
    journal.add("a", [["text", True]])
    journal.add("b", 0.1 + 0.2)
    again = Journal(journal.path, {"seed": 0})
    assert (again.get("a"), again.get("b"), again.get("c")) == ([["text", True]], 0.1 + 0.2, None)
    other = Journal(journal.path, {"seed": 1})
    assert other.get("a") is None
    assert Journal(journal.path, {"seed": 0}).get("a") is None  # the other key began it anew


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_line_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path: Path, lost: int) -> None:
    journal = Journal(tmp_path / "j.jsonl", 1)
    journal.add("a", 1)
    journal.add("b", "twelve")
    os.truncate(journal.path, journal.path.stat().st_size - lost)
    torn = Journal(journal.path, 1)
    assert (torn.get("a"), torn.get("b")) == (1, None)
    torn.add("c", 3)
    assert (Journal(journal.path, 1).get("a"), Journal(journal.path, 1).get("c")) == (1, 3)


@pytest.mark.parametrize(
    "damage",
    [
        b"null",
        b"[" * 100_000,
        b"\x80",
        b'[["a"], 1, 0.5, "x"]',
        b'["b", "twelve", "long", "x"]',
        b'["b", "TWELVE", 0.0]',
        None,
    ],
)
def test_only_what_a_damaged_line_held_is_run_again(tmp_path: Path, damage: bytes | None) -> None:
    """A line in the middle: those behind it are not lost."""
    journal, said = Journal(tmp_path / "j.jsonl", 1), list[str]()
    for unit, value in {"a": 1, "b": "twelve", "c": {"x": [0.1, None]}}.items():
        journal.add(unit, value)
    header, a, b, c, _ = journal.path.read_bytes().split(b"\n")
    b = b.replace(b"twelve", b"tvelve") if damage is None else damage  # None: one flipped bit
    journal.path.write_bytes(b"\n".join([header, a, b, c, b'["torn']))
    again = Journal(journal.path, 1, said.append)
    assert [again.get(unit) for unit in "abc"] == [1, None, {"x": [0.1, None]}]
    assert said == [f"{journal.path}: 1 of 3 lines are damaged; their part is run again."]
    assert journal.path.read_bytes() == b"\n".join([header, a, c, b""])
    assert Journal(journal.path, 1, said.append).seconds == again.seconds and len(said) == 1


def test_a_journal_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(RunFolderError, match="is a folder; a regular file was sought"):
        Journal(tmp_path / "j.jsonl", 1)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"Outputs cannot be written to .*j\.jsonl"):
        Journal(tmp_path / "file" / "j.jsonl", 1)


def samples(folder: Path) -> str:
    return (folder / "eval" / "synthetic" / "samples.jsonl").read_text()


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_only_missing_batches_are_generated(tiny: Any, tmp_path: Path, finished: int) -> None:
    right = {0, 3, 11}
    whole = run(synthetic_oracle(tiny, 20, right), tiny, [TASK], tmp_path / "whole")["synthetic"]
    model = synthetic_oracle(tiny, 20, right)
    generate, size = model.generate, 4

    def killed(**inputs: Any) -> Any:
        if model.calls == finished * size:
            raise KeyboardInterrupt
        return generate(**inputs)

    model.generate = killed  # pyright: ignore
    with pytest.raises(KeyboardInterrupt):
        run(model, tiny, [TASK], tmp_path / "killed")
    again = synthetic_oracle(tiny, 20, right)
    resumed = run(again, tiny, [TASK], tmp_path / "killed")["synthetic"]
    assert again.calls == 20 - finished * size
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")
    assert (resumed.accuracy, resumed.note) == (whole.accuracy, whole.note)
    assert not (tmp_path / "killed" / "eval" / "synthetic" / "unfinished.jsonl").exists()


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"batch_size": 2}, {"seed": 1}])
def test_outputs_of_another_run_are_not_taken(tiny: Any, tmp_path: Path, change: Any) -> None:
    model = synthetic_oracle(tiny, 20, {0})
    generate = model.generate

    def killed(**inputs: Any) -> Any:
        if model.calls == 8:
            raise KeyboardInterrupt
        return generate(**inputs)

    model.generate = killed  # pyright: ignore
    with pytest.raises(KeyboardInterrupt):
        run(model, tiny, [TASK], tmp_path)
    again = synthetic_oracle(tiny, 20, {0})
    run(again, tiny, [TASK], tmp_path, **change)
    assert again.calls == 20


def multiple_choice(folder: Path) -> TaskConfig:
    letters = ["A", "B", "C", "D"]
    rows = [
        {
            "id": str(i),
            "question": f"What is {i} plus 1?",
            "choices": {"text": [str(i + j) for j in range(4)], "label": letters},
            "answerKey": "B",
        }
        for i in range(80)
    ]
    path = write_jsonl(folder / "arc.jsonl", rows)
    return TaskConfig(name="arc_easy", path=str(path), fewshot=0, chat=False)


@pytest.mark.slow  # lm-eval reads its 14,000 task files
def test_multiple_choice_goes_on_too(tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    task = multiple_choice(tmp_path)
    whole = run(tiny.model, tiny, [task], tmp_path / "whole")["arc_easy"]
    likelihoods, calls = WemaskLM._likelihoods, list[int]()

    def killed(lm: WemaskLM, requests: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(requests))
        return likelihoods(lm, requests)

    monkeypatch.setattr(WemaskLM, "_likelihoods", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny.model, tiny, [task], tmp_path / "killed")
    monkeypatch.setattr(
        WemaskLM, "_likelihoods", lambda lm, r: calls.append(len(r)) or likelihoods(lm, r)
    )
    resumed = run(tiny.model, tiny, [task], tmp_path / "killed")["arc_easy"]
    assert sum(calls) == 320
    assert resumed.samples == whole.samples


CHILD = """
import sys
from pathlib import Path
from wemask.evaluate.evaluation import TaskConfig, evaluate_arm
from wemask.checkpoint.pretrained import load_model, load_tokenizer
tasks = [TaskConfig(name="synthetic", limit=40, max_new_tokens=60)]
settings = {"arm": "base", "fingerprint": "f", "batch_size": 2, "progress": False}
folder = Path(sys.argv[1])
evaluate_arm(load_model("tiny"), load_tokenizer("tiny"), tasks, folder=folder, **settings)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle(tmp_path: Path) -> None:
    def start(folder: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / folder)])

    assert start("whole").wait() == 0
    child, journal = start("killed"), tmp_path / "killed/eval/synthetic/unfinished.jsonl"
    while child.poll() is None and not (journal.exists() and journal.read_text().count("\n") > 5):
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    before = journal.read_text().count("\n") - 1
    assert 5 <= before < 20
    assert start("killed").wait() == 0
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")
    assert len([json.loads(line) for line in samples(tmp_path / "whole").splitlines()]) == 40


def test_a_journal_of_version_0_1_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl", 1)
    header = journal.path.read_text()
    journal.path.write_text(header + '["a", 1, 0.5]\n["b", {"x": [0.1, null]}, 0.5]\n')
    for _ in range(2):  # the second time as it is written now
        said = list[str]()
        again = Journal(journal.path, 1, said.append)
        assert (again.get("a"), again.get("b"), said) == (1, {"x": [0.1, None]}, [])
