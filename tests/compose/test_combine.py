"""Prompts made of prompts: concatenated prefixes are both texts, each read alone; means are means."""

import copy
import dataclasses

import pytest
import torch
from backbones import make
from members import drawn, several

from foreword.backbone import wrap_backbone
from foreword.compose.combine import average, concatenate, shifted, turns
from foreword.errors import PromptError
from foreword.generate import generate, logits
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.soft_prompt import compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss

DECODERS = ("gpt2", "llama", "mistral", "qwen3", "gemma3", "opt", "pythia", "phi3")
ABSOLUTE = ("gpt2", "opt")
FIRST, SECOND, THIRD, TEXT = [5, 9, 31, 7], [44, 12, 60], [71, 8], [20, 33, 41, 5, 90, 17]


def plain_model(backbone):
    """Return the same weights in a model that Foreword never touched."""
    config = copy.deepcopy(backbone.model.config)
    config._attn_implementation = "eager"
    model = type(backbone.model)(config).eval()
    model.load_state_dict(backbone.model.state_dict())
    return model


def text_prefix(backbone, ids):
    """Return a prefix whose tables hold the keys and values of real text, read alone."""
    prompt = make_prompt(PromptSpec(length=len(ids)), backbone)
    states = backbone.record(ids=torch.tensor(ids))
    prompt.tables["decoder"].set(prompt.flat_from_states(states, "decoder"))
    return prompt


@torch.no_grad()
def packed_logits(backbone, prompt, ids):
    batch = pack(backbone, [Row(tuple(ids))], realise_all(backbone, [prompt]), all_positions=True)
    with activate(batch.injection):
        return backbone.model(**batch.inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]


@torch.no_grad()
def apart_logits(backbone, parts, text):
    """Return the stock model's logits of `text` after parts that do not see each other, in one run of all tokens."""
    ids = [token for part in [*parts, text] for token in part]
    owner = torch.tensor([n for n, part in enumerate([*parts, text]) for _ in part])
    seen = (owner[:, None] == owner) | (owner[:, None] == len(parts))
    mask = torch.where(seen & torch.ones(len(ids), len(ids), dtype=torch.bool).tril(), 0.0, torch.finfo().min)
    positions = torch.arange(len(ids))
    if backbone.model.config.model_type in ABSOLUTE:  # learned positions stay what each part was read at
        for number, part in enumerate(parts):
            positions[owner == number] = torch.arange(len(part))
    model = plain_model(backbone)
    out = model(
        input_ids=torch.tensor([ids]), attention_mask=mask[None, None], position_ids=positions[None], use_cache=False
    )
    return out.logits[0, -len(text) :]


@pytest.mark.parametrize("name", DECODERS)
def test_concatenated_prefixes_are_both_texts(name, backbone_of, measure):
    backbone = backbone_of(name)
    parts = [FIRST, SECOND, THIRD]
    joined = concatenate([text_prefix(backbone, part) for part in parts], backbone)
    assert joined.length == 9 and joined.spec.kind == "prefix"
    ours, theirs = packed_logits(backbone, joined, TEXT), apart_logits(backbone, parts, TEXT)
    scale = max(1.0, float(theirs.abs().max()))
    measure("concatenated prefixes", name, float((ours - theirs).abs().max()) / scale, 2e-5)
    alone = packed_logits(backbone, text_prefix(backbone, FIRST), TEXT)
    assert float((ours - alone).abs().max()) > 1e-2  # the second and third part are seen


