import math

import numpy as np
import pytest
import torch
from readers import backbone, examples, reader

from foreword.baselines.autoprompt.labels import rank_words, search_labels, train_probe
from foreword.baselines.autoprompt.reader import ANSWER, SLOT, Reader
from foreword.baselines.autoprompt.spec import LabelSearch
from foreword.errors import ConfigError, DataError

TRIGGER = (60, 61)


def ranked_by_hand(probe, words, allowed, count):
    """Softmax over labels of probe . word, word by word; each word goes to the label it favours."""
    shares = []
    for v in range(len(words)):
        scores = [math.exp(sum(float(a) * float(b) for a, b in zip(row, words[v], strict=True))) for row in probe]
        shares.append([score / sum(scores) for score in scores])
    found = []
    for label in range(len(probe)):
        mine = [v for v in range(len(words)) if allowed[v] and max(shares[v]) == shares[v][label]]
        found.append(sorted(mine, key=lambda v: -shares[v][label])[:count])
    return found


def test_ranked_words_equal_a_brute_force():
    generator = torch.Generator().manual_seed(1)
    probe, words = torch.randn(3, 6, generator=generator), torch.randn(40, 6, generator=generator)
    allowed = torch.rand(40, generator=generator) > 0.3
    found = rank_words(probe, words, allowed, 4)
    assert found == ranked_by_hand(probe, words, allowed, 4)
    flat = [v for row in found for v in row]
    assert len(set(flat)) == 12 and all(allowed[v] for v in flat)
    with pytest.raises(ConfigError, match=r"label number . has .*; lower it"):
        rank_words(probe, words, allowed, 30)


def probe_by_hand(inputs, labels, count, spec, seed):
    """The same probe in numpy: softmax regression, its gradient written out, and Adam as Kingma & Ba have it."""
    generator = torch.Generator().manual_seed(seed)
    width = inputs.shape[1]
    draw = [torch.empty(shape).uniform_(-(width**-0.5), width**-0.5, generator=generator) for shape in
            ((count, width), (count,))]
    params = [one.double().numpy() for one in draw]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in params]
    step = 0
    for _ in range(spec.epochs):
        order = torch.randperm(len(inputs), generator=generator).numpy()
        for start in range(0, len(order), spec.rows):
            rows = order[start : start + spec.rows]
            x, y = inputs.double().numpy()[rows], labels.numpy()[rows]
            scores = x @ params[0].T + params[1]
            p = np.exp(scores - scores.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(y)), y] -= 1
            step += 1
            for k, gradient in enumerate((p.T @ x / len(y), p.mean(0))):
                first, second = moments[k]
                moments[k] = [0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2]
                scale = np.sqrt(moments[k][1] / (1 - 0.999**step)) + 1e-8
                params[k] = params[k] - spec.lr * moments[k][0] / (1 - 0.9**step) / scale
    return torch.tensor(params[0])


def test_the_probe_equals_one_written_out():
    generator = torch.Generator().manual_seed(2)
    inputs, labels = torch.randn(11, 5, generator=generator), torch.arange(11) % 3
    spec = LabelSearch(epochs=4, lr=0.01, rows=4)
    by_hand = probe_by_hand(inputs, labels, 3, spec, 7)
    torch.testing.assert_close(train_probe(inputs, labels, 3, spec, 7).double(), by_hand, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(train_probe(inputs, labels, 3, spec, 8).double(), by_hand, atol=1e-2)


def head_inputs_by_hand(mine, rows):
    """The vector that each model's output layer takes at the answer, from the model's own parts, a row at a time."""
    model, found = mine.backbone.model, []
    for row in rows:
        words = iter(TRIGGER)
        mask_id = mine.backbone.tokenizer.mask_token_id
        ids = [next(words) if t == SLOT else mask_id if t == ANSWER else t for t in row.ids]
        if mine.kind == "masked":
            hidden = model.bert(torch.tensor([ids])).last_hidden_state
            found.append(model.cls.predictions.transform(hidden)[0, row.ids.index(ANSWER)])
        else:
            found.append(model.get_decoder()(torch.tensor([ids])).last_hidden_state[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_the_head_input_is_what_the_output_layer_multiplies(name):
    mine = reader(name, True)
    rows = examples(mine.backbone, True)
    got = mine.head_inputs(rows, TRIGGER)
    torch.testing.assert_close(got, head_inputs_by_hand(mine, rows), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        mine.backbone.model.get_output_embeddings()(got), mine.answers(rows, TRIGGER), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_label_search_equals_its_parts_and_finds_words_that_tell_the_labels_apart(name):
    plain = Reader(backbone(name))
    rows, spec = examples(plain.backbone, True, 8), LabelSearch(words=2, epochs=40, lr=0.01, rows=4)
    allowed = torch.zeros(len(plain.embeddings())).bool()
    allowed[20:90] = True
    found = search_labels(plain, rows, ["no", "yes"], TRIGGER, spec, allowed, 3)
    inputs = torch.cat([plain.head_inputs(rows[start : start + 4], TRIGGER) for start in (0, 4)]).float()
    probe = train_probe(inputs, torch.tensor([0, 1] * 4), 2, spec, 3)
    words = plain.backbone.model.get_output_embeddings().weight
    assert [list(found[label]) for label in ("no", "yes")] == ranked_by_hand(probe, words.float(), allowed, 2)
    assert search_labels(plain, rows, ["no", "yes"], TRIGGER, spec, allowed, 3) == found
    right = Reader(plain.backbone, found).judge(rows, TRIGGER).correct
    assert right.float().mean() >= 0.5


def test_a_label_without_rows_is_named():
    plain = Reader(backbone("bert"))
    rows = [row for row in examples(plain.backbone, True) if row.label == "yes"]
    with pytest.raises(DataError, match="label 'no' has no training row"):
        search_labels(plain, rows, ["no", "yes"], TRIGGER, LabelSearch(), torch.ones(100).bool(), 0)
