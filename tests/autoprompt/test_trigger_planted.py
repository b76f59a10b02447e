import pytest
import torch
from readers import backbone

from foreword.baselines.autoprompt.planted import Recovery, draw_secret, plant, recover
from foreword.baselines.autoprompt.reader import Reader
from foreword.baselines.autoprompt.reader import TriggerExample as Row
from foreword.baselines.autoprompt.search import Search, measure
from foreword.baselines.autoprompt.spec import AutoPromptSpec
from foreword.baselines.autoprompt.template import ANSWER, SLOT
from foreword.baselines.autoprompt.words import allowed_tokens
from foreword.errors import ConfigError


def sources(count, masked=False, slots=1):
    rng = torch.Generator().manual_seed(5)
    texts = torch.randint(20, 90, (count, 4), generator=rng).tolist()
    return [Row((*text, *[SLOT] * slots, *([ANSWER] if masked else [])), (0,)) for text in texts]


SHARPER = {"llama": 8, "bert": 4}
"""Random weights make a model nearly indifferent; larger logits let the trigger word matter as it does in real ones."""


def planted(name, slots=1, count=120, new_len=3, seed=0):
    owner = backbone(name)
    owner.model.get_output_embeddings().weight.data.mul_(SHARPER.get(name, 1))
    reader = Reader(owner)
    allowed = allowed_tokens(reader.backbone.tokenizer, len(reader.embeddings()), AutoPromptSpec())
    generator = torch.Generator().manual_seed(seed)
    secret = draw_secret(allowed, slots, generator)
    new_len = 1 if name == "bert" else new_len
    return reader, allowed, secret, plant(reader, sources(count, name == "bert", slots), secret, new_len, generator)


@pytest.mark.parametrize("name", ["llama", "t5", "bert"])
def test_no_word_does_better_than_the_planted_one(name):
    """Gibbs' inequality, checked by trying every word of the vocabulary."""
    reader, allowed, secret, rows = planted(name, count=200)
    losses = {word: measure(reader, rows, (word,), 200).loss for word in allowed.nonzero()[:, 0].tolist()}
    assert min(losses, key=losses.get) == secret[0]
    assert sorted(losses.values())[len(losses) // 2] > losses[secret[0]] + 0.05


def test_targets_follow_the_models_distribution():
    """The frequency of each first token equals the model's probability of it, to sampling error."""
    reader, _, secret, _ = planted("gpt2")
    row = sources(1)[0]
    drawn = plant(reader, [row] * 3000, secret, 1, torch.Generator().manual_seed(1), rows=1000)
    counts = torch.bincount(torch.tensor([one.target[0] for one in drawn]), minlength=99) / 3000
    wanted = reader.answers([row], secret)[0].softmax(-1)
    spread = (wanted * (1 - wanted) / 3000).sqrt()
    assert ((counts - wanted).abs() <= 5 * spread + 1e-3).all()
    assert len({one.target for one in drawn}) > 3


def test_later_tokens_are_drawn_given_the_earlier_ones():
    reader, _, secret, rows = planted("llama", count=8, new_len=3)
    assert all(len(row.target) == 3 for row in rows)
    for place in (1, 2):
        cut = [Row(row.ids, (*row.target[:place], 0)) for row in rows]
        logits = reader.next_logits(cut, secret)
        for row, line in zip(rows, logits, strict=True):
            whole = (*(secret[0] if token == SLOT else token for token in row.ids), *row.target[:place])
            by_hand = reader.backbone.model(torch.tensor([whole])).logits[0, -1]
            torch.testing.assert_close(line, by_hand, rtol=1e-4, atol=1e-3)


def search(strategy, seed, slots=2, iterations=10):
    reader, allowed, secret, rows = planted("llama", slots, seed=seed)
    spec = AutoPromptSpec(strategy=strategy, candidates=4, accumulation=1, rows=40, score="loss")
    first = found = (int(allowed.nonzero()[0]),) * slots
    searching, spent = Search(reader, rows[:80], spec, allowed, seed), 0
    for iteration in range(1, iterations + 1):
        flip = searching.step(found, iteration)
        found, spent = flip.trigger, spent + flip.evaluations
    assert spent == iterations * 40 * (1 + 4 + 3)
    return recover(reader, rows[80:], secret, first, found)


def test_a_planted_trigger_is_recovered_word_for_word_and_random_search_does_worse():
    got = {name: [search(name, seed) for seed in range(3)] for name in ("hotflip", "random")}
    gone = {name: sum(one.first - one.found for one in found) for name, found in got.items()}
    possible = sum(one.first - one.secret for one in got["hotflip"])
    assert gone["hotflip"] > 0.9 * possible
    assert gone["hotflip"] > gone["random"] + 0.1 * possible
    words = {name: sum(one.in_place for one in found) / 3 for name, found in got.items()}
    assert words["hotflip"] >= 2 / 3 > words["random"]


def test_a_recovery_counts_words_in_place_and_anywhere():
    reader, _, _, rows = planted("gpt2", slots=2, count=20)
    got = recover(reader, rows, (30, 31), (40, 40), (31, 31))
    assert (got.in_place, got.anywhere) == (0.5, 0.5)
    assert got.first == measure(reader, rows, (40, 40), 20).loss
    assert Recovery(5.0, 1.0, 2.0, 0, 0).share == 0.75


def test_a_masked_model_answers_one_token():
    reader = Reader(backbone("bert"))
    with pytest.raises(ConfigError, match="set it to 1"):
        plant(reader, sources(2, True), (30,), 2, torch.Generator())
