"""Uncertainty: mean and sd over seeds, bootstrap intervals and paired tests over instances.

What compares runs rather than outputs (t intervals, sign flips, Holm's correction, slopes) is in `across.py`.

Resampling works on sufficient statistics (`Statistics`), so a resample of a corpus metric is a weighted sum.
Notation: N instances, K statistics of each, R resamples.
"""

from collections.abc import Callable, Sequence
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


def paired_bootstrap_of_runs(
    a: Sequence[Statistics],
    b: Sequence[Statistics],
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Return the mean score of the runs A minus that of the runs B, as `paired_bootstrap` does for one run each.

    Every run is scored on the same instances, and one resample draws the same instances for all of them. The interval
    tells of other test sets, not of other seeds.

    Raises:
        DataError: no run, or runs that were not scored on the same number of instances.
    """
    _check_runs(a, b)
    counts = _counts(len(a[0].values), rng, resamples)
    means = [_mean_scores(runs, lambda s: np.concatenate([s.values.sum(0, keepdims=True), counts @ s.values]))
             for runs in (a, b)]
    return {name: _paired(scores - means[1][name], level) for name, scores in means[0].items()}


def approximate_randomisation_of_runs(
    a: Sequence[Statistics], b: Sequence[Statistics], rng: np.random.Generator, trials: int = 1000
) -> dict[str, Difference]:
    """Return the mean score of the runs A minus that of the runs B, with the p-value of `approximate_randomisation`.

    Run k of A is paired with run k of B; a swapped instance is swapped in every pair.

    Raises:
        DataError: no run, another number of runs, or of instances.
    """
    _check_runs(a, b)
    if len(a) != len(b):
        raise DataError(f"{len(a)} runs against {len(b)}; approximate randomisation swaps run by run")
    swap = rng.integers(0, 2, size=(trials, len(a[0].values))).astype(np.float64)
    sides = []
    for mine, other in ((a, b), (b, a)):
        moved = [_randomised_sums(x, y, swap) for x, y in zip(mine, other, strict=True)]
        tables = [run.finish(sums) for run, sums in zip(mine, moved, strict=True)]
        sides.append({name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]})
    return {name: _randomised(scores - sides[1][name]) for name, scores in sides[0].items()}


def _randomised_sums(mine: Statistics, other: Statistics, swap: np.ndarray) -> np.ndarray:
    whole = mine.values.sum(0, keepdims=True)
    return np.concatenate([whole, whole + swap @ (other.values - mine.values)])


def _mean_scores(runs: Sequence[Statistics], sums: Callable[[Statistics], np.ndarray]) -> dict[str, np.ndarray]:
    tables = [run.finish(sums(run)) for run in runs]
    return {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}


def _check_runs(a: Sequence[Statistics], b: Sequence[Statistics]) -> None:
    if not a or not b:
        raise DataError("a comparison needs runs on both sides; give at least one each")
    for run in (*a, *b):
        _check_paired(a[0], run)


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
    larger = ~(np.abs(differences[1:]) < abs(differences[0]) - 1e-12)  # nor may NaN count as a difference
    return Difference(float(differences[0]), (1 + int(larger.sum())) / len(differences))
