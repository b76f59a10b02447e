"""Initialisation: every named choice gives what it names, through the MLP too, and depends on the generator alone."""

import pytest
import torch
from backbones import DECODERS, FAMILIES

from foreword.errors import ConfigError, PromptError
from foreword.prompts.init import NEUTRAL_TEXT, initialise, sample_vocabulary
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec

TEXTS = [tuple(range(10, 22)), tuple(range(40, 47))]


def made(backbone, spec, init, seed=0, **given):
    prompt = make_prompt(spec, backbone)
    report = initialise(prompt, backbone, torch.Generator().manual_seed(seed), init=init, **given)
    return prompt, report


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("reparam", ["none", "mlp"])
def test_activations_are_those_of_the_words_at_every_site(name, reparam, backbone_of):
    backbone = backbone_of(name)
    spec = PromptSpec(length=5, reparam=reparam, reparam_width=16)
    prompt, report = made(backbone, spec, InitSpec("activations", text="abcde"))
    ids = backbone.tokenizer(" abcde", add_special_tokens=False).input_ids[:5]
    with torch.no_grad():
        states, ours = backbone.record(ids=torch.tensor(ids)), prompt.realise(backbone).prefix.states
        for site, pair in states.items():
            for theirs, mine in zip(pair, ours[site], strict=True):
                torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)
    assert report.error < 1e-5 and "abcde" in report.detail


def test_data_takes_real_text_drawn_by_the_generator(backbone_of):
    backbone = backbone_of("llama")
    prompt, report = made(backbone, PromptSpec(length=6), InitSpec("data"), training_ids=TEXTS)
    options = [backbone.record(ids=torch.tensor(text[:6])) for text in TEXTS]
    tables = [prompt.flat_from_states(states, "decoder") for states in options]
    assert sum(torch.equal(prompt.table("decoder"), table) for table in tables) == 1
    assert report.name == "data"
    with pytest.raises(PromptError, match="needs training text"):
        made(backbone, PromptSpec(length=6), InitSpec("data"))


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("prefix", TEXTS, "data"), ("prefix", (), "activations"),
        ("prompt", TEXTS, "vocabulary"), ("infix", (), "vocabulary"),
    ],
)
def test_auto_is_resolved_and_reported(kind, given, expected, backbone_of):
    _, report = made(backbone_of("gpt2"), PromptSpec(kind=kind, length=3), None, training_ids=given)
    assert report.name == expected
    if expected == "activations":
        assert NEUTRAL_TEXT in report.detail


def test_random_choices_have_their_ranges(backbone_of):
    backbone, spec = backbone_of("gpt2"), PromptSpec(kind="prompt", length=400)
    choices = ("uniform", "uniform_positive")
    table = {name: made(backbone, spec, InitSpec(name))[0].table("embedding") for name in choices}
    assert -0.5 <= table["uniform"].min() < -0.49 and 0.49 < table["uniform"].max() < 0.5
    assert 0 <= table["uniform_positive"].min() < 0.01 and 0.49 < table["uniform_positive"].max() < 0.5
    normal = made(backbone, spec, InitSpec("normal", std=0.3))[0].table("embedding")
    assert abs(normal.std() - 0.3) < 0.01 and abs(normal.mean()) < 0.01
    own = made(backbone, spec, InitSpec("normal"))[0].table("embedding").std()
    assert abs(own / backbone.model.get_input_embeddings().weight.std() - 1) < 0.05


def test_vocabulary_is_without_replacement_from_the_most_common(backbone_of):
    backbone = backbone_of("llama")
    prompt, _ = made(backbone, PromptSpec(kind="prompt", length=20), InitSpec("vocabulary", top_tokens=20))
    rows = (prompt.table("embedding")[:, None] == backbone.embed(torch.arange(20))[None]).all(-1)
    assert rows.sum(0).tolist() == [1] * 20
    more = sample_vocabulary(backbone, 30, 20, torch.Generator().manual_seed(0))
    assert len(more) == 30 and more.max() < 20


