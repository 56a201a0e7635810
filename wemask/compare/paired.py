"""Paired comparisons of two arms on the same items: difference, interval, test, what could be seen.

    compare_paired(a, b)                 item by item: one run of each arm
    compare_clustered(a, b, clusters)    the same where items share a source (a subject, a passage)
    compare_seeds(a, b)                  run by run: several training seeds of each method

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
10 discordant items of 500, 93% with 50 skewed scores (t: 95%). tests/compare/test_paired_rates.py
simulates it.
An interval and a test are two methods: near p = 0.05 one may exclude 0 while the other does not.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wemask.compare.intervals import EQUAL, binary_interval, real_interval
from wemask.compare.power import detectable_binary, detectable_real
from wemask.errors import ConfigError, DataError

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
    left, right = _paired_scores(a, b)
    binary = _is_binary(left) and _is_binary(right)
    return _compare(left, right, binary, confidence, resamples, seed)


def compare_seeds(a: Scores, b: Scores, *, confidence: float = 0.95) -> PairedComparison:
    """Compare two methods over training seeds: paired t over runs, not over items.

    The run is the unit here, so that the interval holds what another seed would have changed; that
    of `compare_paired` knows only what other items would have.

    Args:
        a: one score per seed, e.g. a run's accuracy, shape [seeds]; real, even if all are 0 or 1.
        b: the other method's for the same seeds in the same order.
        confidence: of the interval.

    Raises DataError as `compare_paired` does, and for a single seed, which has no spread.
    """
    _check_settings(confidence)
    left, right = _paired_scores(a, b)
    if len(left) == 1:
        raise DataError(
            "One seed has no spread, so it says nothing about other seeds. Train at least 2 (5 are "
            "better): python train.py --multirun seed=0,1,2,3,4"
        )
    return _compare(left, right, False, confidence, 100, 0)


@dataclass(frozen=True, kw_only=True)
class ClusteredComparison:
    """Arm a against arm b on n items that come in clusters."""

    delta: float  # mean(a) - mean(b), over items
    low: float  # interval of delta at `confidence`
    high: float
    p_value: float  # two-sided, of "no difference"
    n: int  # items
    clusters: int
    standard_error: float  # of delta, clustered
    # Variance of delta over what it would be if all items were independent; 1 when that is 0.
    design_effect: float
    confidence: float


def compare_clustered(
    a: Scores, b: Scores, clusters: Sequence[object], *, confidence: float = 0.95
) -> ClusteredComparison:
    """Compare the scores of two arms where items share a source, with clustered standard errors.

    The mean difference as a regression on a constant, its variance robust to any dependence inside
    a cluster (CR1), t with clusters - 1 degrees of freedom (Miller, arXiv 2411.00640; Cameron and
    Miller 2015). With fewer than about 20 clusters it rejects too often when there is no effect.

    Args:
        a: one score per item, shape [n].
        b: scores of the other arm for the same items in the same order.
        clusters: the source of each item, a text or a number, length n.
        confidence: of the interval.

    Raises DataError as `compare_paired` does, for another number of clusters than of scores, and
    for fewer than 2 different clusters.
    """
    from statsmodels.regression.linear_model import OLS

    _check_settings(confidence)
    left, right = _paired_scores(a, b)
    groups = np.unique(np.asarray([str(c) for c in clusters]), return_inverse=True)[1]
    if len(groups) != len(left):
        raise DataError(
            f"Every item needs its cluster: {len(left)} scores, {len(groups)} clusters."
        )
    n, count = len(left), int(groups.max()) + 1
    if count < 2:
        raise DataError("All items are of one cluster, so nothing says how clusters vary.")
    differences = left - right
    fit: Any = OLS(differences, np.ones(n)).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    error, delta = float(fit.bse[0]), float(differences.mean())
    alike = error <= EQUAL * max(np.abs(left).max(), np.abs(right).max())
    low, high = (delta, delta) if alike else map(float, fit.conf_int(1 - confidence)[0])
    independent = float(differences.var(ddof=1)) / n
    return ClusteredComparison(
        delta=delta,
        low=low,
        high=high,
        p_value=_p_of_alike(delta != 0, count) if alike else float(fit.pvalues[0]),
        n=n,
        clusters=count,
        standard_error=error,
        design_effect=error**2 / independent if independent > 0 else 1.0,
        confidence=confidence,
    )


def _paired_scores(a: Scores, b: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = _scores(a, "a"), _scores(b, "b")
    if len(left) != len(right):
        raise DataError(
            f"Paired arms need the same items: a has {len(left)} scores, b has {len(right)}. "
            "Keep the items that both arms have, in the same order."
        )
    return left, right


def _compare(
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    binary: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> PairedComparison:
    n, differences = len(left), left - right
    a_only, b_only = int((differences > 0).sum()), int((differences < 0).sum())
    scale = float(max(np.abs(left).max(), np.abs(right).max()))
    deviation = float(differences.std(ddof=1)) if n > 1 else 0.0
    delta = float(differences.mean())
    effect = delta / deviation if deviation > EQUAL * scale else None
    odds = None
    if binary:
        low, high, interval = binary_interval(differences, confidence, resamples, seed)
        discordant = a_only + b_only
        p_value = float(stats.binomtest(a_only, discordant).pvalue) if discordant else 1.0
        test = "exact McNemar"
        detectable = detectable_binary(n, discordant / n, 1 - confidence)
        if discordant:
            half = 0.5 * (min(a_only, b_only) == 0)
            odds = (a_only + half) / (b_only + half)
    else:
        low, high, interval = real_interval(differences, scale, confidence, resamples, seed)
        detectable = detectable_real(differences, effect, 1 - confidence)
        p_value, test = _paired_t(delta, effect, n, scale)
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
        odds_ratio=odds,
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
        low, high, method = real_interval(scores, scale, confidence, resamples, seed)
    return Interval(mean=mean, low=min(low, mean), high=max(high, mean), n=n, method=method)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given; [] for none.

    Rejecting where the adjusted value is <= alpha keeps the family-wise error at alpha under any
    dependence. Raises DataError for a value that is not in [0, 1].
    """
    from statsmodels.stats.multitest import multipletests

    if len(p_values) == 0:
        return []
    p = _scores(p_values, "p_values")
    if p.min() < 0 or p.max() > 1:
        raise DataError(f"p values lie in [0, 1], found {p.min():g} to {p.max():g}.")
    adjusted: Any = multipletests(p, method="holm")[1]
    return adjusted.tolist()


