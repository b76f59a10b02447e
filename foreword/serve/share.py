"""What the tokens of a step see of their rows' forewords: all tokens of a foreword meet it at once.

With many forewords these products are many and small, so what costs is what surrounds them. Therefore prefixes of one
length that stand side by side (`serve/prefix_shelf.py`) are met in one product; the numbers of each run of tokens lie
in one piece, as products read and write them fastest; the room for them is cut up once a step and not in every layer;
and all between the products is done for all forewords at once.

Notation as in `serve/attend.py`; a run is B prefixes with T tokens each; n slots are the B * T of all runs, some of
them empty; m = n * K * G rows, in the order (prefix, key/value head, token, query head).
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from foreword.prompts.attention import AttentionCall
from foreword.prompts.bank import PrefixKV, Site
from foreword.serve.partial import LOWEST, Partial, merge, softmax_and_lse
from foreword.serve.prefix_shelf import SideBySide

EMPTY = -1
ALONE = 8
"""What a product of its own costs beside its tokens, in tokens of a shelf's product."""


@dataclass(frozen=True, eq=False)
class Run:
    """Prefixes that are met in one product: all of a shelf, or one that is met alone.

    Attributes:
        source: has their keys and values as `columns`.
        tokens: by prefix, the T places among the step's N tokens; `EMPTY` where it has fewer.
    """

    source: SideBySide | PrefixKV
    tokens: list[list[int]]

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        return len(self.tokens), len(self.tokens[0])


@dataclass(frozen=True, eq=False)
class Sharing:
    """All tokens of the step whose rows have a prefix, by run, short prefixes first.

    Attributes:
        runs: in the order of their prefixes' lengths.
        slots: [n] places among the step's N tokens, or `EMPTY`; on the CPU.
        positions: [n] absolute positions; anything where a slot is empty.
        always_visible: [n] bool, whether the prefix stays visible outside a sliding window.
    """

    runs: list[Run]
    slots: Tensor
    positions: Tensor
    always_visible: Tensor
    rooms: dict[tuple[object, ...], "Room"] = field(default_factory=dict)

    def has(self, site: Site) -> bool:
        """Whether any of the prefixes has keys and values there."""
        return any(site in run.source.columns for run in self.runs)

    def room(self, query: Tensor, width: int) -> "Room":
        """Return the room for queries [N, K, G, D] and values of `width` numbers; layers of one shape share it."""
        key = (*query.shape, width, query.dtype)
        if key not in self.rooms:
            self.rooms[key] = Room(self, query, width)
        return self.rooms[key]


def gather(
    tokens: dict[PrefixKV, list[int]], positions: list[int], shelves: Iterable[SideBySide], device: torch.device
) -> Sharing | None:
    """Return the runs of a step, None without any.

    Args:
        tokens: by prefix, the places of its rows' tokens among the step's N; those without states are left out.
        positions: absolute positions of all N.
        shelves: where prefixes stand side by side; all others are met alone.
        device: where the model lives.
    """
    left, runs = {prefix: mine for prefix, mine in tokens.items() if mine and prefix.states}, []
    for shelf in shelves:
        found = [left.get(prefix, []) for prefix in shelf.held]
        most = _most_tokens([len(mine) for mine in found])
        if most:
            met = [mine if len(mine) <= most else [] for mine in found]
            runs.append(Run(shelf, [mine + [EMPTY] * (most - len(mine)) for mine in met]))
            left = {prefix: mine for prefix, mine in left.items() if prefix not in shelf.held or len(mine) > most}
    runs += [Run(prefix, [mine]) for prefix, mine in left.items()]
    if not runs:
        return None
    runs.sort(key=lambda run: run.source.length)
    slots = [token for run in runs for mine in run.tokens for token in mine]
    visible = {token for prefix, mine in tokens.items() if prefix.always_visible for token in mine}
    at = torch.tensor([positions[token] for token in slots], device=device)
    always = torch.tensor([token in visible for token in slots], device=device)
    return Sharing(runs, torch.tensor(slots), at, always)


