"""What is said about the data before a training, and what of them is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_support import fit, quick, quiet, said

from wemask.errors import DataError
from wemask.train.training import train


def run(path: Path, rows: list[Any], *words: str) -> str:
    """What is said about records of a file before they are trained."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = quiet()
    config = quick(path.parent, "data=jsonl", f"data.path={path}", "dry_run=true", *words)
    assert train(config, console) is None
    return said(console)


CALLED = [
    {"from": "human", "value": "weather?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {}}'},
]

HALF_TRAINED = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "seven", "train": False},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "four"},
]


def test_calls_that_the_template_does_not_show_are_not_trained_as_silence(tmp_path: Path) -> None:
    plain = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]
    rows = [{"conversations": plain}, {"conversations": CALLED}]
    with pytest.raises(DataError, match=r"1 examples .* line 2\..*data.invalid=drop"):
        run(tmp_path / "x.jsonl", rows)
    text = run(tmp_path / "x.jsonl", rows, "data.invalid=drop")
    assert "Left out (data.invalid=drop)" in text
    text = run(tmp_path / "x.jsonl", rows, "data.roles={function_call: assistant}")
    assert "Left out" not in text


def test_turns_and_texts_reach_the_trainer_as_they_say(tmp_path: Path) -> None:
    text = run(tmp_path / "x.jsonl", [{"messages": HALF_TRAINED}])
    inside = "".join(part.partition("]]")[0] for part in text.split("[[")[1:])
    assert [word in inside for word in ("two", "seven", "four")] == [True, False, True]
    text = run(tmp_path / "y.jsonl", [{"text": "### Human: 1+1? ### Assistant: 2"}])
    assert "language modelling" in text
    assert "### Human: 1+1? ### Assistant: 2" in text.rpartition("[[")[2].partition("]]")[0]


def test_plain_text_and_half_trained_conversations_train(tmp_path: Path) -> None:
    """Whatever TRL does with such columns, it is done on two of the smallest runs."""
    for name, row in (
        ("chats", {"messages": HALF_TRAINED}),
        ("texts", {"text": "Tom has 5 apples."}),
    ):
        path = tmp_path / f"{name}.jsonl"
        path.write_text((json.dumps(row) + "\n") * 4)
        words = ("method=sft", "data=jsonl", f"data.path={path}", "trainer.max_steps=1")
        folder, _ = fit(quick(tmp_path / name, *words, "logger.watch_every=0"))
        assert (folder / "final").exists()


def test_sequences_beyond_the_positions_of_the_model_are_refused(tmp_path: Path) -> None:
    rows = [{"question": "a b " * 2000, "answer": "2"}]
    with pytest.raises(DataError, match=r"tokens, and the model was made for 1024.*max_length=102"):
        run(tmp_path / "x.jsonl", rows, "trainer.max_length=null")
    rows.append({"question": "1 + 1?", "answer": "2"})
    assert "1 are truncated" in run(tmp_path / "x.jsonl", rows, "trainer.max_length=1024")
