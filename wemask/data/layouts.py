"""Which columns hold the prompt, the completion and what belongs to them.

A layout is recognised only when exactly one column can be meant for each role: a dataset with
`question`, `answer` and `response` is ambiguous, and training on the wrong one is silent. The error
then lists the columns and the line to type. What no role takes is named in the log (`unused`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wemask.errors import ConfigError, DataError, nearest

ALIASES = {"question": "prompt", "answer": "completion"}

PROMPTS = ("prompt", "question", "instruction", "inputs", "problem", "query", "input")
COMPLETIONS = ("completion", "response", "answer", "output", "targets", "target", "solution")
CONVERSATIONS = ("messages", "conversations")
TEXT = ("text",)  # nothing else is recognised: plain text, for language modelling
INPUT = "input"  # beside `instruction`: what the instruction is applied to (Alpaca's layout)
CONTEXT = ("context",)  # what a question is about (Dolly's layout)
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that transformers reads
EXTRAS = {
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "reasoning": REASONING,
    "tools": ("tools",),
}

MAIN = ("prompt", "completion", "messages", "text")
ROLES = (*MAIN, "input", *EXTRAS)
BESIDE = {  # what may stand beside a role that makes up a record; text stands alone
    "messages": ("system", "tools"),
    "text": (),
    "completion": ("prompt", "input", *EXTRAS),
}

FLAGS = (
    "train",
    "training",
    "weight",
    "label",
    "loss",
)  # columns that say whether a record is trained on
# Columns that say where a record comes from, not what is to be learned from it.
IRRELEVANT = frozenset(
    "id ids idx index uuid guid hash row number category task task_name task_type ability source "
    "data_source source_dataset dataset dataset_name origin subset split fold language lang locale "
    "license url link date timestamp created created_at updated_at author annotator annotators "
    "model model_name generator version revision tags topic domain subject difficulty level".split()
)
LISTED = 12  # unused columns that the log names


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Role -> column, dotted where nested: `messages`, `text`, or `prompt` and `completion`."""

    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    input: str | None = None
    system: str | None = None
    history: str | None = None
    reasoning: str | None = None
    tools: str | None = None

    def __str__(self) -> str:
        named = ((role, getattr(self, role)) for role in ROLES)
        return ", ".join(f"{role}={column}" for role, column in named if column)

    @property
    def main(self) -> tuple[str | None, ...]:
        """The columns that every record must have."""
        return tuple(getattr(self, role) for role in MAIN)

    @property
    def columns(self) -> set[str]:
        """All columns that have a role."""
        return {column for role in ROLES if (column := getattr(self, role))}

    def top_level(self) -> set[str]:
        """The columns a reader must fetch, flags too; both readings of a dotted name."""
        return {*self.columns, *(column.split(".")[0] for column in self.columns), *FLAGS}


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
    for main in (role for role in ("text", "messages") if role in result):
        if others := [role for role in result if role not in (main, *BESIDE[main])]:
            wrong.append(f"data.columns: name {main}, or {' and '.join(others)}, not both.")
            break
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
    pairs = not given.keys() & {"messages", "text"}
    chats = _named(_tops(found), CONVERSATIONS) if not given.keys() & {*MAIN, "input"} else []
    prompts = [given["prompt"]] if "prompt" in given else _known(found, PROMPTS)
    if "instruction" in map(str.lower, prompts):
        prompts = [p for p in prompts if p.lower() != INPUT]
    completions = [given["completion"]] if "completion" in given else _known(found, COMPLETIONS)
    texts = [] if prompts or completions or chats else _named(found, TEXT)
    main: dict[str, str]
    if not pairs:
        main = {role: given[role] for role in ("messages", "text") if role in given}
    elif len(chats) == 1 and not (prompts and completions):
        main = {"messages": chats[0]}
    elif not chats and len(prompts) == 1 and len(completions) == 1:
        main = {"prompt": prompts[0], "completion": completions[0]}
    elif len(texts) == 1:
        main = {"text": texts[0]}
    else:
        raise DataError(_not_one(found, label, prompts, completions, chats))
    return Layout(**{**_extras(found, main), **given, **main})