@pytest.mark.parametrize("name", DECODERS)
def test_a_shift_turns_keys_as_real_positions_do(name, backbone_of):
    """Keys of a text at layer 0 do not depend on what stands before it, so its real keys further right are known."""
    backbone = backbone_of(name)
    found = turns(backbone, 4)
    if name in ABSOLUTE:
        assert found == {}
        return
    assert set(found) == set(backbone.geometry.sites)
    for turn in found.values():
        assert torch.allclose(turn @ turn.T, torch.eye(len(turn)), atol=1e-5)
    both = backbone.record(ids=torch.tensor(FIRST + SECOND))["decoder", 0]
    moved = shifted(backbone.record(ids=torch.tensor(SECOND)), 4, backbone)["decoder", 0]
    assert torch.allclose(moved[0], both[0][:, 4:], atol=1e-4 * float(both[0].abs().max()))
    assert torch.equal(moved[1], both[1][:, 4:]) or torch.allclose(moved[1], both[1][:, 4:], atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoder_prefixes_stand_side_by_side(name, backbone_of):
    backbone = backbone_of(name)
    one, two = drawn(backbone, PromptSpec(length=3), 1), drawn(backbone, PromptSpec(length=5), 2)
    joined = concatenate([one, two], backbone)
    first, second, whole = (compile_prompt(p, backbone).states for p in (one, two, joined))
    for site, (key, value) in whole.items():
        assert torch.equal(key, torch.cat([first[site][0], second[site][0]], 1))
        assert torch.equal(value, torch.cat([first[site][1], second[site][1]], 1))
    assert generate(backbone, ["abc"], joined, max_new_tokens=4) != generate(backbone, ["abc"], one, max_new_tokens=4)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("placement", ["start", "suffix"])
def test_soft_tokens_are_read_as_one_text(name, placement, backbone_of):
    backbone = backbone_of(name)
    prompts = [drawn(backbone, PromptSpec(kind="prompt", length=n, placement=placement), n) for n in (2, 4)]
    joined = concatenate(prompts, backbone)
    assert joined.spec.kind == "prompt" and joined.length == 6
    assert torch.equal(joined.table("embedding"), torch.cat([p.table("embedding") for p in prompts]))
    ids = torch.tensor([5, 9, 31])
    words = [make_prompt(PromptSpec(kind="prompt", length=n, placement=placement), backbone) for n in (1, 2)]
    words[0].tables["embedding"].set(backbone.embed(ids[:1]))
    words[1].tables["embedding"].set(backbone.embed(ids[1:]))
    if placement == "start" and not backbone.is_encoder_decoder:  # the embeddings of real text are that text
        ours = packed_logits(backbone, concatenate(words, backbone), TEXT)
        theirs = plain_model(backbone)(input_ids=torch.tensor([[5, 9, 31, *TEXT]])).logits[0, 3:]
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_kinds_may_differ_where_all_lead(backbone_of):
    backbone = backbone_of("llama")
    prefix = drawn(backbone, PromptSpec(length=3, reparam="mlp", reparam_width=8), 1)
    soft = drawn(backbone, PromptSpec(kind="prompt", length=2), 2)
    joined = concatenate([prefix, soft], backbone)
    assert (joined.spec.kind, joined.length) == ("prefix", 5)
    by_hand = compile_prompt(soft, backbone).states
    moved = shifted(by_hand, 3, backbone)
    for site, (key, value) in compile_prompt(joined, backbone).states.items():
        assert torch.allclose(key[:, 3:], moved[site][0]) and torch.equal(value[:, 3:], by_hand[site][1])
    one = concatenate([prefix], backbone)
    assert torch.allclose(logits(backbone, ["abc"], one)[0], logits(backbone, ["abc"], prefix)[0], atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("spec", [{"kind": "prefix"}, {"kind": "prompt"}, {"reparam": "mlp", "reparam_width": 8}])
def test_the_mean_in_weight_space(name, spec, backbone_of):
    backbone = backbone_of(name)
    prompts = several(backbone, 3, **spec)
    for table in prompts[0].tables:
        mean = average(prompts).table(table)
        assert torch.allclose(mean, sum(p.table(table) for p in prompts) / 3, atol=1e-6)
        weighted = average(prompts, [1, 3, 0]).table(table)
        assert torch.allclose(weighted, 0.25 * prompts[0].table(table) + 0.75 * prompts[1].table(table), atol=1e-6)
        assert torch.allclose(average([prompts[2]] * 4).table(table), prompts[2].table(table), atol=1e-6)
    assert average(prompts).spec.reparam == "none"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_keys_are_turned_on_a_backbone_of_a_coarse_dtype_too(family, dtype):
    """Rounding must not hide that positions are turns; learned positions (GPT-2) are none."""
    backbone = make(family)
    fine = turns(backbone, 4)
    coarse = turns(wrap_backbone(backbone.model.to(dtype), backbone.tokenizer), 4)
    assert coarse.keys() == fine.keys() and bool(fine) == (family != "gpt2")
    for site, turn in fine.items():
        assert (coarse[site] - turn).abs().max() < 0.05


def test_a_prefix_without_a_fingerprint_is_averaged_with_one_that_has_it(backbone_of):
    backbone = backbone_of("llama")
    known, unknown = several(backbone, 2)
    known.fingerprint, unknown.fingerprint = backbone.fingerprint, None
    unknown.geometry = dataclasses.replace(unknown.geometry, embed_width=0)  # as PEFT's files leave it
    mean = average([known, unknown]).table("decoder")
    assert torch.allclose(mean, (known.table("decoder") + unknown.table("decoder")) / 2, atol=1e-6)


def test_a_made_prompt_is_saved_loaded_and_trainable(backbone_of, tmp_path):
    from foreword.artifact import load_prompt, save_prompt

    backbone = backbone_of("llama")
    prompts = several(backbone, 2)
    for made in (concatenate(prompts, backbone), average(prompts)):
        folder = tmp_path / str(made.length)
        save_prompt(made, folder, backbone=backbone)
        again = load_prompt(folder, backbone)
        assert torch.equal(again.table("decoder"), made.table("decoder"))
        target_loss(backbone, [Row((5, 6), ((7, 2),))], [made.train()]).sum.backward()
        assert made.tables["decoder"].weight.grad.abs().sum() > 0


def test_what_cannot_be_combined_is_refused(backbone_of):
    backbone = backbone_of("llama")
    prefix, suffix, bos, infix, layers, other = (
        drawn(backbone, spec)
        for spec in (
            PromptSpec(length=2), PromptSpec(kind="prompt", length=2, placement="suffix"),
            PromptSpec(kind="prompt", length=2, placement="after_bos"), PromptSpec(kind="infix", length=2),
            PromptSpec(length=2, layers=(0, 1)), PromptSpec(length=2, window="always"),
        )
    )
    for wrong, says in (
        (suffix, "which is no prefix"), (bos, "BOS"), (infix, "which is no prefix"), (layers, "same stacks and layers"),
        (other, "prompt.window"),
    ):
        with pytest.raises(PromptError, match=says):
            concatenate([prefix, wrong], backbone)
    with pytest.raises(PromptError, match="differs from prompt 0 in layers"):
        average([prefix, layers])
    with pytest.raises(PromptError, match="in kind"):
        average([prefix, suffix])
    for weights in ([0, 0], [1e308, 1e308], [float("inf"), 1]):
        with pytest.raises(PromptError, match="finite numbers from 0, not all zero"):
            average([prefix, prefix], weights)
    seen = [drawn(backbone, PromptSpec(kind="prompt", length=2, window=rule)) for rule in ("model", "always")]
    with pytest.raises(PromptError, match=r"prompt\.window"):
        concatenate(seen, backbone)
    with pytest.raises(PromptError, match="at least one"):
        average([])
    with pytest.raises(PromptError, match="at least one"):
        concatenate([], backbone)
    plain = drawn(backbone, PromptSpec(length=2), 3)
    plain.format = "plain"
    with pytest.raises(PromptError, match="formats differ"):
        concatenate([prefix, plain], backbone)
    with pytest.raises(PromptError, match="in an encoder"):
        t5 = backbone_of("t5")
        concatenate([drawn(t5, PromptSpec(length=2)), drawn(t5, PromptSpec(kind="prompt", length=2))], t5)


def test_a_prefix_of_real_text_is_a_prefix_kv(backbone_of):
    """The helper above is sound: one part by itself is the K/V of text of law 5."""
    backbone = backbone_of("llama")
    kv = PrefixKV(backbone.record(ids=torch.tensor(FIRST)), 4)
    assert torch.equal(packed_logits(backbone, kv, TEXT), packed_logits(backbone, text_prefix(backbone, FIRST), TEXT))