def test_labels_come_first_and_the_rest_is_sampled(backbone_of):
    backbone = backbone_of("t5")
    init = InitSpec("labels", labels=("ab", "c"))
    prompt, _ = made(backbone, PromptSpec(kind="prompt", length=4), init)
    for row, label in enumerate(init.labels):
        ids = backbone.tokenizer(label, add_special_tokens=False).input_ids
        torch.testing.assert_close(prompt.table("embedding")[row], backbone.embed(torch.tensor(ids)).mean(0))
    short, _ = made(backbone, PromptSpec(kind="prompt", length=1), init)
    assert torch.equal(short.table("embedding")[0], prompt.table("embedding")[0])


def test_labels_of_a_prefix_are_the_keys_and_values_of_their_tokens(backbone_of):
    backbone = backbone_of("llama")
    prompt, _ = made(backbone, PromptSpec(length=4), InitSpec("labels", labels=("ab", "c")))
    other, _ = made(backbone, PromptSpec(length=4), InitSpec("labels", labels=("xy", "z")))
    ids = backbone.tokenizer("abc", add_special_tokens=False).input_ids
    with torch.no_grad():
        states = backbone.record(ids=torch.tensor(ids))
    torch.testing.assert_close(prompt.table("decoder")[:3], prompt.flat_from_states(states, "decoder"))
    assert not torch.equal(prompt.table("decoder")[:3], other.table("decoder")[:3])
    with pytest.raises(PromptError, match=r"init\.labels\[1\] = '' has no token"):
        made(backbone, PromptSpec(length=4), InitSpec("labels", labels=("a", "")))


def test_another_prompt_is_copied_cut_or_repeated(backbone_of):
    backbone = backbone_of("gpt2")
    source, _ = made(backbone, PromptSpec(length=3), InitSpec("normal", std=1.0))
    for length in (2, 3, 7):
        spec = PromptSpec(length=length, reparam="mlp", reparam_width=16)
        prompt, _ = made(backbone, spec, InitSpec("artifact", artifact="x"), source=source)
        torch.testing.assert_close(
            prompt.table("decoder"), source.table("decoder")[torch.arange(length) % 3], atol=1e-5, rtol=1e-5
        )
    with pytest.raises(PromptError, match="is a prefix prompt; this one is a prompt"):
        made(backbone, PromptSpec(kind="prompt"), InitSpec("artifact", artifact="x"), source=source)
    with pytest.raises(PromptError, match="was not loaded"):
        made(backbone, PromptSpec(), InitSpec("artifact", artifact="x"))


def test_the_exact_fit_beats_the_regression(backbone_of):
    backbone, spec = backbone_of("pythia"), PromptSpec(length=4, reparam="mlp", reparam_width=16)
    _, exact = made(backbone, spec, InitSpec("activations", text="abcd"))
    _, regression = made(backbone, spec, InitSpec("activations", text="abcd", fit="regression", fit_steps=50))
    assert exact.error < 1e-5 < 1e-3 < regression.error


@pytest.mark.parametrize("name", DECODERS)
def test_a_seed_decides_every_number(name, backbone_of):
    backbone = backbone_of(name)
    for spec in (PromptSpec(length=3, reparam="mlp", reparam_width=8), PromptSpec(kind="infix", length=3)):
        init, states = InitSpec("normal"), []
        for seed, noise in ((5, 1), (5, 2), (6, 3)):
            torch.manual_seed(noise)  # the global generator must not matter
            states.append(made(backbone, spec, init, seed)[0].state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "words"}, "init.text is empty"), ({"name": "labels"}, "init.labels is empty"),
        ({"std": 0.0}, "init.std = 0.0 must be positive"), ({"top_tokens": 0}, "init.top_tokens = 0"),
        ({"std": float("nan")}, "init.std = nan must be positive"), ({"fit_steps": -1}, "init.fit_steps = -1"),
        ({"fit_learning_rate": float("inf")}, "init.fit_learning_rate = inf must be positive and finite"),
    ],
)
def test_impossible_choices_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        InitSpec(**fields)
