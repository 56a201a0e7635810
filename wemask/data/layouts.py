"""Which columns hold the prompt and the completion, and one record -> one conversation.

A layout is recognised only when exactly one column can be meant for each role: a dataset with
`question`, `answer` and `response` is ambiguous, and training on the wrong one is silent. The error
then lists the columns and the line to type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wemask.errors import ConfigError, DataError, nearest

ROLES = ("prompt", "completion", "input", "messages")
ALIASES = {"question": "prompt", "answer": "completion"}

PROMPTS = ("prompt", "question", "instruction", "inputs", "problem", "query", "input")
COMPLETIONS = ("completion", "response", "answer", "output", "targets", "target", "solution")
CONVERSATIONS = ("messages", "conversations")
INPUT = "input"  # beside `instruction`: what the instruction is applied to (Alpaca's layout)

MESSAGE_ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}

Message = dict[str, str]


class BadRecord(Exception):
    """A record that cannot be used, and why; the caller knows where it stands."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Role -> column, dotted where nested: `messages`, or `prompt` (+ `input`) and `completion`."""

    prompt: str | None = None
    completion: str | None = None
    input: str | None = None
    messages: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{role}={column}" for role, column in self._named())

    def _named(self) -> list[tuple[str, str]]:
        return [(role, column) for role in ROLES if (column := getattr(self, role))]

    def top_level(self) -> set[str]:
        """The columns a reader must fetch; both readings of a dotted name."""
        columns = [column for _, column in self._named()]
        return {*columns, *(column.split(".")[0] for column in columns)}


