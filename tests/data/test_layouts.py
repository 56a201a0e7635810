"""Which columns hold what, and one record -> one conversation."""

import pytest
from data_support import EXPECTED, GSM, assistant, first, load, user, write

from wemask.data import records
from wemask.errors import DataError


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [user("q")], "completion": "a"},
        {"prompt": "q", "completion": [assistant("a")]},
        {"prompt": [user("q")], "completion": [assistant("a")], "prompt_id": "7"},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"inputs": "q", "targets": "a", "task": "t"},
        {"instruction": "q", "output": "a", "input": ""},
        {"instruction": "q", "output": "a"},
        {"input": "q", "output": "a"},
        {"problem": "q", "solution": "a"},
        {"messages": [user("q"), assistant("a")]},
        {"prompt": "q", "messages": [user("q"), assistant("a")]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"extra_info": {"question": "q", "answer": "a"}, "id": 3},
    ],
    ids=lambda row: "+".join(row),
)
def test_usual_columns_are_recognised(tmp_path, row):
    assert first(tmp_path, row) == EXPECTED


def test_input_of_an_instruction_is_added_to_the_prompt(tmp_path):
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    assert first(tmp_path, row)["prompt"] == [user("Translate.\n\nHund")]
    row = {"question": "q", "context": "c", "answer": "a"}
    assert first(tmp_path, row, columns={"input": "context"})["prompt"] == [user("q\n\nc")]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question": "q", "answer": "1", "response": "r"}, "data.columns.completion=response"),
        ({"prompt": "q", "question": "q", "answer": "a"}, "data.columns.prompt=prompt"),
        ({"prompt": "q", "completion": "a", "messages": []}, "data.columns.messages=messages"),
        ({"body": "q a"}, "data.columns.prompt=COLUMN data.columns.completion=COLUMN"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            "data.columns.prompt=prompt data.columns.completion=chosen",
        ),
        ({"chosen": [user("q"), assistant("a")], "rejected": []}, "data.columns.messages=chosen"),
        (
            {"prompt": "q", "extra_info": {"answer": "1", "response": "r"}},
            "data.columns.prompt=prompt data.columns.completion=extra_info.response",
        ),
    ],
)
def test_doubtful_columns_are_listed_with_the_line_to_type(tmp_path, row, line):
    with pytest.raises(DataError) as error:
        load(write(tmp_path / "x.jsonl", [row]))
    assert line in str(error.value)
    assert all(name in str(error.value) for name in records.column_names(row))


def test_named_columns_win_and_the_other_role_is_recognised(tmp_path):
    row = {"prompt": "q", "extra_info": {"answer": "1", "response": "a"}, "answer": "no"}
    assert first(tmp_path, row, columns={"completion": "extra_info.response"}) == EXPECTED
    row = {"a.b": "q", "a": {"b": "no"}, "c": "a"}
    assert first(tmp_path, row, columns={"question": "a.b", "answer": "c"}) == EXPECTED
    row = {"chat": [user("q"), assistant("a")], "prompt": "no", "completion": "no"}
    assert first(tmp_path, row, columns={"messages": "chat", "prompt": None}) == EXPECTED


def test_a_named_column_that_is_not_there_names_the_nearest(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"frage": "q", "antwort": "a"}])
    with pytest.raises(DataError, match=r"'antwrt'.*Did you mean 'antwort'.*frage, antwort"):
        load(path, columns={"prompt": "frage", "completion": "antwrt"})


CHAT = [user("1+1?"), assistant("2"), user("2+2?"), assistant("4")]


def test_conversations_train_every_turn_or_the_last(tmp_path):
    rows = [{"messages": [user("q"), assistant("a")]}, {"messages": CHAT}]
    path = write(tmp_path / "x.jsonl", rows)
    examples = load(path)
    assert examples.column_names == ["messages", "source"]
    assert examples["messages"][:] == [row["messages"] for row in rows]
    examples = load(path, turns="last")
    assert examples.column_names == ["prompt", "completion", "source"]
    assert examples["prompt"][1] == CHAT[:3]
    assert examples["completion"][1] == CHAT[3:]


def test_the_system_message_is_put_where_there_is_none(tmp_path):
    row = {"prompt": "q", "completion": "a"}
    system = {"role": "system", "content": "Be brief."}
    assert first(tmp_path, row, system="Be brief.")["prompt"] == [system, user("q")]
    own = {"role": "system", "content": "Own."}
    row = {"messages": [own, user("q"), assistant("a")]}
    assert first(tmp_path, row, system="Be brief.")["prompt"] == [own, user("q")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "q", "answer": "  "}, r"line 2: completion \(column 'answer'\) is empty"),
        ({"question": "", "answer": "a"}, r"line 2: prompt \(column 'question'\) is empty"),
        ({"question": "q"}, "line 2: expected a column 'answer', found question"),
        ({"question": "q", "answer": None}, "expected text or one assistant message, found null"),
        ({"question": "q", "answer": True}, "or one assistant message, found bool 'True'"),
        ({"question": "q", "answer": float("nan")}, "assistant message, found float 'nan'"),
        ({"question": {"a": 1}, "answer": "a"}, "expected text or a list of messages, found dict"),
        ({"question": [], "answer": "a"}, "list of messages is empty"),
        ({"question": ["q"], "answer": "a"}, "message 1: expected role and content, found str"),
        ({"question": [assistant("q")], "answer": "a"}, "last message of a prompt from the user"),
        ({"question": [user(" ")], "answer": "a"}, r"message 1 \(user\) is empty"),
        ({"question": [{"role": "oracle"}], "answer": "a"}, "'oracle' .data.roles={oracle: "),
        ({"question": "q", "answer": [user("a")]}, "expected one assistant message, found user"),
        ({"question": "q", "answer": []}, "list of messages is empty"),
    ],
)
def test_records_that_cannot_be_used_are_named_with_their_line(tmp_path, row, reason):
    with pytest.raises(DataError, match=reason) as error:
        load(write(tmp_path / "x.jsonl", [GSM[0], row]))
    assert "1 of 2 records" in str(error.value)
    assert "data.invalid=drop" in str(error.value)
