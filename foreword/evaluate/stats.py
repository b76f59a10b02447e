"""Uncertainty: mean and sd over seeds, bootstrap intervals and paired tests over instances.

Resampling works on sufficient statistics (`Statistics`), so a resample of a corpus metric is a weighted sum.
Notation: N instances, K statistics of each, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from foreword.errors import DataError
from foreword.evaluate.metrics.statistics import Statistics


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap percentile interval; `level` is the coverage, 0.95 by default."""

    value: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Difference:
    """Score of A minus score of B, its interval where there is one, and a two-sided p-value."""

    value: float
    p_value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of a score over runs; sd is None for a single run."""

    mean: float
    sd: float | None
    n: int


def spread(values: list[float]) -> Spread:
    """Return mean and standard deviation over runs.

    Raises:
        DataError: no value.
    """
    if not values:
        raise DataError("no run to average; give at least one value")
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def bootstrap(
    statistics: Statistics, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> dict[str, Interval]:
    """Return each score with its percentile interval, instances resampled with replacement (Efron 1979; Koehn 2004)."""
    sums = _counts(len(statistics.values), rng, resamples) @ statistics.values
    whole = statistics.values.sum(0, keepdims=True)
    table = statistics.finish(np.concatenate([whole, sums]))
    return {name: _interval(scores, level) for name, scores in table.items()}


def paired_bootstrap(
    a: Statistics, b: Statistics, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> dict[str, Difference]:
    """Return A minus B for each score, with interval and two-sided p, from resamples of the same instances.

    The p-value is twice the smaller share of resamples on either side of no difference, at most 1, with the usual +1.

    Raises:
        DataError: A and B were not scored on the same number of instances.
    """
    _check_paired(a, b)
    counts = _counts(len(a.values), rng, resamples)
    tables = [s.finish(np.concatenate([s.values.sum(0, keepdims=True), counts @ s.values])) for s in (a, b)]
    return {name: _paired(scores - tables[1][name], level) for name, scores in tables[0].items()}


def approximate_randomisation(
    a: Statistics, b: Statistics, rng: np.random.Generator, trials: int = 1000
) -> dict[str, Difference]:
    """Return A minus B for each score and the two-sided p-value from swapping the systems' outputs at random.

    Noreen 1989; p = (1 + swaps whose difference is at least as large) / (1 + trials).

    Raises:
        DataError: A and B were not scored on the same number of instances.
    """
    _check_paired(a, b)
    swap = rng.integers(0, 2, size=(trials, len(a.values))).astype(np.float64)
    whole = [s.values.sum(0, keepdims=True) for s in (a, b)]
    moved = swap @ (b.values - a.values)
    first = a.finish(np.concatenate([whole[0], whole[0] + moved]))
    second = b.finish(np.concatenate([whole[1], whole[1] - moved]))
    return {name: _randomised(scores - second[name]) for name, scores in first.items()}


def _counts(instances: int, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Return how often each instance is drawn in each resample, [R, N]."""
    return rng.multinomial(instances, np.full(instances, 1.0 / instances), size=resamples).astype(np.float64)


def _check_paired(a: Statistics, b: Statistics) -> None:
    if a.values.shape != b.values.shape:
        raise DataError(f"paired test of {len(a.values)} against {len(b.values)} instances; score both on the same set")


def _limits(scores: np.ndarray, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.percentile(scores, [tail, 100 - tail])
    return float(low), float(high)


def _interval(scores: np.ndarray, level: float) -> Interval:
    return Interval(float(scores[0]), *_limits(scores[1:], level), level)


def _paired(differences: np.ndarray, level: float) -> Difference:
    sampled = differences[1:]
    smaller = min((sampled <= 0).sum(), (sampled >= 0).sum())
    p_value = min(1.0, 2 * (1 + int(smaller)) / (1 + len(sampled)))
    return Difference(float(differences[0]), p_value, *_limits(sampled, level))


def _randomised(differences: np.ndarray) -> Difference:
    # A swap that only reorders the sum must count as equal, so rounding may not decide.
    larger = np.abs(differences[1:]) >= abs(differences[0]) - 1e-12
    return Difference(float(differences[0]), (1 + int(larger.sum())) / len(differences))
