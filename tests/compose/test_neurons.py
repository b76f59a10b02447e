"""Activated neurons: found in every family, and their overlap computed by hand on a model whose neurons are known."""

import math

import pytest
import torch
from backbones import DECODERS, FAMILIES, make
from toy import drawn_prompt

from foreword.compose.neurons import layer_groups, neuron_activity, overlap, overlap_matrices
from foreword.errors import ConfigError, PromptError


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_one_set_of_neurons_a_layer(backbone_of, family):
    backbone = backbone_of(family)
    activity = neuron_activity(backbone, drawn_prompt(backbone))
    widths = {"gpt2": 256, "pythia": 96}
    assert [len(layer) for layer in activity] == [widths.get(family, 96)] * 3
    assert all(0 < int((layer > 0).sum()) < len(layer) for layer in activity)


def test_neurons_are_the_feed_forward_activations_at_the_token_after_the_prompt(backbone_of):
    """Worked out without our code: GPT-2 reads the prompt's own embeddings and BOS as plain input."""
    backbone = backbone_of("gpt2")
    prompt = drawn_prompt(backbone, kind="prompt", length=3)
    bos = backbone.embed(torch.tensor([backbone.tokenizer.bos_token_id]))
    embeds = torch.cat([prompt.table("embedding").detach(), bos])[None]
    seen = []
    hooks = [
        block.mlp.c_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, -1]))
        for block in backbone.model.transformer.h
    ]
    with torch.no_grad():
        backbone.model(inputs_embeds=embeds)
    for hook in hooks:
        hook.remove()
    for mine, theirs in zip(neuron_activity(backbone, prompt), seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_overlap_of_a_hand_computed_feed_forward_layer():
    """Layer 0's first block becomes x -> relu-like(W x + b) with known signs, so that the sets are known."""
    backbone = make("opt")
    layers = backbone.model.model.decoder.layers
    prompts = [drawn_prompt(backbone, seed, kind="prefix") for seed in (0, 1)]
    with torch.no_grad():
        for layer in layers:  # whatever comes in, neurons 0..9 fire and the rest do not
            layer.fc1.weight.zero_()
            layer.fc1.bias.fill_(-1.0)
            layer.fc1.bias[:10] = 2.0
    first, second = (neuron_activity(backbone, prompt) for prompt in prompts)
    assert [int((a > 0).sum()) for a in first] == [10, 10, 10]
    assert torch.equal(first[0][:10], torch.full((10,), 2.0)) and not first[0][10:].any()
    assert overlap(first, second) == pytest.approx(1.0)
    with torch.no_grad():  # now neurons 5..14 for the second prompt: 5 of 10 and 10 are shared
        for layer in layers:
            layer.fc1.bias.fill_(-1.0)
            layer.fc1.bias[5:15] = 2.0
    second = neuron_activity(backbone, prompts[1])
    assert overlap(first, second) == pytest.approx(5 / math.sqrt(10 * 10))


def test_overlap_is_the_cosine_of_sets_by_group_of_layers():
    first = [torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])]
    second = [torch.tensor([3.0, 1.0, -2.0, 1.0]), torch.tensor([1.0, -1.0, -1.0, -1.0])]
    assert overlap(first, second, [0]) == pytest.approx(1 / math.sqrt(2 * 3))
    assert overlap(first, second, [1]) == pytest.approx(1 / math.sqrt(4 * 1))
    assert overlap(first, second) == pytest.approx(2 / math.sqrt(6 * 4))  # not 2 / 8, the Jaccard index
    assert overlap(first, second, [0], how="raw") == pytest.approx((3 - 1 - 4) / (math.sqrt(6) * math.sqrt(15)))
    assert overlap(first, second, [0], how="top", top=2) == pytest.approx(1 / 2)  # {2, 0} and {0, 1 or 3}


def test_silent_neurons_overlap_with_nothing():
    silent, loud = [torch.zeros(4)], [torch.ones(4)]
    assert overlap(silent, loud) == overlap(silent, silent) == 0.0


def test_layers_are_grouped_by_threes_and_all_together():
    assert layer_groups(7) == {"0-2": [0, 1, 2], "3-5": [3, 4, 5], "6-6": [6], "all": [*range(7)]}


def test_matrices_are_symmetric_with_ones_on_the_diagonal(backbone_of):
    backbone = backbone_of("llama")
    prompts = {str(seed): drawn_prompt(backbone, seed, kind="prompt") for seed in range(3)}
    matrices = overlap_matrices(backbone, prompts, size=2)
    assert list(matrices) == ["0-1", "2-2", "all"]
    for matrix in matrices.values():
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.float64))
        assert float(matrix[0, 1]) < 1


@pytest.mark.parametrize("spec", [{"kind": "infix"}, {"kind": "prompt", "placement": "suffix"}])
def test_prompts_inside_or_after_the_text_are_read_before_the_last_token(backbone_of, spec):
    backbone = backbone_of("llama")
    with_prompt = neuron_activity(backbone, drawn_prompt(backbone, **spec))
    without = neuron_activity(backbone, None)
    assert overlap(with_prompt, without) < 1


def test_dropout_is_off_meanwhile_and_nothing_is_left_behind(backbone_of):
    backbone = backbone_of(next(iter(DECODERS)))
    prompt = drawn_prompt(backbone, dropout=0.5).train()
    first, again = neuron_activity(backbone, prompt), neuron_activity(backbone, prompt)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and prompt.training
    assert not [m for m in backbone.model.modules() if m._forward_hooks]


def test_a_prompt_behind_bos_takes_no_token_from_the_text(backbone_of):
    backbone = backbone_of("llama")
    prompt = drawn_prompt(backbone, kind="prompt", placement="after_bos")
    found, plain = neuron_activity(backbone, prompt), neuron_activity(backbone, None)
    assert [layer.shape for layer in found] == [layer.shape for layer in plain]
    assert overlap(found, found) == 1.0 and overlap(found, plain) < 1.0


def test_what_cannot_be_compared_is_refused(backbone_of):
    one = neuron_activity(backbone_of("llama"), None)
    other = neuron_activity(backbone_of("gpt2"), None)
    with pytest.raises(PromptError, match="different models"):
        overlap(one, other)
    with pytest.raises(ConfigError, match="layers 0 to 2"):
        overlap(one, one, [3])
    with pytest.raises(ConfigError, match="did you mean 'binary'"):
        overlap(one, one, how="binry")
