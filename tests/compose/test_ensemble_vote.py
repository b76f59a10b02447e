"""Votes, worked by hand."""

import pytest

from foreword.compose.vote import borda_points, majority, mean_of_probabilities, ranked
from foreword.errors import ConfigError


def test_most_votes_win_whatever_the_order_and_the_weights():
    assert majority(["b", "a", "a"]) == "a"
    assert majority(["a", "b", "a", "b", "b"]) == "b"
    assert majority(["a", "b", "b"], [9.0, 0.1, 0.1]) == "b"  # weights are for ties alone
    assert majority(["x"]) == "x"


def test_a_tie_goes_to_the_string_of_the_first_voter():
    assert majority(["c", "a", "b"]) == "c"
    assert majority(["a", "b", "b", "a", "c"]) == "a"
    assert majority(["c", "b", "a", "a", "b"]) == "b"  # c has one vote; b's first voter stands before a's


def test_weights_break_ties_before_the_order_does():
    assert majority(["a", "b", "b", "a"], [0.1, 0.5, 0.3, 0.6]) == "b"  # 0.7 against 0.8
    assert majority(["a", "b"], [0.5, 0.5]) == "a"


def test_strings_are_compared_as_they_are():
    assert majority(["A", "a", "a "]) == "A"


def test_the_mean_of_probabilities_can_overrule_the_majority():
    tables = [[0.6, 0.4], [0.55, 0.45], [0.0, 1.0]]  # two of three prefer 0; the means are 0.383 and 0.617
    choice, means = mean_of_probabilities(tables)
    assert choice == 1
    assert means == pytest.approx([1.15 / 3, 1.85 / 3])
    assert mean_of_probabilities([[0.5, 0.5]])[0] == 0  # the first of equals


def test_borda_counts_places():
    rankings = [["a", "b", "c"], ["b", "c", "a"], ["b", "a", "c"], ["a", "b", "c"], ["a", "b", "c"]]
    # a: 2 + 0 + 1 + 2 + 2 = 7; b: 1 + 2 + 2 + 1 + 1 = 7; c: 0 + 1 + 0 + 0 + 0 = 1
    assert borda_points(rankings) == {"a": 7, "b": 7, "c": 1}
    assert ranked(rankings) == "a"  # tied on points; three first places against two
    assert ranked([["a", "b", "c"], ["b", "c", "a"], ["c", "b", "a"]]) == "b"  # 2, 4, 3: nobody's majority
    assert ranked([["b", "a"], ["a", "b"]]) == "b"  # tied on all; the first member likes b better


def test_runoff_removes_the_fewest_first_places():
    # First places: a 2, b 2, c 1. c leaves; its voter goes to b: 3 of 5.
    rankings = [["a", "c", "b"], ["a", "b", "c"], ["b", "a", "c"], ["b", "c", "a"], ["c", "b", "a"]]
    assert ranked(rankings, "runoff") == "b"
    # a has more than half at once, and would lose to b by Borda: a 3*2 = 6, b 3*1 + 2*2 = 7.
    strong = [["a", "b", "c"]] * 3 + [["b", "c", "a"]] * 2
    assert ranked(strong, "runoff") == "a"
    assert ranked(strong, "borda") == "b"
    assert ranked([["a", "b"], ["b", "a"]], "runoff") == "a"  # b leaves: the first member likes it less


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: majority([]), "no member"),
        (lambda: majority(["a", "b"], [1.0]), "1 weights for 2 members"),
        (lambda: mean_of_probabilities([[0.5, 0.5], [1.0]]), "all must give the same"),
        (lambda: ranked([["a", "b"], ["a", "c"]]), "member 1 ranks"),
        (lambda: ranked([["a", "a"], ["a", "a"]]), "must rank the same"),
        (lambda: ranked([["a", "b"]], "bordas"), "did you mean 'borda'"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, says):
    with pytest.raises(ConfigError, match=says):
        call()
