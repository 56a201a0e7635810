"""What the statistics promise in the long run: power, false positives, coverage."""

from typing import Any

import numpy as np
import pytest
from paired_tables import table
from scipy import stats

from wemask.compare.paired import compare_paired
from wemask.compare.power import mcnemar_power

# The minimum detectable difference


@pytest.mark.parametrize("case", [(8, 5, 100), (150, 120, 1319), (0, 0, 50), (30, 30, 60)])
def test_the_detectable_difference_has_80_percent_power(case: tuple[int, int, int]) -> None:
    a_only, b_only, n = case
    delta = compare_paired(*table(*case), resamples=100).minimum_detectable
    assert delta is not None
    rate = max((a_only + b_only) / n, delta)
    assert mcnemar_power(n, (rate + delta) / 2, (rate - delta) / 2) == pytest.approx(0.8, abs=1e-6)


def test_a_planted_effect_of_that_size_is_found_as_often_as_stated() -> None:
    delta = compare_paired(*table(20, 20, 200), resamples=100).minimum_detectable
    assert delta is not None
    rng = np.random.default_rng(0)
    rates = [(0.2 + delta) / 2, (0.2 - delta) / 2, 0.8]
    drawn = rng.multinomial(200, rates, size=4000)
    found = [float(stats.binomtest(int(b), int(b + c)).pvalue) <= 0.05 for b, c, _ in drawn]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)

    x = rng.normal(size=30)
    real = compare_paired(x, np.zeros(30)).minimum_detectable
    assert real is not None
    drawn = rng.normal(real, x.std(ddof=1), size=(4000, 30))
    tests: Any = stats.ttest_1samp(drawn, 0, axis=1)
    assert np.mean(tests.pvalue <= 0.05) == pytest.approx(0.8, abs=0.02)


def test_what_cannot_be_seen_is_said() -> None:
    assert compare_paired([1] * 5, [0] * 5).minimum_detectable is None  # p is 0.0625 at best
    assert compare_paired([1] * 6, [0] * 6).minimum_detectable is not None
    assert compare_paired([0.5] * 9, [0.5] * 9).minimum_detectable is None
    few = compare_paired(*table(5, 5, 50), resamples=100).minimum_detectable
    many = compare_paired(*table(50, 50, 500), resamples=100).minimum_detectable
    assert few is not None
    assert many is not None
    assert many < few / 2


# Error rates, simulated


def coverage(kind: str, n: int, rounds: int, seed: int = 0) -> tuple[float, float]:
    """Return (coverage of 95% intervals, share of p <= 0.05 with no effect)."""
    rng = np.random.default_rng(seed)
    covered = rejected = 0
    for _ in range(rounds):
        if kind == "right/wrong":
            a = (rng.random(n) < 0.5).astype(float)
            b = np.where(rng.random(n) < 0.3, rng.random(n) < 0.5, a).astype(float)
        elif kind == "normal":
            a, b = rng.normal(size=n) + rng.normal(size=n), rng.normal(size=n)
        else:
            a, b = rng.exponential(size=n), rng.exponential(size=n)
        result = compare_paired(a, b, resamples=999, seed=seed)
        covered += result.low <= 0 <= result.high
        rejected += result.p_value <= 0.05
    return covered / rounds, rejected / rounds


@pytest.mark.parametrize(
    ("kind", "n"), [("right/wrong", 150), ("normal", 20), ("skewed", 80), ("skewed", 220)]
)
def test_coverage_and_false_positives(kind: str, n: int) -> None:
    covered, rejected = coverage(kind, n, rounds=250)
    assert 0.915 <= covered <= 0.985  # 2.5 standard errors of 250 rounds
    assert rejected <= 0.085


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n"),
    [("right/wrong", 100), ("right/wrong", 500), ("normal", 10), ("normal", 200), ("skewed", 200)],
)
def test_coverage_and_false_positives_over_2000_comparisons(kind: str, n: int) -> None:
    covered, rejected = coverage(kind, n, rounds=2000)
    assert 0.94 <= covered <= 0.965
    # Exact McNemar is conservative: below 5%, by its discreteness.
    assert (0.025 if kind == "right/wrong" else 0.04) <= rejected <= 0.06
