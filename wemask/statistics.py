"""Paired comparisons of two arms on the same items: difference, interval, test, what could be seen.

Every function takes one score per item and is deterministic by its seed. Input that has no answer
(no items, NaN, unequal lengths, text, two dimensions) raises DataError; nothing returns NaN and
nothing warns. Right/wrong data are bool or 0/1 scores; everything else is a real score.

                            right/wrong                  real scores
  interval of the mean      BCa bootstrap, or Tango's    BCa bootstrap, or t
                            score below 20 discordant    below 200 items, or 20 that differ
  test                      exact McNemar                paired t
  effect size               odds ratio of discordant     Cohen's d_z
                            pairs, and d_z
  minimum detectable        exact power of that test     power of that test

Below the switches the bootstrap covers less than 94% of the time where 95% is asked for: 92% with
10 discordant items of 500, 93% with 50 skewed scores (t: 95%). tests/test_statistics_rates.py
simulates it.
An interval and a test are two methods: near p = 0.05 one may exclude 0 while the other does not.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from wemask.errors import ConfigError, DataError

POWER = 0.8  # of the minimum detectable difference
BOOTSTRAP_ITEMS = 200  # fewer real scores: t interval
BOOTSTRAP_NONZERO = 20  # fewer items that differ: Tango's or the t interval
_BATCH = 4_000_000  # scores held at once while resampling, 32 MB
_EQUAL = 1e-12  # a smaller spread, relative to the largest score, is rounding
_GAUSS = np.polynomial.legendre.leggauss(200)  # nodes and weights on [-1, 1]
_LARGEST = 1e100  # a larger score is a mistake, and its square would overflow

Scores = Sequence[float] | NDArray[Any] | Iterable[float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int  # items
    method: str  # how low and high were computed


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Arm a against arm b on the same n items. Differences are a - b, as in scipy.ttest_rel."""

    delta: float  # mean(a) - mean(b); positive: a is better where higher is better
    low: float  # interval of delta at `confidence`
    high: float
    p_value: float  # two-sided, of "no difference", by `test`
    n: int  # items
    mean_a: float
    mean_b: float
    a_only: int  # right/wrong: items that only a has right; real scores: items where a > b
    b_only: int  # the same for b
    # a_only / b_only for right/wrong data; 0.5 is added to both when one of them is 0 (Haldane).
    # None for real scores, and when no item differs: there is no ratio then.
    odds_ratio: float | None
    # Cohen's d_z, mean over standard deviation (n - 1) of the differences. None when all are equal.
    effect_size: float | None
    # The smallest |delta| that `test` finds with 80% power, given these n items and the observed
    # discordance (right/wrong) or spread (real). None: no difference could be found at all (five
    # right/wrong items or fewer, at 95%), or the observed spread is zero and says nothing.
    minimum_detectable: float | None
    test: str  # the test behind p_value
    interval: str  # the method behind low and high
    confidence: float


