"""What tokens see of their rows' forewords equals plain attention, token by token."""

import pytest
import torch
from torch import Tensor, nn

from foreword.geometry import SiteShape
from foreword.prompts.attention import AttentionCall
from foreword.prompts.bank import PrefixKV
from foreword.serve.partial import LOWEST, Partial, scaled
from foreword.serve.prefix_shelf import PrefixShelves
from foreword.serve.share import EMPTY, Sharing, gather, one_thread
from foreword.serve.share import share as share_scaled

HEADS, GROUPS, DEPTH, WIDTH = 2, 3, 8, 6
SITES = [("decoder", 0), ("decoder", 1)]


def call_of(query: Tensor, **options) -> AttentionCall:
    value = torch.empty(1, HEADS, query.shape[0], WIDTH)
    return AttentionCall(nn.Identity(), query, value, value, None, None, options)


def prefix_of(length: int, generator: torch.Generator, sites=SITES, always=False) -> PrefixKV:
    def drawn(width):
        return torch.randn(HEADS, length, width, generator=generator)

    return PrefixKV({site: (drawn(DEPTH), drawn(WIDTH)) for site in sites}, length, always_visible=always)


def share(part: Sharing, site, query: Tensor, call: AttentionCall) -> tuple[Tensor, Partial]:
    return share_scaled(part, site, scaled(query, call), call)


def sharing_of(
    prefixes: list[PrefixKV], members: list[list[int]], positions: list[int], side_by_side: bool = False
) -> Sharing:
    dtype = next((t.dtype for prefix in prefixes for pair in prefix.states.values() for t in pair), torch.float32)
    shelves = PrefixShelves(dict.fromkeys(SITES, SiteShape(HEADS, DEPTH, WIDTH)), torch.device("cpu"), dtype, 1 << 30)
    for prefix in prefixes if side_by_side else ():
        shelves.join(prefix)
    return gather(dict(zip(prefixes, members, strict=True)), positions, shelves, torch.device("cpu"))


