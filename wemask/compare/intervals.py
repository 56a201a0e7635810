"""Confidence intervals of a mean: of paired differences, of right/wrong scores, of real scores."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wemask.compare.power import root
from wemask.errors import DataError

BOOTSTRAP_ITEMS = 200  # fewer real scores: t interval
BOOTSTRAP_NONZERO = 20  # fewer items that differ: Tango's or the t interval
EQUAL = 1e-12  # a smaller spread, relative to the largest score, is rounding
_BATCH = 4_000_000  # scores held at once while resampling, 32 MB


def binary_interval(
    differences: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> tuple[float, float, str]:
    """Return (low, high, method) of the mean of differences in {-1, 0, 1}."""
    n = len(differences)
    a_only, b_only = int((differences > 0).sum()), int((differences < 0).sum())
    if a_only + b_only >= BOOTSTRAP_NONZERO and max(a_only, b_only) < n:
        return *bca(differences, confidence, resamples, seed), "BCa bootstrap"
    return *tango(a_only, b_only, n, confidence), "Tango score"


def real_interval(
    x: NDArray[np.float64], scale: float, confidence: float, resamples: int, seed: int
) -> tuple[float, float, str]:
    """Return (low, high, method) of the mean of real scores or of differences."""
    n, mean = len(x), float(x.mean())
    if n == 1:
        raise DataError(
            "One real score has no spread, so no interval and no test: give at least 2 items, or "
            "score right/wrong as 0 and 1."
        )
    deviation = float(x.std(ddof=1))
    if deviation <= EQUAL * scale:
        return mean, mean, "none: all values are equal"
    if n >= BOOTSTRAP_ITEMS and np.count_nonzero(x != stats.mode(x).mode) >= BOOTSTRAP_NONZERO:
        return *bca(x, confidence, resamples, seed), "BCa bootstrap"
    margin = float(stats.t.isf((1 - confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - margin, mean + margin, "t"


def bca(
    x: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """BCa bootstrap interval of the mean (Efron 1987); `x` has at least two distinct values."""
    interval = stats.bootstrap(
        (x,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH // len(x)),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def tango(a_only: int, b_only: int, n: int, confidence: float) -> tuple[float, float]:
    """Tango's score interval for a difference of paired proportions (Stat Med 1998, 17:891).

    The values of delta that the score test does not reject. Defined for every table, n = 1 and no
    discordant item included.
    """
    z = float(stats.norm.isf((1 - confidence) / 2))

    def error(delta: float) -> float:
        """Return the standard error of a_only - b_only if the difference were delta."""
        middle = (2 * n - a_only + b_only) * delta - a_only - b_only
        inside = middle**2 + 8 * n * b_only * delta * (1 - delta)
        rate = (math.sqrt(max(inside, 0.0)) - middle) / (4 * n)  # of b-only items, at most likely
        return math.sqrt(max(n * (2 * rate + delta * (1 - delta)), 0.0))

    observed = (a_only - b_only) / n

    def side(sign: int) -> Callable[[float], float]:
        return lambda delta: n * (observed - delta) - sign * z * error(delta)

    # Beside `observed`, not at it: there the error is 0 when no or every item is discordant.
    low = root(side(1), -1.0, observed - 1e-9) if observed > -1 else -1.0
    return low, root(side(-1), observed + 1e-9, 1.0) if observed < 1 else 1.0
