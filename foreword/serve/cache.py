"""Keys and values in preallocated shelves: a step writes new tokens in place and copies nothing old.

A shelf has places of one length, as [places, K, length, D] for each of its attention sites. Those in use stand side by
side at its front, so that attention over all of them is a view of the shelf; when one is given back, the last moves
into it. `KvCache` keeps rows' own text here, `serve/prefix_shelf.py` copies of running rows' prefixes.
"""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.geometry import Geometry, SiteShape
from foreword.prompts.bank import Site

SHORTEST = 32
FEWEST = 4
"""Places that a shelf begins with, if there is room."""


@dataclass(eq=False)
class Place:
    """Where one row's or prefix's keys and values are; its index changes when others leave."""

    shelf: "Shelf"
    index: int


@dataclass(eq=False)
class Shelf:
    """Places of one length.

    Attributes:
        length: positions that each has.
        sites: which have keys and values.
        keys, values: [rows, K, length, D] by site.
        places: who stands at each index; `len(places)` are in use.
        rows: how many every site has room for, at least.
    """

    length: int
    sites: tuple[Site, ...]
    keys: dict[Site, Tensor] = field(default_factory=dict)
    values: dict[Site, Tensor] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    rows: int = 0

    @property
    def is_full(self) -> bool:
        """Whether no further place is there without growing."""
        return len(self.places) == self.rows

    def move(self, source: int, target: int) -> None:
        """Copy one place's keys and values to another index."""
        for tensor in self._tensors():
            tensor[target].copy_(tensor[source])

    def clear(self, index: int) -> None:
        """Set one place's keys and values to zero.

        Places that are masked still enter products, with weight 0, where whatever is not finite becomes NaN: garbage,
        or what the last holder's foreword made there.
        """
        for tensor in self._tensors():
            tensor[index].zero_()

    def _tensors(self) -> Iterator[Tensor]:
        for store in (self.keys, self.values):
            yield from store.values()


class Shelves:
    """Shelves within a limit of bytes, each under a key of its own."""

    def __init__(
        self, sites: dict[Site, SiteShape], device: torch.device, dtype: torch.dtype, limit_bytes: int
    ) -> None:
        self.sites, self.device, self.dtype, self.limit_bytes = sites, device, dtype, limit_bytes
        self._itemsize = torch.empty(0, dtype=dtype).element_size()
        self.shelves: dict[Hashable, Shelf] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all shelves, empty places included."""
        return sum(shelf.rows * self.place_bytes(shelf.length, shelf.sites) for shelf in self.shelves.values())

    def place_bytes(self, length: int, sites: Iterable[Site]) -> int:
        """Bytes of one place."""
        return length * self._itemsize * sum(self.sites[site].width for site in sites)

    def take_place(self, key: Hashable, length: int, sites: tuple[Site, ...]) -> Place | None:
        """Return a place of a shelf, with whatever its last holder left there, or None while there is no room."""
        shelf = self.shelves.get(key) or Shelf(length, sites)
        if shelf.is_full and not self._grow(shelf):
            return None
        self.shelves[key] = shelf
        place = Place(shelf, len(shelf.places))
        shelf.places.append(place)
        return place

    def give_back(self, key: Hashable, place: Place) -> None:
        """Free a place; the shelf's last one moves into it."""
        shelf = place.shelf
        last = shelf.places.pop()
        if last is not place:
            shelf.move(last.index, place.index)
            last.index = place.index
            shelf.places[place.index] = last
        if not shelf.places:
            del self.shelves[key]  # its bytes are for others

    def _grow(self, shelf: Shelf) -> bool:
        place_bytes = self.place_bytes(shelf.length, shelf.sites)
        if self.num_bytes + place_bytes > self.limit_bytes:
            for other in self.shelves.values():
                if other is not shelf:
                    self._resize(other, len(other.places))
        room = (self.limit_bytes - self.num_bytes) // place_bytes
        if room < 1:
            return False
        self._resize(shelf, shelf.rows + min(max(FEWEST, shelf.rows), room))
        return True

    def _resize(self, shelf: Shelf, rows: int) -> None:
        """Give a shelf another number of places, site by site, so that little is there twice.

        Memory may run out between two sites. Those that are done then have another number than the others, which
        harms nothing: `shelf.rows` is what all of them have, and the next try goes on where this one ended.
        """
        used = len(shelf.places)
        shelf.rows = min(rows, shelf.rows)
        for site in shelf.sites:
            shape = self.sites[site]
            for store, width in ((shelf.keys, shape.key_width), (shelf.values, shape.value_width)):
                old = store.get(site)
                if old is not None and len(old) == rows:
                    continue
                new = torch.empty(rows, shape.kv_heads, shelf.length, width, dtype=self.dtype, device=self.device)
                if old is not None:
                    new[:used] = old[:used]
                store[site] = new
        shelf.rows = rows


class KvCache(Shelves):
    """Rows' own keys and values, by a reserved length: a power of two. A foreword's prefix is never in here."""

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype, limit_bytes: int) -> None:
        super().__init__(geometry.sites, device, dtype, limit_bytes)
        self.position_bytes = self.place_bytes(1, geometry.sites)

    def can_ever_hold(self, total_len: int) -> bool:
        """Whether a row of this length fits into an empty cache."""
        return shelf_length(total_len) * self.position_bytes <= self.limit_bytes

    def reserve(self, total_len: int) -> Place | None:
        """Return an empty place for a row of at most `total_len` positions, or None while there is no room."""
        length = shelf_length(total_len)
        place = self.take_place(length, length, tuple(self.sites))
        if place is not None:
            place.shelf.clear(place.index)
        return place

    def release(self, place: Place) -> None:
        """Give a place back."""
        self.give_back(place.shelf.length, place)


def shelf_length(total_len: int) -> int:
    """Return the length of the shelf for a row of `total_len` positions: the next power of two."""
    return max(SHORTEST, 1 << (total_len - 1).bit_length())
