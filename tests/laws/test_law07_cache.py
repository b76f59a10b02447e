"""Law 7: cached decoding equals the full forward at every step, with a prompt present, greedy and beam."""

import pytest
import torch
from lawbook import FAMILIES, all_prompts, difference, padded_logits, random_rows

from foreword.generate.cache import with_room
from foreword.generate.offline import generate_ids
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad

NEW = 7


def batch_of(backbone, name, seed=0):
    prompts = list(all_prompts(backbone, name).values())
    return random_rows([4 + 5 * (i % 8) for i in range(len(prompts))], seed), prompts


def full_logits(backbone, row, prompt, new):
    """Return [len(new), V]: what the model says before each new token, from one forward pass without a cache."""
    if backbone.is_encoder_decoder:
        return padded_logits(backbone, [Row(row.source, (tuple(new),))], [prompt])[0]
    batch = pack(backbone, [Row(row.source, (tuple(new),), row.tail)], realise_all(backbone, [prompt]))
    with activate(batch.injection):
        return backbone.model(**batch.inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]


@torch.no_grad()
def stepwise_logits(backbone, rows, prompts, **options):
    """Return new ids [B, NEW] and the logits [B, NEW, V] that `generate` chose them from, with its cache."""
    batch = pad(backbone, rows, realise_all(backbone, prompts), new_len=NEW)
    inputs, injection = with_room(backbone, batch, options)
    with activate(injection):
        out = backbone.model.generate(
            **inputs, max_new_tokens=NEW, eos_token_id=-1, pad_token_id=0, return_dict_in_generate=True,
            output_logits=True, **options,
        )
    return out.sequences[:, -NEW:], torch.stack(out.logits, 1)


@pytest.mark.parametrize("implementation", [None, "dynamic", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_steps_equal_the_full_forward(name, implementation, backbone_of, measure):
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name)
    ids, steps = stepwise_logits(backbone, rows, prompts, cache_implementation=implementation, do_sample=False)
    with torch.no_grad():
        for row, prompt, new, ours in zip(rows, prompts, ids.tolist(), steps, strict=True):
            full = full_logits(backbone, row, prompt, new)
            measure(f"7 cached steps, {implementation or 'with room'}", name, difference(ours, full))
            assert full.argmax(-1).tolist() == new


@pytest.mark.parametrize("name", FAMILIES)
def test_beam_search_with_a_cache_equals_beam_search_without(name, backbone_of):
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name, seed=1)
    options = {"max_new_tokens": NEW, "num_beams": 3, "length_penalty": 0.8}
    assert generate_ids(backbone, rows, prompts, **options) == generate_ids(
        backbone, rows, prompts, **options, use_cache=False
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_beam_scores_equal_the_full_forward(name, backbone_of, measure):
    """The score of each beam is the sum of its tokens' log p in one uncached pass over the row alone."""
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name, seed=2)
    batch = pad(backbone, rows, realise_all(backbone, prompts), new_len=NEW)
    with torch.no_grad(), activate(batch.injection):
        out = backbone.model.generate(
            **batch.inputs, max_new_tokens=NEW, num_beams=4, num_return_sequences=2, length_penalty=0.0,
            eos_token_id=-1, pad_token_id=0, return_dict_in_generate=True, output_scores=True, do_sample=False,
        )
    new, scores = out.sequences[:, -NEW:].tolist(), out.sequences_scores
    assert len(new) == 2 * len(rows)
    with torch.no_grad():
        for i, ids in enumerate(new):
            logits = full_logits(backbone, rows[i // 2], prompts[i // 2], ids).log_softmax(-1)
            summed = logits.gather(1, torch.tensor(ids)[:, None]).sum()
            measure("7 beam scores", name, difference(scores[i], summed))
            assert i % 2 == 0 or new[i] != new[i - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_without_a_cache_gives_the_same_text(name, backbone_of):
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name, seed=3)
    options = {"max_new_tokens": NEW, "num_beams": 1, "do_sample": False}
    made = generate_ids(backbone, rows, prompts, **options)
    assert made == generate_ids(backbone, rows, prompts, **options, use_cache=False)
    assert len({tuple(ids) for ids in made}) > len(made) // 3
