"""Sufficient statistics: what a corpus metric keeps of each instance, so that resampling costs a sum.

Notation: N instances, K statistics of each, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foreword.errors import DataError

Texts = Sequence[str]
References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Statistics:
    """A metric's statistics on one set of outputs.

    Attributes:
        values: [N, K] float64; a corpus score depends on their sum over instances only.
        finish: from sums [R, K] to the named scores, each [R].
    """

    values: np.ndarray
    finish: Callable[[np.ndarray], dict[str, np.ndarray]]

    def scores(self) -> dict[str, float]:
        """Return the scores of the whole set."""
        return {name: float(score[0]) for name, score in self.finish(self.values.sum(0, keepdims=True)).items()}


Metric = Callable[[Texts, References, Sequence[str]], Statistics]
"""Predictions [N], references [N][1..], and the legal labels (empty for free text) to statistics."""


def mean_of(name: str, values: Sequence[float]) -> Statistics:
    """Return the statistics of a metric that is the plain mean of per-instance values."""
    table = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return Statistics(table, lambda sums: {name: sums[:, 0] / sums[:, 1]})


def check_outputs(predictions: Texts, references: References) -> None:
    """Check that there is one prediction per instance, and at least one reference each.

    Raises:
        DataError: the counts differ, there is nothing to score, or an instance has no reference.
    """
    if len(predictions) != len(references):
        raise DataError(f"{len(predictions)} predictions for {len(references)} instances; give one prediction each")
    if not predictions:
        raise DataError("no predictions to score; give at least one")
    for number, texts in enumerate(references, start=1):
        if not texts:
            raise DataError(f"instance {number} has no reference; give at least one text")
