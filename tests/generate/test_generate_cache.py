"""The cache of `generate`: it holds what Transformers' holds, in any order of calls, with prefixes in front once."""

import copy
import dataclasses

import pytest
import torch
from backbones import make
from toy import drawn_prompt
from transformers import DynamicCache

from foreword.generate import cache as caches
from foreword.generate.cache import RoomyCache, RoomyLayer, with_room
from foreword.generate.offline import generate_ids
from foreword.prompts.bank import Bank
from foreword.prompts.batch import Row, realise_all
from foreword.prompts.padded import pad

ROWS = [Row((5, 6, 7)), Row((8, 9)), Row((10, 11, 12, 13, 14))]


def states(rows, new, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 2, new, 4, generator=generator) for _ in range(2))


def grown(config, front=3, room=2, beams=2, steps=4):
    """Return our cache and Transformers' after a text of 5 tokens, the same for the beams of a row, and some steps."""
    ours, theirs = RoomyCache(config, front, room, beams), DynamicCache(config=config)
    text = tuple(t.repeat_interleave(beams, 0) for t in states(3, 5, seed=0))
    for step in range(steps + 1):
        for layer in range(len(theirs.layers)):
            new = text if step == 0 else states(3 * beams, 1, seed=10 * step + layer)
            for mine, other in zip(ours.update(*new, layer), theirs.update(*new, layer), strict=True):
                assert torch.equal(mine, other)
    return ours, theirs


def assert_same(ours, theirs):
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


@pytest.fixture
def config(backbone_of):
    return backbone_of("llama").model.config


@pytest.mark.parametrize(
    "order",
    [[0, 1, 2, 3, 4, 5], [1, 1, 2, 2, 5, 4], [0, 0, 3, 2, 4, 4], [2, 1, 0, 3, 5, 5], [5, 4, 3, 2, 1, 0]],
    ids=["stay", "within", "one stays", "across", "reversed"],
)
def test_rows_go_on_from_others_as_in_the_stock_cache(order, config):
    ours, theirs = grown(config)
    for order_now in (order, [1, 0, 3, 3, 4, 5], order):
        for cache in (ours, theirs):
            cache.reorder_cache(torch.tensor(order_now))
        assert_same(ours, theirs)
        for layer in range(len(theirs.layers)):
            new = states(6, 1, seed=sum(order_now[:2]) + layer)
            ours.update(*new, layer)
            theirs.update(*new, layer)
        assert_same(ours, theirs)


@pytest.mark.parametrize("removed", [2, 6])
def test_a_cropped_cache_goes_on(removed, config):
    """What is written after a crop is a beam's own, though it lies where the common source was."""
    ours, theirs = grown(config)
    for step in range(3):
        for cache in (ours, theirs):
            if step == 0:
                cache.crop(-removed)
            cache.reorder_cache(torch.tensor([1, 0, 2, 2, 5, 4]))
            for layer in range(len(theirs.layers)):
                cache.update(*states(6, 1, seed=step + layer), layer)
        assert_same(ours, theirs)


def test_rows_are_repeated_and_selected_with_their_prefixes(config):
    ours, theirs = grown(config)
    front = states(6, 3, seed=99)
    for layer in ours.layers:
        layer.with_front(lambda: front)
    for cache in (ours, theirs):
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 3, 11, 6]))
        cache.reorder_cache(torch.tensor([1, 0, 2, 3]))
    assert_same(ours, theirs)
    for key, value in (layer.with_front(pytest.fail) for layer in ours.layers):
        assert torch.equal(key[:, :, :3], front[0][[1, 0, 5, 3]])
        assert torch.equal(value[:, :, :3], front[1][[1, 0, 5, 3]])


