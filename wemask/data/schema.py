"""Types and ranges, checked by pydantic; what is wrong, told in our words.

`settings` makes the dataclasses that configs become; `problems` says which key, what was sought,
what was found, and what to type where that is known. Only for what runs with wemask installed: an
exported model (`checkpoint/remote.py`) comes without pydantic, so what goes along with it checks
its few values by hand.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields
from functools import reduce
from operator import getitem
from sys import maxsize
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, WrapValidator
from pydantic.dataclasses import dataclass

from wemask.errors import ConfigError, WemaskError, nearest

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
T = TypeVar("T")
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
OPEN = ConfigDict(strict=True, extra="allow")  # of a file of which only some keys are read
SOUGHT = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list such as [a, b]",
    "dict_type": "a mapping {{key: value}}",
    "string_pattern_mismatch": "like {pattern}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:.10g}",
}


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _as_given(value: Any, check: Callable[[Any], float]) -> Any:
    check(value)
    return value


Text = Annotated[str, AfterValidator(_filled)]
Count = Annotated[int, Field(ge=1, le=maxsize)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # NumPy takes no other
# 1 stays 1, for pydantic would make it 1.0: another digest, so another run folder
Number = Annotated[float, WrapValidator(_as_given)]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, Field))
def settings(section: str) -> Callable[[type[T]], type[T]]:
    """Make a class a frozen, keyword-only dataclass that checks its values as it is made.

    It raises ConfigError with every problem of the given values, together.

    Args:
        section: what its settings are called on the command line: `data`, `tasks.{name}`.
    """

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, kw_only=True, config=STRICT)(cls)
        checked, known = made.__init__, [f.name for f in fields(made)]

        def __init__(self: T, **values: Any) -> None:
            try:
                checked(self, **values)
            except ValidationError as error:
                found = problems(error, section.format_map(values), values, known)
                raise ConfigError("\n".join(found)) from error

        made.__init__ = __init__
        return made

    return decorate


def problems(error: ValidationError, root: str, given: Any, known: Sequence[str] = ()) -> list[str]:
    """One line for each thing that is wrong.

    Args:
        error: what pydantic says about `given`.
        root: what stands before every key: `launcher`, `results`.
        given: the value that was checked.
        known: keys that it may have and lacks.
    """
    found = error.errors(include_url=False)
    missing = [problem["loc"] for problem in found if problem["type"] == "missing"]
    lines = []
    for problem in found:
        way, key = problem["loc"][:-1], problem["loc"][-1:]
        if problem["type"] in UNKNOWN:
            there = [*known, *(loc[-1] for loc in missing if loc[:-1] == way)]
            beside = {*there, *reduce(getitem, way, given)} - {*key}
            hint = nearest(str(key[0]), beside) or (
                f" There are {', '.join(known)}." if known else ""
            )
            lines.append(f"{_place(root, problem['loc'])} does not exist.{hint}")
        else:
            lines.append(_wrong(_place(root, problem["loc"]), problem))
    return lines


def _place(root: str, way: Iterable[str | int]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in way)
    return (root + "".join(parts)).removeprefix(".").removesuffix(".[key]")


def _wrong(where: str, problem: Mapping[str, Any]) -> str:
    kind, got, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "missing":
        return f"{where} is missing."
    if kind == "value_error":
        said = context["error"]
        return str(said) if isinstance(said, WemaskError) else f"{where} {said}, got {got!r:.60}."
    sought = SOUGHT.get(kind, "").format(**context)
    sought = sought or problem["msg"].removeprefix("Input should be ")
    hint = nearest(str(got), re.findall(r"'(.+?)'", sought)) if kind == "literal_error" else ""
    if kind == "string_type" and type(got) in (int, float):
        hint = f" A number needs quotes: {where}='{got}'."
    return f"{where} must be {sought}, got {got!r:.60}.{hint}"
