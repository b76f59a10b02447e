import numpy as np
import pytest
import torch
from readers import KINDS, LABELS, backbone, bert, examples, losses_by_hand, reader

from foreword.baselines.autoprompt.planted import draw_secret
from foreword.baselines.autoprompt.reader import Reader, fill
from foreword.baselines.autoprompt.search import (
    Figures,
    Search,
    best_candidates,
    first_order,
    mean_gradient,
    measure,
    random_candidates,
)
from foreword.baselines.autoprompt.spec import AutoPromptSpec
from foreword.baselines.autoprompt.words import allowed_tokens
from foreword.errors import PromptError

TRIGGER = (60, 61)
SMALL = {"candidates": 5, "accumulation": 2, "rows": 2}


def searcher(name="gpt2", labelled=True, seed=0, count=12, **settings):
    mine = reader(name, labelled)
    spec = AutoPromptSpec(labels={"no": ("a",), "yes": ("b",)} if labelled else None, **{**SMALL, **settings})
    given = {index for words in mine.labels.values() for index in words}
    allowed = allowed_tokens(mine.backbone.tokenizer, len(mine.embeddings()), spec, given)
    return Search(mine, examples(mine.backbone, labelled, count), spec, allowed, seed)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "targets"])
@pytest.mark.parametrize("name", KINDS)
def test_losses_equal_those_of_rows_run_alone_by_hand(name, labelled):
    mine = reader(name, labelled)
    rows = examples(mine.backbone, labelled)
    by_hand = losses_by_hand(mine, rows, mine.embeddings()[list(TRIGGER)])
    got = mine.judge(rows, TRIGGER)
    torch.testing.assert_close(got.losses, by_hand, rtol=1e-4, atol=1e-4)
    assert (got.correct is None) == (not labelled)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "targets"])
@pytest.mark.parametrize("name", KINDS)
def test_candidate_scores_equal_a_brute_force_first_order_expansion(name, labelled):
    """For every word v of the vocabulary: gradient . (e_v - e_current), the gradient taken by hand row by row."""
    mine = reader(name, labelled)
    rows, table = examples(mine.backbone, labelled), mine.embeddings()
    words = table[list(TRIGGER)].clone().requires_grad_(True)
    losses_by_hand(mine, rows, words).mean().backward()
    _, gradient = mean_gradient(mine, rows, TRIGGER, 4)
    for slot, current in enumerate(TRIGGER):
        promise = first_order(gradient[slot], table, current)
        assert len(promise) == len(table) == mine.backbone.model.get_input_embeddings().weight.shape[0]
        scale = words.grad[slot].norm() * table.norm(dim=-1).max()
        for v in range(len(table)):
            difference = (table[v] - table[current]).tolist()
            expected = sum(g * d for g, d in zip(words.grad[slot].tolist(), difference, strict=True))
            assert float(promise[v]) == pytest.approx(expected, abs=1e-4 * float(scale) + 1e-6)
        assert promise[current] == 0
        assert float(promise.abs().max()) > 1e-4


def test_the_promise_is_the_slope_of_the_loss_towards_each_word():
    """In double precision, small steps towards a word change the loss as promised."""
    mine = reader("llama", True)
    mine.backbone.model.double()
    rows, table = examples(mine.backbone, True), mine.embeddings()
    _, gradient = mean_gradient(mine, rows, TRIGGER, 6)
    promise = first_order(gradient[1], table, TRIGGER[1])
    step = 1e-3
    for v in (10, 33, 77):
        moved = [table[list(TRIGGER)].clone() for _ in range(2)]
        for sign, words in zip((1, -1), moved, strict=True):
            words[1] += sign * step * (table[v] - table[TRIGGER[1]])
        up, down = (float(losses_by_hand(mine, rows, words).mean()) for words in moved)
        assert (up - down) / (2 * step) == pytest.approx(float(promise[v]), rel=2e-2, abs=1e-3)


def test_candidates_are_the_allowed_words_of_lowest_promise():
    promise = torch.tensor([0.0, -3.0, -1.0, 2.0, -2.0, -9.0])
    allowed = torch.tensor([True, True, True, True, True, False])
    assert best_candidates(promise, allowed, 1, 3) == [4, 2, 0]
    assert best_candidates(promise, allowed, 0, 10) == [1, 4, 2, 3]
    drawn = random_candidates(np.random.default_rng(0), allowed, 2, 3)
    assert len(set(drawn)) == 3 and set(drawn) <= {0, 1, 3, 4}


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert"])
@pytest.mark.parametrize("strategy", ["hotflip", "random"])
def test_no_iteration_raises_the_loss_on_its_scoring_rows(name, strategy):
    search = searcher(name, score="loss", strategy=strategy)
    trigger, accepted = TRIGGER, 0
    for iteration in range(1, 9):
        rng = np.random.Generator(np.random.PCG64([0, iteration]))
        rng.integers(2)
        _, fresh = search._draw(rng)  # the same rows as the iteration will score on
        flip = search.step(trigger, iteration)
        before, after = (measure(search.reader, fresh, which, 2).loss for which in (trigger, flip.trigger))
        assert (before, after) == (flip.before.loss, flip.after.loss)
        assert after < before if flip.accepted else (after == before and flip.trigger == trigger)
        assert sum(a != b for a, b in zip(trigger, flip.trigger, strict=True)) == int(flip.accepted)
        accepted += flip.accepted
        trigger = flip.trigger
    assert accepted >= 1


