"""One record -> one conversation."""

import pytest
from data_support import assistant, user

from wemask.data.conversations import convert
from wemask.data.layouts import recognise
from wemask.data.messages import BadRecord, LeftOut
from wemask.data.records import column_names, columns_of

SYSTEM = {"role": "system", "content": "s"}
OFF = {"train": False}


def made(row: dict, **options):
    return convert(row, recognise(column_names(row), {}, "x"), **options)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"system": "s", "conversations": [user("q"), assistant("a")]},
         [SYSTEM, user("q"), assistant("a")]),
        ({"system_prompt": "s", "question": "q", "answer": "a"},
         [SYSTEM, user("q"), assistant("a")]),
        ({"system": "", "question": "q", "answer": "a"}, [user("q"), assistant("a")]),
        ({"instruction": "q", "context": "c", "response": "a"}, [user("q\n\nc"), assistant("a")]),
        ({"question": "q", "context": "c", "answer": "a"}, [user("q\n\nc"), assistant("a")]),
        ({"instruction": "q", "input": None, "output": "a"}, [user("q"), assistant("a")]),
        ({"instruction": "q", "output": "a", "history": [["p", "b"], ["o", "c"]]},
         [user("p"), assistant("b") | OFF, user("o"), assistant("c") | OFF, user("q"),
          assistant("a")]),
        ({"instruction": "q", "output": "a", "history": '[["p", "b"]]'},
         [user("p"), assistant("b") | OFF, user("q"), assistant("a")]),
        ({"instruction": "q", "output": "a", "history": [user("p"), assistant("b")]},
         [user("p"), assistant("b") | OFF, user("q"), assistant("a")]),
        ({"instruction": "q", "output": "a", "history": []}, [user("q"), assistant("a")]),
        ({"question": "q", "reasoning": "r", "answer": "a"},
         [user("q"), assistant("a") | {"reasoning_content": "r"}]),
        ({"Question": "q", "ANSWER": "a"}, [user("q"), assistant("a")]),
        ({"question": 1, "answer": 2.5}, [user("1"), assistant("2.5")]),
        ({"messages": [assistant("hi"), user("q"), assistant("a")]}, [user("q"), assistant("a")]),
        ({"messages": [SYSTEM, assistant("hi"), user("q"), assistant("a")]},
         [SYSTEM, user("q"), assistant("a")]),
        ({"messages": [user("q"), assistant("a"), user("r")]}, [user("q"), assistant("a")]),
        ({"messages": [user("q"), assistant(""), user("r"), assistant("a")]},
         [user("q"), assistant("") | OFF, user("r"), assistant("a")]),
        ({"messages": [user("q"), assistant("a"), user("r"), assistant("")]},
         [user("q"), assistant("a")]),
        ({"messages": [user("q"), assistant("b") | OFF, user("r"), assistant("a")]},
         [user("q"), assistant("b") | OFF, user("r"), assistant("a")]),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
         [user("q"), assistant("a")]),
    ],
)  # fmt: skip
def test_a_record_becomes_the_conversation_that_it_says(row, expected):
    assert made(row).messages == expected


def test_of_several_turns_those_are_trained_that_may_be():
    turns = [user("q"), assistant("a"), user("r"), assistant("b"), user("s"), assistant("c")]
    assert made({"messages": turns}).several
    last = made({"messages": turns}, last_turn_only=True)
    assert not last.several
    assert last.messages[-1] == assistant("c")
    turns[5] = turns[5] | OFF
    last = made({"messages": turns}, last_turn_only=True)
    assert last.messages[-1] == assistant("b")


def test_a_text_is_a_text_and_tools_go_along():
    assert made({"text": "q a", "id": 3}).text == "q a"
    tools = [{"name": "f"}]
    row = {"messages": [user("q"), assistant("a")], "tools": tools}
    assert made(row).tools == tools
    assert made(row | {"tools": "[]"}).tools is None