def _extras(found: Sequence[str], main: Mapping[str, str]) -> dict[str, str]:
    """The columns beside the main ones, as they are usually called."""
    kind = next(role for role in BESIDE if role in main)
    inputs = CONTEXT
    if main.get("prompt", "").lower() == "instruction":
        inputs = (INPUT, *CONTEXT)
    names = {"input": inputs, **EXTRAS}
    beside = {role: _named(found, names[role]) for role in BESIDE[kind] if role in names}
    taken = set(main.values())
    left = {role: [c for c in columns if c not in taken] for role, columns in beside.items()}
    return {role: columns[0] for role, columns in left.items() if columns}


def unused(counts: Mapping[str, int], layout: Layout) -> dict[str, int]:
    """Columns that no role takes, and in how many records they hold something.

    Args:
        counts: all columns, nested ones dotted, with the number of records that fill them.
        layout: what takes some of them.
    """
    left: dict[str, int] = {}
    for name, count in counts.items():
        if any(name == column or name.startswith(f"{column}.") for column in layout.columns):
            continue
        top = name.split(".")[0]
        nested = any(column.startswith(f"{top}.") for column in layout.columns)
        shown = name if nested else top
        if count and shown.rpartition(".")[2].lower() not in FLAGS and not irrelevant(shown):
            left[shown] = max(left.get(shown, 0), count)
    return left


def irrelevant(name: str) -> bool:
    """Whether a column, or a key of a message, is known to teach nothing: id, source, ..."""
    last = name.split(".")[-1].lower()
    return last in IRRELEVANT or last.endswith(("_id", "_idx", "_index", "_uuid"))


def value_of(fields: Mapping[str, Any], column: str) -> Any:
    """Value of a column; a dot descends unless a column of that whole name exists.

    Raises:
        KeyError: there is none in this record.
    """
    if column in fields:
        return fields[column]
    value: Any = fields
    for part in column.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(column)
        value = value[part]
    return value


def _exists(column: str, found: Sequence[str]) -> bool:
    return any(name == column or name.startswith(f"{column}.") for name in found)


def _tops(found: Sequence[str]) -> list[str]:
    """Top-level columns: a conversation may be a mapping of lists."""
    return list(dict.fromkeys(name.split(".")[0] for name in found))


def _named(found: Sequence[str], names: Iterable[str]) -> list[str]:
    """The columns of these names, in capitals or not, in the order of the names."""
    return [column for name in names for column in found if column.lower() == name]


def _known(found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Known names among the top-level columns; among nested ones when no role is at the top."""
    at_top = _named(_tops(found), CONVERSATIONS) or _named(found, (*PROMPTS, *COMPLETIONS))
    return _named(found, names) if at_top else _nested(found, names)


def _nested(found: Sequence[str], names: Sequence[str]) -> list[str]:
    return [column for column in found if column.split(".")[-1].lower() in names]


def _listing(found: Sequence[str]) -> str:
    return f"Its records have: {', '.join(found)}."


def _not_one(
    found: Sequence[str],
    label: str,
    prompts: Sequence[str],
    completions: Sequence[str],
    chats: Sequence[str],
) -> str:
    many = len(prompts) > 1 or len(completions) > 1 or bool(chats)
    what = "columns can be read in more than one way" if many else "columns are not recognised"
    preferred = ["chosen"] if "chosen" in found else []
    prompt = [*prompts, *_nested(found, PROMPTS), "COLUMN"][0]
    lines = [
        f"data.columns.prompt={prompt} data.columns.completion={completion}"
        for completion in completions or _nested(found, COMPLETIONS) or preferred or ["COLUMN"]
    ]
    lines += [f"data.columns.messages={chat}" for chat in [*chats, *preferred]]
    options = "\n".join(f"  {line}" for line in lines)
    why = " Answers that were preferred to others (DPO) are not trained unasked." * bool(preferred)
    return f"{label}: its {what}.{why} {_listing(found)}\nType the one that is meant:\n{options}"
