"""Nearest tokens, persistence, leaving one out, norms: against planted values and prompts made by hand."""

import pytest
import torch

from foreword.data.examples import Example
from foreword.errors import PromptError
from foreword.inspect.importance import leave_one_out, token_norms, without_token
from foreword.inspect.nearest import cosines, distances, initial_words, nearest_tokens, persistence
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import compile_prompt, make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.train.job import train_prompt
from foreword.train.loss import target_loss

ROWS = [Row((5, 9, 31), ((12, 60, 2), (44, 2))), Row((8, 9), ((33, 7, 2),)), Row((71,), ((2,),))]


def drawn(backbone, seed=0, **spec):
    prompt, generator = make_prompt(PromptSpec(**{"length": 4, **spec}), backbone), torch.Generator().manual_seed(seed)
    for name, table in prompt.tables.items():
        std = float(backbone.model.get_input_embeddings().weight.std()) if name == "embedding" else 1.0
        table.draw(generator)
        table.set(torch.randn(table().shape, generator=generator) * std)
    return prompt.eval()


@pytest.mark.parametrize("name", ["llama", "gemma3", "t5"])
def test_planted_embeddings_are_found(name, backbone_of):
    backbone = backbone_of(name)
    prompt = drawn(backbone, kind="prompt")
    table = backbone.embed(torch.arange(99)).float()
    planted = torch.stack([table[40], 3.0 * table[50], table[60] + 0.01, -table[70]])
    prompt.tables["embedding"].set(planted)
    found = nearest_tokens(prompt, backbone, count=3)
    words = [backbone.tokenizer.decode([i]) for i in (40, 50, 60)]
    for position, word in enumerate(words):
        assert found.tokens[position].cosine[0][0] == word
        assert found.tokens[position].cosine_p == pytest.approx(1 / 201)
    assert found.tokens[1].cosine[0][1] == pytest.approx(1.0, abs=1e-5)  # the length does not matter to a cosine
    assert found.tokens[0].euclid[0] == (words[0], pytest.approx(0.0, abs=1e-2))
    assert found.tokens[0].euclid_p == pytest.approx(1 / 201)
    assert found.tokens[3].cosine[0][0] != backbone.tokenizer.decode([70])
    assert 0 < found.control[0] < found.control[1] < 1


def test_random_vectors_are_not_special(backbone_of):
    backbone = backbone_of("llama")
    prompt, table = drawn(backbone, kind="prompt", length=40), backbone.embed(torch.arange(99)).float()
    generator, tokens = torch.Generator().manual_seed(0), []
    for _ in range(5):
        prompt.tables["embedding"].set(torch.randn(40, 64, generator=generator) * table.std(0) + table.mean(0))
        tokens += nearest_tokens(prompt, backbone, generator=generator).tokens
    for p in ("cosine_p", "euclid_p"):  # by distance many tie: the padding token's embedding is zero, and near to all
        values = torch.tensor([getattr(token, p) for token in tokens])
        assert float((values < 0.05).float().mean()) < 0.1
        assert 0.4 < float(values.mean()) < (0.6 if p == "cosine_p" else 1.0)