def _most_tokens(counts: list[int]) -> int:
    """Return how many tokens each prefix of a shelf has in their product; those with more are met alone.

    Slots that stay empty cost what tokens cost, and a product of its own costs `ALONE` more. 0: all are met alone.
    """

    def cost(most: int) -> int:
        return len(counts) * most + sum(count + ALONE for count in counts if count > most)

    return min({0, *counts}, key=lambda most: (cost(most), -most))


@dataclass(frozen=True, eq=False)
class Product:
    """One run's part of a room.

    Attributes:
        source: has the keys and values.
        query, out: [B * K, T * G, D], and the values' D.
        scores, weights: [B * K, T * G, P].
        rows: which of the m rows they are.
        is_small: whether its products are done sooner by one thread.
    """

    source: SideBySide | PrefixKV
    query: Tensor
    out: Tensor
    scores: Tensor
    weights: Tensor
    rows: slice
    is_small: bool


class Room:
    """Memory for the products of one step's runs with their prefixes, and where everything in it lies.

    Attributes:
        full: [v] those of the m rows whose slot is not empty; None where that is all.
        rows: [v] their places among the step's queries as [N * K * G, D].
        query, out: [m, D] and [m, D of values].
        padded: [m, longest P] float32, all scores; what no run writes has the lowest number.
        is_small: whether what is done between the products is done sooner by one thread.
    """

    def __init__(self, sharing: Sharing, query: Tensor, width: int) -> None:
        """Cut up the room.

        Args:
            sharing: the runs.
            query: [N, K, G, D].
            width: D of the values.
        """
        _, heads, groups, depth = query.shape
        self._sharing, self._hidden = sharing, dict[int, Tensor]()
        shapes, lengths = [run.shape for run in sharing.runs], [run.source.length for run in sharing.runs]
        self._find_rows(shapes, heads, groups, query.device)
        sizes = [prefixes * tokens * heads * groups for prefixes, tokens in shapes]
        areas = [size * length for size, length in zip(sizes, lengths, strict=True)]
        self.query, self.out = query.new_empty(sum(sizes), depth), query.new_empty(sum(sizes), width)
        self.padded = query.new_full((sum(sizes), max(lengths)), LOWEST, dtype=torch.float32)
        self.is_small = _is_small(self.padded.numel(), query.device)
        scores, weights = query.new_empty(sum(areas)), query.new_empty(sum(areas))
        cut = (
            [part.view(b * heads, t * groups, -1) for part, (b, t) in zip(flat.split(cuts), shapes, strict=True)]
            for flat, cuts in ((self.query, sizes), (self.out, sizes), (scores, areas), (weights, areas))
        )
        rows = [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
        states = [b * heads * length * depth for (b, _), length in zip(shapes, lengths, strict=True)]
        small = [_is_small(n + 2 * area, query.device) for n, area in zip(states, areas, strict=True)]
        parts = zip((run.source for run in sharing.runs), *cut, rows, small, strict=True)
        products = [Product(*part) for part in parts]
        self._products = [(few, [p for p in products if p.is_small == few]) for few in (True, False)]
        self._by_length: list[tuple[Tensor, Tensor, slice, int]] = []
        row = cell = 0
        for length, group in groupby(zip(lengths, sizes, strict=True), key=lambda pair: pair[0]):
            size = sum(pair[1] for pair in group)
            ends = slice(cell, cell + size * length)
            views = (flat[ends].view(size, length) for flat in (scores, weights))
            self._by_length.append((*views, slice(row, row + size), length))
            row, cell = row + size, ends.stop

    def _find_rows(self, shapes: list[tuple[int, int]], heads: int, groups: int, device: torch.device) -> None:
        """Find out where the m rows' queries are; done on the CPU, where that they are small counts for most."""
        order = torch.arange(len(self._sharing.slots) * heads * groups).view(-1, heads, groups)
        parts = order.split([prefixes * tokens for prefixes, tokens in shapes])
        order = torch.cat(
            [part.unflatten(0, shape).transpose(1, 2).flatten() for part, shape in zip(parts, shapes, strict=True)]
        )
        slot, head = order // (heads * groups), order % (heads * groups)
        token = self._sharing.slots[slot]
        rows, full = token * (heads * groups) + head, token != EMPTY
        self._slot = slot.to(device)
        self._read = rows.clamp(min=0).to(device)  # for an empty slot any query will do: nothing is made of its answer
        self.rows = rows[full].to(device)
        self.full = None if full.all() else full.nonzero()[:, 0].to(device)

    def take(self, query: Tensor) -> None:
        """Put queries [N, K, G, D] where products read them."""
        torch.index_select(query.reshape(-1, query.shape[-1]), 0, self._read, out=self.query)

    def score(self, site: Site) -> None:
        """Multiply queries with keys."""
        for product, state in self._at(site):
            if state is not None:
                torch.bmm(product.query, state[0], out=product.scores)

    def weigh(self, site: Site) -> None:
        """Multiply weights with values."""
        for product, state in self._at(site):
            if state is None:
                product.out.zero_()
            else:
                torch.bmm(product.weights, state[1], out=product.out)

    def _at(self, site: Site) -> Iterator[tuple[Product, tuple[Tensor, Tensor] | None]]:
        """Yield each product with its keys and values at a site, while as many threads work as are best for it."""
        for few, products in self._products:
            with one_thread(few):
                for product in products:
                    yield product, product.source.columns.get(site)

    def pad(self, site: Site) -> Tensor:
        """Return all scores as [m, longest P]; the lowest number where a row has no prefix at the site."""
        for scores, _, rows, length in self._by_length:
            self.padded[rows, :length] = scores
        for _, products in self._products:
            for product in products:
                if site not in product.source.columns:
                    self.padded[product.rows] = LOWEST
        return self.padded

    def unpad(self, weights: Tensor) -> None:
        """Put weights [m, longest P] where products read them."""
        for _, mine, rows, length in self._by_length:
            mine.copy_(weights[rows, :length])

    def made(self, lse: Tensor) -> Partial:
        """Return what was made for the tokens, without the empty slots."""
        if self.full is None:
            return Partial(self.out, lse)
        return Partial(self.out.index_select(0, self.full), lse.index_select(0, self.full))

    def hidden(self, window: int | None) -> Tensor | None:
        """Return [m, longest P] bool: what a row's sliding window has passed; None without a window."""
        if window is None:
            return None
        if window not in self._hidden:
            sharing, positions = self._sharing, torch.arange(self.padded.shape[1], device=self.padded.device)
            past = sharing.positions[:, None] - positions >= window
            self._hidden[window] = (past & ~sharing.always_visible[:, None])[self._slot]
        return self._hidden[window]


def add_prefixes(made: Partial, part: Sharing, site: Site, query: Tensor, call: AttentionCall) -> None:
    """Add what tokens see of their rows' prefixes to what they see of their text, `made` [N, K, G, ...], in place."""
    rows, seen = share(part, site, query, call)
    out, lse = made.out.flatten(0, 2), made.lse.flatten()  # views
    with one_thread(part.room(query, call.value.shape[-1]).is_small):
        both = merge(Partial(out.index_select(0, rows), lse.index_select(0, rows)), seen)
        out.index_copy_(0, rows, both.out)
        lse.index_copy_(0, rows, both.lse)


def share(part: Sharing, site: Site, query: Tensor, call: AttentionCall) -> tuple[Tensor, Partial]:
    """Return what tokens see of their rows' prefixes, as v rows, and where these are among [N * K * G].

    Where a row has no prefix at this site, its lse is the lowest number. What is returned holds until the next call.

    Args:
        part: who shares what.
        site: the layer.
        query: [N, K, G, D], scaled.
        call: for soft-capping and the window.
    """
    room = part.room(query, call.value.shape[-1])
    with one_thread(room.is_small):
        room.take(query)
    room.score(site)
    with one_thread(room.is_small):
        weights, lse = softmax_and_lse(room.pad(site), room.hidden(call.window), call)
        room.unpad(weights)
    room.weigh(site)
    with one_thread(room.is_small):
        return room.rows, room.made(lse)


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Do small things on the calling thread: waking another one for each takes longer than they do."""
    threads = torch.get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _is_small(numbers: int, device: torch.device) -> bool:
    """Whether so many numbers are read and written sooner by one thread (LOG.md, 2026-11-27); on CPUs alone."""
    return device.type == "cpu" and numbers < 1 << 19
