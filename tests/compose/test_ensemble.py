"""An ensemble in one batch is the loop over its members, token for token, and its votes are the members'."""

import dataclasses

import pytest
import torch
from members import TEXTS, drawn, mixed, several

from foreword.compose.ensemble import Ensemble
from foreword.compose.vote import majority
from foreword.data.examples import encode_source, encode_target, get_format
from foreword.errors import ConfigError, PromptError
from foreword.evaluate.subject import Subject
from foreword.prompts.attention import AttentionCall
from foreword.prompts.batch import Row
from foreword.prompts.spec import PromptSpec
from foreword.tasks.task import GenerationLimits
from foreword.train.loss import target_loss

FAMILIES = ("gpt2", "llama", "mistral", "qwen3", "gemma3", "opt", "pythia", "phi3", "t5", "bart")
LIMITS = GenerationLimits(max_new_tokens=12)


def looped(backbone, prompts, texts, limits=LIMITS):
    """Each member by itself, one text at a time."""
    subjects = [Subject("one", backbone, prompt, prompt.format) for prompt in prompts]
    return [[subject.outputs([text], limits)[0] for subject in subjects] for text in texts]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_batch_is_the_loop_token_for_token(name, backbone_of):
    backbone = backbone_of(name)
    prompts = mixed(backbone)
    found = Ensemble(backbone, prompts, batch_size=2).outputs(TEXTS, LIMITS)
    assert found == looped(backbone, prompts, TEXTS)
    assert len({text for members in found for text in members}) > len(TEXTS)  # the members differ


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_with_beams_too(name, backbone_of):
    backbone, limits = backbone_of(name), dataclasses.replace(LIMITS, num_beams=3, length_penalty=0.8)
    prompts = mixed(backbone)
    assert Ensemble(backbone, prompts).outputs(TEXTS, limits) == looped(backbone, prompts, TEXTS, limits)


def test_members_run_in_one_pass_and_leading_prompts_are_computed_once(backbone_of, monkeypatch):
    backbone = backbone_of("llama")
    ensemble, rows = Ensemble(backbone, several(backbone, 5, kind="prompt")), []
    run = AttentionCall.run
    monkeypatch.setattr(AttentionCall, "run", lambda call: rows.append(call.query.shape[0]) or run(call))
    ensemble.outputs(["abc", "abd"], GenerationLimits(max_new_tokens=3))
    assert set(rows) == {10}  # no pass of soft tokens by themselves, none of a member alone
    assert len(rows) <= 3 * 3  # layers x steps


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_scores_are_each_members_own(name, backbone_of):
    backbone, candidates = backbone_of(name), [["yes", "no"], ["a", "bc", "def"], ["x"], ["yes", "no"], ["long one"]]
    prompts = mixed(backbone)
    found = Ensemble(backbone, prompts, batch_size=2).scores(TEXTS, candidates)
    form = get_format(None, backbone.is_encoder_decoder)
    for text, names, scores in zip(TEXTS, candidates, found, strict=True):
        assert scores.shape == (len(prompts), len(names))
        for prompt, row in zip(prompts, scores, strict=True):
            for name_, score in zip(names, row.tolist(), strict=True):
                target = encode_target(backbone.tokenizer, name_, form)
                alone = Row(encode_source(backbone.tokenizer, text, form), (target,), form.tail)
                assert score == pytest.approx(-float(target_loss(backbone, [alone], [prompt]).sum.detach()), rel=1e-4)


def test_the_majority_is_that_of_the_members_strings(backbone_of):
    backbone = backbone_of("qwen3")
    prompts = several(backbone, 2)
    ensemble = Ensemble(backbone, [prompts[0], prompts[1], prompts[1]])
    assert ensemble.answer(TEXTS, LIMITS) == [majority(votes) for votes in ensemble.outputs(TEXTS, LIMITS)]
    assert ensemble.answer(TEXTS, LIMITS) == [votes[1] for votes in looped(backbone, ensemble.prompts, TEXTS)]
    heavy = Ensemble(backbone, prompts, weights=[0.2, 0.7])
    assert heavy.answer(TEXTS, LIMITS) == [votes[1] for votes in looped(backbone, prompts, TEXTS)]


