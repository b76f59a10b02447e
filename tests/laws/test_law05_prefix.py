"""Law 5: a prefix is what it claims to be. The K/V of real text, real embeddings, and the compiled form agree."""

import copy

import pytest
import torch
from lawbook import (
    DECODERS,
    ENCODER_DECODERS,
    FAMILIES,
    WINDOW,
    WINDOWED,
    Naive,
    all_prompts,
    difference,
    drawn,
    packed_logits,
    padded_logits,
    random_ids,
    random_rows,
    specs,
)
from transformers import DynamicCache

from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row, make_injection, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.soft_prompt import Realised, compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec


def plain_model(backbone):
    """Return the same weights in a model that Foreword never touched."""
    config = copy.deepcopy(backbone.model.config)
    config._attn_implementation = "sdpa"
    model = type(backbone.model)(config).eval()
    model.load_state_dict(backbone.model.state_dict())
    return model


@torch.no_grad()
def plain_logits(model, ids=None, embeds=None):
    inputs = {"input_ids": torch.tensor([ids])} if embeds is None else {"inputs_embeds": embeds[None]}
    return model(**inputs, use_cache=False).logits[0]


def without_bos(row, prefix):
    return row.source[1:] if prefix is not None and prefix.includes_bos and row.source[0] == 1 else row.source


@pytest.mark.parametrize("name", DECODERS)
def test_every_prefix_agrees_with_the_naive_formula(name, backbone_of, measure):
    backbone, naive = backbone_of(name), Naive(backbone_of(name))
    prompts = [p for kind, p in all_prompts(backbone, name).items() if p is None or p.spec.is_leading]
    rows = random_rows([7 + 9 * i for i in range(len(prompts))])
    with torch.no_grad():
        ours = packed_logits(backbone, rows, prompts)
        for row, mine, made in zip(rows, ours, realise_all(backbone, prompts), strict=True):
            prefix = made.prefix if made else None
            measure("5 naive formula", name, difference(mine, naive.logits(without_bos(row, prefix), prefix)))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder_prefixes_agree_with_the_naive_formula(name, backbone_of, measure):
    backbone, naive = backbone_of(name), Naive(backbone_of(name))
    start = backbone.model.config.decoder_start_token_id
    prompts = [p for p in all_prompts(backbone, name).values() if p is None or p.spec.kind == "prefix"]
    rows = random_rows([4 + 6 * i for i in range(len(prompts))], targets=(8,))
    with torch.no_grad():
        ours = padded_logits(backbone, rows, prompts)
        for row, mine, made in zip(rows, ours, realise_all(backbone, prompts), strict=True):
            theirs = naive.logits(row.source, made.prefix if made else None, target=row.targets[0], start=start)
            measure("5 naive formula", name, difference(mine, theirs))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["prefix", "prefix-mlp", "prefix-long-hidden"])
def test_past_key_values_route_agrees(name, kind, backbone_of, measure):
    """The papers' and PEFT's route: the prefix as a cache, explicit positions, a model of its own with stock SDPA.

    A cache of a sliding-window layer keeps the last window - 1 positions, so this is the `model` window rule.
    """
    backbone, model = backbone_of(name), plain_model(backbone_of(name))
    prefix = compile_prompt(drawn(backbone, specs(name)[kind]), backbone)
    row = random_rows([23], seed=9)[0]
    cache = DynamicCache(config=model.config)
    for (_, layer), (key, value) in prefix.states.items():
        cache.update(key[None], value[None], layer)
    positions = torch.arange(len(row.source))[None] + prefix.length
    mask = torch.ones(1, prefix.length + len(row.source), dtype=torch.long)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor([row.source]), past_key_values=cache, position_ids=positions, attention_mask=mask
        ).logits[0]
        measure("5 past_key_values", name, difference(packed_logits(backbone, [row], [prefix])[0], theirs))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("length", [1, 6, WINDOW + 9])
def test_states_of_real_text_are_that_text(name, length, backbone_of, measure):
    backbone = backbone_of(name)
    lead, row = random_ids(length, 5), random_rows([19], seed=6)[0]
    with torch.no_grad():
        prefix = PrefixKV(backbone.record(ids=torch.tensor(lead)), length)
        ours = packed_logits(backbone, [row], [prefix])[0]
        theirs = plain_logits(plain_model(backbone), (*lead, *row.source))[length:]
    measure("5 K/V of text", name, difference(ours, theirs))


def test_decoder_states_of_real_text_are_that_text(backbone_of, measure):
    """BART's decoder: K/V of T as a decoder prefix, with target positions after T's.

    For T5 no such equality holds: its relative bias is zero on a prefix and not on text.
    """
    backbone, model = backbone_of("bart"), plain_model(backbone_of("bart"))
    source, lead, target = (torch.tensor([random_ids(n, n)]) for n in (9, 4, 6))
    with torch.no_grad():
        whole = model(input_ids=source, decoder_input_ids=torch.cat([lead, target], 1), use_cache=True)
        states = {
            ("decoder", i): (layer.keys[0, :, :4], layer.values[0, :, :4])
            for i, layer in enumerate(whole.past_key_values.self_attention_cache.layers)
        }
        embeds = backbone.model.get_decoder().embed_tokens(target)
        table = backbone.model.get_decoder().embed_positions.weight[2:]  # BART's offset
        shifted = embeds + table[4:10] - table[:6]  # the model adds positions 0.. itself
        injection = make_injection([Realised(prefix=PrefixKV(states, 4))], backbone.device)
        with activate(injection):
            ours = backbone.model(input_ids=source, decoder_inputs_embeds=shifted, use_cache=False).logits
    measure("5 K/V of text", "bart", difference(ours[0], whole.logits[0, 4:]))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_cross_states_of_real_encodings_are_that_source(name, backbone_of, measure):
    """Cross-attention has no positions: K/V of half of the encoder's output as a prefix stand for that half."""
    backbone = backbone_of(name)
    hidden, target = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        whole = backbone.model(encoder_outputs=(hidden,), decoder_input_ids=target, use_cache=True)
        layers = whole.past_key_values.cross_attention_cache.layers
        states = {("cross", i): (layer.keys[0, :, :5], layer.values[0, :, :5]) for i, layer in enumerate(layers)}
        with activate(make_injection([Realised(prefix=PrefixKV(states, 5))], backbone.device)):
            ours = backbone.model(encoder_outputs=(hidden[:, 5:],), decoder_input_ids=target, use_cache=False)
    measure("5 K/V of text", name, difference(ours.logits, whole.logits))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("placement", ["start", "after_bos", "suffix"])
