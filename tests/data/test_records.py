import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_support import GSM, load, write

from wemask.errors import DataError


def test_every_format_gives_the_same_examples(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in GSM)
    files = {
        "a.jsonl": ("\ufeff" + lines.replace("\n", "\n\n")).encode(),
        "b.json": json.dumps(GSM, indent=1).encode(),
        "c.json": lines.encode(),
        "d.jsonl.gz": gzip.compress(lines.encode()),
        "e.csv": b"question,answer\r\n" + "".join(
            f'"{r["question"]}","{r["answer"]}"\r\n' for r in GSM
        ).encode(),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(GSM), tmp_path / "f.parquet")
    want = [row["question"] for row in GSM]
    for name in [*files, "f.parquet"]:
        examples = load(tmp_path / name)
        assert [prompt[0]["content"] for prompt in examples["prompt"]] == want, name
    assert load(tmp_path / "a.jsonl")["source"][1].endswith("a.jsonl, line 3")
    assert load(tmp_path / "e.csv")["source"][0].endswith("e.csv, line 2")
    assert load(tmp_path / "f.parquet")["source"][4].endswith("f.parquet, row 5")


BROKEN = [
    ("x.jsonl", b"", "is empty"),
    ("x.jsonl", b"\n \n", "is empty"),
    ("x.json", b"[]", "is empty"),
    ("x.csv", b"a,b\n", "is empty"),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n{"question": "q"\n', r"line 2: malformed JSON"),
    ("x.jsonl", b"[1]\n", "line 1: expected one JSON object per line, found list"),
    ("x.jsonl", b"[" * 100_000, "line 1: JSON that cannot be read"),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n\xe9', "line 2: expected UTF-8.*0xe9"),
    ("x.json", b'[{"question": "q",}]', "malformed JSON at column 19"),
    ("x.json", b"[1, 2]", "item 1: expected an object, found int"),
    ("x.csv", b"question,answer\nq,a\nq,a,b\n", "line 3: expected 2 fields, found 3"),
    ("x.csv", b'question,answer\n"q"x,a\n', "line 2: malformed CSV"),
    ("x.csv", b"question,question\nq,a\n", "line 1: expected a header of different names"),
    ("x.parquet", b"not parquet at all", "x.parquet is not a Parquet file"),
    ("x.parquet", b"", "x.parquet is not a Parquet file"),
    ("x.jsonl.gz", b"plain", "cannot be read: Not a gzipped file"),
    ("x.jsonl.gz", gzip.compress(b"x" * 10_000, mtime=0)[:-20], "cannot be read"),
    ("x.pkl", b"cos\nsystem\n", "no extension that can be read"),
    ("x.pt", b"x", "no extension that can be read"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BROKEN)
def test_broken_files_are_one_clear_error(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        load(tmp_path / name)
    assert name in str(error.value)


def test_a_damaged_parquet_file_is_one_clear_error(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(GSM * 100), path, compression="none")
    content = bytearray(path.read_bytes())
    content[4:400] = b"\xff" * 396
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"x\.parquet (is not|cannot be read)"):
        load(path)


def test_a_missing_file_names_the_nearest_and_what_there_is(tmp_path):
    write(tmp_path / "gsm8k_train.jsonl", GSM)
    with pytest.raises(DataError, match=r"Did you mean 'gsm8k_train.jsonl'\?.*holds: gsm8k_train"):
        load(tmp_path / "gsm8k_trian.jsonl")
    with pytest.raises(DataError, match=f"nor is there a folder {tmp_path / 'no'}"):
        load(tmp_path / "no" / "x.jsonl")


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    write(tmp_path / "b_train.jsonl", GSM[:2])
    write(tmp_path / "a-train.jsonl", GSM[2:3])
    write(tmp_path / "test.jsonl", GSM[3:])
    (tmp_path / "README.md").write_text("not data")
    assert len(load(tmp_path)) == 3
    assert len(load(tmp_path, split="test")) == 2
    with pytest.raises(DataError, match=r"No file of split 'validation'.*test\.jsonl"):
        load(tmp_path, split="validation")


def test_a_folder_without_data_or_with_two_layouts_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no data file"):
        load(tmp_path)
    write(tmp_path / "a.jsonl", GSM)
    write(tmp_path / "b.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(DataError, match=r"mixes layouts: a.jsonl \(.*b.jsonl \("):
        load(tmp_path)
