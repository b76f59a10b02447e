"""Does a similarity predict transfer? Spearman's rank correlation of two task x task tables, with a permutation test.

The cells of such a table are not independent: those of one task move together. So the test permutes *tasks* (rows and
columns of one table together; Mantel 1967), not cells.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from foreword.data.extras import load_extra
from foreword.errors import DataError
from foreword.shapes import Float


@dataclass(frozen=True)
class Correlation:
    """A rank correlation and its permutation test.

    Attributes:
        rho: Spearman's; NaN where one table is constant.
        p_value: share of permutations of tasks with a correlation at least as large; NaN with `rho`.
        permutations: how many were tried, the identity among them.
        exact: whether that is all of them.
    """

    rho: float
    p_value: float
    permutations: int
    exact: bool


def rank_correlation(
    similarity: Float[Tensor, "N N"],
    transfer: Float[Tensor, "N N"],
    rng: np.random.Generator,
    *,
    pooled: bool = True,
    sided: Literal["greater", "two"] = "greater",
    permutations: int = 10_000,
) -> Correlation:
    """Return how well a similarity of prompts ranks their transfer, diagonals left out.

    Args:
        similarity: of each pair of tasks' prompts.
        transfer: [source, target], greater is better.
        rng: draws permutations where there are too many to try all.
        pooled: rank all pairs together; else rank the sources of each target apart and take the mean correlation,
            which is right where targets' figures are not on one scale.
        sided: `greater` tests for a positive correlation, `two` for any.
        permutations: most permutations to try; all N! are tried if they are no more.

    Raises:
        DataError: the tables are not square, not of one size, have fewer than 3 tasks, or NaN off the diagonal.
        MissingExtraError: SciPy is not installed.
    """
    one, other = (np.asarray(table, dtype=np.float64) for table in (similarity, transfer))
    _check(one, other)
    statistic = _Spearman(one, other, pooled)
    rho = statistic(np.arange(len(one)))
    exact = math.factorial(len(one)) <= permutations
    if math.isnan(rho):
        return Correlation(math.nan, math.nan, 0, exact)
    orders = itertools.permutations(range(len(one))) if exact else _drawn(len(one), permutations, rng)
    found = np.array([statistic(np.array(order)) for order in orders])
    # Rounding may not decide whether the identity is as large as itself.
    larger = found >= rho - 1e-12 if sided == "greater" else np.abs(found) >= abs(rho) - 1e-12
    return Correlation(rho, float(larger.mean()), len(found), exact)


class _Spearman:
    """The statistic under a permutation of the second table's tasks."""

    def __init__(self, one: np.ndarray, other: np.ndarray, pooled: bool) -> None:
        self.other = other
        self.off = ~np.eye(len(one), dtype=bool)
        self.pooled = pooled
        self.rank = load_extra("scipy.stats", "rank correlation").rankdata
        self.one = one

    def __call__(self, order: np.ndarray) -> float:
        moved = self.other[np.ix_(order, order)]
        if self.pooled:
            return self._rho(self.one[self.off], moved[self.off])
        columns = zip(self.one.T, moved.T, self.off.T, strict=True)
        found = [self._rho(a[keep], b[keep]) for a, b, keep in columns]
        defined = [rho for rho in found if not math.isnan(rho)]
        return float(np.mean(defined)) if defined else math.nan

    def _rho(self, one: np.ndarray, other: np.ndarray) -> float:
        """Pearson's correlation of the ranks, ties sharing their mean rank; NaN where one side is constant."""
        a, b = (ranks - ranks.mean() for ranks in (self.rank(one), self.rank(other)))
        scale = math.sqrt(float(a @ a) * float(b @ b))
        return float(a @ b) / scale if scale else math.nan


def _drawn(size: int, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The identity, then random permutations: (1 + larger ones) / (1 + drawn) is then the mean."""
    yield np.arange(size)
    for _ in range(count - 1):
        yield rng.permutation(size)


def _check(one: np.ndarray, other: np.ndarray) -> None:
    if one.ndim != 2 or one.shape[0] != one.shape[1] or one.shape != other.shape:
        raise DataError(f"tables of {one.shape} and {other.shape} cannot be correlated; give two square ones of a size")
    if len(one) < 3:
        raise DataError(f"{len(one)} tasks have no ranking to correlate; give at least 3")
    off = ~np.eye(len(one), dtype=bool)
    if not (np.isfinite(one[off]).all() and np.isfinite(other[off]).all()):
        raise DataError("a table has NaN or infinite cells off its diagonal; leave those tasks out")
