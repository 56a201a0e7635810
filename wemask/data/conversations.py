"""One record -> one example: a conversation whose last message is the assistant's, or a text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wemask.data.layouts import FLAGS, Layout, value_of
from wemask.data.messages import (
    BadRecord,
    LeftOut,
    Message,
    Notes,
    is_trained,
    kind_of,
    read_json,
    read_messages,
    read_tools,
    says,
    text_of,
)


@dataclass(kw_only=True)
class Conversation:
    """What a record becomes."""

    messages: list[Message] = field(default_factory=list)
    """The last one is trained; earlier ones of the assistant, too, unless `train` is False."""
    text: str | None = None  # in place of messages: plain text
    tools: list[Any] | None = None
    notes: Notes = field(default_factory=set)
    """What is read in another way than it is written, for the log."""

    @property
    def several(self) -> bool:
        """Whether several turns are trained: then it has no one completion."""
        return sum(map(is_trained, self.messages)) > 1


def convert(
    fields: Mapping[str, Any],
    layout: Layout,
    *,
    system: str | None = None,
    last_turn_only: bool = False,
    roles: Mapping[str, str] | None = None,
) -> Conversation:
    """Turn one record into a conversation or a text.

    Args:
        fields: the record.
        layout: which columns hold what.
        system: put before conversations that have no system message.
        last_turn_only: train the last of the turns that may be trained.
        roles: names of roles, from `messages.check_roles`.

    Raises:
        BadRecord: a column is missing, empty, or of another type than text or messages.
        LeftOut: it says that it is not to be trained on.
    """
    made = Conversation()
    _obey(fields, layout, made.notes)
    if layout.text:
        made.text = text_of(_get(fields, layout.text), "text", "text", made.notes)
        return made
    if layout.messages:
        where = f"column {layout.messages!r}"
        found = read_messages(_get(fields, layout.messages), where, roles or {}, made.notes)
        messages = _from_user_to_answer(found, where, made.notes)
    else:
        messages = _pair(fields, layout, roles or {}, made.notes)
    if last_turn_only:
        messages = [*map(_untrained, messages[:-1]), messages[-1]]
    made.messages = _with_system(messages, fields, layout, system, made.notes)
    made.tools = read_tools(_get(fields, layout.tools, None), f"column {layout.tools!r}")
    return made


WORDS = ("true", "false", "yes", "no")


def _obey(fields: Mapping[str, Any], layout: Layout, notes: Notes) -> None:
    """Leave a record out that says so: `train: false`, `weight: 0`, KTO's `label: false`."""
    main = layout.prompt or layout.messages or layout.text or ""
    inside = _get(fields, main.rpartition(".")[0] or None, {})  # flags beside nested columns
    for column, value in {**fields, **inside}.items():
        name = str(column).lower()
        if name not in FLAGS or value is None or column in layout.columns:
            continue
        answer = says(value)
        word = isinstance(value, bool) or str(value).strip().lower() in WORDS
        if name in ("label", "loss") and not word:
            answer = None  # 0 and 1 may be classes of anything, and a loss a measured one
        if answer is False:
            raise LeftOut(f"{name}: {str(value).lower()}")
        if answer is None:
            notes.add(f"column {name!r} is neither yes nor no, and not used")


def _from_user_to_answer(found: list[Message], where: str, notes: Notes) -> list[Message]:
    """Without a greeting before the first question, and without what no answer follows."""
    first = next((i for i, m in enumerate(found) if m["role"] == "user"), None)
    if not any(m["role"] == "assistant" for m in found):
        roles = ", ".join(dict.fromkeys(m["role"] for m in found))
        raise BadRecord(f"{where}: expected a message of the assistant, found {roles}")
    if first is None or not any(m["role"] == "assistant" for m in found[first:]):
        raise BadRecord(f"{where}: expected a user message before the assistant's, found none")
    greeting = [m for m in found[:first] if m["role"] == "assistant"]
    kept = [m for m in found[:first] if m["role"] != "assistant"] + found[first:]
    if greeting:
        notes.add("conversations begin with the assistant, whose first turn is left out")
    last = max((i for i, m in enumerate(kept) if is_trained(m)), default=None)
    if last is None:
        if not any(m["role"] == "assistant" and m["content"].strip() for m in kept):
            raise BadRecord(f"{where}: every turn of the assistant is empty")
        raise LeftOut("no turn to train")
    if len(kept) > last + 1:
        notes.add("conversations go on after the last turn to train: the rest is left out")
    return kept[: last + 1]


