"""The target loss equals a naive computation, shares sources exactly, and never keeps logits."""

import itertools

import pytest
import torch

from foreword.errors import TrainingError
from foreword.frozen import BLOCK_BYTES, Head, find_head
from foreword.prompts.batch import Row
from foreword.prompts.init import draw_undirected
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss
from tests.backbones import ENCODER_DECODERS, FAMILIES, make

ROWS = [
    Row((5, 6, 7, 8, 9), ((20, 21, 22, 2), (30, 2), (31, 32, 33, 34, 2))),
    Row((10, 11), ((40, 41, 2),)),
    Row((12, 13, 14, 15, 16, 17, 18), ((50, 51, 52, 53, 54, 2), (2,))),
]
LONG = [Row(tuple(range(4, 44)), ((50, 51, 2), (60, 2), (61, 62, 63, 2))), ROWS[0]]
SEPARATE = [Row(row.source, (target,)) for row in ROWS for target in row.targets]


def prompt_for(backbone, kind="prefix", **spec):
    prompt = make_prompt(PromptSpec(kind=kind, length=4, **spec), backbone)
    draw_undirected(prompt, torch.Generator().manual_seed(0))
    return prompt


def gradient_of(loss, prompt):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(prompt.parameters()))])


def naive(backbone, row, past):
    """-log p of one target from the whole model, one sequence, the prefix as `past_key_values`, in float64 sums."""
    (target,) = row.targets
    ids, mask = torch.tensor([row.source]), torch.ones(1, len(row.source), dtype=torch.long)
    if backbone.is_encoder_decoder:
        start = backbone.model.config.decoder_start_token_id
        decoder_ids = torch.tensor([[start, *target[:-1]]])
        logits = backbone.model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids).logits[0]
    else:
        ids = torch.tensor([[*row.source, *target[:-1]]])
        logits = backbone.model(ids, past_key_values=past).logits[0, len(row.source) - 1 :]
    return -logits.double().log_softmax(-1).gather(1, torch.tensor(target)[:, None]).sum()


def cache_of(prompt, backbone):
    from transformers import DynamicCache

    cache = DynamicCache()
    for (_, layer), (key, value) in prompt.realise(backbone).prefix.states.items():
        cache.update(key[None], value[None], layer)
    return cache


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_without_a_prompt_equals_the_whole_model_one_row_at_a_time(family):
    backbone = make(family)
    loss = target_loss(backbone, ROWS, [None] * len(ROWS))
    expected = torch.stack([naive(backbone, row, None) for row in SEPARATE])
    torch.testing.assert_close(loss.per_target.double(), expected, rtol=1e-5, atol=1e-5)
    assert loss.tokens_per_target.tolist() == [len(row.targets[0]) for row in SEPARATE]
    assert loss.num_tokens == sum(len(row.targets[0]) for row in SEPARATE)
    torch.testing.assert_close(loss.sum, loss.per_target.sum())


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "pythia", "qwen3", "phi3"])
def test_loss_and_gradient_equal_the_cache_route(family):
    backbone = make(family)
    prompt = prompt_for(backbone, reparam="mlp", reparam_width=16)
    loss = target_loss(backbone, ROWS, [prompt] * len(ROWS))
    expected = torch.stack([naive(backbone, row, cache_of(prompt, backbone)) for row in SEPARATE])
    torch.testing.assert_close(loss.per_target.double(), expected, rtol=1e-5, atol=1e-5)
    wanted = gradient_of(expected.sum(), prompt)
    difference = gradient_of(loss.sum, prompt) - wanted
    assert wanted.norm() > 0
    assert difference.norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_several_targets_of_a_source_equal_separate_rows(family):
    backbone = make(family)
    prompt = prompt_for(backbone)
    shared = target_loss(backbone, ROWS, [prompt] * len(ROWS))
    separate = target_loss(backbone, SEPARATE, [prompt] * len(SEPARATE))
    torch.testing.assert_close(shared.per_target, separate.per_target, rtol=1e-5, atol=1e-5)
    wanted = gradient_of(separate.sum, prompt)
    assert (gradient_of(shared.sum, prompt) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3"])
@pytest.mark.parametrize("kind", ["prefix", "infix"])
@pytest.mark.parametrize("rows", [ROWS, LONG], ids=["short", "long"])
def test_short_and_long_sources_are_shared_exactly(family, kind, rows):
    """Short sources are repeated inside attention, long ones are not; these pass the sliding windows of 32."""
    backbone = make(family)
    backbone.model.double()  # RMSNorm and rotary embeddings still compute in float32
    prompt = prompt_for(backbone, kind).double()
    alone = [Row(row.source, (target,)) for row in rows for target in row.targets]
    shared = target_loss(backbone, rows, [prompt] * len(rows))
    separate = target_loss(backbone, alone, [prompt] * len(alone))
    torch.testing.assert_close(shared.per_target, separate.per_target, rtol=1e-6, atol=1e-6)
    wanted = gradient_of(separate.sum, prompt)
    assert (gradient_of(shared.sum, prompt) - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "t5", "bart"])
