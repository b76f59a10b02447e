"""The similarity measures equal values worked out by hand."""

import math

import pytest
import torch
from toy import drawn_prompt

from foreword.compose.similarity import MEASURES, prompt_rows, similarity, similarity_matrix
from foreword.errors import ConfigError, PromptError

# p1 = (3, 4), (0, 2);  p2 = (3, 0), (0, 2).
FIRST = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)
SECOND = torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("E_concat", 1 / (1 + 4)),  # the tables differ in one number, by 4
        # |(3,4)-(3,0)| = 4, |(3,4)-(0,2)| = sqrt 13, |(0,2)-(3,0)| = sqrt 13, |(0,2)-(0,2)| = 0
        ("E_avg", 1 / (1 + (4 + 2 * math.sqrt(13)) / 4)),
        ("C_concat", (9 + 4) / (math.sqrt(29) * math.sqrt(13))),
        ("C_avg", (3 / 5 + 4 / 5 + 0 + 1) / 4),
        ("C_mean", (1.5 * 1.5 + 3 * 1) / (math.hypot(1.5, 3) * math.hypot(1.5, 1))),
    ],
)
def test_a_measure_equals_the_value_worked_out_by_hand(name, expected):
    assert MEASURES[name](FIRST, SECOND) == pytest.approx(expected, rel=1e-12)
    assert MEASURES[name](SECOND, FIRST) == pytest.approx(expected, rel=1e-12)


def test_a_prompt_is_most_like_itself(backbone_of):
    backbone = backbone_of("llama")
    a, b = (drawn_prompt(backbone, seed, kind="prompt") for seed in (0, 1))
    for name in ("E_concat", "C_concat", "C_mean"):
        assert similarity(a, a, name) == pytest.approx(1.0, abs=1e-9)
        assert similarity(a, b, name) < 0.9
    matrix = similarity_matrix({"a": a, "b": b}, "E_avg")
    assert matrix.shape == (2, 2) and matrix[0, 1] == matrix[1, 0] != matrix[0, 0]


def test_a_prefix_is_compared_over_all_layers_and_stacks_and_an_mlp_is_folded(backbone_of):
    t5 = backbone_of("t5")
    prompt = drawn_prompt(t5, kind="prefix", reparam="mlp", reparam_width=8)
    rows = prompt_rows(prompt)
    assert rows.shape == (4, sum(shape.width for shape in t5.geometry.sites.values()))
    assert similarity(prompt, prompt.fold(), "E_concat") == pytest.approx(1.0)


def test_lengths_may_differ_where_the_measure_takes_every_row_with_every_row(backbone_of):
    backbone = backbone_of("llama")
    short, long = drawn_prompt(backbone, length=2), drawn_prompt(backbone, length=5)
    assert -1 <= similarity(short, long, "C_avg") <= 1
    with pytest.raises(PromptError, match="E_concat needs equal lengths, not 2 and 5"):
        similarity(short, long, "E_concat")


def test_what_cannot_be_compared_is_refused(backbone_of):
    backbone = backbone_of("llama")
    with pytest.raises(ConfigError, match="did you mean 'C_avg'"):
        similarity(drawn_prompt(backbone), drawn_prompt(backbone), "C_avrg")
    with pytest.raises(PromptError, match="numbers a virtual token"):
        similarity(drawn_prompt(backbone), drawn_prompt(backbone, kind="prompt"))
    with pytest.raises(PromptError, match="at the same layers"):
        similarity(drawn_prompt(backbone, layers=(0, 1)), drawn_prompt(backbone, layers=(1, 2)))
    mine, theirs = drawn_prompt(backbone), drawn_prompt(backbone, 1)
    mine.fingerprint, theirs.fingerprint = {"weights": "a"}, {"weights": "b"}
    with pytest.raises(PromptError, match="different backbones"):
        similarity(mine, theirs)