def test_the_best_of_all_candidates_is_taken():
    search = searcher(score="loss")
    rng = np.random.Generator(np.random.PCG64([0, 1]))
    slot = int(rng.integers(2))
    first, fresh = search._draw(rng)
    flip = search.step(TRIGGER, 1)
    _, gradient = mean_gradient(search.reader, first, TRIGGER, 2)
    order = first_order(gradient[slot], search.embeddings, TRIGGER[slot]).argsort().tolist()
    tried = [v for v in order if search.allowed[v] and v != TRIGGER[slot]][:5]
    assert (flip.slot, flip.tried) == (slot, tuple(tried))
    losses = [
        measure(search.reader, fresh, (*TRIGGER[:slot], v, *TRIGGER[slot + 1 :]), 2).loss for v in tried
    ]
    assert flip.best.loss == min(losses) and flip.token == tried[losses.index(min(losses))]
    overlap = {id(row) for row in first} & {id(row) for row in fresh}
    assert len(first) == len(fresh) == 4 and not overlap


def test_an_equal_candidate_replaces_nothing():
    search = searcher(score="loss", candidates=1)
    weight = search.reader.backbone.model.get_input_embeddings().weight
    weight.data[70] = weight.data[60]
    search = Search(search.reader, search.examples, search.spec, torch.zeros(len(weight)).bool(), 0)
    search.allowed[70] = True
    flips = [search.step((60, 60), iteration) for iteration in range(1, 4)]
    assert all(flip.tried == (70,) and flip.best.loss == flip.before.loss for flip in flips)
    assert not any(flip.accepted for flip in flips)


def test_accuracy_decides_where_there_are_label_words_and_loss_elsewhere():
    assert searcher().spec.deciding == "accuracy"
    assert searcher(labelled=False).spec.deciding == "loss"
    assert Figures(2.0, 0.5).better_than(Figures(1.0, 0.4), "accuracy")
    assert not Figures(0.5, 0.5).better_than(Figures(1.0, 0.5), "accuracy")
    assert Figures(0.5).better_than(Figures(1.0), "loss") and not Figures(1.0).better_than(Figures(1.0), "loss")
    search, trigger = searcher(candidates=20), TRIGGER
    for iteration in range(1, 6):
        flip = search.step(trigger, iteration)
        assert flip.accepted == (flip.best.accuracy > flip.before.accuracy)
        trigger = flip.trigger


def test_random_search_spends_as_many_evaluations():
    spent = {}
    for strategy in ("hotflip", "random"):
        search = searcher(strategy=strategy)
        calls = {"judge": 0, "gradient": 0}
        judge, gradient = search.reader.judge, search.reader.gradient

        def judged(rows, trigger, calls=calls, judge=judge):
            calls["judge"] += len(rows)
            return judge(rows, trigger)

        def sloped(rows, trigger, calls=calls, gradient=gradient):
            calls["gradient"] += len(rows)
            return gradient(rows, trigger)

        search.reader.judge, search.reader.gradient = judged, sloped
        flip = search.step(TRIGGER, 1)
        spent[strategy] = flip.evaluations
        assert flip.evaluations == calls["judge"] + 3 * calls["gradient"]
        assert (calls["gradient"] > 0) == (strategy == "hotflip")
    assert spent["hotflip"] == spent["random"] == 4 * (1 + 5 + 3)


def test_a_seed_decides_everything():
    def walk(seed):
        search, trigger, seen = searcher(score="loss", seed=seed), TRIGGER, []
        for iteration in range(1, 6):
            flip = search.step(trigger, iteration)
            seen.append(flip)
            trigger = flip.trigger
        return seen

    assert walk(0) == walk(0)
    assert walk(0) != walk(1)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_no_special_token_and_no_label_word_is_ever_tried(name):
    search, trigger = searcher(name, score="loss", candidates=30), TRIGGER
    tokenizer = search.reader.backbone.tokenizer
    tried = set()
    for strategy in ("hotflip", "random"):
        other = Search(search.reader, search.examples, AutoPromptSpec(strategy=strategy, candidates=30, rows=4),
                       search.allowed, 0)
        for iteration in range(1, 7):
            tried |= set(other.step(trigger, iteration).tried)
    assert len(tried) > 40
    assert not tried & {*tokenizer.all_special_ids, *(word for words in LABELS.values() for word in words)}
    texts = [tokenizer.decode([index]) for index in tried]
    assert not [text for text in texts if text[:1].isupper() or not text.strip()]


def test_a_model_is_left_as_it_was():
    search = searcher("llama", labelled=False)
    before = search.reader.backbone.state_digest()
    search.step(TRIGGER, 1)
    assert search.reader.backbone.state_digest() == before
    assert all(p.grad is None and not p.requires_grad for p in search.reader.backbone.model.parameters())


def test_rows_without_slots_are_what_a_trigger_is_compared_with():
    mine = Reader(backbone("gpt2"), LABELS)
    rows = examples(mine.backbone, True)
    short = [type(row)(tuple(token for token in row.ids if token >= 0), row.target, row.label) for row in rows]
    torch.testing.assert_close(mine.judge(rows, ()).losses, mine.judge(short, ()).losses)
    with pytest.raises(PromptError, match="1 trigger words for 2 slots"):
        fill(rows[0], (5,))


def test_a_secret_is_made_of_different_allowed_words():
    allowed = torch.zeros(50).bool()
    allowed[[3, 9, 27]] = True
    assert sorted(draw_secret(allowed, 3, torch.Generator().manual_seed(0))) == [3, 9, 27]


def test_a_row_that_is_too_long_is_refused():
    mine = Reader(bert(), {})
    row = examples(mine.backbone, False, 1)[0]
    long = type(row)(row.ids * 12, row.target)
    with pytest.raises(PromptError, match=r"64 positions; lower data\.max_source"):
        mine.judge([long], TRIGGER * 12)