def expected(query: Tensor, prefix: PrefixKV, site, position: int, options: dict) -> tuple[Tensor, Tensor]:
    """Return one token's output [K, G, D] and log-sum-exp [K, G], in float64; query [K, G, D]."""
    key, value = (t.double() for t in prefix.states[site])
    scores = query.double() @ key.transpose(1, 2) * options.get("scaling", DEPTH**-0.5)
    if cap := options.get("softcap"):
        scores = torch.tanh(scores / cap) * cap
    window = options.get("sliding_window")
    if window and not prefix.always_visible:
        scores = scores.masked_fill(position - torch.arange(prefix.length) >= window, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.mark.parametrize("options", [{}, {"scaling": 0.7}, {"softcap": 1.5}, {"sliding_window": 6}])
@pytest.mark.parametrize("lengths", [(4, 4, 4), (1, 4, 9)])
@pytest.mark.parametrize("side_by_side", [False, True])
def test_tokens_see_their_own_prefix_and_no_other(options, lengths, side_by_side):
    generator = torch.Generator().manual_seed(0)
    prefixes = [prefix_of(length, generator, always=number == 1) for number, length in enumerate(lengths)]
    members, positions = [[6, 1], [0], [3, 2, 7]], [12, lengths[0], 9, lengths[2] + 1, 0, 0, lengths[0] + 1, 10]
    query = torch.randn(8, HEADS, GROUPS, DEPTH, generator=generator)
    part = sharing_of(prefixes, members, positions, side_by_side)
    assert len(part.runs) == (len(set(lengths)) if side_by_side else 3)
    for site in SITES * 2:  # the room is used again at every layer
        rows, made = share(part, site, query, call_of(query, **options))
        out, lse = (
            t.new_full((8 * HEADS * GROUPS, *t.shape[1:]), torch.nan).index_copy(0, rows, t)
            .view(8, HEADS, GROUPS, *t.shape[1:]) for t in (made.out, made.lse)
        )
        assert out[[4, 5]].isnan().all() and lse[[4, 5]].isnan().all()  # they have no prefix
        for prefix, some in zip(prefixes, members, strict=True):
            for token in some:
                their_out, their_lse = expected(query[token], prefix, site, positions[token], options)
                seen = ~their_lse.isinf()  # where a window has passed all, the weight of the part is what must vanish
                assert torch.allclose(out[token][seen].double(), their_out[seen], atol=1e-5)
                assert torch.allclose(lse[token][seen].double(), their_lse[seen], atol=1e-5)
                assert (lse[token][~seen] < LOWEST / 2).all()
    assert len(part.rooms) == 1


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_prefix_that_a_site_lacks_weighs_nothing_there_and_is_whole_elsewhere(side_by_side):
    generator = torch.Generator().manual_seed(1)
    prefixes = [prefix_of(3, generator), prefix_of(3, generator, sites=SITES[1:]), prefix_of(5, generator)]
    part = sharing_of(prefixes, [[0], [1], [2]], [5, 5, 5], side_by_side)
    query = torch.randn(3, HEADS, GROUPS, DEPTH, generator=generator)
    assert part.has(SITES[0]) and not part.has(("decoder", 7))
    for site in (SITES[1], SITES[0], SITES[1]):
        rows, made = share(part, site, query, call_of(query))
        assert made.out.isfinite().all()
        for token, prefix in enumerate(prefixes):
            here = (rows >= token * HEADS * GROUPS) & (rows < (token + 1) * HEADS * GROUPS)
            if site not in prefix.states:
                assert (made.lse[here] < LOWEST / 2).all()
                continue
            their_out, their_lse = expected(query[token], prefix, site, 5, {})
            assert torch.allclose(made.out[here].double(), their_out.flatten(0, 1), atol=1e-5)
            assert torch.allclose(made.lse[here].double(), their_lse.flatten(), atol=1e-5)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_half_precision_sees_the_same(side_by_side):
    generator = torch.Generator().manual_seed(2)
    prefixes = [prefix_of(length, generator) for length in (3, 7)]
    query = torch.randn(4, HEADS, GROUPS, DEPTH, generator=generator)
    rows, whole = share(sharing_of(prefixes, [[0, 1], [3]], [9] * 4), SITES[0], query, call_of(query))
    halves = sharing_of([prefix.to(dtype=torch.bfloat16) for prefix in prefixes], [[0, 1], [3]], [9] * 4, side_by_side)
    same_rows, made = share(halves, SITES[0], query.bfloat16(), call_of(query.bfloat16()))
    assert made.out.dtype == torch.bfloat16 and made.lse.dtype == torch.float32
    assert torch.equal(rows, same_rows)
    assert torch.allclose(made.out.float(), whole.out, atol=0.05)
    assert torch.allclose(made.lse, whole.lse, atol=0.05)


def test_a_long_run_of_one_prefix_is_met_alone_and_the_others_side_by_side():
    generator = torch.Generator().manual_seed(3)
    prefixes = [prefix_of(4, generator) for _ in range(5)]
    members = [[0, 1], list(range(2, 52)), [52], [], [53, 54]]
    part = sharing_of(prefixes, members, [9] * 55, side_by_side=True)
    assert [(len(run.tokens), len(run.tokens[0])) for run in part.runs] == [(5, 2), (1, 50)]
    assert part.runs[1].source is prefixes[1]
    assert part.runs[0].tokens == [[0, 1], [EMPTY] * 2, [52, EMPTY], [EMPTY] * 2, [53, 54]]
    query = torch.randn(55, HEADS, GROUPS, DEPTH, generator=generator)
    rows, made = share(part, SITES[0], query, call_of(query))
    assert rows.sort().values.tolist() == list(range(55 * HEADS * GROUPS))  # each token once, no empty slot
    alone = sharing_of(prefixes, members, [9] * 55)
    their_rows, theirs = share(alone, SITES[0], query, call_of(query))
    assert torch.allclose(made.out[rows.argsort()], theirs.out[their_rows.argsort()], atol=1e-6)
    assert torch.allclose(made.lse[rows.argsort()], theirs.lse[their_rows.argsort()], atol=1e-6)


def test_what_is_not_finite_stays_with_its_own_tokens():
    """An empty slot takes anybody's query, and a shelf's places lie beside each other."""
    generator = torch.Generator().manual_seed(4)
    prefixes = [prefix_of(3, generator) for _ in range(3)]
    for key, value in prefixes[1].states.values():
        key.fill_(torch.inf), value.fill_(torch.nan)
    query = torch.randn(4, HEADS, GROUPS, DEPTH, generator=generator)
    query[0] = torch.nan
    part = sharing_of(prefixes, [[3], [0, 1], [2]], [9] * 4, side_by_side=True)
    rows, made = share(part, SITES[0], query, call_of(query))
    for token, prefix in ((3, prefixes[0]), (2, prefixes[2])):
        here = (rows >= token * HEADS * GROUPS) & (rows < (token + 1) * HEADS * GROUPS)
        out, lse = expected(query[token], prefix, SITES[0], 9, {})
        assert torch.allclose(made.out[here].double(), out.flatten(0, 1), atol=1e-5)
        assert torch.allclose(made.lse[here].double(), lse.flatten(), atol=1e-5)


def test_no_prefix_no_sharing():
    generator = torch.Generator().manual_seed(5)
    bare = PrefixKV({}, 0, infix={SITES[0]: tuple(torch.randn(2, HEADS, 1, DEPTH, generator=generator))})
    assert sharing_of([], [], []) is None and sharing_of([bare], [[0]], [0], side_by_side=True) is None


def test_small_things_run_on_one_thread_and_the_others_come_back():
    torch.set_num_threads(2)
    try:
        with one_thread(False):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), one_thread(True):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