def _pair(
    fields: Mapping[str, Any], layout: Layout, roles: Mapping[str, str], notes: Notes
) -> list[Message]:
    """Prompt and completion; of a prompt nothing is trained, answers in it included."""
    prompt = _history(fields, layout, roles, notes) + _prompt(fields, layout, roles, notes)
    answer = _completion(fields, layout, roles, notes)
    if not any(m["role"] == "user" for m in prompt):
        raise BadRecord("expected a user message before the assistant's, found none")
    thought = _optional_text(fields, layout.reasoning, notes)
    if thought and answer.setdefault("reasoning_content", thought) != thought:
        own = "where the answer has thoughts of its own"
        notes.add(f"column {layout.reasoning!r} is not used {own}")
    return [*map(_untrained, prompt), answer]


def _untrained(message: Message) -> Message:
    return {**message, "train": False} if message["role"] == "assistant" else message


def _prompt(
    fields: Mapping[str, Any], layout: Layout, roles: Mapping[str, str], notes: Notes
) -> list[Message]:
    column = str(layout.prompt)
    value = _get(fields, column)
    if isinstance(value, list):
        messages = read_messages(value, f"column {column!r}", roles, notes)
        if (role := messages[-1]["role"]) not in ("user", "tool"):
            raise BadRecord(
                f"column {column!r}: expected the last message of a prompt from the user, found "
                f"{role!r}"
            )
        if extra := _optional_text(fields, layout.input, notes):
            messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}\n\n{extra}"}
        return messages
    text = text_of(value, f"prompt (column {column!r})", "text or a list of messages", notes)
    if extra := _optional_text(fields, layout.input, notes):
        text = f"{text}\n\n{extra}"
    return [{"role": "user", "content": text}]


def _completion(
    fields: Mapping[str, Any], layout: Layout, roles: Mapping[str, str], notes: Notes
) -> Message:
    column = str(layout.completion)
    value = _get(fields, column)
    if not isinstance(value, list):
        what = f"completion (column {column!r})"
        text = text_of(value, what, "text or one assistant message", notes)
        return {"role": "assistant", "content": text}
    messages = read_messages(value, f"column {column!r}", roles, notes)
    if [m["role"] for m in messages] != ["assistant"]:
        found = ", ".join(m["role"] for m in messages)
        raise BadRecord(f"column {column!r}: expected one assistant message, found {found}")
    if is_trained(messages[0]):
        return messages[0]
    if messages[0]["content"].strip():
        raise LeftOut("no turn to train")
    raise BadRecord(f"column {column!r}, message 1 (assistant) is empty")


def _history(
    fields: Mapping[str, Any], layout: Layout, roles: Mapping[str, str], notes: Notes
) -> list[Message]:
    """What was said before: a list of [question, answer], or of messages."""
    where, value = f"column {layout.history!r}", _get(fields, layout.history, None)
    if isinstance(value, str) and value.strip():
        value = read_json(value, where)
    if not value:
        return []
    if not isinstance(value, list):
        raise BadRecord(f"{where}: expected a list of [question, answer], found {kind_of(value)}")
    if isinstance(value[0], Mapping):
        return read_messages(value, where, roles, notes)
    messages: list[Message] = []
    for i, pair in enumerate(value, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            what = f"{where}, turn {i}"
            raise BadRecord(f"{what}: expected [question, answer], found {kind_of(pair)}")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            content = text_of(text, f"{where}, turn {i}", "text", notes)
            messages.append({"role": role, "content": content})
    return messages


def _with_system(
    messages: list[Message],
    fields: Mapping[str, Any],
    layout: Layout,
    system: str | None,
    notes: Notes,
) -> list[Message]:
    """Begin with the conversation's own system message, else its column's, else the setting's."""
    column = _optional_text(fields, layout.system, notes)
    if messages[0]["role"] == "system":
        if column and column != messages[0]["content"]:
            notes.add(f"column {layout.system!r} is not used where messages begin with their own")
        return messages
    content = column or system
    return messages if content is None else [{"role": "system", "content": content}, *messages]


def _optional_text(fields: Mapping[str, Any], column: str | None, notes: Notes) -> str | None:
    """The text of a column that a record may lack or leave empty."""
    value = _get(fields, column, None)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text_of(value, f"column {column!r}", "text", notes)


_NEEDED = object()


def _get(fields: Mapping[str, Any], column: str | None, default: Any = _NEEDED) -> Any:
    """Value of a column, or the default where a record may lack it."""
    try:
        return default if column is None else value_of(fields, column)
    except KeyError:
        if default is not _NEEDED:
            return default
        found = ", ".join(name for name in fields if name not in FLAGS) or "none"
        raise BadRecord(f"expected a column {column!r}, found {found}") from None
