"""Choosing tokens: equal to Transformers' own processors, and each row by itself."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foreword.serve.request import Sampling
from foreword.serve.sampling import Sampler, log_probabilities


def theirs(logits, source, made, settings):
    """Return Transformers' probabilities for the same settings."""
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    return processors(torch.tensor([[*source, *made]]), logits[None].clone())[0].softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(temperature=1.0), Sampling(temperature=0.4, top_k=5), Sampling(temperature=2.0, top_p=0.7),
        Sampling(temperature=1.3, min_p=0.1), Sampling(temperature=1.0, top_k=20, top_p=0.8, min_p=0.05),
        Sampling(temperature=0.9, repetition_penalty=1.7), Sampling(temperature=1.0, top_p=1e-9),
    ],
    ids=lambda s: "-".join(f"{k}={v}" for k, v in vars(s).items() if v != vars(Sampling())[k]),
)
def test_draws_equal_transformers_for_the_same_seed(settings):
    for seed in range(20):
        logits = torch.randn(99, generator=torch.Generator().manual_seed(seed)) * 3
        source, made = [3, 4, 5], [5, 6, 5]
        probabilities = theirs(logits, source, made, settings)
        wanted = int(torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed)))
        assert Sampler(settings, seed).choose(logits, source, made) == wanted


def test_penalties_and_biases_change_the_greedy_choice():
    logits = torch.tensor([1.0, 0.9, 0.5, -1.0])
    assert Sampler(Sampling(presence_penalty=0.2), 0).choose(logits, [], [0]) == 1
    assert Sampler(Sampling(frequency_penalty=0.05), 0).choose(logits, [], [0]) == 0
    assert Sampler(Sampling(frequency_penalty=0.05), 0).choose(logits, [], [0, 0, 0]) == 1
    assert Sampler(Sampling(logit_bias={3: 5.0}), 0).choose(logits, [], []) == 3
    assert Sampler(Sampling(repetition_penalty=1.3), 0).choose(logits, [0], []) == 1
    assert Sampler(Sampling(), 0, min_tokens=2, ending=[0]).choose(logits, [], [1]) == 1
    assert Sampler(Sampling(), 0, min_tokens=2, ending=[0]).choose(logits, [], [1, 1]) == 0
    assert logits.tolist() == torch.tensor([1.0, 0.9, 0.5, -1.0]).tolist()


def test_only_rows_without_settings_take_the_common_argmax():
    assert Sampler(Sampling(), 0).is_plain(0)
    assert not Sampler(Sampling(), 0, min_tokens=1).is_plain(0)
    assert not Sampler(Sampling(temperature=0.5), 0).is_plain(0)
    assert not Sampler(Sampling(logit_bias={1: 1.0}), 0).is_plain(0)


def test_a_draw_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Sampler(Sampling(temperature=1.0), 3).choose(torch.randn(9, generator=torch.Generator()), [], [])
    assert torch.equal(before, torch.get_rng_state())


def test_log_probabilities_are_sorted_and_sum_to_one():
    told = log_probabilities(torch.tensor([0.0, 2.0, 1.0]), 0, 3)
    assert [token for token, _ in told.top] == [1, 2, 0]
    assert sum(torch.tensor([value for _, value in told.top]).exp().tolist()) == pytest.approx(1)
    assert told.logprob == pytest.approx(told.top[2][1])
