import os
from pathlib import Path

import pytest

from wemask.checkpoint.pretrained import load_tokenizer
from wemask.embedded import TINY_PATH
from wemask.errors import DataError
from wemask.settings.texts import load_texts, tokenise


def test_embedded_texts_are_the_same_each_time():
    texts = load_texts(None, 5)
    assert texts == load_texts(None, 5) and len(set(texts)) == 5
    assert all("####" in text for text in texts)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_text_by_paragraph_or_by_line(tmp_path):
    paragraphs = write(tmp_path, "a.txt", "One\ntwo.\n\nThree.\n\n\n\nFour.\n")
    marked = write(tmp_path, "c.txt", "\ufeff" + paragraphs.read_text())
    assert load_texts(marked, 9) == load_texts(paragraphs, 9) == ["One\ntwo.", "Three.", "Four."]
    lines = write(tmp_path, "b.txt", "One.\nTwo.\n")
    assert load_texts(lines, 9) == ["One.", "Two."]
    assert load_texts(lines, 1) == ["One."]


def test_columns_of_a_data_file(tmp_path):
    one = write(tmp_path, "a.jsonl", '{"text": "x", "other": "y", "n": 3}\n{"text": "z"}\n')
    assert load_texts(one, 9) == ["x", "z"]
    assert load_texts(one, 1, "other") == ["y"]
    two = write(tmp_path, "b.jsonl", '{"question": "q", "answer": "a", "n": 3}\n')
    assert load_texts(two, 9) == ["q\na"]
    with pytest.raises(DataError, match=r"line 1.*'text' was sought; columns with text: question"):
        load_texts(two, 9, "text")


def test_errors_name_the_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt was sought and cannot be read"):
        load_texts(tmp_path / "none.txt", 3)
    with pytest.raises(DataError, match="holds no text"):
        load_texts(write(tmp_path, "empty.txt", "\n\n \n"), 3)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        load_texts(tmp_path / "bytes.txt", 3)
    for name in ("pipe.txt", "pipe.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="a pipe or a device"):
            load_texts(tmp_path / name, 3)


def test_half_of_a_surrogate_pair_reaches_no_tokenizer(tmp_path):
    (text,) = load_texts(write(tmp_path, "a.jsonl", r'{"text": "cut \ud83d"}'), 3)
    ids, _ = tokenise(load_tokenizer(str(TINY_PATH)), [text], 8)
    assert text == "cut \ufffd" and ids.shape[1] > 1


def test_tokens_are_cut_and_padded():
    tokenizer = load_tokenizer(str(TINY_PATH))
    ids, mask = tokenise(tokenizer, ["Tom has 3 apples.", "Mia"], 4)
    assert ids.shape == mask.shape == (2, 4)
    assert mask[0].tolist() == [1, 1, 1, 1]
    assert ids[1][mask[1] == 1].tolist() == tokenizer("Mia")["input_ids"][:4]


def test_texts_without_a_next_token_are_left_out():
    def tokenizer(text: str, **options: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    ids, mask = tokenise(tokenizer, ["abc", "a"], 8)
    assert ids.tolist() == [[97, 98, 99]] and mask.all()
    with pytest.raises(DataError, match="two tokens"):
        tokenise(tokenizer, ["a", ""], 8)
