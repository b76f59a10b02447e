"""Sufficient statistics: what a corpus metric keeps of each instance, so that resampling costs a sum.

Notation: N instances, K statistics of each, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


GroupMetric = Callable[[Texts, References, Sequence[Mapping[str, Any]]], Statistics]
"""Predictions [N], references [N][1..], and what each instance's record keeps for its metric, to statistics."""


def by_group(rows: np.ndarray, groups: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return per-instance rows [N, K] summed by group [G, K], groups in their first order, and each group's size [G].

    A group is then the instance that is resampled: the answers of one question are drawn together.
    """
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    index = np.array([places[group] for group in groups])
    sums = np.zeros((len(places), rows.shape[1]))
    np.add.at(sums, index, rows)
    return sums, np.bincount(index, minlength=len(places)).astype(np.float64)


def check_keys(name: str, keys: Sequence[Mapping[str, Any]], instances: int) -> None:
    """Check that a metric over groups has been told the group of every instance.

    Raises:
        DataError: it has not.
    """
    if len(keys) != instances or not all(keys):
        raise DataError(f"metric {name!r} needs meta['score'] of each of {instances} records; its own task sets it")


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
