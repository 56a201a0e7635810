"""What pydantic finds, in our words: key, what was sought, what was found, what to type."""

import re
from typing import Annotated, Literal

import pytest
from pydantic import Field

from wemask.checkpoint.export import sources
from wemask.data.schema import Count, Number, Text, settings
from wemask.errors import ConfigError


@settings("oven.{name}")
class Oven:
    name: Text
    racks: Count = 2
    heat: Annotated[Number, Field(gt=0, le=300)] = 200
    mode: Literal["fan", "grill"] = "fan"
    trays: dict[str, int] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode == "grill" and self.racks > 1:
            raise ConfigError("A grill has one rack. Type oven.racks=1.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"racks": True}, "oven.a.racks must be a whole number, got True."),
        ({"racks": 0}, "oven.a.racks must be at least 1, got 0."),
        ({"heat": float("nan")}, "oven.a.heat must be a finite number, got nan."),
        ({"heat": 301}, "oven.a.heat must be at most 300, got 301."),
        ({"name": 7}, "oven.7.name must be a text, got 7. A number needs quotes: oven.7.name='7'."),
        ({"name": " "}, "oven. .name must not be empty, got ' '."),
        ({"mode": "gril"}, "must be 'fan' or 'grill', got 'gril'. Did you mean 'grill'?"),
        ({"rakcs": 1}, "oven.a.rakcs does not exist. Did you mean 'racks'?"),
        ({"zzz": 1}, "oven.a.zzz does not exist. There are name, racks, heat, mode, trays."),
        ({"trays": {"low": "x"}}, "oven.a.trays.low must be a whole number, got 'x'."),
        ({"trays": {1: 1}}, "oven.a.trays[1] must be a text, got 1."),
        ({"mode": "grill"}, "A grill has one rack. Type oven.racks=1."),
    ],
)
def test_what_is_wrong_is_said_with_key_and_value(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Oven(**{"name": "a", **values})


def test_all_problems_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Oven(name="a", racks=0, heat=0, mode="x", rakcs=1)  # pyright: ignore
    assert len(str(caught.value).splitlines()) == 4


def test_a_whole_number_stays_one() -> None:
    assert repr(Oven(name="a", heat=180).heat) == "180"  # 180.0 would name another run folder


def test_an_exported_model_needs_no_pydantic() -> None:
    assert not [
        name for name, text in sources().items() if re.search(r"(import|from) pydantic", text)
    ]
