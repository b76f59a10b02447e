"""The unit of statistics: a run; where runs of several subsets are averaged, a subset."""

from pathlib import Path

import numpy as np
import pytest

from foreword.errors import DataError
from foreword.evaluate.across import mean_interval, mean_slope, paired_runs, slope
from foreword.evaluate.stats import Difference
from foreword.experiments.grid import compare as comparing
from foreword.experiments.grid.compare import compare, gap_slopes
from foreword.experiments.grid.results import Results, Score, average
from foreword.experiments.grid.spec import Grid, Page
from foreword.experiments.grid.units import by_unit

SIZES, DRAWS, SEEDS = ("50", "100", "200"), range(5), range(2)


@pytest.fixture
def low_data(monkeypatch):
    """Prefix against fine-tuning, 5 subsets of 2 seeds; the gap depends on the subset, the seeds add nothing to it."""
    monkeypatch.setattr(comparing, "_same_records", lambda *_: False)
    axes = {
        "method": {"prefix": {}, "fine_tune": {}}, "size": {s: {"x": s} for s in SIZES},
        "draw": list(DRAWS), "seed": list(SEEDS),
    }
    page = Page(metric="score", baseline={"method": "fine_tune"}, x="size", log_x=True, slope=True)
    scores = []
    for n, size in enumerate(SIZES):
        for draw in DRAWS:
            for seed in SEEDS:
                for method in ("prefix", "fine_tune"):
                    value = seed + (1 + draw + n * (draw - 1) if method == "prefix" else 0.0)
                    labels = {"method": method, "size": size, "draw": str(draw), "seed": str(seed)}
                    scores.append(Score(labels, "test", {"score": value}, {}, None, 0.0, 9, f"{len(scores)}",
                                        Path(), "b", "t", "t"))
    return Results(Grid("low", {}, axes, page=page), scores)


def test_two_seeds_of_one_subset_are_one_unit(low_data):
    first = compare(low_data)[0]
    gaps = [1.0, 2.0, 3.0, 4.0, 5.0]
    wanted = mean_interval(gaps)
    assert first.units == 5 and first.runs.value == wanted.value
    assert (first.runs.low, first.runs.high) == pytest.approx((wanted.low, wanted.high))
    assert first.runs.p_value == 2 / 2**5  # of ten runs it would be 2 / 2^10


def test_a_table_s_interval_is_over_subsets(low_data):
    cell = next(scores for cell, scores in low_data.cells("test").items() if dict(cell)["method"] == "prefix")
    assert len(cell) == 10
    assert average(cell, "score") == mean_interval([1.5, 2.5, 3.5, 4.5, 5.5])  # seeds 0 and 1 add half on average


def test_the_slope_over_sizes_is_fitted_to_each_subset(low_data):
    (found,) = gap_slopes(low_data)
    x = [np.log10(float(size)) for size in SIZES]
    each = [slope(x, [1 + d + n * (d - 1) for n in range(3)]).value for d in DRAWS]
    wanted = mean_interval(each)
    assert found.slope.n == 5 and found.slope.value == pytest.approx(wanted.value)
    assert (found.slope.low, found.slope.high) == pytest.approx((wanted.low, wanted.high))
    with pytest.raises(DataError, match="two slopes"):
        mean_slope([1.0])


def test_without_several_subsets_each_run_is_a_unit():
    assert by_unit([({"seed": "0"}, 1.0), ({"seed": "1"}, 3.0)]) == [1.0, 3.0]
    assert by_unit([({"draw": "0", "seed": "0"}, 1.0), ({"draw": "0", "seed": "1"}, 3.0)]) == [1.0, 3.0]
    assert by_unit([({"draw": "0"}, 1.0), ({"draw": "1"}, 3.0), ({"draw": "0"}, 2.0)]) == [1.5, 3.0]


def test_holm_corrects_runs_and_records_apart(low_data, monkeypatch):
    """Two of the three comparisons have a p over records; the runs' p of the third must not enter theirs."""
    made = iter([Difference(1.0, 0.01, 0, 1), None, Difference(1.0, 0.04, 0, 1)])
    trials = []

    def outputs(*given):
        trials.append(given[3])
        return next(made)

    monkeypatch.setattr(comparing, "_difference_of_outputs", outputs)
    found = compare(low_data)
    assert [row.outputs_corrected for row in found] == [0.02, None, 0.04]
    assert [row.runs.p_value for row in found] == [2 / 2**5, 4 / 2**5, 4 / 2**5]
    assert [row.corrected for row in found] == pytest.approx([3 * 2 / 2**5, 2 * 4 / 2**5, 2 * 4 / 2**5])
    assert trials == [1000] * 3


def test_nan_is_no_difference():
    rng = np.random.Generator(np.random.PCG64(0))
    assert paired_runs([1.0, float("nan"), 3.0], [0.0, 0.0, 0.0], rng).p_value == 1.0
