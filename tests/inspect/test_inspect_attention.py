"""Attention paid to virtual tokens: rows sum to one, and are what an eager run of an untouched model gives."""

import copy

import pytest
import torch
from transformers import DynamicCache

from foreword.errors import PromptError
from foreword.inspect.attention import attention_map, row_attention
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec

DECODERS = ("gpt2", "llama", "mistral", "qwen3", "gemma3", "opt", "pythia", "phi3")
ROW = Row((5, 9, 31, 7, 44), ((12, 60, 33, 2),))
KINDS = {
    "prefix": PromptSpec(length=3),
    "layers": PromptSpec(length=3, layers=(1,)),
    "prompt": PromptSpec(kind="prompt", length=4),
    "after_bos": PromptSpec(kind="prompt", length=2, placement="after_bos"),
    "suffix": PromptSpec(kind="prompt", length=3, placement="suffix"),
    "infix": PromptSpec(kind="infix", length=2),
}


def drawn(backbone, spec, seed=0):
    prompt, generator = make_prompt(spec, backbone), torch.Generator().manual_seed(seed)
    for name, table in prompt.tables.items():
        std = float(backbone.model.get_input_embeddings().weight.std()) if name == "embedding" else 1.0
        table.set(torch.randn(table().shape, generator=generator) * std)
    return prompt.eval()


def eager(backbone):
    """Return the same weights in a model that Foreword never touched, with attention that tells its weights."""
    config = copy.deepcopy(backbone.model.config)
    config._attn_implementation = "eager"
    for inner in (getattr(config, "decoder", None), getattr(config, "encoder", None)):
        if inner is not None and hasattr(inner, "_attn_implementation"):
            inner._attn_implementation = "eager"
    model = type(backbone.model)(config).eval()
    model.load_state_dict(backbone.model.state_dict())
    return model


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_one_and_the_prompt_is_seen(name, kind, backbone_of):
    backbone = backbone_of(name)
    prompt = drawn(backbone, KINDS[kind])
    found = row_attention(prompt, backbone, ROW)
    assert set(found.weights) == set(backbone.geometry.sites)
    for weights in found.weights.values():
        assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    assert set(found.columns) == ({("decoder", 1)} if kind == "layers" else set(found.weights))
    mean = attention_map(prompt, backbone, [ROW, Row((8, 9), ((4, 2),))])
    assert mean.queries == {"decoder": 6}
    for site, weights in mean.weights.items():
        assert weights.shape == (4, prompt.length)
        assert (weights >= 0).all() and (weights.sum(1) < 1).all() and weights.max() > 0, site


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_prefix_gets_what_the_eager_model_pays_to_its_cache(name, backbone_of):
    backbone, model = backbone_of(name), eager(backbone_of(name))
    prompt = drawn(backbone, KINDS["prefix"])
    prefix, cache = compile_prompt(prompt, backbone), DynamicCache(config=model.config)
    for (_, layer), (key, value) in prefix.states.items():
        cache.update(key[None], value[None], layer)
    ids = torch.tensor([ROW.source + ROW.targets[0][:-1]])
    positions = torch.arange(ids.shape[1])[None] + 3
    theirs = model(
        input_ids=ids, past_key_values=cache, position_ids=positions, output_attentions=True,
        attention_mask=torch.ones(1, 3 + ids.shape[1], dtype=torch.long),
    ).attentions
    found = row_attention(prompt, backbone, ROW)
    for layer, weights in enumerate(theirs):
        assert torch.allclose(found.weights["decoder", layer], weights[0], atol=1e-5)
        ours = found.to_prompt(("decoder", layer))
        assert torch.allclose(ours, weights[0, :, -4:, :3], atol=1e-5)  # the four positions that predict the target


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_a_suffix_gets_what_the_eager_model_pays_to_its_embeddings(name, backbone_of):
    backbone, model = backbone_of(name), eager(backbone_of(name))
    prompt = drawn(backbone, KINDS["suffix"])
    row = Row(ROW.source, ROW.targets, tail=1)  # the last source token is a separator: soft tokens go before it
    embeds = backbone.embed(torch.tensor(ROW.source + ROW.targets[0][:-1]))
    whole = torch.cat([embeds[:4], prompt.table("embedding"), embeds[4:]])
    theirs = model(inputs_embeds=whole[None], output_attentions=True, use_cache=False).attentions
    found = row_attention(prompt, backbone, row)
    for layer, weights in enumerate(theirs):
        assert torch.allclose(found.to_prompt(("decoder", layer)), weights[0, :, -4:, 4:7], atol=1e-5)


