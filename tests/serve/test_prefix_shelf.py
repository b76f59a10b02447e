"""Copies of running rows' prefixes, side by side: whole whatever leaves, within their limit, gone when nobody runs."""

import pytest
import torch

from foreword.geometry import SiteShape
from foreword.prompts.bank import PrefixKV
from foreword.serve.cache import FEWEST, Shelf
from foreword.serve.prefix_shelf import PrefixShelves

HEADS, DEPTH, WIDTH = 2, 4, 3
SITES = [("decoder", 0), ("decoder", 1)]


def prefix_of(number: float, length: int = 5, sites=SITES) -> PrefixKV:
    def filled(width: int, more: float) -> torch.Tensor:
        return torch.full((HEADS, length, width), number + more)

    return PrefixKV({site: (filled(DEPTH, 0.25), filled(WIDTH, 0.5)) for site in sites}, length)


def shelves_of(limit_bytes: int) -> PrefixShelves:
    shapes = dict.fromkeys(SITES, SiteShape(HEADS, DEPTH, WIDTH))
    return PrefixShelves(shapes, torch.device("cpu"), torch.float32, limit_bytes)


def size_of(length: int, sites: int = 2) -> int:
    return sites * HEADS * length * (DEPTH + WIDTH) * 4


def check(shelves: PrefixShelves, running: list[PrefixKV]) -> None:
    """Every running prefix stands on a shelf once, with its own numbers, and nobody else does."""
    assert sorted(map(id, (prefix for shelf in shelves for prefix in shelf.held))) == sorted(map(id, set(running)))
    for shelf in shelves:
        for site, (keys, values) in shelf.columns.items():
            assert keys.shape == (len(shelf.held) * HEADS, DEPTH, shelf.length)
            for prefix, key, value in zip(shelf.held, keys.split(HEADS), values.split(HEADS), strict=True):
                assert torch.equal(key, prefix.states[site][0].transpose(1, 2))
                assert torch.equal(value, prefix.states[site][1])


def test_prefixes_stay_whole_when_others_come_and_go():
    shelves, generator = shelves_of(1 << 20), torch.Generator().manual_seed(0)
    kinds = [(5, SITES), (5, SITES[:1]), (2, SITES)]
    everybody = [prefix_of(number, *kinds[number % 3]) for number in range(24)]
    running: list[PrefixKV] = []
    for _ in range(400):
        number = int(torch.randint(len(everybody) + len(running), (1,), generator=generator))
        if number < len(everybody) and len(running) < 40:
            running.append(everybody[number])
            shelves.join(everybody[number])
        elif running:
            shelves.leave(running.pop(number % len(running)))
        check(shelves, running)
        assert len(list(shelves)) <= len(kinds)
    for prefix in running:
        shelves.leave(prefix)
    assert shelves.num_bytes == 0 and not list(shelves)


def test_rows_of_one_prefix_share_its_place():
    shelves, one = shelves_of(1 << 20), prefix_of(1)
    for _ in range(3):
        shelves.join(one)
    assert shelves.num_bytes == FEWEST * size_of(5)
    shelves.leave(one)
    shelves.leave(one)
    check(shelves, [one])
    shelves.leave(one)
    assert shelves.num_bytes == 0


def test_the_limit_holds_and_free_places_of_one_length_serve_another():
    shelves = shelves_of(6 * size_of(5))
    first = [prefix_of(number) for number in range(5)]
    for prefix in first:
        shelves.join(prefix)
        assert shelves.num_bytes <= shelves.limit_bytes
    check(shelves, first)
    short = prefix_of(8, 2)
    shelves.join(short)  # the sixth place is given up for it
    assert shelves.num_bytes <= shelves.limit_bytes
    check(shelves, [*first, short])
    late = prefix_of(9)
    shelves.join(late)  # no room: it stands nowhere
    check(shelves, [*first, short])
    shelves.leave(first.pop(1))
    shelves.join(late)  # a second row of it finds room
    check(shelves, [*first, short, late])
    shelves.leave(late)
    check(shelves, [*first, short, late])  # one of its two rows runs
    shelves.leave(late)
    check(shelves, [*first, short])


@pytest.mark.parametrize("after", [0, 1])
def test_where_memory_runs_out_a_prefix_stands_nowhere_and_the_others_are_whole(monkeypatch, after):
    shelves, few = shelves_of(1 << 20), [prefix_of(number) for number in range(FEWEST)]
    for prefix in few:
        shelves.join(prefix)
    late, resize = prefix_of(7), PrefixShelves._resize

    def scarce(self: PrefixShelves, shelf: Shelf, rows: int) -> None:
        sites, shelf.sites = shelf.sites, shelf.sites[:after]
        resize(self, shelf, rows)  # some sites are done when it happens
        shelf.sites, shelf.rows = sites, FEWEST
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(PrefixShelves, "_resize", scarce)
    shelves.join(late)
    check(shelves, few)
    monkeypatch.undo()
    shelves.join(late)
    check(shelves, [*few, late])
    for prefix in (*few, late, late):
        shelves.leave(prefix)
    assert not list(shelves)


def test_other_faults_are_told(monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("no such device")

    monkeypatch.setattr(PrefixShelves, "_resize", broken)
    with pytest.raises(ValueError, match="no such device"):
        shelves_of(1 << 20).join(prefix_of(1))
