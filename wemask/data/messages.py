"""The messages of a record, in whatever way they are written -> role, content and what else a
chat template reads: `reasoning_content`, `tool_calls`, the name of a tool.

A turn that is not to be trained has `train: False`. What had to be read in another way than it is
written is said in `notes`, which the caller counts.
"""

import math
from collections.abc import Mapping
from typing import Any

from wemask.data.layouts import REASONING, irrelevant
from wemask.errors import ConfigError, DataError, nearest
from wemask.files import parse_json

ROLES = ("system", "user", "assistant", "tool")
CALL = "function_call"  # an assistant's turn whose text is the call of a tool, as JSON
KNOWN_ROLES = {
    **{role: role for role in ROLES},
    "developer": "system",
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys((CALL, "tool_call"), CALL),
}
FLAGS = ("train", "training", "loss", "weight")  # keys that say whether a turn is trained on
PASSED_ON = ("name", "tool_call_id")
READ = {"role", "from", "content", "value", "tool_calls", CALL, *REASONING, *FLAGS, *PASSED_ON}
NO = (False, 0, "false", "no", "0", "0.0")
YES = (True, 1, "true", "yes", "1", "1.0")

Message = dict[str, Any]
Notes = set[str]


class BadRecord(Exception):
    """A record that cannot be used, and why; the caller knows where it stands."""


class LeftOut(Exception):
    """A record that says itself that it is not to be trained on, and how."""


def check_roles(roles: Any) -> dict[str, str]:
    """Return the user's names of roles -> ours (`data.roles`).

    Raises:
        ConfigError: it is no mapping, or to something that is no role.
    """
    if roles is not None and not isinstance(roles, Mapping):
        raise ConfigError(f"data.roles must map names to roles, got {roles!r}.")
    known = (*ROLES, CALL)
    for name, role in (roles or {}).items():
        if role not in known:
            raise ConfigError(
                f"data.roles.{name} must be one of {', '.join(known)}, got {role!r}."
                f"{nearest(str(role), known)}"
            )
    return {str(name).lower(): role for name, role in (roles or {}).items()}


def read_messages(value: Any, where: str, roles: Mapping[str, str], notes: Notes) -> list[Message]:
    """Read a conversation: a list of messages, its JSON, or a mapping of lists.

    Args:
        value: what the column holds.
        where: how a message about it begins: `column 'messages'`.
        roles: from `check_roles`; goes before `KNOWN_ROLES`.
        notes: gets what a reader of the log should know.

    Raises:
        BadRecord: it is no conversation.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = read_json(value, where)
    if isinstance(value, Mapping):
        value = _transposed(value, where)
    if not isinstance(value, list):
        raise BadRecord(f"{where}: expected a list of messages, found {kind_of(value)}")
    if not value:
        raise BadRecord(f"{where}: the list of messages is empty")
    known = {**KNOWN_ROLES, **roles}
    return [
        _message(item, f"{where}, message {i}", known, notes) for i, item in enumerate(value, 1)
    ]


def is_trained(message: Message) -> bool:
    """Whether a message is one that the loss sees."""
    return message["role"] == "assistant" and message.get("train", True)


def says(value: Any) -> bool | None:
    """What a flag says: yes or no; None where it is neither."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(plain, str | int | float):
        return None
    return True if plain in YES else False if plain in NO else None


