"""Recycling: two copies of one model with permuted vocabularies give the prompt back; what cannot be is refused."""

import copy

import pytest
import torch
import transformers as tf
from backbones import VOCAB, make, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy import drawn_prompt

from foreword.backbone import wrap_backbone
from foreword.compose.activations import aligned_positions, fit_states, match_sites
from foreword.compose.least_squares import fit_linear
from foreword.compose.recycle import recycle, shared_tokens
from foreword.data.examples import get_format
from foreword.errors import ConfigError, PromptError
from foreword.generate import logits
from foreword.prompts.init import initialise
from foreword.prompts.spec import InitSpec

TEXTS = ["".join(chr(33 + (i * i + 7 * k + i * k * k) % 90) for k in range(40)) for i in range(12)]


def permuted(backbone, seed=0):
    """A copy of a backbone whose tokens have other ids."""
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed))  # new id -> old id
    old = sorted(tokenizer().get_vocab().items(), key=lambda item: item[1])
    vocab = {old[int(before)][0]: new for new, before in enumerate(order)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    renamed = tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    model = copy.deepcopy(backbone.model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        for layer in {id(m): m for m in (model.get_input_embeddings(), *([] if tied else [model.lm_head]))}.values():
            layer.weight.copy_(layer.weight[order].clone())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        if getattr(model.config, name, None) is not None:
            before = getattr(model.config, name)
            setattr(model.config, name, int((order == before).nonzero()))
    return wrap_backbone(model, renamed, source="permuted")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "t5"])
def test_permuted_vocabularies_give_the_prompt_back(backbone_of, family, measure):
    source = backbone_of(family)
    target = permuted(source)
    prompt = drawn_prompt(source, kind="prompt", length=6)
    with torch.no_grad():
        prompt.tables["embedding"].weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    found = recycle(prompt, source, target)
    want = prompt.table("embedding").detach()
    difference = (found.prompt.table("embedding").detach() - want).norm() / want.norm()
    measure("recycled prompt", family, float(difference), 1e-4)
    assert not torch.equal(target.embed(torch.arange(9)), source.embed(torch.arange(9)))
    assert found.points >= VOCAB - 4 and found.error < 1e-4
    assert found.prompt.fingerprint is None  # it belongs to another model, which saving will say


