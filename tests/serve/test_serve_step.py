"""One step: attention in parts equals attention at once, the cache moves rows without loss, long texts read in runs."""

import pytest
import torch
from serving import alone, drawn, many_forewords
from torch import nn

from foreword.prompts.attention import AttentionCall
from foreword.prompts.bank import PrefixKV
from foreword.prompts.spec import PromptSpec
from foreword.serve.cache import FEWEST, KvCache, shelf_length
from foreword.serve.capacity import Capacity
from foreword.serve.loading import load
from foreword.serve.partial import Partial, attention, merge, scaled, with_sinks
from foreword.serve.pool import Lease
from foreword.serve.request import Request, Sampling, Ticket
from foreword.serve.rows import LiveRow
from foreword.serve.sampling import Sampler
from foreword.serve.step import DecoderRunner


@pytest.fixture
def gpt2(backbone_of):
    return backbone_of("gpt2")


def call(**options):
    empty = torch.empty(0)
    return AttentionCall(nn.Identity(), empty, empty, empty, None, None, options)


@pytest.mark.parametrize("options", [{}, {"scaling": 0.3}, {"softcap": 2.0}])
def test_two_parts_merged_equal_attention_over_both(options):
    torch.manual_seed(0)
    query, key, value = torch.randn(5, 2, 3, 8), torch.randn(5, 2, 11, 8), torch.randn(5, 2, 11, 6)
    hidden = torch.rand(5, 1, 3, 11) < 0.3
    hidden[0, ..., :4], hidden[0, ..., 4] = True, False  # nothing of the first part is seen
    hidden[1, ..., 4:], hidden[1, ..., 0] = True, False  # nothing of the second
    hidden[2:, ..., 0] = False
    query, options = scaled(query, call(**options)), call(**options)
    whole = attention(query, key, value, hidden, options)
    parts = [attention(query, key[:, :, s], value[:, :, s], hidden[..., s], options) for s in
             (slice(0, 4), slice(4, 11))]
    made = merge(*parts)
    assert torch.allclose(made.out, whole.out, atol=1e-6)
    assert torch.allclose(made.lse, whole.lse, atol=1e-6)


def test_the_log_sum_exp_read_off_the_largest_weight_is_torch_s():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 50, 8, generator=generator, dtype=torch.float32) * 4 for _ in range(2))
    hidden = torch.rand(2, 50, 50, generator=generator) < 0.9
    hidden[..., 0] = False
    made = attention(query, key, key, hidden, call())
    scores = (query.double() @ key.double().transpose(1, 2)).masked_fill(hidden, -torch.inf)
    assert torch.allclose(made.lse.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-5)
    assert torch.allclose(made.out.double(), scores.softmax(-1) @ key.double(), atol=1e-5)


def test_sinks_take_their_share_of_the_softmax():
    scores, sink = torch.tensor([0.5, -1.0]), torch.tensor([0.7])
    value = torch.tensor([[2.0], [3.0]])
    plain = Partial((scores.softmax(0) @ value).view(1, 1, 1, 1), scores.logsumexp(0).view(1, 1, 1))
    wanted = torch.cat([scores, sink]).softmax(0)[:2] @ value
    assert torch.allclose(with_sinks(plain, sink).out.flatten(), wanted)


def test_the_cache_keeps_rows_whole_when_others_leave_and_gives_all_bytes_back(gpt2):
    cache = KvCache(gpt2.geometry, gpt2.device, gpt2.dtype, 1 << 22)
    site = ("decoder", 0)
    places = {}
    for number in range(9):
        places[number] = cache.reserve(20)
        place = places[number]
        place.shelf.keys[site][place.index] = number
    for gone in (0, 8, 3):
        cache.release(places.pop(gone))
    for number, place in places.items():
        assert (place.shelf.keys[site][place.index] == number).all()
        assert place.shelf.places[place.index] is place
    assert sorted(place.index for place in places.values()) == list(range(6))
    for place in places.values():
        cache.release(place)
    assert cache.num_bytes == 0 and not cache.shelves


def test_the_cache_keeps_its_limit_and_one_shelf_s_empty_places_serve_another(gpt2):
    probe = KvCache(gpt2.geometry, gpt2.device, gpt2.dtype, 1)
    cache = KvCache(gpt2.geometry, gpt2.device, gpt2.dtype, 10 * 32 * probe.position_bytes)
    assert not cache.can_ever_hold(321) and cache.can_ever_hold(256)
    small = [cache.reserve(32) for _ in range(5)]
    assert cache.num_bytes <= cache.limit_bytes
    assert cache.reserve(128) is not None  # the five rows' spare places are given up for it
    assert cache.num_bytes <= cache.limit_bytes
    assert [cache.reserve(32) is not None for _ in range(2)] == [True, False]
    assert len({place.index for place in small}) == 5
    assert [shelf_length(n) for n in (1, 32, 33, 64, 65)] == [32, 32, 64, 64, 128]


def test_a_place_is_empty_when_it_is_handed_out_whoever_had_it_before(gpt2):
    cache = KvCache(gpt2.geometry, gpt2.device, gpt2.dtype, 1 << 22)
    places = [cache.reserve(20) for _ in range(6)]  # beyond the first growth
    shelf = places[0].shelf
    for store in (shelf.keys, shelf.values):
        for tensor in store.values():
            assert (tensor[:6] == 0).all()
            tensor.fill_(torch.nan)
    for gone in (1, 4):  # the last row moves away from its own place, too
        cache.release(places[gone])
    for _ in range(2):
        new = cache.reserve(20)
        for store in (shelf.keys, shelf.values):
            assert len(store) == len(gpt2.geometry.sites)
            assert all((tensor[new.index] == 0).all() for tensor in store.values())