def text_of(value: Any, what: str, expected: str, notes: Notes) -> str:
    """A text that is not empty; a number is written as one, which is noted.

    Raises:
        BadRecord: it is something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        notes.add("numbers are read as text")
        value = str(value)
    if not isinstance(value, str):
        raise BadRecord(f"{what}: expected {expected}, found {kind_of(value)}")
    if not value.strip():
        raise BadRecord(f"{what} is empty")
    return value


def read_json(text: str, where: str) -> Any:
    """What a text is as JSON.

    Raises:
        BadRecord: it is none.
    """
    try:
        return parse_json(text, where, kind=None)
    except DataError as error:
        raise BadRecord(f"{error} Found {text[:40]!r}") from error


def kind_of(value: object) -> str:
    """What was found, for a message."""
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _transposed(value: Mapping[str, Any], where: str) -> list[Any]:
    """{"role": [...], "content": [...]} as a list of messages: how `datasets` saves such lists."""
    lengths = {len(column) for column in value.values() if isinstance(column, list)}
    lists = [column for column in value.values() if isinstance(column, list)]
    if len(lists) < len(value) or len(lengths) != 1:
        raise BadRecord(f"{where}: expected a list of messages, found {kind_of(dict(value))}")
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]


def _message(item: Any, where: str, known: Mapping[str, str], notes: Notes) -> Message:
    """One message, written as role/content or, ShareGPT's way, as from/value."""
    if not isinstance(item, Mapping):
        raise BadRecord(f"{where}: expected role and content, found {kind_of(item)}")
    given = {str(key): value for key, value in item.items() if value is not None}
    name = given.get("role", given.get("from"))
    role = known.get(str(name).lower())
    if role is None:
        raise BadRecord(
            f"{where}: expected a role of {', '.join(ROLES)}, found {name!r} "
            f"(data.roles={{{name}: assistant}} says what it means)"
        )
    where = f"{where} ({role})"
    message: Message = {"role": "assistant" if role == CALL else role}
    content = given.get("content", given.get("value"))
    calls = given.get("tool_calls") or ([given[CALL]] if CALL in given else [])
    if role == CALL:
        found = read_json(content, where) if isinstance(content, str) else content
        calls, content = (found if isinstance(found, list) else [found]), None
    if calls:
        message["tool_calls"] = [_call(call, where) for call in _json_or(calls, where)]
    if thought := next((given[key] for key in REASONING if given.get(key)), None):
        message["reasoning_content"] = text_of(thought, f"{where}, its thoughts", "text", notes)
    message["content"] = _content(content, where, message, notes)
    message |= {key: given[key] for key in PASSED_ON if key in given}
    _flag(message, given, where, notes)
    notes |= {f"messages have {key!r}, which is not used" for key in _left(given)}
    for group in (REASONING, ("content", "value"), ("tool_calls", CALL)):
        if len(filled := [key for key in group if given.get(key)]) > 1:
            notes.add(f"messages have {' and '.join(filled)}: the first is used")
    return message


def _left(given: Mapping[str, Any]) -> list[str]:
    return [key for key, value in given.items() if key not in READ and value not in ("", [], {})
            and not irrelevant(key)]  # fmt: skip


def _flag(message: Message, given: Mapping[str, Any], where: str, notes: Notes) -> None:
    """Note `train: False` in an assistant's turn that is not to be trained."""
    if "train_detail" in given:
        raise BadRecord(f"{where}: parts of a turn cannot be trained alone (train_detail)")
    flags = {key: says(given[key]) for key in FLAGS if key in given}
    if message["role"] != "assistant":
        if True in flags.values():
            notes.add("other turns than the assistant's ask to be trained, and are not")
        return
    notes |= {f"messages have {key!r}, neither yes nor no: not used"
              for key, value in flags.items() if value is None}  # fmt: skip
    if False in flags.values():
        notes.add("turns that say so are not trained")
        message["train"] = False
    elif not (message["content"].strip() or message.keys() & {"tool_calls", "reasoning_content"}):
        notes.add("an assistant's turn is empty, and not trained")
        message["train"] = False


def _content(value: Any, where: str, message: Message, notes: Notes) -> str:
    """The text of a message; of several parts, on lines of their own (as vLLM joins them)."""
    if isinstance(value, list):
        value = "\n".join(_part(part, where) for part in value)
    silent = message.keys() & {"tool_calls", "reasoning_content"}
    if value is None and silent:
        return ""
    if isinstance(value, str) and not value.strip() and (silent or message["role"] != "user"):
        return value
    return text_of(value, where, "text", notes)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise BadRecord(f"{where}: expected parts of text, found one of {str(kind)[:40]!r}")
    return part["text"]


def _json_or(value: Any, where: str) -> Any:
    """A list, also where it is written as JSON."""
    value = read_json(value, where) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise BadRecord(f"{where}: expected a list, found {kind_of(value)}")
    return value


def _call(call: Any, where: str) -> Message:
    """One call of a tool as templates want it: arguments are a mapping, not its JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{where}: expected a call with a name, found {kind_of(call)}")
    arguments = function.get("arguments", function.get("parameters")) or {}
    if isinstance(arguments, str):
        arguments = read_json(arguments, f"{where}, arguments of {function['name']}")
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**made, **({"id": call["id"]} if call.get("id") else {})}


def read_tools(value: Any, where: str) -> list[Any] | None:
    """The schemas of the tools of a record, without nulls (Parquet fills structs with them).

    Raises:
        BadRecord: it is no list of mappings.
    """
    if value is None or value == "":
        return None
    tools = _json_or(value, where)
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRecord(f"{where}: expected schemas of tools, found {kind_of(value)}")
    return _without_nulls(tools) or None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
