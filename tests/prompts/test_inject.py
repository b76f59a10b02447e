"""Injection under circumstances: other dtypes, masks of the caller's own, training mode, inference mode, no mask."""

import pytest
import torch
from backbones import DECODERS, FAMILIES

from foreword.errors import ConfigError, PromptError
from foreword.generate.offline import generate_ids
from foreword.prompts.bank import Bank, PrefixKV
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.init import initialise
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad
from foreword.prompts.soft_prompt import compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss


@pytest.fixture
def half_of(backbone_of):
    """Return a family's backbone in bfloat16."""
    import copy
    import dataclasses

    def make(name):
        backbone = backbone_of(name)
        model = copy.deepcopy(backbone.model).to(torch.bfloat16)
        return dataclasses.replace(backbone, model=model)

    return make


def fresh(backbone, seed=0, **fields):
    prompt = make_prompt(PromptSpec(**fields), backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(seed))
    return prompt


def scores(backbone, rows, prompts):
    with torch.no_grad():
        return target_loss(backbone, rows, prompts).per_target


ROWS = [Row((5, 6, 7), ((8, 9, 2),)), Row((1, 30, 31, 32, 33, 34), ((40, 41, 42, 2), (43, 2))), Row((50,), ((51, 2),))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bfloat16_backbone_mixes_and_learns(name, half_of, backbone_of):
    """Tables stay float32; mixed losses stay near single ones and near float32's; gradients are finite and alive."""
    backbone = half_of(name)
    prompts = [fresh(backbone, 1, length=4), fresh(backbone, 2, kind="prompt", length=3), None]
    assert all(p.dtype == torch.float32 for prompt in prompts[:2] for p in prompt.parameters())
    mixed = target_loss(backbone, ROWS, prompts)
    single = torch.cat([scores(backbone, [row], [p]) for row, p in zip(ROWS, prompts, strict=True)])
    assert mixed.per_target.dtype == torch.float32
    torch.testing.assert_close(mixed.per_target.detach(), single, rtol=0.02, atol=0.1)
    torch.testing.assert_close(single, scores(backbone_of(name), ROWS, prompts), rtol=0.03, atol=0.2)
    mixed.sum.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for prompt in prompts[:2] for p in prompt.parameters())


