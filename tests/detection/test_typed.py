"""Values of JSON by annotations: what was written comes back, anything else is a ValueError."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wemask.detection.typed import typed


@dataclasses.dataclass(kw_only=True)
class Inner:
    number: int
    share: float | None = None


@dataclasses.dataclass(kw_only=True)
class Outer:
    name: str
    good: bool
    inner: list[Inner]
    by_layer: dict[int, float] = dataclasses.field(default_factory=dict)
    free: dict[str, Any] | None = None


inners = st.builds(Inner, number=st.integers(), share=st.none() | st.floats(allow_nan=False))
outers = st.builds(
    Outer,
    name=st.text(),
    good=st.booleans(),
    inner=st.lists(inners, max_size=3),
    by_layer=st.dictionaries(st.integers(), st.floats(allow_nan=False), max_size=3),
    free=st.none() | st.dictionaries(st.text(), st.integers(), max_size=3),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(outers)
def test_what_was_written_comes_back(outer):
    assert typed(json.loads(json.dumps(dataclasses.asdict(outer))), Outer, "it") == outer


@given(outer=outers, key=st.sampled_from(["name", "good", "inner", "by_layer", "x"]), value=values)
def test_anything_else_is_a_value_error_that_says_where(outer, key, value):
    changed = {**json.loads(json.dumps(dataclasses.asdict(outer))), key: value}
    found = attempt(changed)
    assert isinstance(found, Outer) or found.startswith(("it", "invalid literal"))


def attempt(changed: Any) -> Outer | str:
    try:
        return typed(changed, Outer, "it")
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "it must be an object, got 3"),
        ({"number": 1, "x": 2}, "it must not have x"),
        ({}, "it must have number"),
        ({"number": True}, "it.number must be a whole number, got True"),
        ({"number": 1, "share": "1"}, "it.share must be a number, got '1'"),
    ],
)
def test_the_words(value, message):
    with pytest.raises(ValueError, match=message):
        typed(value, Inner, "it")
