"""Statistics across runs against other implementations, values worked by hand, and simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import f1_score

from foreword.errors import DataError
from foreword.evaluate.across import benjamini_hochberg, holm, mean_interval, paired_runs, slope
from foreword.evaluate.metrics import METRICS, STATISTICS
from foreword.evaluate.stats import (
    approximate_randomisation,
    approximate_randomisation_of_runs,
    paired_bootstrap,
    paired_bootstrap_of_runs,
)


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def test_the_mean_interval_is_scipys_t_interval():
    values = [0.41, 0.44, 0.40, 0.47, 0.43]
    found = mean_interval(values)
    low, high = scipy_stats.t.interval(0.95, 4, np.mean(values), scipy_stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert mean_interval([0.5]).low == 0.5
    with pytest.raises(DataError, match="at least one"):
        mean_interval([])


def test_t_intervals_cover_the_truth_as_often_as_they_say():
    draw = rng(3)
    found = [mean_interval(draw.normal(1, 2, 5)) for _ in range(800)]
    hits = sum(interval.low <= 1.0 <= interval.high for interval in found)
    assert 0.92 < hits / 800 < 0.98


def test_sign_flips_by_hand():
    found = paired_runs([3.0, 4.0, 6.0], [1.0, 1.0, 1.0], rng())
    assert found.value == pytest.approx(10 / 3) and found.p_value == 0.25  # only all plus and all minus: 2 of 8
    assert paired_runs([1.0, 2.0], [1.0, 2.0], rng()).p_value == 1.0
    many = paired_runs(list(rng().normal(0.5, 1, 40)), [0.0] * 40, rng())
    assert many.p_value == pytest.approx(scipy_stats.ttest_1samp(rng().normal(0.5, 1, 40), 0).pvalue, abs=0.01)
    with pytest.raises(DataError, match="against"):
        paired_runs([1.0], [], rng())


def test_holm_and_benjamini_hochberg_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    p_values = [0.01, 0.04, 0.03, 0.5]
    assert benjamini_hochberg(p_values) == pytest.approx(list(scipy_stats.false_discovery_control(p_values)))


def test_a_slope_has_the_interval_of_least_squares():
    x = [6.0, 6.0, 7.0, 7.0, 8.0]
    y = [0.10, 0.14, 0.06, 0.05, 0.01]
    found, fit = slope(x, y), scipy_stats.linregress(x, y)
    assert found.value == pytest.approx(fit.slope) and found.n == 5
    assert found.high - found.value == pytest.approx(scipy_stats.t.ppf(0.975, 3) * fit.stderr)
    with pytest.raises(DataError, match="three points"):
        slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])


GOLD = [["the red bird sang in the old tree"], ["a dog ran over the green hill"], ["rain fell on the town all day"]] * 4
GOOD = ["the red bird sang in the tree", "a dog ran over the hill", "rain fell on the town"] * 4
POOR = ["a bird", "the dog ran in the hill over", "the rain in town fell on on"] * 4


def test_one_run_a_side_is_the_plain_paired_test():
    a, b = (STATISTICS["bleu"](texts, GOLD, ()) for texts in (GOOD, POOR))
    assert paired_bootstrap_of_runs([a], [b], rng(1), 200) == paired_bootstrap(a, b, rng(1), 200)
    assert approximate_randomisation_of_runs([a], [b], rng(1), 200) == approximate_randomisation(a, b, rng(1), 200)


def test_runs_are_averaged_before_they_are_compared():
    a, b = (STATISTICS["bleu"](texts, GOLD, ()) for texts in (GOOD, POOR))
    found = paired_bootstrap_of_runs([a, b], [b], rng(), 200)["BLEU"]
    assert found.value == pytest.approx((a.scores()["BLEU"] - b.scores()["BLEU"]) / 2)
    swapped = approximate_randomisation_of_runs([a, a], [b, b], rng(), 300)["BLEU"]
    assert swapped.p_value < 0.05 and swapped.value == pytest.approx(a.scores()["BLEU"] - b.scores()["BLEU"])
    same = approximate_randomisation_of_runs([a, b], [b, a], rng(), 100)["BLEU"]
    assert same.value == 0.0 and same.p_value == 1.0
    with pytest.raises(DataError, match="run by run"):
        approximate_randomisation_of_runs([a, a], [b], rng(), 10)
    with pytest.raises(DataError, match="at least one each"):
        paired_bootstrap_of_runs([], [b], rng(), 10)


def test_t5s_f1_counts_an_illegal_word_as_the_opposite():
    labels, gold = ("no", "yes"), ["no", "no", "yes", "yes", "yes"]
    said = ["maybe", "no", "yes", "what", "yes"]
    opposite = ["yes", "no", "yes", "no", "yes"]
    found = METRICS["t5_f1"](said, [[word] for word in gold], labels)
    assert found == {"F1": pytest.approx(f1_score(gold, opposite, pos_label="yes"))}
    assert METRICS["f1"](said, [[word] for word in gold], labels)["F1"] > found["F1"]


def test_rouge_lsum_and_the_learned_hooks():
    assert METRICS["rouge_lsum"](["a b\nc d"], [["c d\na b"]]) == {"ROUGE-Lsum": 1.0}
    from foreword.evaluate.metrics import score

    found, skipped = score(("bleu", "bert_score", "bleurt"), ["a b c d"], [["a b c d"]])
    for name, library in (("bert_score", "bert-score"), ("bleurt", "evaluate and bleurt")):
        if name in skipped:  # said, with what to install
            assert library in skipped[name]
        else:
            assert found
    assert found["BLEU"] == pytest.approx(1.0)
