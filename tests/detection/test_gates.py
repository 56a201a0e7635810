"""Thresholds between massive and ordinary tokens, on made-up numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wemask import Criterion
from wemask.detection.emergence import Births, find_births
from wemask.detection.gates import (
    States,
    doubts,
    gap_around,
    leading,
    make_gate,
    primary_split,
    primary_tokens,
    still_tells,
    widest_split,
)

LEVEL = 500.0


def states(values: list[float], primary: int, half: list[bool] | None = None) -> States:
    """The first `primary` values are primary; halves alternate unless they are given."""
    count = len(values)
    return States(
        values=torch.tensor(values),
        primary=torch.arange(count) < primary,
        half=torch.tensor(half) if half else torch.arange(count) % 2 == 0,
        level=LEVEL,
        floor=1.0,
    )


def test_the_threshold_is_the_geometric_middle():
    gate = make_gate(states([1000.0, 900, 2, 1], 2), [7, 3])
    assert gate.thresholds == gate.primary == pytest.approx(dict.fromkeys((7, 3), math.sqrt(1800)))
    assert gate.separation == gate.primary_separation == 450
    assert (gate.massive, gate.ordinary, gate.note) == (2, 2, "")


def test_weaker_massive_tokens_are_told_and_set_apart():
    """Qwen2.5-Coder: first tokens of 860 to 2,200, secondary ones of 100 to 350."""
    gate = make_gate(states([2181.0, 2100, 870, 860, 347, 340, 110, 100, 9, 9, 8, 8], 4), [62])
    assert gate.massive == 8 and gate.separation == pytest.approx(100 / 9)
    assert gate.thresholds[62] == pytest.approx(math.sqrt(900))
    assert gate.primary[62] == pytest.approx(math.sqrt(860 * 347))
    assert gate.primary_separation == pytest.approx(860 / 347)
    assert gate.of("primary") is gate.primary and gate.of("massive") is gate.thresholds


def test_primary_tokens_below_weaker_ones_cannot_be_told_alone():
    """Qwen2.5-Coder, layer 23: a first token of 133 beside a newline of 184."""
    gate = make_gate(states([852.0, 800, 133, 130, 184, 180, 20, 19], 4), [62])
    assert gate.primary == {} and gate.massive == 6 and gate.thresholds
    assert "only 0.71 times the largest" in gate.why_not("primary")
    assert gate.why_not("massive") == ""


def test_all_that_pass_the_criterion_are_massive_if_the_gap_below_is_comfortable():
    assert widest_split(states([9000.0, 600, 200], 1)).above == 2  # 600 passes; 15x would be wider
    assert (
        widest_split(states([9000.0, 600, 580, 400, 390], 1)).above == 1
    )  # Gemma 3: commas pass, no gap


def test_no_split_is_said():
    gate = make_gate(states([100.0, 95, 90, 86, 82], 2), [3])
    assert gate.thresholds == {} and gate.primary == {}
    assert gate.note.startswith("the smallest massive value is only 1.06 times the largest")
    assert gate.why_not("massive") == gate.why_not("primary") == gate.note


def test_a_split_that_the_other_texts_do_not_keep_is_not_trusted():
    """Each half splits well, but half of the texts has massive values where the other has none."""
    values, half = [130.0, 1000, 70, 100, 40, 60, 24, 33], [True, False] * 4
    mixed = states(values, 2, half)
    assert widest_split(mixed).ratio > 1.4
    gate = make_gate(mixed, [3])
    assert gate.thresholds == gate.primary == {}
    assert gate.note == "thresholds of half of the texts miss 1 massive tokens of the others"
    crowded = [1000.0, 1000, 20, 155, 18, 135, 16, 115, 15, 95, 14, 80, 13, 66, 12, 55, 11, 46]
    said = doubts(states(crowded, 2, [True, False] * 9), widest_split)
    assert said == "thresholds of half of the texts leave a gap of 1.15 in the others"


def test_one_text_has_no_halves():
    assert doubts(states([1000.0, 2, 1], 1, [True, True, True]), primary_split) == ""


def test_where_all_tokens_are_massive_the_threshold_stays_below():
    gate = make_gate(states([1000.0, 900, 800], 3), [3])
    assert gate.thresholds == {3: 400.0} and gate.separation is None and gate.ordinary == 0


def test_silence_gives_no_threshold_of_zero():
    assert primary_split(states([1000.0, 0, 0], 1)).threshold == pytest.approx(math.sqrt(1000))


def test_leading_dims():
    columns = torch.tensor([[900.0, 3, 700], [1000, 2, 100], [1, 9000, 1]])
    massive = torch.tensor([True, True, False])
    assert leading(columns, massive, LEVEL) == [0, 2]
    assert leading(columns, massive, 1e6) == [0]


def test_gap_around_one():
    assert gap_around(torch.tensor([0.5, 0.2, 3.0, 2.0])) == 4
    assert math.isinf(gap_around(torch.tensor([0.5]))) and math.isinf(
        gap_around(torch.tensor([2.0]))
    )


@given(
    massive=st.lists(st.floats(2000, 10000), min_size=2, max_size=9),
    ordinary=st.lists(st.floats(20, 60), min_size=2, max_size=40),
    scale=st.floats(1e-3, 1e3),
)
def test_a_clear_split_is_exact_at_any_scale(massive, ordinary, scale):
    values = torch.tensor([*massive, *ordinary]) * scale
    primary = torch.arange(len(values)) < len(massive)
    half = torch.arange(len(values)) % 2 == 0
    made = States(values=values, primary=primary, half=half, level=LEVEL * scale, floor=scale)
    gate = make_gate(made, [5])
    h = torch.zeros(len(values), 8)
    h[:, 5] = values
    assert torch.equal(gate.units(h) > 1, primary)
    assert torch.equal(gate.units(h, "primary") > 1, primary)


def test_a_primary_split_that_takes_weaker_tokens_of_other_texts_is_not_trusted():
    half = [True, False, True, False, False, False]
    said = doubts(states([1000.0, 900, 5, 300, 290, 280], 2, half), primary_split)
    assert said == "thresholds of half of the texts take 3 other tokens of the others"


def births(maxima: Tensor) -> Births:
    return find_births(maxima, torch.full((len(maxima),), 0.5), Criterion())


def primary(maxima: list[list[float]]) -> list[int]:
    """Primary tokens of paths [L + 1, N], by their number."""
    paths = torch.tensor(maxima)
    medians = torch.full((len(paths),), 0.5)
    return primary_tokens(paths, medians, births(paths), Criterion()).nonzero().flatten().tolist()


CROWD = [1300.0, 1000, 770, 590, 450, 340, 260, 200, 150, 110, 80, 60]  # without a gap


def test_ordinary_tokens_that_pass_the_criterion_at_first_are_left_behind():
    """Gemma 3: commas of 1,400 beside a first token of 2,984, which grows away from them."""
    start = [20.0] * 14
    paths = [start, [2984, 1400, *CROWD], [9000, 1500, *CROWD], [20000, 1500, *CROWD], start]
    assert primary(paths) == [0]


def test_tokens_that_grow_out_of_the_crowd_later_are_not_primary():
    """Quotes in Gemma 3: in the crowd up to layer 3, then far above it."""
    start = [20.0] * 14
    paths = [start, [3000, 1400, *CROWD], [6000, 1500, *CROWD], [40000, 12000, *CROWD]]
    assert primary([*paths, paths[-1], start]) == [0]


def test_a_layer_in_which_all_tokens_are_massive_decides_nothing():
    paths = [[1.0] * 4, [9000, 8000, 60, 50], [9000, 8000, 80, 70], [9e5, 8e5, 900, 800], [9.0] * 4]
    assert primary(paths) == [0, 1]


def test_weaker_relatives_are_primary_too():
    paths = [[1.0] * 5, [9000, 8000, 400, 5, 4], [9000, 8000, 400, 5, 4], [9.0] * 5]
    assert primary(paths) == [0, 1, 2]


@pytest.mark.parametrize(
    ("units", "tells"),
    [
        ([9.0, 0.1, 0.2], True),
        ([1.1, 0.95, 0.1], False),  # by a hair
        ([0.9, 0.1, 0.1], False),  # none is left
        ([9.0, 8.0, 7.0], False),  # all are taken
        ([float("nan")] * 3, False),
    ],
)
def test_a_gate_tells_while_there_is_a_gap_at_its_thresholds(
    units: list[float], tells: bool
) -> None:
    assert still_tells(torch.tensor(units)) == tells