def test_distances_and_cosines_by_hand():
    ours, table = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]])
    assert torch.allclose(cosines(ours, table), torch.tensor([[1.0, 1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(distances(ours, table), torch.tensor([[0.0, 5.0, 50**0.5]]), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_prefix_of_real_tokens_names_them(name, backbone_of):
    backbone = backbone_of(name)
    prompt = make_prompt(PromptSpec(length=3, init=InitSpec("activations", text="xyz")), backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0))
    found = nearest_tokens(prompt, backbone)
    names = [token.cosine[0][0] for token in found.tokens]  # the text is read as " xyz" and cut to three tokens
    if name == "gpt2":  # positions are in the values there, and the table's tokens stand at the first
        assert names[0] == " "
    else:
        assert names == [" ", "x", "y"]
        assert [(found.word, found.rank) for found in persistence(prompt, backbone)] == [(n, 1) for n in names]
    with pytest.raises(PromptError, match="layer 0"):
        nearest_tokens(drawn(backbone, layers=(1,)), backbone)


def test_labels_persist_until_they_are_overwritten(backbone_of):
    backbone = backbone_of("llama")
    spec = PromptSpec(kind="prompt", length=4, init=InitSpec("labels", labels=("a", "bc")))
    prompt = make_prompt(spec, backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0))
    assert [word for word, _ in initial_words(prompt, backbone)] == ["a", "bc"]
    one, two = persistence(prompt, backbone)
    assert (one.word, one.rank, one.best_position) == ("a", 1, 0) and one.cosine == pytest.approx(1, abs=1e-5)
    assert (two.word, two.rank, two.best_position) == ("bc", 1, 1)  # the mean of two tokens, nearer than either

    moved = prompt.table("embedding").detach()[[2, 0, 3, 1]]  # a's vector now stands at position 1
    prompt.tables["embedding"].set(moved)
    one, two = persistence(prompt, backbone)
    assert one.rank > 1 and (one.best_position, one.best_rank) == (1, 1)
    assert two.rank > 1 and (two.best_position, two.best_rank) == (3, 1)

    table = backbone.embed(torch.arange(99)).float()
    middle = torch.nn.functional.normalize(table[7], dim=0) + 0.5 * torch.nn.functional.normalize(table[65], dim=0)
    prompt.tables["embedding"].set(torch.stack([middle, *moved[1:]]))
    word = backbone.tokenizer.decode([65])
    found = persistence(prompt, backbone, [word])[0]
    order = cosines(middle[None], table)[0].argsort(descending=True).tolist()
    assert found.rank == 1 + order.index(65)


def test_persistence_of_words_and_what_it_refuses(backbone_of):
    backbone = backbone_of("llama")
    prompt = make_prompt(PromptSpec(kind="prompt", length=2, init=InitSpec("words", text="abc")), backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0))
    assert [word for word, _ in initial_words(prompt, backbone)] == [" ", "a"]
    assert [found.rank for found in persistence(prompt, backbone)] == [1, 1]
    assert persistence(drawn(backbone, kind="prompt"), backbone) == ()
    with pytest.raises(PromptError, match="3 initial words for 2"):
        persistence(prompt, backbone, ["a", "b", "c"])
    with pytest.raises(PromptError, match="no token"):
        persistence(prompt, backbone, [""])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_leaving_one_out_of_a_prefix_is_the_prefix_without_it(name, backbone_of):
    backbone = backbone_of(name)
    prompt = drawn(backbone, reparam="mlp", reparam_width=8)
    found = leave_one_out(prompt, backbone, ROWS, rows_a_pass=12)
    prefix = compile_prompt(prompt, backbone)
    tokens = sum(len(target) for row in ROWS for target in row.targets)
    assert found.tokens == tokens
    with torch.no_grad():
        for position, loss in enumerate(found.without):
            kept = [i for i in range(4) if i != position]
            states = {site: (key[:, kept], value[:, kept]) for site, (key, value) in prefix.states.items()}
            alone = [target_loss(backbone, [row], [PrefixKV(states, 3)]).sum for row in ROWS]
            assert loss == pytest.approx(float(sum(alone)) / tokens, rel=1e-5)
        for loss, given in ((found.whole, prompt), (found.bare, None)):
            alone = [target_loss(backbone, [row], [given]).sum for row in ROWS]
            assert loss == pytest.approx(float(sum(alone)) / tokens, rel=1e-5)
    assert found.rises == tuple(loss - found.whole for loss in found.without)


@pytest.mark.parametrize("kind", [{"placement": "start"}, {"placement": "suffix"}, {"kind": "infix"}])
def test_leaving_one_out_of_soft_tokens_reads_the_rest_anew(kind, backbone_of):
    backbone = backbone_of("qwen3")
    prompt = drawn(backbone, **{"kind": "prompt", **kind})
    found = leave_one_out(prompt, backbone, ROWS)
    smaller = make_prompt(PromptSpec(**{"kind": "prompt", "length": 3, **kind}), backbone).eval()
    for name in prompt.tables:
        values = prompt.table(name).detach()
        smaller.tables[name].set(torch.cat([values[:2], values[3:]]))
    with torch.no_grad():
        loss = target_loss(backbone, ROWS, [smaller] * len(ROWS))
    assert found.without[2] == pytest.approx(float(loss.sum) / loss.num_tokens, rel=1e-5)


def test_a_token_that_does_nothing_is_not_important(backbone_of):
    """Its key and value are the same whatever the prompt was before, so what was there does not matter."""
    backbone = backbone_of("t5")
    prompt = drawn(backbone, length=3, stacks=("cross",))
    one = without_token(prompt, 1)
    states = compile_prompt(prompt, backbone).states
    with torch.no_grad():
        for site in states:
            states[site][1][:, 1] = 0
            states[site][0][:, 1] = 0
        prompt.tables["cross"].set(prompt.flat_from_states(states, "cross"))
    found = leave_one_out(prompt, backbone, ROWS)
    assert found.without[1] == pytest.approx(leave_one_out(one, backbone, ROWS).whole, rel=1e-6)
    with pytest.raises(PromptError, match="nothing left"):
        leave_one_out(drawn(backbone, length=1), backbone, ROWS)
    with pytest.raises(PromptError, match="position 7"):
        without_token(prompt, 7)


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_norms_are_those_of_the_tables(name, backbone_of):
    backbone = backbone_of(name)
    prompt = drawn(backbone, kind="prompt", length=3)
    table = backbone.embed(torch.arange(99)).float()
    prompt.tables["embedding"].set(torch.stack([table[5], 2 * table[5], 7 * table[5]]))
    norms = token_norms(prompt, backbone).embedding
    assert norms[0] == pytest.approx(float(table[5].norm() / table.norm(dim=-1).median()))
    assert norms[1:] == pytest.approx([2 * norms[0], 7 * norms[0]])

    prefix = drawn(backbone, length=2)
    once = token_norms(prefix, backbone)
    for stack in prefix.tables:
        prefix.tables[stack].set(prefix.table(stack).detach() * torch.tensor([[1.0], [4.0]]))
    twice = token_norms(prefix, backbone)
    assert set(once.keys) == set(backbone.geometry.sites) and once.embedding == ()
    for site in once.keys:
        for before, after in ((once.keys[site], twice.keys[site]), (once.values[site], twice.values[site])):
            assert after == pytest.approx([before[0], 4 * before[1]], rel=1e-4)


def test_a_trained_prompt_has_tokens_that_matter(backbone_of):
    backbone = backbone_of("llama")
    examples = [Example((5, 6, 7), (20, 21, 2)), Example((9, 10), (22, 2))]
    spec = PromptSpec(kind="prompt", length=3)
    prompt = train_prompt(backbone, examples, spec, steps=30, seed=0).prompt
    rows = [Row(example.source_ids, (example.target_ids,)) for example in examples]
    found = leave_one_out(prompt, backbone, rows)
    assert found.whole < found.bare and max(found.rises) > 0
