"""What the tokens of a step see of their rows' forewords: each stands in memory once, its tokens meet it all at once.

With many forewords these products are many and small, so what costs is what surrounds them. Therefore the numbers of
each run of tokens lie side by side, as products read and write them fastest; the room for them is cut up once a step
and not in every layer; and all between the products is done for all forewords at once.

Notation as in `serve/attend.py`; m = n * K * G rows, in the order (foreword, key/value head, token, query head).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from foreword.prompts.bank import PrefixKV, Site
from foreword.prompts.inject import AttentionCall
from foreword.serve.partial import LOWEST, Partial, scaling, softmax_and_lse


@dataclass(frozen=True, eq=False)
class Sharing:
    """All tokens of the step whose rows have a prefix: those of one prefix side by side, short prefixes first.

    Attributes:
        tokens: [n] their places among the step's N tokens.
        positions: [n] absolute positions.
        always_visible: [n] bool, whether the prefix stays visible outside a sliding window.
        runs: each distinct prefix with the number of its tokens, in the order of their lengths.
    """

    tokens: Tensor
    positions: Tensor
    always_visible: Tensor
    runs: list[tuple[PrefixKV, int]]
    rooms: dict[tuple[object, ...], "Room"] = field(default_factory=dict)

    def has(self, site: Site) -> bool:
        """Whether any of the prefixes has keys and values there."""
        return any(site in prefix.states for prefix, _ in self.runs)

    def room(self, query: Tensor, width: int) -> "Room":
        """Return the room for queries [N, K, G, D] and values of `width` numbers; layers of one shape share it."""
        key = (*query.shape, width, query.dtype)
        if key not in self.rooms:
            self.rooms[key] = Room(self, query, width)
        return self.rooms[key]


class Room:
    """Memory for the products of one step's runs with their prefixes, and where everything in it lies.

    Attributes:
        rows: [m] places among the step's queries as [N * K * G, D].
        query, out: [m, D] and [m, D of values]; `queries` and `outs` are cut up by run, [K, n * G, D] each.
        scores, weights: by run, [K, n * G, P], in one piece each.
        padded: [m, longest P] float32; what no run writes has the lowest number.
        slices: by run, its part of the m rows.
        product_size: scores that one product makes, on average.
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
        counts, lengths = [count for _, count in sharing.runs], [prefix.length for prefix, _ in sharing.runs]
        order = torch.arange(sum(counts) * heads * groups, device=query.device).view(-1, heads, groups)
        order = torch.cat([part.transpose(0, 1).flatten() for part in order.split(counts)])
        self._tokens = order // (heads * groups)  # [m], among the n
        self.rows = sharing.tokens[self._tokens] * (heads * groups) + order % (heads * groups)
        sizes = [count * heads * groups for count in counts]
        areas = [size * length for size, length in zip(sizes, lengths, strict=True)]
        self.product_size = sum(areas) // len(areas)
        self.slices = [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]
        self.query, self.out = query.new_empty(sum(sizes), depth), query.new_empty(sum(sizes), width)
        scores, weights = query.new_empty(sum(areas)), query.new_empty(sum(areas))
        self.queries, self.outs, self.scores, self.weights = (
            [part.view(heads, count * groups, -1) for part, count in zip(flat.split(cuts), counts, strict=True)]
            for flat, cuts in ((self.query, sizes), (self.out, sizes), (scores, areas), (weights, areas))
        )
        self.padded = query.new_full((sum(sizes), max(lengths)), LOWEST, dtype=torch.float32)
        self._by_length: list[tuple[Tensor, Tensor, slice, int]] = []
        row = cell = 0
        for length, group in groupby(zip(lengths, sizes, strict=True), key=lambda pair: pair[0]):
            size = sum(pair[1] for pair in group)
            parts = (flat[cell : cell + size * length].view(size, length) for flat in (scores, weights))
            self._by_length.append((*parts, slice(row, row + size), length))
            row, cell = row + size, cell + size * length

    def pad(self) -> Tensor:
        """Return all scores as [m, longest P]."""
        for scores, _, rows, length in self._by_length:
            self.padded[rows, :length] = scores
        return self.padded

    def unpad(self, weights: Tensor) -> None:
        """Put weights [m, longest P] where products read them."""
        for _, mine, rows, length in self._by_length:
            mine.copy_(weights[rows, :length])

    def hidden(self, window: int | None) -> Tensor | None:
        """Return [m, longest P] bool: what a row's sliding window has passed; None without a window."""
        if window is None:
            return None
        if window not in self._hidden:
            sharing, positions = self._sharing, torch.arange(self.padded.shape[1], device=self.padded.device)
            past = sharing.positions[:, None] - positions >= window
            self._hidden[window] = (past & ~sharing.always_visible[:, None])[self._tokens]
        return self._hidden[window]


def share(part: Sharing, site: Site, query: Tensor, call: AttentionCall) -> tuple[Tensor, Partial]:
    """Return what tokens see of their rows' prefixes, as m rows, and where these are among [N * K * G].

    Where a row has no prefix at this site, its lse is the lowest number. What is returned holds until the next call.
    """
    room = part.room(query, call.value.shape[-1])
    torch.index_select(query.reshape(-1, query.shape[-1]), 0, room.rows, out=room.query).mul_(scaling(query, call))
    states = [prefix.columns.get(site) for prefix, _ in part.runs]
    with one_thread(room.product_size, query.device):
        for state, run, scores in zip(states, room.queries, room.scores, strict=True):
            if state is not None:
                torch.bmm(run, state[0], out=scores)
    padded = room.pad()
    for state, rows in zip(states, room.slices, strict=True):
        if state is None:
            padded[rows] = LOWEST
    weights, lse = softmax_and_lse(padded, room.hidden(call.window), call)
    room.unpad(weights)
    with one_thread(room.product_size, query.device):
        for state, run, out in zip(states, room.weights, room.outs, strict=True):
            if state is None:
                out.zero_()
            else:
                torch.bmm(run, state[1], out=out)
    return room.rows, Partial(room.out, lse)


@contextlib.contextmanager
def one_thread(size: int, device: torch.device, large: int = 1 << 17) -> Iterator[None]:
    """Do small products on the calling thread: waking another one for each takes longer than the product.

    Args:
        size: scores that a product makes or takes; at `large` one thread and two are as fast (LOG.md, 2026-11-27).
        device: threads matter on CPUs alone.
    """
    threads = torch.get_num_threads()
    if size >= large or threads == 1 or device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
