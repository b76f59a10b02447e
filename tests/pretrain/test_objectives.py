"""Span corruption against a plain restatement of T5's recipe (t5/data/preprocessors.py), loop by loop."""

import numpy as np
import pytest
import torch

from foreword.pretrain.batch import IGNORED, make_batch, row_context
from foreword.pretrain.objectives import (
    prefix_lm_split,
    prepend_sentinel,
    random_spans_noise_mask,
    span_corruption,
    span_corruption_lengths,
)


def restated_lengths(inputs_length: int) -> tuple[int, int]:
    """`random_spans_helper`: try raw lengths one by one, count both sides by hand."""
    best = (0, 0)
    for raw in range(2, 4 * inputs_length):
        noise = round(raw * 0.15)
        spans = round(noise / 3.0)
        inputs, targets = (raw - noise) + spans + 1, noise + spans + 1
        if inputs > inputs_length:
            return best
        best = (raw, targets)
    raise AssertionError


def restated_mask(rng: np.random.Generator, length: int) -> list[bool]:
    """`random_spans_noise_mask`, with its shuffles drawn in its order: noise spans, then the others."""
    noise = min(max(round(length * 0.15), 1), length - 1)
    spans = max(round(noise / 3.0), 1)

    def segmentation(items: int, segments: int) -> list[int]:
        marks = [True] * (segments - 1) + [False] * (items - segments)
        sizes = [1]
        for starts_new in rng.permutation(np.array(marks, dtype=bool)):
            if starts_new:
                sizes.append(1)
            else:
                sizes[-1] += 1
        return sizes

    noise_sizes = segmentation(noise, spans)
    other_sizes = segmentation(length - noise, spans)
    mask: list[bool] = []
    for other, noisy in zip(other_sizes, noise_sizes, strict=True):
        mask += [False] * other + [True] * noisy
    return mask


def restated_pair(tokens: list[int], mask: list[bool], sentinel: int) -> tuple[list[int], list[int]]:
    """`noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel`, then an end of sequence on both."""
    inputs: list[int] = []
    targets: list[int] = []
    for side, dropped in ((inputs, True), (targets, False)):
        next_sentinel, inside = sentinel, False
        for token, noisy in zip(tokens, mask, strict=True):
            if noisy != dropped:
                side.append(token)
            elif not inside:
                side.append(next_sentinel)
                next_sentinel -= 1
            inside = noisy == dropped
        side.append(1)
    return inputs, targets


@pytest.mark.parametrize("length", [24, 64, 128, 512, 1024])
def test_raw_lengths_are_t5s(length: int):
    assert span_corruption_lengths(length) == restated_lengths(length)


def test_the_papers_own_lengths():
    assert span_corruption_lengths(512) == (568, 114)


@pytest.mark.parametrize("length", [10, 37, 137, 568])
def test_masks_and_batches_equal_the_recipe(length: int):
    for seed in range(20):
        mask = random_spans_noise_mask(np.random.default_rng(seed), length)
        assert mask.tolist() == restated_mask(np.random.default_rng(seed), length)
        tokens = np.arange(100, 100 + length)
        inputs, targets = span_corruption(tokens, mask, first_sentinel=999, end=1)
        assert (inputs.tolist(), targets.tolist()) == restated_pair(tokens.tolist(), mask.tolist(), 999)


def test_worked_example():
    # "Thank you for inviting me to your party last week ." with "for inviting" and "last" taken out (T5, figure 2).
    tokens = np.array([11, 12, 13, 14, 15, 16, 17, 18, 19, 20])
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0], dtype=bool)
    inputs, targets = span_corruption(tokens, mask, first_sentinel=99, end=1)
    assert inputs.tolist() == [11, 12, 99, 15, 16, 17, 18, 98, 20, 1]
    assert targets.tolist() == [99, 13, 14, 98, 19, 97, 1]


def test_span_batches_have_the_models_context():
    raw = row_context("span_corruption", 64)
    rows = np.random.default_rng(0).integers(2, 800, size=(3, raw + 1))
    batch = make_batch("span_corruption", rows, np.random.default_rng(1), vocabulary=1000)
    assert batch.inputs.shape == (3, 64) and batch.targets.shape == (3, span_corruption_lengths(64)[1])
    assert batch.decoder_inputs[:, 0].tolist() == [0, 0, 0]
    assert torch.equal(batch.decoder_inputs[:, 1:], batch.targets[:, :-1])
    assert batch.inputs.max() == 999 and (batch.targets[:, 0] == 999).all() and (batch.targets[:, -1] == 1).all()


def test_prefix_lm_splits_a_row_in_two():
    rows = np.random.default_rng(0).integers(2, 800, size=(4, 33))
    batch = make_batch("prefix_lm", rows, np.random.default_rng(2), vocabulary=1000)
    joined = torch.cat([batch.inputs, batch.targets], dim=1)
    assert torch.equal(joined, torch.from_numpy(rows[:, :-1]))


def test_prefix_lm_splits_are_uniform_and_leave_both_sides_a_token():
    rng = np.random.default_rng(0)
    splits = [prefix_lm_split(rng, 10) for _ in range(4000)]
    assert set(splits) == set(range(1, 10))
    assert max(np.bincount(splits)[1:]) < 1.25 * min(np.bincount(splits)[1:])
    assert {prefix_lm_split(rng, 128, 64) for _ in range(100)} <= {64, 127}


def test_causal_targets_are_the_next_tokens_and_padding_is_not_learned():
    rows = np.array([[5, 6, 7, 0, 0]])
    batch = make_batch("causal", rows, np.random.default_rng(0), vocabulary=100)
    assert batch.inputs.tolist() == [[5, 6, 7, 0]]
    assert batch.targets.tolist() == [[6, 7, IGNORED, IGNORED]]


def test_sentinel_ablation_prepends():
    assert prepend_sentinel(np.array([5, 6]), 99).tolist() == [99, 5, 6]
