"""Law 11: an infix cannot change x. The K/V of x are the same with and without it; what follows sees the offsets."""

import pytest
import torch
from lawbook import DECODERS, WINDOW, WINDOWED, Naive, difference, drawn, packed_logits, padded_logits, random_ids
from transformers import DynamicCache

from foreword.generate.offline import generate_ids
from foreword.prompts.batch import Row, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad
from foreword.prompts.spec import PromptSpec


def infix(backbone, length=4, seed=0):
    return drawn(backbone, PromptSpec(kind="infix", length=length), seed)


@torch.no_grad()
def caches(backbone, rows, prompts):
    """Return each row's keys and values at every layer as the model's own cache holds them after the text."""
    batch = pad(backbone, rows, realise_all(backbone, prompts), side="right")
    cache = DynamicCache()
    with activate(batch.injection):
        backbone.model(**batch.inputs, use_cache=True, past_key_values=cache)
    return [[(layer.keys[i], layer.values[i]) for layer in cache.layers] for i in range(len(rows))]


@pytest.mark.parametrize("name", DECODERS)
def test_states_of_x_are_the_same_with_and_without(name, backbone_of, measure):
    backbone, tail = backbone_of(name), 2
    rows = [Row(random_ids(length, length), tail=tail) for length in (9, 20, WINDOW + 8)]
    with_infix = caches(backbone, rows, [infix(backbone, 3 + i, i) for i in range(3)])
    without = caches(backbone, rows, [None] * 3)
    worst, moved = 0.0, 0.0
    for row, ours, plain in zip(rows, with_infix, without, strict=True):
        x = len(row.source) - tail
        for (key, value), (plain_key, plain_value) in zip(ours, plain, strict=True):
            worst = max(worst, difference([key[:, :x], value[:, :x]], [plain_key[:, :x], plain_value[:, :x]]))
            moved = max(moved, (key[:, x : x + tail] - plain_key[:, x : x + tail]).abs().max().item())
    measure("11 K/V of x", name, worst, 1e-6)
    assert moved > 1e-3, "the infix did not reach what follows it"


@pytest.mark.parametrize("name", DECODERS)
def test_an_infix_agrees_with_the_naive_formula(name, backbone_of, measure):
    """Packed, left- and right-padded, in a mixed batch, with a text that leaves the infix outside the window."""
    backbone, naive = backbone_of(name), Naive(backbone_of(name))
    made = [infix(backbone, 2, 1), infix(backbone, 7, 2), infix(backbone, 3, 3), None]
    shapes = [(12, 1), (3, 0), (60, WINDOW + 11), (25, 3)]
    rows = [Row(random_ids(length, length), tail=tail) for length, tail in shapes]
    with torch.no_grad():
        padded = (padded_logits(backbone, rows, made, side) for side in ("left", "right"))
        ways = [packed_logits(backbone, rows, made), *padded]
        for number, (row, prompt) in enumerate(zip(rows, made, strict=True)):
            ids = torch.tensor(row.source)
            if prompt is None:
                theirs = naive.logits(row.source)
            else:
                realised, at = prompt.realise(backbone), len(ids) - row.tail
                soft = realised.inline.to(backbone.dtype)
                embeds = torch.cat([backbone.embed(ids[:at]), soft, backbone.embed(ids[at:])])
                theirs = naive.logits(None, realised.prefix, embeds=embeds, infix_at=at)
                theirs = torch.cat([theirs[:at], theirs[at + prompt.length :]])
            for ours in ways:
                measure("11 naive formula", name, difference(ours[number], theirs))


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("implementation", [None, "static"])
def test_a_sliding_cache_does_not_shift_the_infix(name, implementation, backbone_of):
    """Generation far beyond the window: the cache has dropped the infix's keys, and key indices have moved."""
    backbone = backbone_of(name)
    rows = [Row(random_ids(20, 1), tail=1), Row(random_ids(6, 2), tail=1), Row(random_ids(11, 3))]
    prompts = [infix(backbone, 4, 1), infix(backbone, 3, 2), None]
    options = {"max_new_tokens": WINDOW + 14, "eos_token_id": -1, "cache_implementation": implementation}
    made = generate_ids(backbone, rows, prompts, **options)
    for row, prompt, ids in zip(rows, prompts, made, strict=True):
        whole = Row((*row.source, *ids), tail=row.tail + len(ids))
        with torch.no_grad():
            logits = packed_logits(backbone, [whole], [prompt])[0]
        assert logits.argmax(-1)[len(row.source) - 1 : -1].tolist() == ids


def test_an_infix_does_not_outlive_the_window(backbone_of):
    """On a model whose every layer has a window, queries further than L windows away cannot depend on the infix."""
    backbone = backbone_of("mistral")
    tail = 3 * WINDOW + 12
    row = Row(random_ids(tail + 5, 4), tail=tail)
    with torch.no_grad():
        first, second = (packed_logits(backbone, [row], [infix(backbone, 4, seed)])[0] for seed in (1, 2))
    assert difference(first[5 : WINDOW // 2], second[5 : WINDOW // 2]) > 1e-3
    assert difference(first[-4:], second[-4:]) < 1e-6