def test_a_cleared_cache_starts_anew(config):
    ours, _ = grown(config)
    ours.layers[0].with_front(lambda: states(6, 3, seed=1))
    ours.reset()
    assert ours.get_seq_length() == 0
    keys, values = ours.update(*states(2, 4, seed=3), 0)
    assert torch.equal(keys, states(2, 4, seed=3)[0])
    assert ours.layers[0].holds(keys, values)
    assert not ours.layers[0].holds(keys.clone(), values)
    assert torch.equal(ours.layers[0].with_front(lambda: states(2, 3, seed=2))[0][:, :, :3], states(2, 3, seed=2)[0])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_a_prefix_is_written_once_a_batch_and_not_at_every_token(family, beams, backbone_of, monkeypatch):
    backbone, asked = backbone_of(family), []
    rows = Bank.rows
    monkeypatch.setattr(Bank, "rows", lambda bank, site, *rest: asked.append(site) or rows(bank, site, *rest))
    prompts = [drawn_prompt(backbone, length=length) for length in (2, 5)]
    generate_ids(backbone, ROWS, [prompts[0], None, prompts[1]], max_new_tokens=6, num_beams=beams)
    assert sorted(asked) == sorted(prompts[0].sites)


@pytest.mark.parametrize("family", ["llama", "gemma3", "t5"])
def test_an_answer_longer_than_the_room_is_the_same(family, backbone_of, monkeypatch):
    backbone = backbone_of(family)
    prompts, options = [drawn_prompt(backbone), None, drawn_prompt(backbone, 1)], {"max_new_tokens": 17, "num_beams": 2}
    roomy = generate_ids(backbone, ROWS, prompts, **options)
    monkeypatch.setattr(caches, "MOST_ROOM", 1)
    assert generate_ids(backbone, ROWS, prompts, **options) == roomy
    assert generate_ids(backbone, ROWS, prompts, **options, cache_implementation="dynamic") == roomy


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_options_with_a_cache_of_their_own_keep_it(family, backbone_of):
    backbone = backbone_of(family)
    batch = pad(backbone, ROWS, realise_all(backbone, [drawn_prompt(backbone)] * 3))
    for option in ({"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}):
        inputs, injection = with_room(backbone, batch, option)
        assert "past_key_values" not in inputs
        assert injection is batch.injection
    assert "past_key_values" in with_room(backbone, batch, {})[0]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_model_whose_own_settings_want_no_cache_gets_none(family, backbone_of):
    backbone = dataclasses.replace(backbone_of(family), model=copy.deepcopy(backbone_of(family).model))
    prompts, options = [drawn_prompt(backbone), None, drawn_prompt(backbone, 1)], {"max_new_tokens": 5}
    with_cache = generate_ids(backbone, ROWS, prompts, **options)
    backbone.model.generation_config.use_cache = False
    assert "past_key_values" not in with_room(backbone, pad(backbone, ROWS, [None] * 3), options)[0]
    assert generate_ids(backbone, ROWS, prompts, **options) == with_cache


def test_a_cache_that_nobody_has_filled_can_be_reordered(config):
    cache = RoomyCache(config, front=3, room=2, beams=2)
    for order in ([1, 0, 2, 3], [3, 2, 1, 0]):
        cache.reorder_cache(torch.tensor(order))
    assert cache.get_seq_length() == 0


def test_a_model_without_attention_keeps_its_own_cache():
    backbone = make("mamba")
    inputs, _ = with_room(backbone, pad(backbone, ROWS, [None] * 3), {})
    assert "past_key_values" not in inputs
    assert len(generate_ids(backbone, ROWS, [None] * 3, max_new_tokens=2)) == 3


def test_layers_with_a_sliding_window_keep_theirs(backbone_of):
    backbone = backbone_of("gemma3")
    cache = with_room(backbone, pad(backbone, ROWS, [None] * 3), {})[0]["past_key_values"]
    kinds = {type(layer).__name__ for layer in cache.layers}
    assert kinds == {RoomyLayer.__name__, "DynamicSlidingWindowLayer"}
