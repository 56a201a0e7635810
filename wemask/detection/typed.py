"""Values of JSON as dataclasses, checked by the annotations of these.

No pydantic: an exported model carries this file to where there may be none.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def typed(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`, which is Any, a plain type, list[...], dict[...], ... | None, a dataclass.

    Args:
        value: what JSON gives; the keys of an object become numbers where `kind` says so.
        kind: an annotation.
        where: it stands, for messages.

    Raises:
        ValueError: what must stand there, and what does.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and types.NoneType in inner):
        return value
    if origin in (Union, types.UnionType):
        return typed(value, inner[0], where)
    if dataclasses.is_dataclass(kind):
        return _made(value, kind, where)
    if origin is list:
        values = must(isinstance(value, list), where, "a list", value)
        return [typed(v, inner[0], f"{where}[{i}]") for i, v in enumerate(values)]
    if origin is dict:
        values = must(isinstance(value, dict), where, "an object", value)
        return {inner[0](k): typed(v, inner[1], f"{where}.{k}") for k, v in values.items()}
    good = type(value) is kind or (kind is float and type(value) is int)
    return must(good, where, WORDS.get(kind, str(kind)), value)


def must(good: bool, where: str, sought: str, value: Any) -> Any:
    """The value, where it is good; else ValueError: where it stands, and what was sought."""
    if not good:
        raise ValueError(f"{where} must be {sought}, got {value!r:.80}.")
    return value


def _made(value: Any, kind: Any, where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    must(isinstance(value, Mapping), where, "an object", value)
    if unknown := [name for name in value if name not in fields]:
        raise ValueError(f"{where} must not have {', '.join(map(str, unknown))}.")
    if missing := [f.name for f in fields.values() if _needed(f) and f.name not in value]:
        raise ValueError(f"{where} must have {', '.join(missing)}.")
    hints = _hints(kind)
    return kind(**{name: typed(v, hints[name], f"{where}.{name}") for name, v in value.items()})


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


_hints = functools.cache(get_type_hints)
