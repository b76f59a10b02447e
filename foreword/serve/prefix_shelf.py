"""Prefixes of the rows that run, copied side by side, so that one product meets many of them.

With many forewords, products with each one's keys and values are many and small: on a CPU most of their time goes to
what surrounds them, on a GPU each is a launch. A shelf holds prefixes of one length as [places, K, P, D] for each
attention site; those that are in use stand at its front, so that all of them are one view. Like rows in
`serve/cache.py`, the last takes the place of one that leaves.

The copies are the runner's own: no view of them outlives a step, so a place that is handed on shows nobody another
tenant's prefix, and the pool's own are evicted as ever. Where the limit of bytes leaves no room, a prefix is met alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from foreword.prompts.bank import PrefixKV, Site, States
from foreword.serve.rows import is_out_of_memory

Kind = tuple[int, tuple[Site, ...]]
"""Length, and the sites that have keys and values: what prefixes must have in common to share a shelf."""
FEWEST = 4


@dataclass(eq=False)
class PrefixShelf:
    """Prefixes of one length.

    Attributes:
        length: P.
        place_bytes: of one prefix.
        places: how many prefixes every site has room for, at least.
        states: keys and values [places, K, P, D] by site.
        held: the prefix at each place in use.
    """

    length: int
    place_bytes: int
    places: int = 0
    states: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict)
    held: list[PrefixKV] = field(default_factory=list)
    _columns: States | None = None

    @property
    def columns(self) -> States:
        """Keys [R * K, D, P] and values [R * K, P, D] of the R prefixes in use: views, made anew when these change."""
        if self._columns is None:
            used = {s: tuple(t[: len(self.held)].flatten(0, 1) for t in pair) for s, pair in self.states.items()}
            self._columns = {site: (key.transpose(1, 2), value) for site, (key, value) in used.items()}
        return self._columns

    def put(self, prefix: PrefixKV) -> None:
        """Copy a prefix to the first free place."""
        for site, pair in prefix.states.items():
            for store, tensor in zip(self.states[site], pair, strict=True):
                store[len(self.held)].copy_(tensor)
        self.held.append(prefix)
        self._columns = None

    def take(self, prefix: PrefixKV) -> None:
        """Free a prefix's place: the last one moves into it."""
        place, last = self.held.index(prefix), len(self.held) - 1
        if place != last:
            for pair in self.states.values():
                for store in pair:
                    store[place].copy_(store[last])
            self.held[place] = self.held[last]
        self.held.pop()
        self._columns = None

    def resize(self, places: int, like: PrefixKV) -> None:
        """Give the shelf another number of places for prefixes as `like`, site by site, so that little is there twice.

        Memory may run out between two sites. Those that are done then have another number than the others, which harms
        nothing: `places` is what all of them have, and the next try goes on where this one ended.
        """
        used = len(self.held)
        self.places, self._columns = min(places, self.places), None
        for site, pair in like.states.items():
            old = self.states.get(site)
            if old is not None and len(old[0]) == places:
                continue
            new = tuple(tensor.new_empty(places, *tensor.shape) for tensor in pair)
            for store, tensor in zip(new, old or (), strict=False):
                store[:used].copy_(tensor[:used])
            self.states[site] = new
        self.places = places


class PrefixShelves:
    """The shelves of one runner, within a limit of bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._shelves: dict[Kind, PrefixShelf] = {}
        self._users: dict[PrefixKV, int] = {}

    def __iter__(self) -> Iterator[PrefixShelf]:
        """Yield the shelves; each holds at least one prefix."""
        return iter(self._shelves.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all shelves, free places included."""
        return sum(shelf.places * shelf.place_bytes for shelf in self)

    def join(self, prefix: PrefixKV) -> None:
        """Count one more row with this prefix; it gets a place if it has none and there is room."""
        if prefix.states:  # an infix has none
            kind = _kind(prefix)
            shelf = self._shelves.get(kind) or PrefixShelf(prefix.length, _bytes(prefix))
            if prefix not in shelf.held and (len(shelf.held) < shelf.places or self._grow(shelf, prefix)):
                shelf.put(prefix)
                self._shelves[kind] = shelf
        self._users[prefix] = self._users.get(prefix, 0) + 1

    def leave(self, prefix: PrefixKV) -> None:
        """Count one row less; after the last one the place is free."""
        self._users[prefix] -= 1
        if self._users[prefix]:
            return
        del self._users[prefix]
        kind = _kind(prefix)
        shelf = self._shelves.get(kind)
        if shelf is not None and prefix in shelf.held:
            shelf.take(prefix)
            if not shelf.held:
                del self._shelves[kind]  # its bytes are for other lengths

    def _grow(self, shelf: PrefixShelf, prefix: PrefixKV) -> bool:
        try:
            if self.num_bytes + shelf.place_bytes > self.limit_bytes:
                for other in self:
                    other.resize(len(other.held), other.held[0])
            room = (self.limit_bytes - self.num_bytes) // shelf.place_bytes
            if room < 1:
                return False
            shelf.resize(shelf.places + min(max(FEWEST, shelf.places), room), prefix)
        except Exception as error:  # a prefix can be met without a place, a row cannot do without one
            if not is_out_of_memory(error):
                raise
            return False
        return True


def _kind(prefix: PrefixKV) -> Kind:
    return prefix.length, tuple(prefix.states)


def _bytes(prefix: PrefixKV) -> int:
    return sum(t.numel() * t.element_size() for pair in prefix.states.values() for t in pair)
