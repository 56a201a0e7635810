"""Tango's and the bootstrap's intervals: second implementations, and how often they cover."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from wemask.compare import intervals
from wemask.compare.paired import compare_paired

counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 60)).map(
    lambda t: (t[0], t[1], t[0] + t[1] + t[2])
)


@given(counts)
def test_tangos_ends_are_where_the_score_test_stops_rejecting(case: tuple[int, int, int]) -> None:
    a_only, b_only, n = case
    low, high = intervals.tango(a_only, b_only, n, 0.95)

    def score(delta: float) -> float:
        def loss(b_rate: float) -> float:  # -log likelihood at P(b only), P(a only) = that + delta
            rates = [b_rate + delta, b_rate, 1 - 2 * b_rate - delta]
            terms = zip((a_only, b_only, n - a_only - b_only), rates, strict=True)
            return -sum(k * math.log(max(r, 1e-300)) for k, r in terms if k)

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        rate = optimize.minimize_scalar(
            loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        return (a_only - b_only - n * delta) / math.sqrt(n * (2 * rate + delta * (1 - delta)))

    assert score(low) == pytest.approx(1.959964, abs=2e-3)
    assert score(high) == pytest.approx(-1.959964, abs=2e-3)


@pytest.mark.parametrize(("n", "rate", "delta"), [(30, 0.2, 0.0), (30, 0.3, 0.1), (60, 0.1, 0.05)])
def test_tangos_interval_covers(n: int, rate: float, delta: float) -> None:
    rates = [(rate + delta) / 2, (rate - delta) / 2, 1 - rate]
    covered = total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            weight = float(stats.multinomial.pmf([b, c, n - b - c], n, rates))
            if weight > 1e-8:
                low, high = intervals.tango(b, c, n, 0.95)
                covered += weight * (low <= delta <= high)
                total += weight
    assert total == pytest.approx(1, abs=1e-4)
    assert 0.94 <= covered <= 0.985


def second_bca(x: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """BCa of the mean, with the jackknife's acceleration in closed form."""
    rng = np.random.default_rng(seed)
    means = x[rng.integers(0, len(x), (resamples, len(x)))].mean(axis=1)
    centred = x - x.mean()
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    below = ((means < x.mean()).mean() + (means <= x.mean()).mean()) / 2
    bias = stats.norm.ppf(below)
    shifted = bias + stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(means, stats.norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    return float(low), float(high)


@pytest.mark.parametrize("kind", ["right/wrong", "skewed"])
def test_bca_matches_a_second_implementation(kind: str) -> None:
    rng = np.random.default_rng(3)
    if kind == "right/wrong":
        a = (rng.random(300) < 0.6).astype(float)
        b = np.where(rng.random(300) < 0.3, 1 - a, a)
    else:
        a, b = rng.exponential(size=300), rng.exponential(size=300) ** 2
    result = compare_paired(a, b)
    low, high = second_bca(a - b, 20_000, seed=1)
    width = result.high - result.low
    assert result.interval == "BCa bootstrap"
    assert result.low == pytest.approx(low, abs=0.04 * width)  # Monte Carlo error of both
    assert result.high == pytest.approx(high, abs=0.04 * width)