@pytest.mark.parametrize("kind", ["prefix", "prompt", "infix"])
def test_mixed_rows_equal_single_rows(family, kind):
    if kind == "infix" and family in ENCODER_DECODERS:
        pytest.skip("an encoder-decoder has no infix")
    backbone = make(family)
    backbone.model.double()  # random T5s amplify float32 rounding beyond 1e-5
    prompts = [prompt_for(backbone, kind).double(), None, prompt_for(backbone, "prompt").double()]
    mixed = target_loss(backbone, ROWS, prompts)
    single = [target_loss(backbone, [row], [prompt]) for row, prompt in zip(ROWS, prompts, strict=True)]
    torch.testing.assert_close(mixed.per_target, torch.cat([s.per_target for s in single]), rtol=1e-9, atol=1e-9)
    for alone, prompt in zip(single, prompts, strict=True):
        if prompt is not None:
            wanted = gradient_of(alone.sum, prompt)
            together = gradient_of(target_loss(backbone, ROWS, prompts).sum, prompt)
            assert (together - wanted).norm() < 1e-9 * wanted.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_found_and_the_whole_model_gives_the_same(family):
    backbone = make(family)
    prompt = prompt_for(backbone)
    assert isinstance(find_head(backbone), Head)
    fast = target_loss(backbone, ROWS, [prompt] * len(ROWS))
    backbone.model.foreword_head = None
    whole = target_loss(backbone, ROWS, [prompt] * len(ROWS))
    torch.testing.assert_close(fast.per_target, whole.per_target, rtol=1e-5, atol=1e-5)
    wanted = gradient_of(whole.sum, prompt)
    assert (gradient_of(fast.sum, prompt) - wanted).norm() < 1e-5 * wanted.norm()


def test_a_projection_after_the_last_hidden_state_falls_back_to_the_whole_model():
    backbone = make("gpt2")
    backbone.model.lm_head.register_forward_hook(lambda module, args, output: output * output)
    assert find_head(backbone) is None
    loss = target_loss(backbone, ROWS, [None] * len(ROWS))
    expected = torch.stack([naive(backbone, row, None) for row in SEPARATE])
    torch.testing.assert_close(loss.per_target.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "cap", "bias"), [*itertools.product((1.0, 0.3), (None, 5.0), (False, True))])
def test_head_losses_equal_autograd_over_many_blocks(monkeypatch, scale, cap, bias):
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 1)  # the least: 256 columns a block
    torch.manual_seed(0)
    module = torch.nn.Linear(12, 700).requires_grad_(False)
    head = Head(module, scale, torch.randn(700) if bias else None, cap)
    hidden = torch.randn(50, 12, requires_grad=True)
    labels, weight = torch.randint(700, (50,)), torch.randn(50)
    losses = head.losses(hidden, labels)
    (gradient,) = torch.autograd.grad((losses * weight).sum(), hidden)
    twin = hidden.detach().double().requires_grad_()
    scores = (twin * scale) @ module.weight.double().T + module.bias.double()
    scores = scores + (head.extra_bias.double() if bias else 0)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weight).sum(), twin)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)


def test_nothing_of_the_logits_size_is_kept_for_backward():
    backbone = make("gpt2")
    prompt = prompt_for(backbone)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(tuple(t.shape)) or t, lambda t: t):
        target_loss(backbone, ROWS, [prompt] * len(ROWS)).sum.backward()
    weights = {tuple(parameter.shape) for parameter in backbone.model.parameters()}
    vocabulary = backbone.model.config.vocab_size
    assert sizes
    assert not [shape for shape in sizes if vocabulary in shape and shape not in weights and shape[::-1] not in weights]


def test_no_target_token_is_an_error_that_says_so():
    backbone = make("gpt2")
    with pytest.raises(TrainingError, match="no target token"):
        target_loss(backbone, [Row((5, 6)), Row((7,), ((),))], [None, None])
