"""Rank correlation of task x task tables: hand-worked values, and permutation tests on constructed cases."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from foreword.compose.correlation import rank_correlation
from foreword.errors import DataError


def rng():
    return np.random.default_rng(0)


def table(cells):
    """A 3 x 3 table from its six off-diagonal cells, row by row."""
    a, b, c, d, e, f = cells
    return torch.tensor([[9.0, a, b], [c, 9.0, d], [e, f, 9.0]], dtype=torch.float64)


def random_table(size, seed):
    return torch.rand(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].numpy()


def test_rho_is_spearmans_of_the_off_diagonal_cells():
    one, other = random_table(6, 1), random_table(6, 2)
    other[0, 1] = other[2, 3]  # a tie
    found = rank_correlation(one, other, rng())
    assert found.rho == pytest.approx(spearmanr(off_diagonal(one), off_diagonal(other)).statistic, rel=1e-12)


def test_rho_of_six_cells_by_hand():
    # ranks 1..6 against 2 1 3 4 5 6: sum of squared differences 2, rho = 1 - 6 * 2 / (6 * 35)
    found = rank_correlation(table([1, 2, 3, 4, 5, 6]), table([20, 10, 30, 40, 50, 60]), rng())
    assert found.rho == pytest.approx(1 - 12 / 210)
    assert found.exact and found.permutations == 6


def test_a_table_against_itself_has_the_least_p_value_that_its_symmetry_allows():
    found = rank_correlation(table([1, 2, 3, 4, 5, 6]), table([1, 2, 3, 4, 5, 6]), rng())
    assert found.rho == pytest.approx(1.0)
    assert found.p_value == pytest.approx(1 / 6)  # of 3! orders of tasks only the identity keeps all ranks
    symmetric = table([1, 2, 1, 3, 2, 3])
    assert rank_correlation(symmetric, symmetric, rng()).p_value == pytest.approx(1 / 6)
    twins = table([1, 2, 1, 2, 2, 2])  # tasks 0 and 1 may be swapped without a trace
    assert rank_correlation(twins, twins, rng()).p_value == pytest.approx(2 / 6)


def test_a_reversed_table_is_last_one_sided_and_first_two_sided():
    one = table([1, 2, 3, 4, 5, 6])
    found = rank_correlation(one, -one, rng())
    assert found.rho == pytest.approx(-1.0) and found.p_value == 1.0
    # reversing the order of the tasks turns 1..6 into 6..1, so two of the six orders reach |rho| = 1
    assert rank_correlation(one, -one, rng(), sided="two").p_value == pytest.approx(2 / 6)


def test_drawn_permutations_agree_with_all_of_them_and_are_repeatable():
    one, other = random_table(6, 1), random_table(6, 3)
    exact = rank_correlation(one, other, rng())
    assert exact.exact and exact.permutations == 720
    drawn = rank_correlation(one, other, rng(), permutations=700)
    assert not drawn.exact and drawn.permutations == 700
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.06)
    assert drawn == rank_correlation(one, other, rng(), permutations=700)


def test_p_values_of_unrelated_tables_are_spread_evenly():
    found = [rank_correlation(random_table(5, 2 * n), random_table(5, 2 * n + 1), rng()).p_value for n in range(60)]
    assert 0.35 < np.mean(found) < 0.65
    assert sum(p <= 0.05 for p in found) <= 8  # 3 expected


def test_per_target_correlation_ignores_the_targets_scales():
    similarity = random_table(5, 4)
    transfer = similarity + 10 * torch.arange(5.0)  # each target has a level of its own
    pooled = rank_correlation(similarity, transfer, rng()).rho
    apart = rank_correlation(similarity, transfer, rng(), pooled=False)
    assert apart.rho == pytest.approx(1.0) and pooled < 0.7
    assert apart.p_value <= 0.05


def test_a_constant_table_has_no_correlation():
    found = rank_correlation(torch.ones(4, 4), random_table(4, 0), rng())
    assert math.isnan(found.rho) and math.isnan(found.p_value)


def test_tables_that_cannot_be_correlated_are_refused():
    good = random_table(4, 0)
    with pytest.raises(DataError, match="two square ones"):
        rank_correlation(good, good[:3, :3], rng())
    with pytest.raises(DataError, match="at least 3"):
        rank_correlation(good[:2, :2], good[:2, :2], rng())
    holed = good.clone()
    holed[0, 1] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        rank_correlation(good, holed, rng())
