"""Comparisons of a grid's cells: each against the baseline, slopes of the gap, unseen against seen, domain shift."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreword.errors import MissingExtraError
from foreword.evaluate.across import Slope, holm, mean_interval, mean_slope, paired_runs, slope
from foreword.evaluate.metrics import statistics
from foreword.evaluate.metrics.statistics import Statistics
from foreword.evaluate.stats import (
    Difference,
    Interval,
    approximate_randomisation_of_runs,
    paired_bootstrap_of_runs,
)
from foreword.experiments.grid.address import scored_task
from foreword.experiments.grid.results import Cell, Results, Score, read_predictions
from foreword.experiments.grid.spec import axes_of, cell_of
from foreword.experiments.grid.units import SUBSET, by_unit

SEED = 0
RESAMPLES, MOST_TRIALS, TRIALS_A_COMPARISON = 1000, 10000, 100


@dataclass(frozen=True)
class Comparison:
    """A cell against the baseline's cell with the same labels elsewhere, on one target.

    Attributes:
        cell: of the one compared.
        target: name.
        runs: over pairs of runs with the same seed and subset: difference, t interval, sign-flip p; where there are
            several subsets, over these.
        outputs: over test instances: difference, bootstrap interval, p of approximate randomisation; None where the
            runs were not scored on the same records or the metric's library is missing.
        corrected: `runs.p_value` after Holm's correction over all comparisons of the grid.
        outputs_corrected: `outputs.p_value` likewise, over those that have one.
        units: how many pairs of runs, or of subsets.
    """

    cell: Cell
    target: str
    runs: Difference
    outputs: Difference | None
    corrected: float
    outputs_corrected: float | None
    units: int


def compare(results: Results) -> list[Comparison]:
    """Return every cell against the baseline's, corrected together; nothing without a baseline."""
    found: list[tuple[Cell, str, list[tuple[Score, Score]]]] = []
    for axis, base in results.grid.page.baseline.items():
        for target in results.targets:
            cells = results.cells(target)
            for cell, scores in cells.items():
                other = cells.get(_moved(cell, axis, base))
                if dict(cell)[axis] == base or other is None:
                    continue
                pairs = _pairs(results, scores, other, axis)
                if pairs:
                    found.append((cell, target, pairs))
    # The least p is 1 / (trials + 1), which Holm multiplies by the number of comparisons.
    trials = min(max(RESAMPLES, TRIALS_A_COMPARISON * len(found)), MOST_TRIALS)
    differences = [_differences(results, target, pairs, trials) for _, target, pairs in found]
    corrected = holm([runs.p_value for runs, _, _ in differences])
    others = iter(holm([outputs.p_value for _, outputs, _ in differences if outputs is not None]))
    return [
        Comparison(cell, target, runs, outputs, p, None if outputs is None else next(others), units)
        for (cell, target, _), (runs, outputs, units), p in zip(found, differences, corrected, strict=True)
    ]


def _moved(cell: Cell, axis: str, label: str) -> Cell:
    return tuple((name, label if name == axis else mine) for name, mine in cell)


def _pairs(results: Results, mine: Sequence[Score], other: Sequence[Score], axis: str) -> list[tuple[Score, Score]]:
    """Return runs with the same labels on every other axis that both have the headline score."""

    def key(score: Score) -> tuple[tuple[str, str], ...]:
        return tuple((name, label) for name, label in score.labels.items() if name != axis)

    known = {key(score): score for score in other if results.metric in score.metrics}
    return [(s, known[key(s)]) for s in mine if results.metric in s.metrics and key(s) in known]


def _differences(
    results: Results, target: str, pairs: Sequence[tuple[Score, Score]], trials: int
) -> tuple[Difference, Difference | None, int]:
    """Return the difference over runs (or subsets), that over records where it can be had, and the number of units."""
    metric = results.metric
    rng = np.random.Generator(np.random.PCG64(SEED))
    units = by_unit([(mine.labels, mine.metrics[metric] - theirs.metrics[metric]) for mine, theirs in pairs])
    runs = paired_runs(units, [0.0] * len(units), rng)
    outputs = _difference_of_outputs(results, target, pairs, trials, rng)
    return runs, outputs, len(units)


def _difference_of_outputs(
    results: Results, target: str, pairs: Sequence[tuple[Score, Score]], trials: int, rng: np.random.Generator
) -> Difference | None:
    if not _same_records(results, target, [score for pair in pairs for score in pair]):
        return None
    sides = [[score_statistics(results, score, target) for score in side] for side in zip(*pairs, strict=True)]
    if any(table is None for side in sides for table in side):
        return None
    if len({table.values.shape for side in sides for table in side}) > 1:
        return None
    interval = paired_bootstrap_of_runs(*sides, rng, RESAMPLES)[results.metric]
    swapped = approximate_randomisation_of_runs(*sides, rng, trials)[results.metric]
    return Difference(interval.value, swapped.p_value, interval.low, interval.high)