@pytest.mark.parametrize("kind", ["bool", "float", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_masks_of_the_callers_own_are_widened(name, kind, backbone_of):
    """A 4-D bool or additive mask, or none at all: the same logits as the packed path."""
    backbone = backbone_of(name)
    rows = [Row((5, 6, 7, 8)), Row((9, 10, 11, 12)), Row((13, 14, 15, 16))]
    realised = realise_all(backbone, [fresh(backbone, length=3), None, fresh(backbone, 1, length=6)])
    batch, packed = pad(backbone, rows, realised), pack(backbone, rows, realised, all_positions=True)
    mask = torch.ones(3, 1, 4, 4, dtype=torch.bool).tril()
    if kind == "float":
        mask = torch.zeros(3, 1, 4, 4).masked_fill(~mask, torch.finfo(torch.float32).min)
    inputs = {**batch.inputs, "attention_mask": None if kind == "none" else mask}
    with torch.no_grad():
        with activate(batch.injection):
            ours = backbone.model(**inputs, use_cache=False).logits
        with activate(packed.injection):
            theirs = backbone.model(**packed.inputs, logits_to_keep=packed.predict_at, use_cache=False).logits[0]
    torch.testing.assert_close(ours.flatten(0, 1), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_goes_on_after_inference_mode(name, backbone_of):
    backbone = backbone_of(name)
    prompts = [fresh(backbone, length=3), fresh(backbone, kind="prompt", length=3), None]
    before = scores(backbone, ROWS, prompts)
    with torch.inference_mode():
        generate_ids(backbone, ROWS, prompts, max_new_tokens=2)
    loss = target_loss(backbone, ROWS, prompts)
    assert torch.equal(loss.per_target.detach(), before)
    loss.sum.backward()
    assert all(p.grad.any() for prompt in prompts[:2] for p in prompt.parameters())


def test_dropout_is_for_training_only(backbone_of):
    """A prompt with dropout generates alike twice, and still drops numbers in training."""
    backbone = backbone_of("llama")
    prompt = fresh(backbone, length=4, dropout=0.5)
    options = {"max_new_tokens": 6, "num_beams": 1, "do_sample": False}
    assert prompt.training
    first, second = (generate_ids(backbone, ROWS, [prompt] * 3, **options) for _ in range(2))
    assert first == second and prompt.training
    prompt.train()
    assert not torch.equal(scores(backbone, ROWS, [prompt] * 3), scores(backbone, ROWS, [prompt] * 3))
    prompt.eval()
    assert torch.equal(scores(backbone, ROWS, [prompt] * 3), scores(backbone, ROWS, [prompt] * 3))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_compiled_prompt_has_no_dropout(kind, backbone_of):
    backbone = backbone_of("gpt2")
    prompt = fresh(backbone, kind=kind, length=4, dropout=0.5)
    compiled = [compile_prompt(prompt, backbone) for _ in range(2)]
    clean = compile_prompt(prompt.eval(), backbone)
    for made in compiled:
        for site, pair in clean.states.items():
            assert all(torch.equal(a, b) for a, b in zip(made.states[site], pair, strict=True))


def test_a_wrong_number_of_rows_is_refused(backbone_of):
    backbone = backbone_of("gpt2")
    batch = pad(backbone, [Row((5, 6)), Row((7, 8))], realise_all(backbone, [fresh(backbone, length=2), None]))
    with pytest.raises(PromptError, match="has 3 rows, not a multiple of the 2 prompts"), activate(batch.injection):
        backbone.model(input_ids=torch.tensor([[5, 6]] * 3))


def test_a_bank_of_prompts_at_different_sites_masks_what_each_lacks():
    keys = torch.ones(2, 3, 4)
    short = keys[:, :2]
    first, second = PrefixKV({("decoder", 0): (keys, keys)}, 3), PrefixKV({("decoder", 1): (short, short)}, 2)
    bank = Bank([first, second], "cpu")
    slots = torch.tensor([0, 1, -1])
    assert bank.site_lengths(("decoder", 0), slots).tolist() == [3, 0, 0]
    assert bank.site_lengths(("decoder", 1), slots).tolist() == [0, 2, 0]
    assert not bank.has_prefix(("decoder", 2)) and not bank.has_infix(("decoder", 0))
    key, _ = bank.rows(("decoder", 1), slots, torch.float32)
    assert key.shape == (3, 2, 3, 4) and key[1, :, 2].abs().sum() == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"length": 0}, "prompt.length = 0"),
        ({"dropout": 1.0}, "prompt.dropout = 1.0"),
        ({"reparam_width": 0}, "prompt.reparam_width = 0"),
        ({"stacks": ()}, "prompt.stacks is empty"),
        ({"kind": "prompt", "layers": (1,)}, "are for kind 'prefix'"),
        ({"placement": "suffix"}, "is for kind 'prompt'"),
        ({"kind": "infix", "window": "always"}, "is for prompts that lead"),
        ({"kind": "prompt", "placement": "suffix", "window": "always"}, "is for prompts that lead"),
    ],
)
def test_impossible_specs_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        PromptSpec(**fields)


def test_an_infix_needs_one_sequence_and_after_bos_a_bos(backbone_of):
    with pytest.raises(PromptError, match="an encoder-decoder has two"):
        make_prompt(PromptSpec(kind="infix"), backbone_of("t5"))
    import copy
    import dataclasses

    tokenizer = copy.deepcopy(backbone_of("llama").tokenizer)
    tokenizer.bos_token = None
    backbone = dataclasses.replace(backbone_of("llama"), tokenizer=tokenizer)
    prompt = fresh(backbone, kind="prompt", length=2, placement="after_bos")
    with pytest.raises(PromptError, match="needs a tokenizer with a BOS token"):
        prompt.realise(backbone)
