"""The doctor: sound prompts pass, and every check finds the fault that is planted for it."""

import json

import pytest
import torch
from backbones import DECODERS, FAMILIES, OUTSIDERS, make

from foreword.backbone import Backbone
from foreword.doctor import Findings, examine
from foreword.errors import PromptError
from foreword.prompts.bank import PrefixKV
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import Realised, SoftPrompt, make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec

PREFIX = PromptSpec(length=4, init=InitSpec("activations", text="read this"))
MLP = PromptSpec(length=4, reparam="mlp", reparam_width=16, init=InitSpec("activations", text="read this"))
EMBEDS = PromptSpec(kind="prompt", length=4)


def fresh(backbone: Backbone, spec: PromptSpec = PREFIX) -> SoftPrompt:
    prompt = make_prompt(spec, backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0))
    return prompt


def failed(findings: Findings) -> dict[str, str]:
    return {check.name: check.detail for check in findings.checks if not check.passed}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sound_prompt_passes_every_check(name, backbone_of):
    backbone = backbone_of(name)
    kinds = [PREFIX, MLP, EMBEDS, PromptSpec(kind="prompt", length=3, placement="suffix")]
    kinds += [PromptSpec(kind="infix", length=3)] if name in DECODERS else []
    for spec in kinds:
        findings = examine(fresh(backbone, spec), backbone)
        assert findings.ok, (spec.kind, failed(findings))
        names = [check.name for check in findings.checks]
        assert names == ["backbone", "finite", "gradient", "dead parts", "effect", "generation", "norms"]
        assert len(findings.nearest) == spec.length


@pytest.mark.parametrize("name", OUTSIDERS)
def test_a_prompt_on_a_model_without_prefixes_passes(name, backbone_of):
    findings = examine(fresh(backbone_of(name), EMBEDS), backbone_of(name))
    assert findings.ok, failed(findings)


def test_the_examination_changes_nothing(backbone_of):
    backbone = backbone_of("llama")
    prompt = fresh(backbone, MLP)
    before = {name: tensor.clone() for name, tensor in prompt.state_dict().items()}
    digest, state = backbone.state_digest(), torch.get_rng_state()
    assert prompt.training
    first, second = examine(prompt, backbone), examine(prompt, backbone)
    assert first == second
    assert prompt.training and all(p.grad is None for p in prompt.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in prompt.state_dict().items())
    assert backbone.state_digest() == digest and torch.equal(torch.get_rng_state(), state)


def test_findings_read_as_lines_and_as_json(backbone_of):
    backbone = backbone_of("gpt2")
    findings = examine(fresh(backbone), backbone, ["some text", "more of it"])
    lines = findings.lines()
    assert len(lines) == len(findings.checks) + 1 + 4
    assert lines[0].startswith("ok    backbone") and "FAIL" not in " ".join(lines)
    tree = json.loads(json.dumps(findings.to_dict()))
    assert tree["ok"] is True and tree["checks"][2]["name"] == "gradient"
    assert len(tree["nearest"][0]["tokens"]) == 3