def _same_records(results: Results, target: str, scores: Sequence[Score]) -> bool:
    """Return whether all runs were scored on the same records in the same order; of a target whose labels are written
    otherwise for some of them, the sources say so.
    """
    renamed = any(t.relabel for t in results.grid.scoring.targets if t.name == target)
    first, *others = (
        [(row["source"], None if renamed else row["targets"]) for row in read_predictions(score)] for score in scores
    )
    return all(rows == first for rows in others)


def score_statistics(results: Results, score: Score, target: str) -> Statistics | None:
    """Return the headline metric's statistics of a run's outputs, or None where they cannot be had quickly."""
    wanted = next(t for t in results.grid.scoring.targets if t.name == target)
    task = scored_task(score.trained_on, results.grid.scoring, wanted)
    rows = read_predictions(score)
    if not rows:
        return None
    outputs = [row["prediction"] if row["prediction"].strip() else task.generation.empty_output for row in rows]
    for name in task.metrics:
        if "meteor" in name:  # a Java program: not worth its time in a test of another metric
            continue
        try:
            keys = [row.get("score", {}) for row in rows]
            tables, _ = statistics((name,), outputs, [row["targets"] for row in rows], task.labels, keys)
        except MissingExtraError:
            continue
        if name in tables and results.metric in tables[name].scores():
            return tables[name]
    return None


@dataclass(frozen=True)
class GapSlope:
    """The slope of (score - baseline's score) against log10 of the x axis, for one value of the baseline's axis."""

    label: str
    target: str
    slope: Slope


def gap_slopes(results: Results) -> list[GapSlope]:
    """Return the slope of the gap to the baseline over log10 x for each other value: pairs of runs are the points.

    Where there are several subsets, each in all its sizes, it is the mean of their slopes.
    """
    page = results.grid.page
    if not page.slope or page.x is None:
        return []
    places = {value.label: value.x for value in axes_of(results.grid)[page.x]}
    found = []
    for axis, base in page.baseline.items():
        for value in axes_of(results.grid)[axis]:
            for target in results.targets:
                if value.label != base:
                    found += _gap_slope(results, axis, base, value.label, target, places)
    return found


def _gap_slope(
    results: Results, axis: str, base: str, label: str, target: str, places: dict[str, float | None]
) -> list[GapSlope]:
    cells = results.cells(target)
    points: dict[str, list[tuple[float, float]]] = {}
    for cell, scores in cells.items():
        other = cells.get(_moved(cell, axis, base))
        place = places[dict(cell)[results.grid.page.x]]
        if dict(cell)[axis] != label or other is None or not place:
            continue
        for mine, theirs in _pairs(results, scores, other, axis):
            gap = mine.metrics[results.metric] - theirs.metrics[results.metric]
            points.setdefault(mine.labels.get(SUBSET, ""), []).append((math.log10(place), gap))
    fits = [slope(*zip(*of, strict=True)) for of in points.values() if len(of) >= 3 and len({x for x, _ in of}) >= 2]
    if len(fits) < 2:
        return [GapSlope(label, target, fit) for fit in fits]
    return [GapSlope(label, target, mean_slope([fit.value for fit in fits]))]


def seen_minus_unseen(results: Results) -> list[tuple[Cell, Interval, int]]:
    """Return, for each cell, the score on the first target of `page.gap` minus that on the second, run by run."""
    gap, metric = results.grid.page.gap, results.metric
    if gap is None:
        return []
    seen, unseen = (results.cells(name) for name in gap)
    found = []
    for cell, scores in seen.items():
        known = {s.address: s.metrics[metric] for s in unseen.get(cell, []) if metric in s.metrics}
        both = [s for s in scores if s.address in known and metric in s.metrics]
        gaps = by_unit([(s.labels, s.metrics[metric] - known[s.address]) for s in both])
        if gaps:
            found.append((cell, mean_interval(gaps), len(gaps)))
    return found


def stability(results: Results) -> list[tuple[Cell, dict[str, Any]]]:
    """Return, for each cell, mean and sd of the final training loss over its runs."""
    cells: dict[Cell, list[float]] = {}
    for training in results.trainings:
        cells.setdefault(cell_of(results.grid, training.labels), []).append(training.facts["final_loss"])
    return [
        (cell, {"runs": len(losses), "mean": float(np.mean(losses)),
                "sd": float(np.std(losses, ddof=1)) if len(losses) > 1 else None})
        for cell, losses in cells.items()
    ]
