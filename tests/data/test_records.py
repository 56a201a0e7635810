"""Files of records: every form gives the same records; what is damaged is one message."""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from data_support import GSM, load
from hypothesis import given, settings
from hypothesis import strategies as st

from wemask.data import records
from wemask.data.records import read_records
from wemask.errors import DataError

Rows = list[dict[str, Any]]
QA = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]


def read(path: Path, content: bytes) -> Rows:
    path.write_bytes(content)
    return [fields for _, fields in read_records(path)]


def lines(rows: Rows, end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def table(rows: Rows, mark: str, end: str) -> str:
    text = io.StringIO()
    # csv quotes a line end only where it is the file's own
    plain = set("\r\n").isdisjoint("".join(value for row in rows for value in row.values()))
    quoting = csv.QUOTE_MINIMAL if plain else csv.QUOTE_ALL
    writer = csv.DictWriter(
        text, list(rows[0]), delimiter=mark, lineterminator=end, quoting=quoting
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMS: list[tuple[str, Callable[[Rows, str], str]]] = [
    ("x.jsonl", lines),
    ("x.json", lines),
    ("x.json", lambda rows, end: json.dumps(rows)),
    ("x.json", lambda rows, end: json.dumps({"version": "1", "data": rows}, indent=2)),
    ("x.json", lambda rows, end: json.dumps(columns(rows))),
    ("x.csv", lambda rows, end: table(rows, ",", end)),
    ("x.csv", lambda rows, end: table(rows, ";", end)),
    ("x.tsv", lambda rows, end: table(rows, "\t", end)),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@given(
    st.lists(st.fixed_dictionaries({"question": TEXT, "answer": TEXT}), min_size=2, max_size=4),
    st.sampled_from(FORMS),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.sampled_from(["", ".gz"]),
)
@settings(max_examples=200)
def test_whatever_the_form_the_records_are_these(tmp_path_factory, rows, form, end, packed, name):
    path = tmp_path_factory.mktemp("x") / (form[0] + name)
    content = ("\ufeff" + form[1](rows, end)).encode()
    assert read(path, gzip.compress(content) if packed else content) == rows


@pytest.mark.parametrize(
    ("name", "content", "want", "said"),
    [
        ("x.json", '{\n "question": "q",\n "answer": "a"\n}', QA[:1], None),
        ("x.json", lines(QA[:1]), QA[:1], None),
        ("x.json", json.dumps({"messages": [{"role": "user", "content": "q"}], "tools": [{}]}),
         [{"messages": [{"role": "user", "content": "q"}], "tools": [{}]}], None),
        ("x.json", '{"rows": [{"a": 1}], "n": 1, "by": []}', [{"a": 1}],
         "its records are those of 'rows'; beside them stands n, by"),
        ("x.json", '{"a": {"0": "p", "1": "q"}, "b": {"0": 1, "1": 2}}',
         [{"a": "p", "b": 1}, {"a": "q", "b": 2}], None),
        ("x.json", '{"0": {"a": 1}, "1": {"a": 2}}', [{"a": 1}, {"a": 2}], None),
        ("x.json", '{"a": ["p"], "b": ["q", "r"]}', [{"a": ["p"], "b": ["q", "r"]}], None),
        ("x.csv", "question, answer\nq, a\n\"r\", \"b\"\n", QA, None),
        ("x.csv", ",question,answer,\n0,q,a,\n1,r,b,\n", QA, "column 1, 4 has no name"),
        ("x.csv", "question;answer\nq;a\nr;b\n", QA, "fields are divided by ';'"),
        ("x.csv", "question\nq\n", [{"question": "q"}], None),
        ("x.csv", 'question,answer\n"1\n2",a\n', [{"question": "1\n2", "answer": "a"}], None),
        ("x.tsv", "question\tanswer\nq, r\ta\n", [{"question": "q, r", "answer": "a"}], None),
        ("x.csv", f"question,answer\n{'x ' * 200_000},a\n",
         [{"question": "x " * 200_000, "answer": "a"}], None),
        ("x.jsonl", r'{"a": "\ud83d cut", "\udc00": ["\ud83d\ude00"]}' "\n",
         [{"a": "\ufffd cut", "\ufffd": ["\U0001f600"]}], "2 lone halves of surrogate pairs"),
        ("x.json", r'[{"a": "\\ud83d \ud83d"}]', [{"a": "\\ud83d \ufffd"}], "1 lone halves"),
    ],
)  # fmt: skip
def test_forms_that_people_have(tmp_path, caplog, name, content, want, said):
    path = tmp_path / name
    assert read(path, content.encode()) == want
    assert read(path, content.encode()) == want
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(said)  # once, though it was read twice
    assert all(str(path) in message and said in message for message in messages)


def test_every_format_gives_the_same_examples(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in GSM)
    table = pa.Table.from_pylist(GSM)
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
    pq.write_table(table, tmp_path / "f.parquet")
    feather.write_feather(table, tmp_path / "g.arrow")
    with pa.ipc.new_stream(tmp_path / "h.arrow", table.schema) as stream:
        stream.write_table(table)
    want = [row["question"] for row in GSM]
    for name in [*files, "f.parquet", "g.arrow", "h.arrow"]:
        examples = load(tmp_path / name)
        assert [prompt[0]["content"] for prompt in examples["prompt"]] == want, name
    assert load(tmp_path / "a.jsonl")["source"][1].endswith("a.jsonl, line 3")
    assert load(tmp_path / "e.csv")["source"][0].endswith("e.csv, line 2")
    assert load(tmp_path / "f.parquet")["source"][4].endswith("f.parquet, row 5")
    assert load(tmp_path / "h.arrow")["source"][4].endswith("h.arrow, row 5")


BROKEN = [
    ("x.jsonl", b"", "is empty"),
    ("x.jsonl", b"\n \n", "is empty"),
    ("x.json", b"[]", "is empty"),
    ("x.json", b" ", "is empty"),
    ("x.csv", b"a,b\n", "is empty"),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n{"question": "q"\n', "line 2 is no JSON"),
    ("x.jsonl", b"[1]\n", "line 1 must hold an object, found list"),
    ("x.jsonl", b"[" * 100_000, "line 1 is no JSON that can be read"),
    ("x.jsonl", b'{"a": %s1%s}' % (b"[" * 900, b"]" * 900), "line 1 is JSON nested deeper"),
    ("x.jsonl", b'{"question": "q", "answer": "a"}\n\xe9', "line 2: expected UTF-8.*0xe9"),
    ("x.json", b'[{"a": 1},\n{"a": "\xc3\xa9\xff"}]', "line 2: .*0xff at position 9"),
    ("x.json", b'[{"question": "q",}]', "no JSON.*column 19"),
    ("x.json", b"[1, 2]", "item 1: expected an object, found int"),
    ("x.json", b"3", "must hold a list of objects, found int"),
    ("x.csv", b"question,answer\nq,a\nq,a,b\n", "line 3: expected 2 fields.*',', found 3"),
    ("x.csv", b'question,answer\n"q"x,a\n', "line 2: malformed CSV"),
    ("x.csv", b"text\nq\rr\n", "line 2: malformed CSV: new-line character"),
    ("x.csv", b'question,answer\nq,a\n"q,a\nr,b\n', "line 3: malformed CSV"),
    ("x.csv", b"question,question\nq,a\n", "line 1: expected a header of different names"),
    ("x.csv", b",,\n1,2,3\n", "line 1: expected a header of different names"),
    ("x.parquet", b"not parquet at all", "x.parquet is not a Parquet file"),
    ("x.parquet", b"", "x.parquet is not a Parquet file"),
    ("x.arrow", b"not arrow at all", "x.arrow is not an Arrow file"),
    ("x.jsonl.gz", b"plain", "line 1 is no JSON"),
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"question": "' + b"q" * 10_000 + b'"}'),
        ("x.jsonl", gzip.compress(b'{"question": "' + b"q" * 10_000 + b'"}', mtime=0)),
        ("x.csv", b"question,answer\n" + b"q" * 10_000 + b",a\n"),
        ("x.csv", b'question,answer\n"' + b"q\n" * 10_000 + b'",a\n'),
        ("x.json", b"[" + b"1,\n" * 10_000 + b"1]"),
    ],
    ids=["a line", "gzip", "a cell", "a quoted cell", "a list"],
)
def test_a_line_or_document_without_end_is_refused(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(records, "LONGEST", 5_000)
    monkeypatch.setattr(records, "LARGEST", 5_000)
    with pytest.raises(DataError, match=r"more than 5,000 char|field larger than field limit"):
        read(tmp_path / name, content)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_never_ends_is_not_begun(tmp_path, make):
    make(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match=r"x\.jsonl is a pipe or a device"):
        load(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_damaged_table_is_one_clear_error(tmp_path, name):
    path, rows = tmp_path / name, pa.Table.from_pylist(GSM * 100)
    if name == "x.parquet":
        pq.write_table(rows, path, compression="none")
    else:
        feather.write_feather(rows, path, compression="uncompressed")
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = b"\xff" * (len(content) // 4)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=rf"{name} is not an? (Parquet|Arrow) file"):
        load(path)
