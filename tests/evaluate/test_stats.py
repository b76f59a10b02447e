import numpy as np
import pytest

from foreword.errors import DataError
from foreword.evaluate.metrics import STATISTICS
from foreword.evaluate.metrics.statistics import mean_of
from foreword.evaluate.stats import approximate_randomisation, bootstrap, paired_bootstrap, spread


def rng(seed=0):
    return np.random.default_rng(seed)


def test_spread_over_runs():
    found = spread([1.0, 2.0, 4.0])
    assert (found.mean, found.sd, found.n) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)), 3)
    assert spread([5.0]).sd is None
    with pytest.raises(DataError, match="no run"):
        spread([])


def test_the_interval_of_a_mean_is_the_normal_one():
    values = rng(1).normal(3.0, 2.0, size=400)
    found = bootstrap(mean_of("m", values), rng(), resamples=4000)["m"]
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - half, abs=0.02),
        pytest.approx(values.mean() + half, abs=0.02),
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draw = rng(2)
    hits = 0
    for _ in range(200):
        found = bootstrap(mean_of("m", draw.normal(size=60)), draw, resamples=300)["m"]
        hits += found.low <= 0 <= found.high
    assert 180 <= hits <= 199


@pytest.mark.parametrize("name", ["bleu", "e2e_bleu", "webnlg_bleu", "chrf", "rouge", "accuracy", "macro_f1"])
def test_a_resample_equals_scoring_the_repeated_texts(name):
    """Metrics whose statistics are sufficient: a bootstrap draw is the score of the drawn instances themselves."""
    texts = ["the cat sat on the mat", "a dog barked at the moon", "it is raining", "no", "the end of it all"]
    refs = [["the cat sat on a mat"], ["the dog barked at a moon"], ["it rains", "it is wet"], ["no"], ["the end"]]
    if name in ("accuracy", "macro_f1"):
        texts, refs = list("aabcb"), [["a"], ["b"], ["b"], ["c"], ["d"]]
    labels = tuple("abcd")
    table = STATISTICS[name](texts, refs, labels)
    drawn = rng(3).integers(0, 5, size=5)
    again = STATISTICS[name]([texts[i] for i in drawn], [refs[i] for i in drawn], labels).scores()
    for key, value in table.finish(table.values[drawn].sum(0, keepdims=True)).items():
        assert value[0] == pytest.approx(again[key], rel=1e-12)


def test_bootstrap_is_seeded():
    table = mean_of("m", rng().normal(size=30))
    assert bootstrap(table, rng(4)) == bootstrap(table, rng(4)) != bootstrap(table, rng(5))


@pytest.mark.parametrize("test", [paired_bootstrap, approximate_randomisation])
def test_paired_tests_tell_a_real_difference_from_none(test):
    base = rng(6).normal(size=200)
    noise = rng(7).normal(0, 0.5, size=(2, 200))
    better, equal = mean_of("m", base + 0.3 + noise[0]), mean_of("m", base + noise[1] - noise[1].mean())
    plain = mean_of("m", base)
    real, none = test(better, plain, rng())["m"], test(equal, plain, rng())["m"]
    assert real.value == pytest.approx(0.3, abs=0.1) and real.p_value < 0.005
    assert none.value == pytest.approx(0, abs=1e-9) and none.p_value > 0.5


@pytest.mark.parametrize("test", [paired_bootstrap, approximate_randomisation])
def test_a_system_does_not_differ_from_itself(test):
    table = mean_of("m", rng(8).normal(size=50))
    assert test(table, table, rng())["m"].p_value == 1.0


def test_false_alarms_are_as_rare_as_promised():
    draw = rng(9)
    alarms = 0
    for _ in range(200):
        a, b = (mean_of("m", values) for values in draw.normal(size=(2, 40)))
        alarms += approximate_randomisation(a, b, draw, trials=200)["m"].p_value <= 0.05
    assert alarms <= 20


def test_paired_bootstrap_gives_an_interval_and_the_sign_of_the_difference():
    a, b = mean_of("m", [1.0, 1.0, 0.0, 1.0] * 20), mean_of("m", [0.0, 1.0, 0.0, 1.0] * 20)
    forth, back = paired_bootstrap(a, b, rng())["m"], paired_bootstrap(b, a, rng())["m"]
    assert forth.low < forth.value == 0.25 < forth.high
    assert (back.value, back.low, back.high) == (-0.25, -forth.high, -forth.low)


def test_sets_of_different_size_cannot_be_paired():
    with pytest.raises(DataError, match="2 against 1"):
        paired_bootstrap(mean_of("m", [1.0, 2.0]), mean_of("m", [1.0]), rng())