def test_a_prompt_of_real_embeddings_is_that_text(name, placement, backbone_of, measure):
    backbone, soft = backbone_of(name), random_ids(6, 11)
    prompt = make_prompt(PromptSpec(kind="prompt", length=6, placement=placement), backbone).eval()
    with torch.no_grad():
        prompt.tables["embedding"].set(backbone.embed(torch.tensor(soft)).float())
        text, tail, target = (1, *random_ids(13, 12)), 2, (*random_ids(5, 13), 2)
        at = {"start": 0, "after_bos": 1, "suffix": len(text) - tail}[placement]
        whole = (*text[:at], *soft, *text[at:])
        row, model = Row(text, (target,), tail=tail), plain_model(backbone)
        if backbone.is_encoder_decoder:
            start = torch.tensor([[backbone.model.config.decoder_start_token_id, *target[:-1]]])
            theirs = model(input_ids=torch.tensor([whole]), decoder_input_ids=start).logits[0]
            ours = padded_logits(backbone, [row], [prompt])[0]
        else:
            theirs = plain_logits(model, whole)
            keep = [i for i in range(len(whole)) if not at <= i < at + 6]
            theirs = theirs[keep]
            ours = packed_logits(backbone, [Row(text, tail=tail)], [prompt])[0]
    if placement == "after_bos" and not backbone.is_encoder_decoder:
        theirs = theirs[1:]  # BOS is inside the compiled prefix, so it has no logits of its own
    measure("5 embeddings of text", name, difference(ours, theirs))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", ["prompt", "prompt-mlp", "after-bos"])
def test_compiled_equals_uncompiled(name, kind, backbone_of, measure):
    """Uncompiled: the soft tokens inline as embeddings, by hand, on a model that Foreword never touched."""
    backbone, model = backbone_of(name), plain_model(backbone_of(name))
    prompt, row = drawn(backbone, specs(name)[kind], seed=3), random_rows([4, 21], seed=8)[1]
    with torch.no_grad():
        lead = [] if kind != "after-bos" else [backbone.embed(torch.tensor([1]))]
        text = row.source[1:] if kind == "after-bos" else row.source
        embeds = torch.cat([*lead, prompt.table("embedding"), backbone.embed(torch.tensor(text))])
        theirs = plain_logits(model, embeds=embeds)[-len(text) :]
        compiled = compile_prompt(prompt, backbone)
        for ours in (packed_logits(backbone, [row], [compiled]), packed_logits(backbone, [row], [prompt])):
            measure("5 compiled", name, difference(ours[0], theirs))
        cut = [t for pair in compiled.states.values() for t in pair]
        live = [t for pair in prompt.realise(backbone).prefix.states.values() for t in pair]
        assert all(torch.equal(a, b) for a, b in zip(cut, live, strict=True))
        assert not any(t.requires_grad for t in cut)


@pytest.mark.parametrize("name", WINDOWED)
def test_the_window_hides_a_prefix_as_the_model_hides_text_or_never(name, backbone_of, measure):
    """Both rules on a text longer than the window, packed and padded; they must differ from each other."""
    backbone, naive = backbone_of(name), Naive(backbone_of(name))
    row = random_rows([WINDOW + 14], seed=20)[0]
    made = {}
    for rule in ("model", "always"):
        prompt = drawn(backbone, PromptSpec(length=7, window=rule), seed=1)
        with torch.no_grad():
            theirs = naive.logits(row.source, prompt.realise(backbone).prefix)
            made[rule] = packed_logits(backbone, [row], [prompt])[0]
            padded = padded_logits(backbone, [row, *random_rows([70])], [prompt, None])[0]
        measure("5 window rule", name, max(difference(made[rule], theirs), difference(padded, theirs)))
    late = WINDOW + 5  # these queries see no prefix position through a window
    assert difference(made["model"][:20], made["always"][:20]) < 1e-5
    assert difference(made["model"][late:], made["always"][late:]) > 1e-3


@pytest.mark.parametrize("kind", ["infix", "suffix"])
def test_what_follows_the_text_does_not_compile(kind, backbone_of):
    backbone = backbone_of("llama")
    with pytest.raises(Exception, match="depends on the text"):
        compile_prompt(drawn(backbone, specs("llama")[kind]), backbone)


def test_a_prompt_in_an_encoder_does_not_compile(backbone_of):
    backbone = backbone_of("t5")
    with pytest.raises(Exception, match="encoder depends on the text"):
        compile_prompt(drawn(backbone, specs("t5")["prompt"]), backbone)
