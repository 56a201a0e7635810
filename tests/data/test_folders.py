"""Which files a folder stands for."""

import logging
import os
from pathlib import Path

import datasets
import pytest
from data_support import GSM, load, write

from wemask.data import folders
from wemask.data.folders import find_files
from wemask.errors import DataError

SFT = [
    f"data/{split}-0000{i}-of-00002.parquet" for split in ("train_sft", "train_gen") for i in "01"
]
CONFIGS = ["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"]


def plant(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"license": "mit"}')
    return folder


@pytest.mark.parametrize(
    ("names", "split", "want"),
    [
        (["README.md", ".cache/hub/x.json", "data/test-00000-of-00001.parquet",
          "data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"],
         "train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["b/y.jsonl", "a/x.csv.gz", "notes.txt"], "train", ["a/x.csv.gz", "b/y.jsonl"]),
        (["a.jsonl", "._a.jsonl", "metadata.json"], "train", ["a.jsonl"]),
        (["1.json", "2.json"], "train", ["1.json", "2.json"]),
        (["data-00000-of-00001.arrow", "state.json", "dataset_info.json", "cache-1a2b.arrow"],
         "train", ["data-00000-of-00001.arrow"]),
        (["train/dev.jsonl", "train/x.jsonl"], "train", ["train/x.jsonl"]),
        (["train/dev.jsonl", "train/x.jsonl"], "validation", ["train/dev.jsonl"]),
        (SFT, "train_sft", SFT[:2]),
        ([*CONFIGS, "main/test-00000-of-00001.parquet"], "test",
         ["main/test-00000-of-00001.parquet"]),
        (["x.jsonl"], "whatever", ["x.jsonl"]),
    ],
)  # fmt: skip
def test_the_files_of_a_split_and_no_others(tmp_path, names, split, want):
    found = find_files(plant(tmp_path, names), split)
    assert [str(file.relative_to(tmp_path)) for file in found] == want


@pytest.mark.parametrize(
    ("names", "split", "said"),
    [
        ([], "train", "holds no data file: expected"),
        (["README.md"], "train", r"holds no data file.*It holds: README\.md"),
        (["a-train.jsonl", "test.jsonl"], "validation", r"No file of split.*a-train\.jsonl, test"),
        (SFT, "train", "several splits. Type one:\n  data.split=train_gen\n  data.split=train_sft"),
        (CONFIGS, "train", "several datasets. Type one:\n  data.path=.*main\n  data.path=.*socra"),
        (["a/1.jsonl", "b/2.jsonl"], "train", "holds more than 1 files"),
    ],
)
def test_a_folder_that_can_be_meant_in_several_ways_is_refused(
    tmp_path, monkeypatch, names, split, said
):
    if "more than" in said:
        monkeypatch.setattr(folders, "MOST", 1)
    with pytest.raises(DataError, match=said):
        find_files(plant(tmp_path, names), split)


def test_what_is_not_read_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = ["a.jsonl", "._a.jsonl", "metadata.json", ".cache/x.jsonl", "b.txt"]
    os.mkfifo(tmp_path / "c.jsonl")
    find_files(plant(tmp_path, names), "train")
    said = "read are a.jsonl; not read: ._a.jsonl, .cache, b.txt, c.jsonl, metadata.json."
    assert caplog.messages == [f"{tmp_path}: {said}"]


def test_what_datasets_saves_is_read_as_it_was(tmp_path):
    rows = datasets.Dataset.from_list(GSM)
    both = datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])})
    both.save_to_disk(tmp_path / "both")
    rows.save_to_disk(tmp_path / "one")
    saved = datasets.load_from_disk(str(tmp_path / "one"))
    saved.map(lambda row: {"answer": "other"})  # which leaves its work in the same folder
    assert list((tmp_path / "one").glob("cache-*.arrow"))
    for name in ("both", "one"):
        examples = load(tmp_path / name)
        assert [turn[0]["content"] for turn in examples["completion"]] == rows["answer"]
    assert len(load(tmp_path / "both", split="test")) == 2


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "elsewhere.jsonl", GSM)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).symlink_to(tmp_path)  # which holds the folder that holds the link
    found = find_files(folder, "train")
    assert [str(file.relative_to(folder)) for file in found] == ["a/elsewhere.jsonl"]


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path / "a.jsonl", GSM)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        find_files(tmp_path, "train")


def test_a_missing_file_names_the_nearest_and_what_there_is(tmp_path):
    write(tmp_path / "gsm8k_train.jsonl", GSM)
    with pytest.raises(DataError, match=r"Did you mean 'gsm8k_train.jsonl'\?.*holds: gsm8k_train"):
        load(tmp_path / "gsm8k_trian.jsonl")
    with pytest.raises(DataError, match=f"nor is there a folder {tmp_path / 'no'}"):
        load(tmp_path / "no" / "x.jsonl")
    with pytest.raises(DataError, match="No such file"):
        load(tmp_path / ("x" * 5000))


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    write(tmp_path / "b_train.jsonl", GSM[:2])
    write(tmp_path / "a-train.jsonl", GSM[2:3])
    write(tmp_path / "test.jsonl", GSM[3:])
    (tmp_path / "README.md").write_text("not data")
    assert len(load(tmp_path)) == 3
    assert len(load(tmp_path, split="test")) == 2


def test_a_folder_with_two_layouts_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", GSM)
    write(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(DataError, match=r"mixes layouts: a.jsonl \(.*b.jsonl \("):
        load(tmp_path)
