"""Is one answer the same as another: the conventions that equivalence.py states, one by one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wemask.evaluate.scoring import symbolic
from wemask.evaluate.scoring.answers import is_correct
from wemask.evaluate.scoring.equivalence import MAX_LENGTH, equivalent, plain_number


@pytest.mark.parametrize(
    ("gold", "value", "same"),
    [
        ("1/2", "0.50", True),
        ("1/3", "0.333", False),
        ("1 1/2", r"\frac{3}{2}", True),
        ("7:00", "7", True),
        ("5 million", "5,000,000", True),
        ("50\\%", "50", True),
        ("50\\%", "0.5", False),
        ("5 cm", "5", True),
        ("5 cm", "5 m", False),
        (r"5 \text{ cm}^2", "5 cm", False),
        (r"5 \text{ cm}^2", r"5 \text{ cm}^3", False),
        ("5x", "5", False),
        (r"\text{(C)}", "C", True),
        ("x", "X", False),
        ("Evelyn", "evelyn", True),
        ("52_8", "52", True),
        ("52_8", "52_9", False),
        ("52_8", "42", False),
        ("1,-2", "-2,1", True),
        ("(1,-2)", "(-2,1)", False),
        ("-2,1", "(-2,1)", False),
        ("x+1", "1+x", True),
    ],
)
def test_the_conventions(gold: str, value: str, same: bool) -> None:
    assert equivalent(gold, value)[0] == same
    if "_" not in gold:  # a base may be left out on one side only
        assert equivalent(value, gold)[0] == same


def test_the_reported_answers() -> None:
    """[right, gold, response] of issues of other checkers and of our own attacks on this one."""
    rows = json.loads(Path(__file__).with_name("reported_answers.json").read_text("utf-8"))
    assert len(rows) > 200
    assert [row for row in rows if is_correct(row[2], row[1]) != row[0]] == []


UNITS = """
mm cm m km in ft yd mi mg g kg lbs oz mL L gal s ms min h days weeks months years km/h mph m/s m/s^2
ft/s kWh W kW MW J kJ N kN N·m V mV A mA Hz GHz Pa kPa cal kcal MB GB TB bytes mol °C °F degrees rad
dollars/hr cents € % cm² m^3 sq.ft in^3 kg/m^3 mg/L acres hectares cups
""".split()
WORDS = ["apples", "o'clock", "apples in total", "words a page", "people a room", "square units"]


@pytest.mark.parametrize("unit", UNITS + WORDS)
def test_a_unit_may_be_left_out_but_not_another_be_there(unit: str) -> None:
    for text in (f"12 {unit}", rf"12\text{{ {unit}}}", rf"12 \, \mathrm{{{unit}}}"):
        assert equivalent("12", text)[0], text
        assert not equivalent("13", text)[0]
    others = [other for other in UNITS if equivalent(f"12 {unit}", f"12 {other}")[0]]
    assert others == (UNITS if unit in WORDS else [unit])


def test_what_cannot_be_decided_says_why() -> None:
    assert equivalent("", "5") == (False, "empty answer")
    long = "9" * (MAX_LENGTH + 1)
    assert equivalent(long, long) == (True, f"longer than {MAX_LENGTH} characters")
    assert equivalent(r"\frac{x}{", "x") == (False, symbolic.NOT_MATHEMATICS)


numbers = st.fractions(max_denominator=1000).filter(lambda f: abs(f) < 10**9)


@given(numbers, numbers)
def test_plain_numbers_are_equal_exactly_when_they_are(a: object, b: object) -> None:
    assert equivalent(str(a), str(b))[0] == (a == b)
    assert equivalent(str(a), str(a))[0]


@given(st.integers(-(10**12), 10**12))
def test_integers_survive_every_spelling(n: int) -> None:
    for spelling in (f"{n:,}", f"{n}.0", f"{n}.", f"${n}$", f"{n}\\%", f"{n} apples", f"{n}/1",
        f"{n:_}".replace("_", " "), f"{n:_}".replace("_", "'"), f"about {n}", f"{n}, not {n + 1}",
        f"{n}".translate(str.maketrans("0123456789", "０１２３４５６７８９"))):  # fmt: skip
        assert plain_number(spelling) == n, spelling