def test_a_recycled_prompt_does_on_the_permuted_model_what_it_did(backbone_of):
    source = backbone_of("llama")
    target = permuted(source)
    prompt = drawn_prompt(source, kind="prompt")
    text = "abcabc"
    before = logits(source, [text], prompt)[0]
    after = logits(target, [text], recycle(prompt, source, target).prompt)[0]
    back = [target.tokenizer.get_vocab()[t] for t in source.tokenizer.convert_ids_to_tokens(range(VOCAB))]
    torch.testing.assert_close(after[:, back], before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_prefix_comes_back_through_maps_of_activations(backbone_of, family, measure):
    """The prefix is one that a text leaves: T5's first layer knows no position, so its states span only the tokens."""
    source = backbone_of(family)
    target = permuted(source)
    prompt = drawn_prompt(source, kind="prefix", length=5)
    initialise(prompt, source, torch.Generator(), init=InitSpec("activations", text="zK!3q"))
    found = recycle(prompt, source, target, texts=TEXTS, ridge=0.0)
    assert not torch.equal(target.embed(torch.arange(9)), source.embed(torch.arange(9)))
    for stack in prompt.tables:
        want = prompt.table(stack).detach()
        difference = (found.prompt.table(stack).detach() - want).norm() / want.norm()
        measure("recycled prefix", family, float(difference), 1e-4)
    assert found.points == sum(len(text) for text in TEXTS)


def test_geometries_may_differ(backbone_of):
    llama, qwen, t5 = backbone_of("llama"), backbone_of("qwen3"), backbone_of("t5")
    prefix = drawn_prompt(llama, kind="prefix", length=3)
    found = recycle(prefix, llama, qwen, texts=TEXTS[:3])
    found.prompt.check_backbone(qwen)
    assert found.prompt.table("decoder").shape == (3, sum(s.width for s in qwen.geometry.sites.values()))
    assert 0 < found.error < 1.5
    prompt = drawn_prompt(llama, kind="prompt", length=3)
    prompt.format = "paper"
    assert recycle(prompt, llama, t5).prompt.format == "seq2seq"
    with pytest.raises(PromptError, match="lacks"):
        recycle(prefix, llama, t5, texts=TEXTS)


def test_layers_are_matched_by_relative_depth():
    deep, shallow = make("llama"), make("llama")
    sites = {("decoder", layer): shape for layer, shape in enumerate([*deep.geometry.sites.values()][:1] * 7)}
    object.__setattr__(deep.geometry, "sites", sites)
    found = match_sites(deep, shallow)
    assert [layer for _, layer in found.values()] == [0, 3, 6]
    assert [layer for _, layer in match_sites(shallow, deep).values()] == [0, 0, 1, 1, 1, 2, 2]


def test_positions_align_where_the_same_characters_have_been_read(backbone_of):
    backbone = backbone_of("llama")
    assert aligned_positions(backbone, backbone, "abc", 64) == [(0, 0), (1, 1), (2, 2)]
    assert aligned_positions(backbone, backbone, "abc", 2) == [(0, 0), (1, 1)]
    with pytest.raises(PromptError, match="plain texts"):
        fit_states(backbone, backbone, [""])


def test_shared_tokens_are_the_same_words_and_not_special(backbone_of):
    source = backbone_of("llama")
    target = permuted(source, seed=3)
    mine, theirs = shared_tokens(source, target)
    spell = source.tokenizer.convert_ids_to_tokens
    assert spell(mine.tolist()) == target.tokenizer.convert_ids_to_tokens(theirs.tolist())
    assert not set(spell(mine.tolist())) & {"<s>", "</s>", "<pad>", "<unk>"}
    assert shared_tokens(source, target, 5)[0].tolist() == mine[:5].tolist()


def test_a_linear_map_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=generator), torch.randn(30, 3, generator=generator)
    found = fit_linear(x, y, intercept=True)
    left = x.double() @ found.weight + found.bias - y
    assert float(left.sum(0).abs().max()) < 1e-9 and float((x.double().T @ left).abs().max()) < 1e-9
    exact = fit_linear(x, x @ y[:4] + 2, intercept=True)
    torch.testing.assert_close(exact.weight.float(), y[:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exact.bias.float(), torch.full((3,), 2.0), rtol=1e-4, atol=1e-5)
    assert exact.error < 1e-6 < found.error
    shrunk = fit_linear(x, y, ridge=10.0)
    assert float(shrunk.weight.norm()) < float(fit_linear(x, y).weight.norm())


def test_the_same_combination_of_embeddings_is_the_same_map(backbone_of):
    """Lester et al.'s lin-comb: the least-norm combination of source embeddings, taken of target embeddings."""
    source, target = backbone_of("llama"), backbone_of("qwen3")
    prompt = drawn_prompt(source, kind="prompt")
    mine, theirs = shared_tokens(source, target)
    e_s, e_t = source.embed(mine).double(), target.embed(theirs).double()
    combination = torch.linalg.lstsq(e_s.T, prompt.table("embedding").double().T, driver="gelsd").solution
    made = recycle(prompt, source, target).prompt.table("embedding")
    torch.testing.assert_close(made.detach(), (combination.T @ e_t).detach().float(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_recycled_is_refused(backbone_of):
    llama, gpt2 = backbone_of("llama"), backbone_of("gpt2")
    with pytest.raises(PromptError, match="infix"):
        recycle(drawn_prompt(llama, kind="infix"), llama, llama)
    with pytest.raises(PromptError, match="does not fit backbone"):
        recycle(drawn_prompt(llama), gpt2, llama)
    partial = drawn_prompt(llama, kind="prefix", layers=(0,))
    with pytest.raises(PromptError, match="all layers"):
        recycle(partial, llama, llama, texts=TEXTS[:2])
    for top in (0, -5):
        with pytest.raises(ConfigError, match=f"top_tokens = {top} leaves no token"):
            recycle(drawn_prompt(llama, kind="prompt"), llama, llama, top_tokens=top)


def test_a_prefix_of_an_encoder_decoder_gets_a_decoders_format(backbone_of):
    t5, llama = backbone_of("t5"), backbone_of("llama")
    prefix = drawn_prompt(t5)
    prefix.format = "seq2seq"
    made = recycle(prefix, t5, llama, texts=TEXTS).prompt
    assert made.format == get_format(None, False).name
