"""Data files of a few rows, and what is read from them."""

import json
from pathlib import Path

import datasets

from wemask.data.examples import DataConfig, load_examples

GSM = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(5)]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path | str, **kwargs) -> datasets.Dataset:
    return load_examples(DataConfig(name="jsonl", path=str(path), **kwargs))


def first(tmp_path: Path, row: dict, **kwargs) -> dict:
    """The example of one row, without its source."""
    example = dict(load(write(tmp_path / "x.jsonl", [row]), **kwargs)[0])
    assert example.pop("source").endswith("x.jsonl, line 1")
    return example


EXPECTED = {"prompt": [user("q")], "completion": [assistant("a")]}