def compare_paired(
    a: Scores, b: Scores, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> PairedComparison:
    """Compare the scores of two arms, item by item.

    Args:
        a: one score per item, shape [n]: bool, 0/1 or real; a list, numpy array or torch tensor.
        b: scores of the other arm for the same items in the same order, shape [n].
        confidence: of the interval; 1 - confidence is the level behind `minimum_detectable`.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    When all differences are equal, right/wrong data still get Tango's interval, which has a width:
    two arms that agree on 30 items may differ by 0.11. Real scores get low == high == delta,
    because without a known range nothing bounds what was not seen, and `interval` says so; p is 1
    when the differences are 0, else that of the exact sign-flip test, 2 ** (1 - n).

    Raises DataError for n = 0, unequal lengths, NaN or infinity, anything but one number per item,
    and for a single real score, which has no spread; ConfigError for the settings.
    """
    _check_settings(confidence, resamples, seed)
    left, right = _scores(a, "a"), _scores(b, "b")
    if len(left) != len(right):
        raise DataError(
            f"Paired arms need the same items: a has {len(left)} scores, b has {len(right)}. "
            "Keep the items that both arms have, in the same order."
        )
    n, differences = len(left), left - right
    a_only, b_only = int((differences > 0).sum()), int((differences < 0).sum())
    scale = float(max(np.abs(left).max(), np.abs(right).max()))
    effect = _d_z(differences, scale)
    binary = _is_binary(left) and _is_binary(right)
    if binary:
        low, high, interval = _binary_interval(differences, confidence, resamples, seed)
        discordant = a_only + b_only
        p_value = float(stats.binomtest(a_only, discordant).pvalue) if discordant else 1.0
        test = "exact McNemar"
        detectable = _detectable_binary(n, discordant / n, 1 - confidence)
    else:
        low, high, interval = _real_interval(differences, scale, confidence, resamples, seed)
        p_value, test = _paired_t(differences, effect, scale)
        detectable = _detectable_real(differences, effect, 1 - confidence)
    delta = float(differences.mean())
    return PairedComparison(
        delta=delta,
        low=min(low, delta),
        high=max(high, delta),
        p_value=p_value,
        n=n,
        mean_a=float(left.mean()),
        mean_b=float(right.mean()),
        a_only=a_only,
        b_only=b_only,
        odds_ratio=_odds_ratio(a_only, b_only) if binary else None,
        effect_size=effect,
        minimum_detectable=detectable,
        test=test,
        interval=interval,
        confidence=confidence,
    )


def mean_interval(
    x: Scores, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """Return the mean of `x`, shape [n], with its interval: Wilson's for right/wrong data.

    Real scores: BCa bootstrap, or the t interval for fewer than 200; low == high when all are
    equal. Errors as in `compare_paired`.
    """
    _check_settings(confidence, resamples, seed)
    scores = _scores(x, "x")
    n, mean = len(scores), float(scores.mean())
    if _is_binary(scores):
        wilson = stats.binomtest(int(scores.sum()), n).proportion_ci(confidence, method="wilson")
        low, high, method = float(wilson.low), float(wilson.high), "Wilson score"
    else:
        scale = float(np.abs(scores).max())
        low, high, method = _real_interval(scores, scale, confidence, resamples, seed)
    return Interval(mean=mean, low=min(low, mean), high=max(high, mean), n=n, method=method)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given; [] for none.

    Rejecting where the adjusted value is <= alpha keeps the family-wise error at alpha under any
    dependence. Raises DataError for a value that is not in [0, 1].
    """
    if len(p_values) == 0:
        return []
    p = _scores(p_values, "p_values")
    if p.min() < 0 or p.max() > 1:
        raise DataError(f"p values lie in [0, 1], found {p.min():g} to {p.max():g}.")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1.0)[np.argsort(order)].tolist()


def mcnemar_power(n: int, a_only: float, b_only: float, *, alpha: float = 0.05) -> float:
    """Return the power of the exact McNemar test for `n` items and these discordance rates.

    Unconditional: the number of discordant items is binomial(n, a_only + b_only).
    """
    return _mcnemar_power(n, a_only, b_only, _critical_counts(n, alpha))


def t_power(n: int, effect: float, *, alpha: float = 0.05) -> float:
    """Return the power of the two-sided paired t test of `n` >= 2 items at Cohen's d_z `effect`."""
    return _t_power(abs(effect) * math.sqrt(n), *_t_bounds(n, alpha))


def _paired_t(
    differences: NDArray[np.float64], effect: float | None, scale: float
) -> tuple[float, str]:
    """Return (p, test); the t statistic is undefined when all differences are equal."""
    n = len(differences)
    if effect is not None:
        return float(2 * stats.t.sf(abs(effect) * math.sqrt(n), n - 1)), "paired t"
    all_zero = abs(float(differences.mean())) <= _EQUAL * scale
    return 1.0 if all_zero else 2.0 ** (1 - n), "exact sign-flip permutation"


def _odds_ratio(a_only: int, b_only: int) -> float | None:
    if a_only == b_only == 0:
        return None
    half = 0.5 * (min(a_only, b_only) == 0)
    return (a_only + half) / (b_only + half)


def _binary_interval(
    differences: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> tuple[float, float, str]:
    """Return (low, high, method) of the mean of differences in {-1, 0, 1}."""
    n = len(differences)
    a_only, b_only = int((differences > 0).sum()), int((differences < 0).sum())
    if a_only + b_only >= BOOTSTRAP_NONZERO and max(a_only, b_only) < n:
        return *_bca(differences, confidence, resamples, seed), "BCa bootstrap"
    return *_tango(a_only, b_only, n, confidence), "Tango score"


def _real_interval(
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
    if deviation <= _EQUAL * scale:
        return mean, mean, "none: all values are equal"
    if n >= BOOTSTRAP_ITEMS and np.count_nonzero(x != stats.mode(x).mode) >= BOOTSTRAP_NONZERO:
        return *_bca(x, confidence, resamples, seed), "BCa bootstrap"
    margin = float(stats.t.isf((1 - confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return mean - margin, mean + margin, "t"


def _bca(
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


def _tango(a_only: int, b_only: int, n: int, confidence: float) -> tuple[float, float]:
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

    def low_side(delta: float) -> float:
        return n * (observed - delta) - z * error(delta)

    def high_side(delta: float) -> float:
        return n * (observed - delta) + z * error(delta)

    # Beside `observed`, not at it: there the error is 0 when no or every item is discordant.
    low = _root(low_side, -1.0, observed - 1e-9) if observed > -1 else -1.0
    return low, _root(high_side, observed + 1e-9, 1.0) if observed < 1 else 1.0


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a decreasing `function` crosses 0 in [low, high], or the end that is nearer."""
    if function(low) <= 0:
        return low
    if function(high) >= 0:
        return high
    return optimize.root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-12).root


def _d_z(differences: NDArray[np.float64], scale: float) -> float | None:
    deviation = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / deviation if deviation > _EQUAL * scale else None


def _critical_counts(n: int, alpha: float) -> NDArray[np.float64]:
    """Return, for 0..n discordant items, the largest count of one kind that rejects; -1: none."""
    totals = np.arange(n + 1)
    counts = np.asarray(stats.binom.ppf(alpha / 2, totals, 0.5), dtype=float)
    # ppf is the first count whose tail reaches alpha / 2: one too many unless it is exact.
    return np.where(stats.binom.cdf(counts, totals, 0.5) > alpha / 2, counts - 1, counts)


def _mcnemar_power(n: int, a_only: float, b_only: float, critical: NDArray[np.float64]) -> float:
    rate = min(a_only + b_only, 1.0)
    if rate == 0:
        return 0.0
    totals = np.arange(n + 1)
    weight = stats.binom.pmf(totals, n, rate)
    likely = (weight > 1e-12) & (critical >= 0)
    total, limit = totals[likely], critical[likely]
    share = min(a_only / rate, 1.0)
    rejects = stats.binom.cdf(limit, total, share) + stats.binom.sf(total - limit - 1, total, share)
    return float(np.sum(weight[likely] * rejects))


def _detectable_binary(n: int, discordance: float, alpha: float) -> float | None:
    """Smallest |delta| with 80% power at this discordance, or at |delta| itself if that is more."""
    critical = _critical_counts(n, alpha)

    def shortfall(delta: float) -> float:
        rate = max(discordance, delta)
        return POWER - _mcnemar_power(n, (rate + delta) / 2, (rate - delta) / 2, critical)

    return None if shortfall(1.0) > 0 else _root(shortfall, 0.0, 1.0)


def _t_bounds(n: int, alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what |mean| must exceed, in standard errors, at quantiles of the sampled deviation.

    With the quantiles' weights. scipy's noncentral t says NaN for thousands of items.
    """
    nodes, weights = _GAUSS
    deviation = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1))  # sampled / true
    return stats.t.isf(alpha / 2, n - 1) * deviation, weights / 2


def _t_power(shift: float, bounds: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float(weights @ (special.ndtr(shift - bounds) + special.ndtr(-bounds - shift)))


def _detectable_real(
    differences: NDArray[np.float64], effect: float | None, alpha: float
) -> float | None:
    if effect is None:
        return None
    n = len(differences)
    bounds, weights = _t_bounds(n, alpha)
    beyond = 2 * float(stats.t.isf(alpha / 2, n - 1)) + 10  # power is above 80% for every n >= 2
    shift = _root(lambda shift: POWER - _t_power(shift, bounds, weights), 0.0, beyond)
    return shift / math.sqrt(n) * float(differences.std(ddof=1))


def _is_binary(scores: NDArray[np.float64]) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _scores(x: Any, name: str) -> NDArray[np.float64]:
    """Return `x` as finite float64 of shape [n], n >= 1, or raise DataError naming the item."""
    if hasattr(x, "detach"):  # a torch tensor, of any device and dtype, without importing torch
        x = x.detach().cpu().tolist()
    if not isinstance(x, (str, bytes, dict, set, np.ndarray)) and isinstance(x, Iterable):
        x = list(x)
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} must hold one number per item: {error}") from error
    if array.ndim == 1 and array.dtype.kind == "O":
        wrong = [(i, value) for i, value in enumerate(array) if not isinstance(value, Real)]
        if wrong:
            at, value = wrong[0]
            raise DataError(f"{name} must hold one number per item; item {at} is {value!r}.")
        array = array.astype(np.float64)
    if array.ndim != 1 or (array.dtype.kind not in "biuf" and array.size):
        raise DataError(
            f"{name} must hold one number per item, shape [n]; found {type(x).__name__} of "
            f"shape {list(array.shape)} and type {array.dtype}."
        )
    if array.size == 0:
        raise DataError(f"{name} has no items: nothing was scored, so there is nothing to compare.")
    scores = array.astype(np.float64)
    bad = np.flatnonzero(~(np.abs(scores) <= _LARGEST))  # NaN fails every comparison
    if bad.size:
        raise DataError(
            f"Item {bad[0]} of {name} is {scores[bad[0]]}. Score what failed as wrong (0), or drop "
            "the item from both arms."
        )
    return scores


def _check_settings(confidence: float, resamples: int, seed: int) -> None:
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, found {confidence!r}. Try 0.95.")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"seed must be a whole number >= 0, found {seed!r}. Try 0.")
    if type(resamples) is not int or resamples < 100:
        raise ConfigError(f"resamples must be at least 100, found {resamples}. Try 9999.")
