"""What counts as one repetition: a run; where runs of several subsets are averaged, a subset with all its seeds.

Two seeds that learn from one subset share what it holds, so they are not two samples of what "other data" would give.
"""

from collections.abc import Iterable, Mapping

import numpy as np

SUBSET = "draw"  # the axis of the protocols' subsets


def by_unit(runs: Iterable[tuple[Mapping[str, str], float]]) -> list[float]:
    """Return one value a unit, in order: the runs' own, or the means over each subset's runs if there are several.

    Args:
        runs: labels of each run, and its value.
    """
    runs = list(runs)
    subsets: dict[str | None, list[float]] = {}
    for labels, value in runs:
        subsets.setdefault(labels.get(SUBSET), []).append(value)
    if len(subsets) < 2:
        return [value for _, value in runs]
    return [float(np.mean(values)) for values in subsets.values()]
