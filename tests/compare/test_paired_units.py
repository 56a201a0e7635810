"""Comparisons whose unit is not the single item: training seeds, and clusters of items."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wemask.compare.paired import compare_clustered, compare_paired, compare_seeds
from wemask.errors import DataError

# Over seeds


def test_seeds_on_students_sleep_data() -> None:
    """Student 1908: two drugs, ten patients; t = 4.0621, p = 0.002833 (R: t.test(paired=TRUE))."""
    drug1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    drug2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    result = compare_seeds(drug2, drug1)
    assert result.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (result.low, result.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert (result.test, result.interval) == ("paired t", "t")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=9))
def test_seeds_that_are_all_0_or_1_are_still_runs(pairs: list[tuple[bool, bool]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    result = compare_seeds(a, b)
    assert result.test != "exact McNemar" and result.odds_ratio is None
    if (a - b).std() > 0:
        theirs: Any = stats.ttest_rel(a, b)
        assert result.p_value == pytest.approx(float(theirs.pvalue))


def test_one_seed_says_nothing() -> None:
    with pytest.raises(DataError, match=r"One seed has no spread.* --multirun seed=0,1,2,3,4"):
        compare_seeds([0.5], [0.4])


def test_seeds_that_all_differ_by_the_same() -> None:
    result = compare_seeds([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert result.p_value == pytest.approx(0.25)  # 3 signs, two-sided
    assert compare_seeds([0.5, 0.6], [0.5, 0.6]).p_value == 1.0


# In clusters


def second_clustered(
    a: np.ndarray, b: np.ndarray, clusters: np.ndarray
) -> tuple[float, float, float, float]:
    """(standard error, low, high, p) by hand: the sum of squared cluster totals, CR1."""
    d = a - b
    names = np.unique(clusters)
    count = len(names)
    totals = [float((d - d.mean())[clusters == name].sum()) for name in names]
    error = math.sqrt(count / (count - 1) * sum(t * t for t in totals)) / len(d)
    margin = float(stats.t.isf(0.025, count - 1)) * error
    p = float(2 * stats.t.sf(abs(d.mean()) / error, count - 1))
    return error, d.mean() - margin, d.mean() + margin, p


@pytest.mark.parametrize("seed", range(5))
def test_clusters_match_a_second_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, 12, size=90)
    shared = rng.normal(size=12)[clusters]
    a, b = shared + rng.normal(size=90), rng.normal(size=90)
    result = compare_clustered(a, b, [f"subject {c}" for c in clusters])
    ours = (result.standard_error, result.low, result.high, result.p_value)
    assert ours == pytest.approx(second_clustered(a, b, clusters), rel=1e-9)
    assert (result.n, result.clusters) == (90, 12)
    assert result.design_effect > 1.5


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=30))
def test_clusters_of_one_item_are_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    if (a - b).std() < 1e-6:
        return
    clustered = compare_clustered(a, b, range(len(a)))
    paired = compare_seeds(a, b)
    assert clustered.p_value == pytest.approx(paired.p_value, rel=1e-6, abs=1e-12)
    assert (clustered.low, clustered.high) == pytest.approx((paired.low, paired.high))
    assert clustered.design_effect == pytest.approx(1)


def test_the_same_difference_everywhere() -> None:
    won = compare_clustered([1] * 12, [0] * 12, [0, 1, 2, 3] * 3)
    assert (won.delta, won.low, won.high, won.p_value) == (1, 1, 1, 0.125)  # 4 signs, two-sided
    equal = compare_clustered([1] * 12, [1] * 12, [0, 1, 2, 3] * 3)
    assert (equal.delta, equal.p_value, equal.design_effect) == (0, 1, 1)


@pytest.mark.parametrize(
    ("clusters", "says"),
    [([0, 1], "3 scores, 2 clusters"), ([0, 0, 0], "one cluster"), ([], "3 scores, 0 clusters")],
)
def test_clusters_that_have_no_answer(clusters: list[int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        compare_clustered([1, 0, 1], [0, 0, 1], clusters)


def rejections(rounds: int, seed: int = 0) -> tuple[float, float, float]:
    """No effect, items of a cluster alike: share of p <= 0.05, clustered and not; coverage."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(40), 8)
    clustered = naive = covered = 0
    for _ in range(rounds):
        d = rng.normal(size=40)[clusters] + rng.normal(size=320)
        result = compare_clustered(d, np.zeros(320), clusters)
        clustered += result.p_value <= 0.05
        covered += result.low <= 0 <= result.high
        naive += compare_paired(d, np.zeros(320), resamples=100).p_value <= 0.05
    return clustered / rounds, naive / rounds, covered / rounds


def test_clusters_keep_the_level_where_single_items_do_not() -> None:
    clustered, naive, covered = rejections(400)
    assert 0.02 <= clustered <= 0.085  # 2.5 standard errors of 400 rounds
    assert covered == pytest.approx(1 - clustered)
    assert naive > 0.3


@pytest.mark.slow
def test_clusters_keep_the_level_over_2000_comparisons() -> None:
    clustered, _, covered = rejections(2000)
    assert 0.04 <= clustered <= 0.06
    assert 0.94 <= covered <= 0.96