def _paired_t(delta: float, effect: float | None, n: int, scale: float) -> tuple[float, str]:
    """Return (p, test); the t statistic is undefined when all differences are equal."""
    if effect is not None:
        return float(2 * stats.t.sf(abs(effect) * math.sqrt(n), n - 1)), "paired t"
    return _p_of_alike(abs(delta) > EQUAL * scale, n), "exact sign-flip permutation"


def _p_of_alike(differ: bool, units: int) -> float:
    """p of the exact sign-flip test where all `units` differ by the same, or not at all."""
    return 2.0 ** (1 - units) if differ else 1.0


def _is_binary(scores: NDArray[np.float64]) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _scores(x: Any, name: str) -> NDArray[np.float64]:
    """Return `x` as finite float64 of shape [n], n >= 1, or raise DataError naming the item."""
    if hasattr(x, "detach"):  # a torch tensor, of any device and dtype, without importing torch
        x = x.detach().cpu().tolist()
    if isinstance(x, Iterable) and not isinstance(x, (str, bytes, dict, set, np.ndarray)):
        x = list(x)
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} must hold one number per item: {error}") from error
    if array.ndim == 1 and array.dtype.kind == "O":
        for i, value in enumerate(array):
            if not isinstance(value, Real):
                raise DataError(f"{name} must hold one number per item; item {i} is {value!r}.")
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


def _check_settings(confidence: float, resamples: int = 9999, seed: int = 0) -> None:
    if not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, found {confidence!r}. Try 0.95.")
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"seed must be a whole number >= 0, found {seed!r}. Try 0.")
    if type(resamples) is not int or resamples < 100:
        raise ConfigError(f"resamples must be at least 100, found {resamples}. Try 9999.")
