"""Libraries of prompts: loading, ranking, and mixtures that are exactly the weighted sum."""

import pytest
import torch
from backbones import make
from toy import drawn_prompt

from foreword.artifact import load_prompt, save_prompt
from foreword.baselines.lora import Lora, LoraSpec
from foreword.compose.library import load_library, mix_prompts, rank_library, spot_weights
from foreword.errors import ArtifactError, ConfigError, PromptError
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec


def near(prompt, amount, seed):
    """A copy of a prompt with some noise."""
    copy = prompt.fold()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in copy.tables:
            values = copy.table(name)
            copy.tables[name].set(values + amount * values.std() * torch.randn(values.shape, generator=noise))
    return copy


def loud(prompt):
    """Fifty times a fresh draw, which the model would hardly notice."""
    with torch.no_grad():
        for name in prompt.tables:
            prompt.tables[name].set(50 * prompt.table(name))
    return prompt


def test_a_library_is_a_folder_of_prompts_or_runs_by_name(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    save_prompt(drawn_prompt(backbone, 1), tmp_path / "b", backbone)
    save_prompt(drawn_prompt(backbone, 2), tmp_path / "a" / "artifact", backbone)
    Lora(LoraSpec(targets=("q_proj",)), make("llama"), 0).save(tmp_path / "c" / "artifact")  # passed over
    (tmp_path / "notes").mkdir()
    assert list(load_library(tmp_path, backbone)) == ["a", "b"]
    with pytest.raises(ArtifactError, match="holds no prompt"):
        load_library(tmp_path / "notes")
    with pytest.raises(PromptError):
        load_library(tmp_path, backbone_of("gpt2"))


@pytest.mark.parametrize("measure", ["E_concat", "E_avg", "C_concat", "C_mean", "ON"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_the_nearest_prompt_comes_first(backbone_of, measure, kind):
    backbone = backbone_of("llama")
    query, far = (loud(drawn_prompt(backbone, seed, kind=kind)) for seed in (0, 1))
    library = {"far": far, "near": near(query, 0.3, 2), "same": query.fold()}
    ranking = rank_library(query, library, measure, backbone)
    assert [name for name, _ in ranking][:2] == ["same", "near"]
    assert ranking[2][1] < ranking[1][1]
    if measure != "E_avg":  # a prompt's rows differ from each other, so E_avg with itself is below 1
        assert ranking[0][1] == pytest.approx(1.0)


def test_equal_similarities_are_ordered_by_name(backbone_of):
    prompt = drawn_prompt(backbone_of("llama"))
    assert [name for name, _ in rank_library(prompt, {"z": prompt, "a": prompt})] == ["a", "z"]


def test_rankings_that_cannot_be_made_are_refused(backbone_of):
    prompt = drawn_prompt(backbone_of("llama"))
    with pytest.raises(ConfigError, match="give its backbone"):
        rank_library(prompt, {"a": prompt}, "ON")
    with pytest.raises(ConfigError, match="did you mean 'C_mean'"):
        rank_library(prompt, {"a": prompt}, "C_meen")


def test_spot_weights_are_similarities_over_their_sum():
    ranking = [("a", 0.6), ("b", 0.3), ("c", 0.1), ("d", -0.2)]
    assert spot_weights(ranking, 2) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert spot_weights(ranking, 9) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})
    with pytest.raises(ConfigError, match="above 0"):
        spot_weights([("d", -0.2)])
    with pytest.raises(ConfigError, match="top = 0"):
        spot_weights(ranking, 0)


@pytest.mark.parametrize("spec", [{"kind": "prompt"}, {"kind": "prefix"}, {"kind": "infix"}])
def test_a_mixture_is_exactly_the_weighted_sum(backbone_of, spec):
    backbone = backbone_of("llama")
    prompts = [drawn_prompt(backbone, seed, **spec) for seed in range(3)]
    weights = [0.5, 0.25, -0.125]  # powers of two: the sum in float64 is exact
    mixed = mix_prompts(prompts, weights)
    for name in mixed.tables:
        exact = sum(w * p.table(name).double() for w, p in zip(weights, prompts, strict=True))
        assert torch.equal(mixed.table(name), exact.float())


def test_one_prompt_of_weight_one_is_that_prompt_to_the_bit(backbone_of):
    prompt = drawn_prompt(backbone_of("llama"), reparam="mlp", reparam_width=8)
    assert torch.equal(mix_prompts([prompt], [1.0]).table("decoder"), prompt.table("decoder"))


def test_a_saved_mixture_starts_a_new_prompt_exactly(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    prompts = [drawn_prompt(backbone, seed, kind="prompt") for seed in range(2)]
    mixed = mix_prompts(prompts, [0.7, 0.3])
    save_prompt(mixed, tmp_path / "mixed", backbone, recipe={"mixture": {"a": 0.7, "b": 0.3}})
    spec = PromptSpec(kind="prompt", length=4, init=InitSpec("artifact", artifact=str(tmp_path / "mixed")))
    fresh = make_prompt(spec, backbone)
    source = load_prompt(tmp_path / "mixed", backbone)
    assert initialise(fresh, backbone, torch.Generator(), source=source).error == 0.0
    want = (0.7 * prompts[0].table("embedding").double() + 0.3 * prompts[1].table("embedding").double()).float()
    assert torch.equal(fresh.table("embedding"), want)


def test_what_cannot_be_mixed_is_refused(backbone_of):
    llama, gpt2 = backbone_of("llama"), backbone_of("gpt2")
    prompt = drawn_prompt(llama, kind="prompt")
    with pytest.raises(ConfigError, match="2 prompts and 1 weights"):
        mix_prompts([prompt, prompt], [1.0])
    with pytest.raises(ConfigError, match="finite"):
        mix_prompts([prompt], [float("nan")])
    with pytest.raises(PromptError, match="cannot be mixed"):
        mix_prompts([prompt, drawn_prompt(llama, kind="prompt", length=5)], [0.5, 0.5])
    with pytest.raises(PromptError, match="placed"):
        mix_prompts([prompt, drawn_prompt(llama, kind="prompt", placement="suffix")], [0.5, 0.5])
    mine, theirs = drawn_prompt(llama, kind="prompt"), drawn_prompt(gpt2, kind="prompt")
    mine.fingerprint, theirs.fingerprint = {"weights": "a"}, {"weights": "b"}
    with pytest.raises(PromptError, match="different backbones"):
        mix_prompts([mine, theirs], [0.5, 0.5])
    # Tables of one shape that mean other layers, or that are seen otherwise.
    for one, other in (({"layers": (0, 1)}, {"layers": (1, 2)}), ({}, {"window": "always"})):
        with pytest.raises(PromptError, match="layers, stacks or window"):
            mix_prompts([drawn_prompt(llama, **one), drawn_prompt(llama, 1, **other)], [0.5, 0.5])


def test_a_mixture_keeps_the_fingerprint_whichever_prompt_knows_it(backbone_of):
    llama = backbone_of("llama")
    known, unknown = drawn_prompt(llama), drawn_prompt(llama, 1)
    known.fingerprint, unknown.fingerprint = llama.fingerprint, None
    for order in ([known, unknown], [unknown, known]):
        assert mix_prompts(order, [0.5, 0.5]).fingerprint == llama.fingerprint
