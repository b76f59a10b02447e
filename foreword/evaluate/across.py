"""Uncertainty across runs: the seed (or the subset trained on) is the unit, not the test instance."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.data.extras import load_extra
from foreword.errors import DataError
from foreword.evaluate.stats import Difference, Interval

EXACT_FLIPS = 2**14


@dataclass(frozen=True)
class Slope:
    """A least-squares slope, its t interval and the two-sided p-value of no slope; `n` points, or units of one each."""

    value: float
    low: float
    high: float
    p_value: float
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean over runs with its t interval; a single run's interval is the value itself.

    Raises:
        DataError: no value.
    """
    if len(values) == 0:
        raise DataError("no run to average; give at least one value")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean, level)
    half = _t(level, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, level)


def paired_runs(a: Sequence[float], b: Sequence[float], rng: np.random.Generator, trials: int = 10000) -> Difference:
    """Return the mean of A minus B over paired runs (same seed, same subset), its t interval, and a two-sided p-value.

    p is the share of sign flips of the differences whose mean is at least as large (all of them up to 14 pairs, else
    `trials` drawn ones with the usual +1). With n pairs it is never below 2 / 2^n: two seeds prove nothing.

    Raises:
        DataError: no pair, or unequal numbers.
    """
    if len(a) != len(b) or len(a) == 0:
        raise DataError(f"{len(a)} runs against {len(b)}; give as many of each, at least one")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    interval = mean_interval(list(differences))
    exact = 2 ** len(differences) <= EXACT_FLIPS
    if exact:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(differences))))
    else:
        signs = rng.choice((1.0, -1.0), size=(trials, len(differences)))
    larger = int((~(np.abs(signs @ differences) < abs(differences.sum()) - 1e-12)).sum())  # where there is NaN, all
    p_value = larger / len(signs) if exact else (1 + larger) / (1 + len(signs))
    return Difference(interval.value, p_value, interval.low, interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in their order (Holm 1979): the family-wise error is held."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the share of false discoveries, in their order (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    corrected = [0.0] * len(p_values)
    lowest = 1.0
    for rank, place in enumerate(order):
        lowest = min(lowest, p_values[place] * len(p_values) / (len(p_values) - rank))
        corrected[place] = lowest
    return corrected


def slope(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> Slope:
    """Return the slope of y over x by least squares, with its t interval; for "gap against log size" x is a logarithm.

    Raises:
        DataError: fewer than three points, unequal numbers, or one x only.
    """
    if len(x) != len(y) or len(x) < 3 or len(set(x)) < 2:
        raise DataError(f"a slope needs three points at two places or more, not {len(x)} at {len(set(x))}")
    fit = load_extra("scipy.stats", "a slope with its interval").linregress(x, y)
    half = _t(level, len(x) - 2) * float(fit.stderr)
    return Slope(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half, float(fit.pvalue), len(x))


def mean_slope(slopes: Sequence[float], level: float = 0.95) -> Slope:
    """Return the mean of slopes fitted to one unit each (as a subset with all its sizes), with its t interval.

    Raises:
        DataError: fewer than two slopes.
    """
    if len(slopes) < 2:
        raise DataError(f"a mean slope with its interval needs two slopes or more, not {len(slopes)}")
    found = mean_interval(slopes, level)
    p_value = float(load_extra("scipy.stats", "a slope with its interval").ttest_1samp(slopes, 0.0).pvalue)
    return Slope(found.value, found.low, found.high, p_value, len(slopes))


def _t(level: float, freedom: int) -> float:
    return float(load_extra("scipy.stats", "an interval over runs").t.ppf((1 + level) / 2, freedom))