def check_columns(columns: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return role -> column without the unset roles.

    Raises:
        ConfigError: everything that is wrong with the mapping, together.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise ConfigError(f"data.columns must map roles to columns, got {columns!r}.")
    result: dict[str, str] = {}
    wrong: list[str] = []
    for key, column in (columns or {}).items():
        role = ALIASES.get(key, key)
        if role not in ROLES:
            known = (*ROLES, *ALIASES)
            wrong.append(
                f"data.columns.{key}: no such role; roles are {', '.join(known)}."
                f"{nearest(key, known)}"
            )
        elif column is None:
            continue
        elif not isinstance(column, str) or not column.strip():
            wrong.append(f"data.columns.{key} must be a column name, got {column!r}.")
        elif result.get(role, column) != column:
            wrong.append(f"data.columns.{key}={column}: {role} is already {result[role]}.")
        else:
            result[role] = column
    if "messages" in result and len(result) > 1:
        wrong.append("data.columns: name messages, or prompt and completion, not both.")
    if wrong:
        raise ConfigError("\n".join(wrong))
    return result


def recognise(found: Sequence[str], named: Mapping[str, str | None], label: str) -> Layout:
    """Return the one layout that the columns `found` can have, given those `named` by role.

    Raises:
        DataError: a named column does not exist, a role has no column, or more than one.
    """
    given = {role: column for role, column in named.items() if column}
    for role, column in given.items():
        if not _exists(column, found):
            raise DataError(
                f"{label} has no column {column!r} (data.columns.{role}).{nearest(column, found)} "
                f"{_listing(found)}"
            )
    if "messages" in given:
        return Layout(messages=given["messages"])
    chats = [name for name in CONVERSATIONS if name in found] if not given else []
    prompts = [given["prompt"]] if "prompt" in given else _known(found, PROMPTS)
    if "instruction" in prompts:
        prompts = [p for p in prompts if p != INPUT]
    completions = [given["completion"]] if "completion" in given else _known(found, COMPLETIONS)
    if len(chats) == 1 and not (prompts and completions):
        return Layout(messages=chats[0])
    if not chats and len(prompts) == 1 and len(completions) == 1:
        extra = given.get("input", INPUT if prompts[0] == "instruction" else None)
        extra = extra if extra and _exists(extra, found) else None
        return Layout(prompt=prompts[0], completion=completions[0], input=extra)
    raise DataError(_not_one(found, label, prompts, completions, chats))


def convert(
    fields: Mapping[str, Any], layout: Layout, *, system: str | None, last_turn_only: bool
) -> tuple[list[Message], bool]:
    """Turn one record into a conversation that ends with an assistant message.

    Also whether several of its turns are to be trained: then it has no one completion.

    Raises:
        BadRecord: a column is missing, empty, or of another type than text or messages.
    """
    if layout.messages:
        messages = _messages(_get(fields, layout.messages), layout.messages)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not turns or turns[-1] != len(messages) - 1:
            raise BadRecord(
                f"column {layout.messages!r}: expected the last message from the assistant, "
                f"found {messages[-1]['role']!r}"
            )
    else:
        prompt = _prompt(fields, layout)
        messages = prompt + _completion(fields, layout)
        turns = [len(prompt)]
    first = turns[-1] if last_turn_only else turns[0]
    if not any(m["role"] == "user" for m in messages[:first]):
        raise BadRecord("expected a user message before the assistant's, found none")
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages, len(turns) > 1 and not last_turn_only


def _prompt(fields: Mapping[str, Any], layout: Layout) -> list[Message]:
    column = str(layout.prompt)
    value = _get(fields, column)
    if isinstance(value, list):
        messages = _messages(value, column)
        if (role := messages[-1]["role"]) not in ("user", "tool"):
            raise BadRecord(
                f"column {column!r}: expected the last message of a prompt from the user, found "
                f"{role!r}"
            )
        return messages
    text = _text(value, f"prompt (column {column!r})", "text or a list of messages")
    if layout.input:
        extra = _get(fields, layout.input)
        if extra is not None and not isinstance(extra, str):
            raise BadRecord(f"column {layout.input!r}: expected text, found {_kind(extra)}")
        text = f"{text}\n\n{extra}" if extra and extra.strip() else text
    return [{"role": "user", "content": text}]


def _completion(fields: Mapping[str, Any], layout: Layout) -> list[Message]:
    column = str(layout.completion)
    value = _get(fields, column)
    if isinstance(value, list):
        messages = _messages(value, column)
        if [m["role"] for m in messages] != ["assistant"]:
            found = ", ".join(m["role"] for m in messages)
            raise BadRecord(f"column {column!r}: expected one assistant message, found {found}")
        return messages
    text = _text(value, f"completion (column {column!r})", "text or one assistant message")
    return [{"role": "assistant", "content": text}]


def _messages(value: object, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRecord(f"column {column!r}: expected a list of messages, found {_kind(value)}")
    if not value:
        raise BadRecord(f"column {column!r}: the list of messages is empty")
    return [_message(item, f"column {column!r}, message {i}") for i, item in enumerate(value, 1)]


def _message(item: object, where: str) -> Message:
    """One message, written as role/content or, ShareGPT's way, as from/value."""
    if not isinstance(item, Mapping):
        raise BadRecord(f"{where}: expected role and content, found {_kind(item)}")
    if item.get("tool_calls"):
        raise BadRecord(f"{where}: tool calls are not supported")
    if "role" in item:
        role, content = item["role"], item.get("content")
    else:
        role, content = item.get("from"), item.get("value")
        role = SHAREGPT_ROLES.get(str(role), role)
    if role not in MESSAGE_ROLES:
        known = ", ".join(MESSAGE_ROLES)
        raise BadRecord(f"{where}: expected a role of {known}, found {role!r}")
    if role == "system" and content == "":
        return {"role": "system", "content": ""}
    return {"role": str(role), "content": _text(content, f"{where} ({role})", "text")}


def _text(value: object, what: str, expected: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{what}: expected {expected}, found {_kind(value)}")
    if not value.strip():
        raise BadRecord(f"{what} is empty")
    return value


def _get(fields: Mapping[str, Any], column: str) -> Any:
    """Value of a column; a dot descends unless a column of that whole name exists."""
    if column in fields:
        return fields[column]
    value: Any = fields
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise BadRecord(f"expected a column {column!r}, found {', '.join(fields) or 'none'}")
        value = value[part]
    return value


def _kind(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _exists(column: str, found: Sequence[str]) -> bool:
    return any(name == column or name.startswith(f"{column}.") for name in found)


def _known(found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Known names among the top-level columns; among nested ones when no role is at the top."""
    at_top = not {*PROMPTS, *COMPLETIONS, *CONVERSATIONS}.isdisjoint(found)
    return [name for name in names if name in found] if at_top else _nested(found, names)


def _nested(found: Sequence[str], names: Sequence[str]) -> list[str]:
    return [column for column in found if column.split(".")[-1] in names]


def _listing(found: Sequence[str]) -> str:
    return f"Its first record has: {', '.join(found)}."


def _not_one(
    found: Sequence[str],
    label: str,
    prompts: Sequence[str],
    completions: Sequence[str],
    chats: Sequence[str],
) -> str:
    many = len(prompts) > 1 or len(completions) > 1 or bool(chats)
    what = "columns can be read in more than one way" if many else "columns are not recognised"
    prompt = [*prompts, *_nested(found, PROMPTS), "COLUMN"][0]
    lines = [
        f"data.columns.prompt={prompt} data.columns.completion={completion}"
        for completion in completions or _nested(found, COMPLETIONS) or ["COLUMN"]
    ]
    lines += [f"data.columns.messages={chat}" for chat in chats]
    options = "\n".join(f"  {line}" for line in lines)
    return f"{label}: its {what}. {_listing(found)}\nType the one that is meant:\n{options}"