def test_a_prompt_of_another_backbone_is_found(backbone_of):
    wrong_width = failed(examine(fresh(backbone_of("qwen3")), backbone_of("llama")))
    assert list(wrong_width) == ["backbone"] and "does not fit" in wrong_width["backbone"]
    prompt = fresh(backbone_of("llama"))
    prompt.fingerprint = backbone_of("llama").fingerprint
    assert examine(prompt, backbone_of("llama")).ok
    wrong_weights = failed(examine(prompt, make("llama", seed=1)))
    assert list(wrong_weights) == ["backbone"] and "weights" in wrong_weights["backbone"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_found(value, backbone_of):
    prompt = fresh(backbone_of("llama"), MLP)
    with torch.no_grad():
        prompt.tables["decoder"].inner.weight[0, 0] = value
    found = failed(examine(prompt, backbone_of("llama")))
    assert "tables.decoder.inner.weight has 1 NaN" in found["finite"]


def test_a_zeroed_outer_layer_leaves_the_inner_one_dead(backbone_of):
    prompt = fresh(backbone_of("llama"), MLP)
    with torch.no_grad():
        prompt.tables["decoder"].outer.weight.zero_()
    found = failed(examine(prompt, backbone_of("llama")))
    assert "the gradient of tables.decoder.inner.weight is zero" in found["gradient"]
    assert "tables.decoder.outer.weight" not in found["gradient"]


def test_a_frozen_parameter_is_found(backbone_of):
    prompt = fresh(backbone_of("llama"), MLP)
    prompt.tables["decoder"].inputs.requires_grad_(False)
    assert failed(examine(prompt, backbone_of("llama"))) == {"gradient": "no gradient reaches tables.decoder.inputs"}


class Detached(SoftPrompt):
    """A prompt whose values enter the model without their graph."""

    def realise(self, backbone):
        made = super().realise(backbone)
        return Realised(prefix=made.prefix.detach())


class Silent(SoftPrompt):
    """A prompt that injects nothing."""

    def realise(self, backbone):
        return Realised(prefix=PrefixKV({}, 0))


class Fickle(SoftPrompt):
    """A prompt that is another one at every call."""

    def realise(self, backbone):
        self.calls = getattr(self, "calls", 0) + 1
        states = super().realise(backbone).prefix.states
        turned = {site: (key.roll(self.calls, 2), value * (-1) ** self.calls) for site, (key, value) in states.items()}
        return Realised(prefix=PrefixKV(turned, self.length))


def disguised(kind: type[SoftPrompt], backbone: Backbone) -> SoftPrompt:
    prompt = fresh(backbone)
    prompt.__class__ = kind
    return prompt


def test_a_detached_prompt_is_found(backbone_of):
    found = failed(examine(disguised(Detached, backbone_of("gpt2")), backbone_of("gpt2")))
    assert found == {"gradient": "no gradient reaches tables.decoder.weight"}


def test_a_prompt_without_effect_is_found(backbone_of):
    found = failed(examine(disguised(Silent, backbone_of("gpt2")), backbone_of("gpt2")))
    assert "bare backbone's" in found["effect"] and "gradient" in found
    assert found["norms"] == "the prompt injects no keys and values"


def test_generation_that_differs_from_the_full_forward_is_found(backbone_of):
    found = failed(examine(disguised(Fickle, backbone_of("gpt2")), backbone_of("gpt2")))
    assert "is not the full forward's best" in found["generation"]


@pytest.mark.parametrize(("factor", "said"), [(0.0, "0 times"), (1e4, "e+04 times")])
def test_norms_far_from_the_vocabularys_are_found(factor, said, backbone_of):
    for spec in (PREFIX, EMBEDS):
        prompt = fresh(backbone_of("pythia"), spec)
        with torch.no_grad():
            next(iter(prompt.tables.values())).weight.mul_(factor)
        assert said in failed(examine(prompt, backbone_of("pythia")))["norms"]


def test_positions_hidden_by_a_sliding_window_are_found(backbone_of):
    """Every layer of this model sees 32 positions back: the first of 40 are out of every text's sight."""
    backbone = backbone_of("mistral")
    spec = PromptSpec(length=40, init=InitSpec("activations", text="read this"))
    found = failed(examine(fresh(backbone, spec), backbone))
    assert "virtual tokens 0-8 of decoder get no gradient" in found["dead parts"] and "window" in found["dead parts"]
    always = PromptSpec(length=40, window="always", init=spec.init)
    assert examine(fresh(backbone, always), backbone).ok


def test_dead_numbers_are_found(backbone_of):
    """Saturated tanh units pass no gradient to the layer before them."""
    prompt = fresh(backbone_of("gpt2"), MLP)
    with torch.no_grad():
        prompt.tables["decoder"].inner.bias[:8] = 1e4
    found = failed(examine(prompt, backbone_of("gpt2")))
    assert "50% of the numbers of tables.decoder.inner" in found["dead parts"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_the_nearest_tokens_of_real_tokens_are_themselves(name, backbone_of):
    backbone, ids = backbone_of(name), [20, 41, 33]
    words = [backbone.tokenizer.decode([i]) for i in ids]
    embeds = fresh(backbone, PromptSpec(kind="prompt", length=3))
    prefix = fresh(backbone, PromptSpec(length=3, init=PREFIX.init))
    with torch.no_grad():
        embeds.tables["embedding"].set(backbone.embed(torch.tensor(ids)).float())
        states = backbone.record(ids=torch.tensor(ids))
        for stack in prefix.tables:
            prefix.tables[stack].set(prefix.flat_from_states(states, stack))
    for prompt in (embeds, prefix):
        nearest = examine(prompt, backbone).nearest
        assert [near.tokens[0][0] for near in nearest] == words
        assert all(near.tokens[0][1] > 0.6 for near in nearest)


def test_nearest_says_where_it_does_not_apply(backbone_of):
    backbone = backbone_of("llama")
    findings = examine(fresh(backbone, PromptSpec(length=2, layers=(1, 2), init=PREFIX.init)), backbone)
    assert findings.ok and findings.nearest == () and findings.nearest_of.startswith("not applicable")
    assert len(findings.lines()) == len(findings.checks) + 1


def test_a_text_that_is_too_short_is_refused(backbone_of):
    with pytest.raises(PromptError, match="at least 2"):
        examine(fresh(backbone_of("llama")), backbone_of("llama"), ["a"])
