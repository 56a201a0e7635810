"""What a test could have seen: its power, and the smallest difference it finds with 80% power."""

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

POWER = 0.8  # of the minimum detectable difference


@functools.lru_cache(maxsize=4)
def _critical_counts(n: int, alpha: float) -> NDArray[np.float64]:
    """Return, for 0..n discordant items, the largest count of one kind that rejects; -1: none."""
    totals = np.arange(n + 1)
    counts = np.asarray(stats.binom.ppf(alpha / 2, totals, 0.5), dtype=float)
    # ppf is the first count whose tail reaches alpha / 2: one too many unless it is exact.
    return np.where(stats.binom.cdf(counts, totals, 0.5) > alpha / 2, counts - 1, counts)


def mcnemar_power(n: int, a_only: float, b_only: float, *, alpha: float = 0.05) -> float:
    """Return the power of the exact McNemar test for `n` items and these discordance rates.

    Unconditional: the number of discordant items is binomial(n, a_only + b_only).
    """
    rate = min(a_only + b_only, 1.0)
    if rate == 0:
        return 0.0
    totals, critical = np.arange(n + 1), _critical_counts(n, alpha)
    weight = stats.binom.pmf(totals, n, rate)
    likely = (weight > 1e-12) & (critical >= 0)
    total, limit = totals[likely], critical[likely]
    share = min(a_only / rate, 1.0)
    rejects = stats.binom.cdf(limit, total, share) + stats.binom.sf(total - limit - 1, total, share)
    return float(np.sum(weight[likely] * rejects))


def detectable_binary(n: int, discordance: float, alpha: float) -> float | None:
    """Smallest |delta| with 80% power at this discordance, or at |delta| itself if that is more."""

    def shortfall(delta: float) -> float:
        rate = max(discordance, delta)
        return POWER - mcnemar_power(n, (rate + delta) / 2, (rate - delta) / 2, alpha=alpha)

    return None if shortfall(1.0) > 0 else root(shortfall, 0.0, 1.0)


@functools.lru_cache(maxsize=4)
def _t_bounds(n: int, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what |mean| must exceed, in standard errors, at quantiles of the sampled deviation.

    With the quantiles' weights. scipy's noncentral t says NaN for thousands of items.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)  # on [-1, 1]
    deviation = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))  # sampled / true
    return stats.t.isf(alpha / 2, n - 1) * deviation, weights / 2


def t_power(n: int, shift: float, *, alpha: float = 0.05) -> float:
    """Return the power of the two-sided paired t test of `n` >= 2 items.

    `shift` is the true mean in its standard errors: Cohen's d_z times the root of `n`.
    """
    bounds, weights = _t_bounds(n, alpha)
    return float(weights @ (special.ndtr(shift - bounds) + special.ndtr(-bounds - shift)))


def detectable_real(
    differences: NDArray[np.float64], effect: float | None, alpha: float
) -> float | None:
    """Smallest |mean| with 80% power at the spread of these differences; None: there is none."""
    if effect is None:
        return None
    n = len(differences)
    beyond = 2 * float(stats.t.isf(alpha / 2, n - 1)) + 10  # power is above 80% for every n >= 2
    shift = root(lambda shift: POWER - t_power(n, shift, alpha=alpha), 0.0, beyond)
    return shift / math.sqrt(n) * float(differences.std(ddof=1))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a decreasing `function` crosses 0 in [low, high], or the end that is nearer."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    return optimize.root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-12).root