@torch.no_grad()
def mean_by_hand(backbone, prompts, text, new_tokens):
    """Greedy decoding from the mean of the members' probabilities, one full forward a member and step."""
    tokenizer, made = backbone.tokenizer, ()
    form = get_format(None, backbone.is_encoder_decoder)
    source = encode_source(tokenizer, text, form)
    for _ in range(new_tokens):
        total = 0
        for prompt in prompts:
            options = [(*made, token) for token in range(len(tokenizer))]
            row = Row(source, tuple(options), form.tail)
            loss = target_loss(backbone, [row], [prompt]).per_target
            total = total + (loss[0] - loss).softmax(-1)  # what all targets share cancels out
        made = (*made, int(total.argmax()))
        if made[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(made, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_mean_decoding_takes_the_most_likely_token_of_the_mean(name, backbone_of):
    backbone = backbone_of(name)
    prompts = mixed(backbone)[:4]
    limits = GenerationLimits(max_new_tokens=5, bad_words=())
    found = Ensemble(backbone, prompts, batch_size=2).answer(TEXTS[:3], limits, "mean")
    assert found == [mean_by_hand(backbone, prompts, text, 5) for text in TEXTS[:3]]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_mean_of_equal_members_is_the_member(beams, backbone_of):
    backbone, limits = backbone_of("mistral"), dataclasses.replace(LIMITS, num_beams=beams)
    prompt = several(backbone, 1)[0]
    found = Ensemble(backbone, [prompt] * 3).answer(TEXTS, limits, "mean")
    assert found == [row[0] for row in looped(backbone, [prompt], TEXTS, limits)]


def test_the_mean_keeps_members_apart_where_their_formats_differ(backbone_of):
    backbone = backbone_of("llama")
    prompts = several(backbone, 3)
    prompts[1].format = "plain"  # another number of source tokens: the rows of one text do not lie side by side
    ensemble = Ensemble(backbone, prompts)
    assert ensemble.outputs(TEXTS, LIMITS) == looped(backbone, prompts, TEXTS)
    one_by_one = [ensemble.answer([text], LIMITS, "mean")[0] for text in TEXTS]
    assert ensemble.answer(TEXTS, LIMITS, "mean") == one_by_one
    assert Ensemble(backbone, prompts[::-1]).answer(TEXTS, LIMITS, "mean") == one_by_one


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_labels_are_chosen_by_probability(name, backbone_of):
    backbone, labels = backbone_of(name), ["good", "bad", "so-so"]
    prompts = mixed(backbone)
    ensemble = Ensemble(backbone, prompts)
    scores = ensemble.scores(TEXTS, [labels] * len(TEXTS))
    means = [one.softmax(-1).mean(0) for one in scores]
    assert ensemble.classify(TEXTS, labels, "mean") == [labels[int(mean.argmax())] for mean in means]
    firsts = [[labels[i] for i in one.argmax(-1).tolist()] for one in scores]
    assert ensemble.classify(TEXTS, labels) == [majority(votes) for votes in firsts]
    borda = ensemble.classify(TEXTS, labels, "borda")
    points = [(one[:, :, None] > one[:, None]).sum((0, 2)).tolist() for one in scores]
    for label, given in zip(borda, points, strict=True):
        assert given[labels.index(label)] == max(given)


def test_a_ranked_vote_over_generated_strings(backbone_of):
    backbone = backbone_of("gpt2")
    ensemble = Ensemble(backbone, several(backbone, 4))
    strings = ensemble.outputs(TEXTS, LIMITS)
    for rule in ("borda", "runoff"):
        for answer, votes in zip(ensemble.answer(TEXTS, LIMITS, rule), strings, strict=True):
            assert answer in votes
    # Greedy strings need not be a member's own favourite among all of them, but the ranking is by its probability.
    orders = ensemble.rank(TEXTS[:1], [["ab", "", "ba"]])[0]
    scores = ensemble.scores(TEXTS[:1], [["ab", "", "ba"]])[0]
    for order, row in zip(orders, scores.tolist(), strict=True):
        assert order == sorted(["ab", "", "ba"], key=lambda name: -row[["ab", "", "ba"].index(name)])


def test_faults_are_named(backbone_of):
    backbone = backbone_of("llama")
    with pytest.raises(ConfigError, match="no member"):
        Ensemble(backbone, [])
    with pytest.raises(ConfigError, match="2 weights for 1 prompts"):
        Ensemble(backbone, several(backbone, 1), weights=[1, 2])
    with pytest.raises(ConfigError, match="did you mean 'majority'"):
        Ensemble(backbone, several(backbone, 1)).answer(["a"], LIMITS, "majorty")
    with pytest.raises(PromptError, match="does not fit"):
        Ensemble(backbone, [drawn(backbone_of("gpt2"), PromptSpec(length=2))])
    with pytest.raises(ConfigError, match="give each at least one"):
        Ensemble(backbone, several(backbone, 1)).scores(["a"], [[]])
    with pytest.raises(PromptError, match="list of strings"):
        Ensemble(backbone, several(backbone, 1)).answer("abc")


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma3", "opt"])
@pytest.mark.parametrize("spec", [{"kind": "infix"}, {"kind": "prompt", "placement": "suffix"}])
def test_members_behind_the_text_share_one_computation_of_it(name, spec, backbone_of):
    """Law 11 makes it possible; the strings and scores are those of members alone, longer than a window included."""
    backbone, candidates = backbone_of(name), ["yes", "no way"]
    texts = [*TEXTS, "a text that is longer than the sliding window of the models that have one"]
    prompts = several(backbone, 3, **spec)
    found = Ensemble(backbone, prompts).outputs(texts, LIMITS)
    assert found == looped(backbone, prompts, texts)
    scores = Ensemble(backbone, prompts).scores(texts, [candidates] * len(texts))
    for member, prompt in enumerate(prompts):
        alone = Ensemble(backbone, [prompt]).scores(texts, [candidates] * len(texts))
        for together, single in zip(scores, alone, strict=True):
            assert torch.allclose(together[member], single[0], rtol=1e-4)


def test_a_shared_source_costs_its_tokens_once(backbone_of, monkeypatch):
    backbone, text, counts = backbone_of("llama"), "x" * 60, []
    run = AttentionCall.run
    monkeypatch.setattr(AttentionCall, "run", lambda call: counts.append(call.query.shape[:3].numel()) or run(call))
    for prompts in (several(backbone, 5, kind="infix"), several(backbone, 5)):
        ensemble, before = Ensemble(backbone, prompts), len(counts)
        ensemble.scores([text], [["a", "b"]])
        counts.append(-sum(counts[before:]))
    infixes, prefixes = (-count for count in counts if count < 0)
    assert infixes < 0.5 * prefixes
