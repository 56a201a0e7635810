"""Power against second implementations; test_paired_rates.py simulates what it promises."""

import math

import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from wemask.compare.power import mcnemar_power, t_power


@pytest.mark.parametrize("n", [2, 3, 5, 20, 100])
@pytest.mark.parametrize("effect", [0.1, 0.3, 0.8])
def test_t_power_matches_statsmodels(n: int, effect: float) -> None:
    theirs = TTestPower().power(effect, n, 0.05, alternative="two-sided")
    assert t_power(n, effect * math.sqrt(n)) == pytest.approx(theirs, abs=2e-6)


@pytest.mark.parametrize("case", [(12, 0.4, 0.2), (12, 0.1, 0.1), (20, 0.5, 0.1), (6, 1.0, 0.0)])
def test_mcnemar_power_matches_the_sum_over_all_tables(case: tuple[int, float, float]) -> None:
    n, a_rate, b_rate = case
    rates = [a_rate, b_rate, 1 - a_rate - b_rate]
    expected = sum(
        stats.multinomial.pmf([b, c, n - b - c], n, rates)
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if b + c and stats.binomtest(b, b + c).pvalue <= 0.05
    )
    assert mcnemar_power(*case) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [10, 50, 200, 1319])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 1.0])
def test_exact_mcnemar_never_exceeds_its_level(n: int, rate: float) -> None:
    size = mcnemar_power(n, rate / 2, rate / 2)
    assert size <= 0.05 + 1e-9
    if n * rate >= 100:
        assert size >= 0.033  # conservative, and no more than its discreteness makes it
