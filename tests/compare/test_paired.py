"""Statistics against published examples and second implementations; invariants and bad input.

Error rates, coverage and power are in test_paired_rates.py, clusters and seeds in
test_paired_units.py.
"""

import math
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paired_tables import table
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from wemask.compare.paired import compare_paired, holm, mean_interval
from wemask.errors import ConfigError, DataError

# Published worked examples


def test_mcnemar_and_tango_on_the_airway_example() -> None:
    # Fagerland, Lydersen & Laake, Stat Med 2014: airway hyper-responsiveness, n = 21,
    # 1 and 7 discordant: exact McNemar p = 0.0703, Tango's interval (-0.517, -0.026).
    result = compare_paired(*table(1, 7, 21))
    assert result.p_value == pytest.approx(18 / 256)
    assert (result.low, result.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert result.delta == pytest.approx(-6 / 21)
    assert (result.a_only, result.b_only, result.odds_ratio) == (1, 7, pytest.approx(1 / 7))
    assert (result.test, result.interval) == ("exact McNemar", "Tango score")


def test_paired_t_on_students_sleep_data() -> None:
    # Student 1908, extra hours of sleep: t = -4.0621, p = 0.002833, interval (-2.460, -0.700).
    a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    result = compare_paired(a, b)
    assert result.p_value == pytest.approx(0.002833, abs=1e-6)
    assert (result.low, result.high) == pytest.approx((-2.4598858, -0.7001142))
    assert result.effect_size == pytest.approx(-4.0621 / math.sqrt(10), abs=1e-5)
    assert (result.delta, result.test, result.interval) == (pytest.approx(-1.58), "paired t", "t")


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_on_newcombes_examples(right: int, n: int, low: float, high: float) -> None:
    # Newcombe, Stat Med 1998, 17:857, table I, method 3.
    interval = mean_interval([1] * right + [0] * (n - right))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
    assert (interval.mean, interval.n, interval.method) == (right / n, n, "Wilson score")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# Second implementations


counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60)).map(
    lambda t: (t[0], t[1], t[0] + t[1] + t[2])
)


@given(counts)
def test_mcnemar_matches_statsmodels(case: tuple[int, int, int]) -> None:
    a_only, b_only, n = case
    ours = compare_paired(*table(*case), resamples=100).p_value
    theirs: Any = mcnemar([[n - a_only - b_only, a_only], [b_only, 0]], exact=True)
    assert ours == pytest.approx(min(theirs.pvalue, 1.0))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=40))
def test_paired_t_matches_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's own, on equal differences
        theirs: Any = stats.ttest_rel(a, b)
    result = compare_paired(a, b, resamples=100)
    if result.test != "paired t" or (a - b).std() < 1e-6:
        return
    interval = theirs.confidence_interval()
    assert result.p_value == pytest.approx(float(theirs.pvalue), rel=1e-6, abs=1e-12)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high))
    assert result.delta == pytest.approx(a.mean() - b.mean(), abs=1e-12)


@settings(max_examples=12)  # statsmodels collects garbage in every call: 0.2 s
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_the_step_down_of_its_definition(p_values: list[float]) -> None:
    ranked, largest = sorted(enumerate(p_values), key=lambda pair: pair[1]), 0.0
    expected = [0.0] * len(p_values)
    for rank, (i, p) in enumerate(ranked):
        largest = max(largest, p * (len(p_values) - rank))
        expected[i] = min(largest, 1.0)
    assert holm(p_values) == expected


@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_matches_statsmodels(right: int, wrong: int, confidence: float) -> None:
    ours = mean_interval([True] * right + [False] * wrong, confidence=confidence)
    theirs = proportion_confint(right, right + wrong, alpha=1 - confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=1e-9)


# Invariants


scores = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(scores)
def test_swapping_the_arms_negates(pairs: list[tuple[bool, bool]]) -> None:
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    one, other = compare_paired(a, b, resamples=200), compare_paired(b, a, resamples=200)
    assert one.delta == -other.delta
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)
    assert one.p_value == other.p_value
    assert one.minimum_detectable == other.minimum_detectable
    assert (one.a_only, one.b_only) == (other.b_only, other.a_only)
    if one.odds_ratio is not None:
        assert other.odds_ratio == pytest.approx(1 / one.odds_ratio)


@given(scores)
def test_results_are_finite_ordered_and_in_range(pairs: list[tuple[bool, bool]]) -> None:
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    result = compare_paired(a, b, resamples=200)
    assert -1 <= result.low <= result.delta <= result.high <= 1
    assert result.high > result.low  # never a false certainty
    assert 0 < result.p_value <= 1
    for value in (result.odds_ratio, result.effect_size, result.minimum_detectable):
        assert value is None or math.isfinite(value)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.integers(0, 5))
def test_real_results_are_finite_and_ordered(values: list[float], seed: int) -> None:
    a = np.array(values)
    b = a + np.random.default_rng(seed).normal(size=len(a))
    result = compare_paired(a, b, resamples=100)
    interval = mean_interval(a, resamples=100)
    assert result.low <= result.delta <= result.high
    assert interval.low <= interval.mean <= interval.high
    numbers = (result.low, result.high, result.p_value, interval.low, interval.high)
    assert all(math.isfinite(value) for value in numbers)


def test_the_order_of_items_does_not_matter_to_the_exact_parts() -> None:
    a, b = table(9, 30, 200)
    order = np.random.default_rng(0).permutation(200)
    one, other = compare_paired(a, b), compare_paired(a[order], b[order])
    assert (one.p_value, one.minimum_detectable) == (other.p_value, other.minimum_detectable)
    assert one.low == pytest.approx(other.low, abs=0.01)