@pytest.mark.parametrize("good", [0, 1, 3, 5])
def test_memory_that_runs_out_leaves_a_shelf_whole(gpt2, monkeypatch, good):
    probe = KvCache(gpt2.geometry, gpt2.device, gpt2.dtype, 1)
    cache = KvCache(gpt2.geometry, gpt2.device, gpt2.dtype, 10 * 32 * probe.position_bytes)
    tensors = 2 * len(gpt2.geometry.sites)
    assert good < tensors

    class Scarce:
        left = tensors + good

        @classmethod
        def empty(cls, *shape, **options):
            cls.left -= 1
            if cls.left < 0:
                raise MemoryError("no memory")
            return torch.zeros(*shape, **options)

        zeros = empty

    monkeypatch.setattr("foreword.serve.cache.torch", Scarce)
    places = [cache.reserve(32) for _ in range(4)]
    for number, place in enumerate(places):
        for tensor in (*place.shelf.keys.values(), *place.shelf.values.values()):
            tensor[number] = number + 1

    def is_whole():
        shelf = places[0].shelf
        assert shelf.places == places and shelf.rows >= len(places)
        for tensor in (*shelf.keys.values(), *shelf.values.values()):
            assert len(tensor) >= shelf.rows
            assert all((tensor[place.index] == number + 1).all() for number, place in enumerate(places))

    with pytest.raises(MemoryError):
        cache.reserve(32)  # growing
    is_whole()
    Scarce.left = tensors
    spare = cache.reserve(32)
    cache.release(spare)
    Scarce.left = good
    with pytest.raises(MemoryError):
        cache.reserve(128)  # the spare places would be given up for it
    is_whole()
    assert set(cache.shelves) == {32}
    Scarce.left = 10 * tensors
    assert cache.reserve(128) is not None and cache.num_bytes <= cache.limit_bytes
    assert [cache.reserve(32) is not None for _ in range(3)] == [True, True, False]
    assert sum(t.nbytes for shelf in cache.shelves.values() for store in (shelf.keys, shelf.values)
               for t in store.values()) == cache.num_bytes


def row_of(backbone, ids, prompt, limit):
    ticket = Ticket(1, Request(ids), len(ids))
    row = LiveRow(ticket, 0, ids, 0, limit, Sampler(Sampling(), 0))
    if prompt is not None:
        row.lease = Lease(*((loaded := load(prompt, backbone))[0], None, loaded[1]))
    return row


def finish(runner, rows):
    """Run all rows to their limit, greedily; return how many tokens each step put into the cache."""
    sizes = []
    while left := [row for row in rows if len(row.made) < row.limit]:
        before = sum(row.cached for row in rows)
        for row, logits in zip(*runner.step(), strict=True):
            row.made.append(int(logits.argmax()))
        sizes.append(sum(row.cached for row in rows) - before)
        for row in left:
            if len(row.made) == row.limit:
                runner.drop(row)
    return sizes


@pytest.mark.parametrize("step_tokens", [1, 7, 512])
def test_texts_read_in_runs_equal_texts_read_at_once(gpt2, step_tokens):
    prompts = [*many_forewords(gpt2, 8, longest=30).values(), None]
    runner = DecoderRunner(gpt2, Capacity(step_tokens=step_tokens))
    rows = [row_of(gpt2, tuple(range(5 + n, 25 + n)), prompt, 5) for n, prompt in enumerate(prompts)]
    assert all(runner.add(row) for row in rows)
    sizes = finish(runner, rows)
    assert max(sizes) <= max(step_tokens, len(rows))
    for row, prompt in zip(rows, prompts, strict=True):
        theirs = alone(gpt2)(row.source, prompt, 5)
        assert row.made[: len(theirs)] == theirs  # ours goes on after EOS here


@pytest.mark.parametrize("places", [0, 2, 100])
def test_copies_of_prefixes_change_no_token_and_leave_with_their_rows(gpt2, places):
    prompts = [drawn(gpt2, PromptSpec(length=length), number) for number, length in enumerate((9, 9, 9, 4, 4))]
    leases = [row_of(gpt2, (5,), prompt, 1).lease for prompt in prompts]
    limit = max(places * leases[0].prompt.prefix.num_bytes, 1)
    runner = DecoderRunner(gpt2, Capacity(prefix_bytes=limit))
    rows = [row_of(gpt2, tuple(range(5 + n, 12 + n)), None, 3 + n % 4) for n in range(12)]
    for n, row in enumerate(rows):
        row.lease = leases[n % 5]
    assert all(runner.add(row) for row in rows)
    assert (0 < runner.prefix_bytes <= limit) == (places > 0)
    finish(runner, rows)
    assert runner.prefix_bytes == 0
    for n, row in enumerate(rows):
        theirs = alone(gpt2)(row.source, prompts[n % 5], row.limit)
        assert row.made[: len(theirs)] == theirs


def test_memory_grows_with_forewords_not_with_rows(gpt2):
    prompt = drawn(gpt2, PromptSpec(length=200), 0)
    runner = DecoderRunner(gpt2, Capacity())
    rows = [row_of(gpt2, (5, 6, 7), None, 4) for _ in range(16)]
    lease = row_of(gpt2, (5,), prompt, 1).lease
    for row in rows:
        row.lease = lease
        assert runner.add(row)
    with_prefix = runner.cache_bytes
    assert runner.prefix_bytes == FEWEST * rows[0].prefix.num_bytes  # a shelf for one prefix and three more
    plain = DecoderRunner(gpt2, Capacity())
    assert all(plain.add(row_of(gpt2, (5, 6, 7), None, 4)) for _ in range(16))
    assert with_prefix == plain.cache_bytes
    assert len({id(row.prefix) for row in rows}) == 1 and isinstance(rows[0].prefix, PrefixKV)