def test_an_infix_is_seen_plain_by_itself_and_with_its_offset_later(backbone_of):
    backbone = backbone_of("llama")
    prompt = drawn(backbone, KINDS["infix"])
    found = row_attention(prompt, backbone, Row(ROW.source, ROW.targets, tail=1))
    site = ("decoder", 1)
    shifted, plain = found.columns[site]
    assert shifted.tolist() == [0, 1] and plain.tolist() == [2 + 4, 2 + 5]
    weights = found.weights[site]
    looking = found.queries["decoder"]
    assert weights[:, looking][..., plain].abs().max() == 0 and weights[:, looking][..., shifted].min() > 0
    assert weights[:, 4:6][..., shifted].abs().max() == 0 and weights[:, 5][..., plain].min() > 0


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_encoder_prompts_get_what_the_eager_model_pays(name, backbone_of):
    backbone, model = backbone_of(name), eager(backbone_of(name))
    prompt = drawn(backbone, PromptSpec(kind="prompt", length=3))
    found = row_attention(prompt, backbone, ROW)
    embeds = torch.cat([prompt.table("embedding"), backbone.embed(torch.tensor(ROW.source))])[None]
    start = model.config.decoder_start_token_id
    out = model(
        inputs_embeds=embeds, decoder_input_ids=torch.tensor([[start, *ROW.targets[0][:-1]]]), output_attentions=True
    )
    assert {stack for stack, _ in found.columns} == {"encoder", "cross"}
    for layer in range(3):
        encoder, cross = out.encoder_attentions[layer][0], out.cross_attentions[layer][0]
        assert torch.allclose(found.to_prompt(("encoder", layer)), encoder[:, 3:, :3], atol=1e-5)
        assert torch.allclose(found.to_prompt(("cross", layer)), cross[..., :3], atol=1e-5)
        assert torch.allclose(found.weights["decoder", layer], out.decoder_attentions[layer][0], atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_prefixes_in_every_stack(name, backbone_of):
    backbone = backbone_of(name)
    mean = attention_map(drawn(backbone, PromptSpec(length=3)), backbone, [ROW])
    assert mean.stacks == ("encoder", "decoder", "cross") or set(mean.stacks) == {"encoder", "decoder", "cross"}
    assert mean.queries == {"encoder": 5, "decoder": 4, "cross": 4}
    assert mean.by_layer("cross").shape == (3, 3)
    assert set(mean.to_dict()["weights"]) == {f"{stack}.{n}" for stack in mean.stacks for n in range(3)}
    with pytest.raises(PromptError, match="give the row a target"):
        row_attention(drawn(backbone, PromptSpec(length=3)), backbone, Row((5, 6)))


def test_watching_changes_nothing_and_faults_are_named(backbone_of):
    from foreword.generate import generate

    backbone = backbone_of("llama")
    prompt = drawn(backbone, KINDS["prefix"])
    before = generate(backbone, ["abc"], prompt, max_new_tokens=6)
    attention_map(prompt, backbone, [ROW])
    assert generate(backbone, ["abc"], prompt, max_new_tokens=6) == before
    with pytest.raises(PromptError, match="at least one"):
        attention_map(prompt, backbone, [])
    without_targets = row_attention(prompt, backbone, Row((5, 6, 7)))
    assert without_targets.queries["decoder"].tolist() == [0, 1, 2]