def test_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(250), rng.random(250)
    assert compare_paired(a, b, seed=1) == compare_paired(a, b, seed=1)
    assert compare_paired(a, b, seed=1) != compare_paired(a, b, seed=2)
    wide, narrow = compare_paired(a, b, confidence=0.99), compare_paired(a, b, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_gsm8k_takes_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(1319) < 0.5, rng.random(1319) < 0.6
    compare_paired(a[:30], b[:30])  # imports and caches
    start = time.process_time()
    result = compare_paired(a, b)
    assert time.process_time() - start < 1.0
    assert result.interval == "BCa bootstrap"
    assert result.n == 1319


# Kinds of input


def test_lists_arrays_tensors_and_iterators_are_one() -> None:
    a, b = [1, 0, 1, 1], [0, 0, 1, 0]
    expected = compare_paired(a, b)
    for left, right in [
        (np.array(a, bool), np.array(b, np.int8)),
        (torch.tensor(a), torch.tensor(b, dtype=torch.bool)),
        (torch.tensor(a, dtype=torch.bfloat16), torch.tensor(b, dtype=torch.float32)),
        (torch.tensor(a, dtype=torch.float32, requires_grad=True), b),
        ((float(x) for x in a), tuple(b)),
        ([np.bool_(x) for x in a], [bool(x) for x in b]),
    ]:
        assert compare_paired(left, right) == expected


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "no items"),
        (np.zeros((3, 2)), r"shape \[3, 2\]"),
        (torch.zeros(2, 2), r"shape \[2, 2\]"),
        (3.0, r"shape \[\]"),
        ("101", "found str"),
        (["a", "b"], "type <U1"),
        ([1, None, 0], "item 1 is None"),
        ([1.0, float("nan"), 0.5], "Item 1 of a is nan"),
        ([1.0, 0.0, float("inf")], "Item 2 of a is inf"),
        ([1.0, 1e200], "Item 1 of a is 1e\\+200"),
        ([[1], [1, 2]], "one number per item"),
        ([1 + 2j, 1j], "complex"),
        ({"x": 1}, "found dict"),
    ],
)
def test_input_without_an_answer_is_an_error(bad: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        compare_paired(bad, [1, 0, 1])
    with pytest.raises(DataError):
        mean_interval(bad)


def test_unequal_lengths_are_an_error() -> None:
    with pytest.raises(DataError, match="a has 3 scores, b has 2"):
        compare_paired([1, 0, 1], [1, 0])


def test_one_item() -> None:
    right = compare_paired([1], [0])
    assert (right.delta, right.p_value, right.n, right.minimum_detectable) == (1, 1, 1, None)
    assert right.low < 0 < right.high == 1
    assert mean_interval([True]).low == pytest.approx(0.2065, abs=1e-4)  # 1 / (1 + z**2)
    for call in (lambda: compare_paired([0.5], [0.25]), lambda: mean_interval([0.5])):
        with pytest.raises(DataError, match="at least 2 items"):
            call()


@pytest.mark.parametrize("value", [0, 1])
def test_two_arms_that_agree_everywhere_are_not_certain_to_be_equal(value: int) -> None:
    result = compare_paired([value] * 30, [value] * 30)
    z2 = 1.959964**2
    assert (result.low, result.high) == pytest.approx((-z2 / (30 + z2), z2 / (30 + z2)))
    assert (result.delta, result.p_value, result.mean_a) == (0, 1, value)
    assert (result.odds_ratio, result.effect_size) == (None, None)
    assert result.minimum_detectable == pytest.approx(0.2507, abs=1e-3)


def test_an_arm_that_wins_everywhere() -> None:
    result = compare_paired([1] * 40, [0] * 40)
    assert (result.delta, result.high) == (1, 1)
    assert 0.8 < result.low < 1
    assert result.odds_ratio == 81  # (40 + 0.5) / (0 + 0.5)
    assert result.effect_size is None
    assert result.p_value == pytest.approx(2.0**-39)


def test_equal_real_differences() -> None:
    same = compare_paired([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (same.delta, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    shifted = compare_paired([0.1, 0.2, 0.3], [0.0, 0.1, 0.2])  # equal but for rounding
    assert shifted.delta == pytest.approx(0.1)
    assert shifted.low == pytest.approx(shifted.high)
    assert shifted.p_value == 0.25  # all signs agree: 2 of 8 sign flips are as extreme
    for result in (same, shifted):
        assert result.interval == "none: all values are equal"
        assert result.test == "exact sign-flip permutation"
        assert (result.effect_size, result.odds_ratio) == (None, None)
    flat = mean_interval([0.5, 0.5, 0.5])
    assert (flat.low, flat.high, flat.method) == (0.5, 0.5, "none: all values are equal")


@pytest.mark.parametrize("bad", [[-0.1, 0.5], [0.5, 1.1], [0.1, float("nan")], ["x"]])
def test_holm_refuses_what_is_no_p_value(bad: list[float]) -> None:
    with pytest.raises(DataError):
        holm(bad)


@pytest.mark.parametrize("bad", [{"confidence": 1.0}, {"confidence": 95}, {"resamples": 10}])
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Try"):
        compare_paired([1, 0], [0, 1], **bad)
    with pytest.raises(ConfigError, match="Try"):
        mean_interval([1, 0], **bad)