def test_the_setting_of_a_system_message_stands_back():
    row = {"system": "s", "question": "q", "answer": "a"}
    assert made(row, system="of all").messages[0] == SYSTEM
    assert made(row | {"system": None}, system="of all").messages[0]["content"] == "of all"
    own = {"system": "other", "messages": [SYSTEM, user("q"), assistant("a")]}
    found = made(own, system="of all")
    assert found.messages[0] == SYSTEM
    assert "'system' is not used" in "".join(found.notes)


PAIR = {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PAIR | {"label": False}, "label: false"),
        (PAIR | {"label": "False"}, "label: false"),
        (PAIR | {"weight": 0}, "weight: 0"),
        (PAIR | {"train": "no"}, "train: no"),
        ({"messages": [user("q"), assistant("a") | {"weight": 0}]}, "no turn to train"),
        ({"prompt": "q", "completion": [assistant("a") | OFF]}, "no turn to train"),
        ({"text": "t", "train": False}, "train: false"),
    ],
)
def test_what_says_that_it_is_not_to_be_trained_is_left_out(row, reason):
    with pytest.raises(LeftOut, match=reason):
        made(row)


@pytest.mark.parametrize(
    ("fields", "noted"),
    [
        ({"label": True, "weight": 1, "train": "yes"}, False),
        ({"label": 0}, True),  # a class, as far as anyone knows
        ({"label": "0"}, True),  # of a CSV file
        ({"label": 0.0}, True),
        ({"loss": 0.0}, True),  # a measured one
        ({"label": "entailment"}, True),
        ({"weight": 0.3}, True),
        ({"train": None}, False),
    ],
)
def test_flags_that_say_nothing_are_noted(fields, noted):
    assert bool(made(PAIR | fields).notes) == noted


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [user("q")]}, "expected a message of the assistant, found user"),
        ({"messages": [assistant("a")]}, "expected a user message before"),
        ({"messages": [assistant("a"), user("q")]}, "expected a user message before"),
        ({"messages": [user("q"), assistant(" ")]}, "every turn of the assistant is empty"),
        ({"prompt": "q", "completion": [assistant("")]}, "is empty"),
        ({"prompt": [SYSTEM | {"role": "tool"}], "completion": "a"}, "expected a user message"),
        ({"instruction": "q", "output": "a", "history": "x"}, "no JSON"),
        ({"instruction": "q", "output": "a", "history": 7}, "a list of .question, answer., found"),
        ({"instruction": "q", "output": "a", "history": [["p"]]}, "turn 1: expected .question"),
        ({"question": "q", "answer": "a", "system": ["s"]}, "column 'system': expected text"),
        ({"text": " "}, "text is empty"),
    ],
)
def test_records_that_cannot_be_used_say_why(row, reason):
    with pytest.raises(BadRecord, match=reason):
        made(row)


@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"training": False},
        PAIR | {"loss": False},
        PAIR | {"Weight": 0},
        {"extra": {"prompt": "q", "completion": "a", "train": False}},
    ],
)
def test_a_flag_is_obeyed_in_any_case_of_letters_and_beside_nested_columns(row):
    with pytest.raises(LeftOut):
        made(row)


def test_an_input_beside_a_prompt_of_messages_and_two_kinds_of_thoughts_are_not_lost():
    asked = made({"prompt": [user("q")], "context": "facts", "completion": "a"})
    assert asked.messages[0]["content"] == "q\n\nfacts"
    answer = assistant("a") | {"thinking": "one", "reasoning": "two"}
    noted = made({"messages": [user("q"), answer]}).notes
    assert any("thinking and reasoning" in note for note in noted)


def test_a_key_with_a_dot_is_a_column_like_another():
    row = PAIR | {"scores": {"gpt-3.5": 1, "none": {}}}
    assert dict(columns_of(row))["scores.gpt-3.5"] == 1
    assert column_names(row)[-2:] == ["scores.gpt-3.5", "scores.none"]
