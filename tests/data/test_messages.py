"""Messages in every way that they are written."""

import json

import pytest
from data_support import assistant, user

from wemask.data import messages
from wemask.data.messages import BadRecord, check_roles, read_messages
from wemask.errors import ConfigError

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
OPENAI_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
PLAIN = [user("q"), assistant("a")]
CALL_TEXT = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}


def read(value, roles=None):
    notes: set[str] = set()
    return read_messages(value, "column 'm'", check_roles(roles), notes), notes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (PLAIN, PLAIN),
        (json.dumps(PLAIN), PLAIN),
        ({"role": ["user", "assistant"], "content": ["q", "a"]}, PLAIN),
        ({"from": ["human", "gpt"], "value": ["q", "a"]}, PLAIN),
        ([{"from": "Human", "value": "q"}, {"role": "ASSISTANT", "content": "a"}], PLAIN),
        *[
            ([user("q"), {"from": name, "value": "a"}], PLAIN)
            for name in ("assistant", "gpt", "chatgpt", "model", "bot", "ai")
        ],
        ([{"role": "developer", "content": "s"}], [{"role": "system", "content": "s"}]),
        ([{"from": "observation", "value": "o"}], [{"role": "tool", "content": "o"}]),
        ([{"role": "tool", "content": "", "name": "f"}],
         [{"role": "tool", "content": "", "name": "f"}]),
        ([user([{"type": "text", "text": "q"}, {"type": "text", "text": "r"}])], [user("q\nr")]),
        ([assistant("a") | {"reasoning_content": "r"}],
         [assistant("a") | {"reasoning_content": "r"}]),
        ([assistant("a") | {"thinking": "r"}], [assistant("a") | {"reasoning_content": "r"}]),
        ([assistant("a") | {"tool_calls": None, "reasoning_content": None}], [assistant("a")]),
        ([{"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]}],
         [CALLED | {"tool_calls": [CALL | {"id": "c"}]}]),
        ([{"role": "assistant", "tool_calls": json.dumps([CALL])}], [CALLED]),
        ([{"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}}],
         [CALLED]),
        ([CALL_TEXT], [CALLED]),
        ([{"from": "function_call", "value": '[{"name": "f", "parameters": {"x": 1}}]'}],
         [CALLED]),
        ([assistant("a") | {"weight": 0}], [assistant("a") | {"train": False}]),
        ([assistant("a") | {"train": "False"}], [assistant("a") | {"train": False}]),
        ([assistant("a") | {"weight": 1, "train": None}], [assistant("a")]),
        ([user("q") | {"train": False}], [user("q")]),
        ([assistant("")], [assistant("") | {"train": False}]),
        ([assistant(7)], [assistant("7")]),
    ],
)  # fmt: skip
def test_what_is_written_is_read(value, expected):
    assert read(value)[0] == expected


def test_the_user_says_what_a_role_means():
    teacher = [{"role": "Teacher", "content": "a"}]
    assert read(teacher, {"teacher": "assistant"})[0] == [assistant("a")]
    assert read([CALL_TEXT], {"function_call": "assistant"})[0] == [assistant(CALL_TEXT["value"])]
    with pytest.raises(BadRecord, match=r"found 'Teacher' .data.roles=\{Teacher: assistant\}"):
        read(teacher)
    with pytest.raises(ConfigError, match=r"data.roles.teacher must be one of.*'assistant'\?"):
        check_roles({"teacher": "asistant"})
    with pytest.raises(ConfigError, match="must map names"):
        check_roles("assistant")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("q", "expected a list of messages, found str"),
        ("[{", "no JSON that can be read"),
        ({"role": ["user"], "content": ["q", "a"]}, "expected a list of messages, found dict"),
        ({"role": "user", "content": "q"}, "expected a list of messages, found dict"),
        ([user([{"type": "image_url", "image_url": {}}])], "parts of text, found one of 'image_u"),
        ([user([{"type": "text"}])], "parts of text"),
        ([user(None)], r"message 1 \(user\): expected text, found null"),
        ([assistant(None)], r"message 1 \(assistant\): expected text, found null"),
        ([user("")], "is empty"),
        ([assistant(True)], "expected text, found bool"),
        ([assistant(float("nan"))], "expected text, found float"),
        ([assistant("a") | {"tool_calls": [{}]}], "expected a call with a name"),
        ([assistant("a") | {"tool_calls": {"name": "f"}}], "expected a list, found dict"),
        ([{"from": "function_call", "value": "f(x)"}], "no JSON that can be read"),
        ([{"from": "function_call", "value": "7"}], "expected a call with a name"),
        ([assistant("a") | {"train_detail": []}], "parts of a turn"),
    ],
)
def test_what_cannot_be_read_says_where_and_why(value, reason):
    with pytest.raises(BadRecord, match=reason) as error:
        read(value)
    assert "column 'm'" in str(error.value)


@pytest.mark.parametrize(
    ("message", "note"),
    [
        (assistant(7), "numbers are read as text"),
        (assistant(" "), "empty"),
        (assistant("a") | {"mood": "b"}, "'mood'"),
        (assistant("a") | {"weight": 0.5}, "'weight', neither yes nor no"),
        (assistant("a") | {"train": False}, "not trained"),
        (user("q") | {"train": True}, "other turns than the assistant's"),
    ],
)
def test_what_is_not_read_as_written_is_noted(message, note):
    (found,) = read([message])[1]
    assert note in found
    assert read([assistant("a") | {"id": 7, "extra": None, "weight": 1}])[1] == set()


def test_every_key_that_a_message_may_have_is_read_or_known_to_teach_nothing():
    kept = {"role", "from", "content", "value", "function_call", "tool_calls", *messages.REASONING}
    assert kept | set(messages.FLAGS) | set(messages.PASSED_ON) == messages.READ


def test_schemas_of_tools_lose_the_nulls_of_parquet():
    tools = [{"name": "f", "parameters": {"a": {"type": "string", "enum": None}}, "b": None}]
    clean = [{"name": "f", "parameters": {"a": {"type": "string"}}}]
    assert messages.read_tools(tools, "t") == messages.read_tools(json.dumps(tools), "t") == clean
    for nothing in (None, "", [], "[]"):
        assert messages.read_tools(nothing, "t") is None
    with pytest.raises(BadRecord, match="schemas of tools"):
        messages.read_tools(["f"], "t")
