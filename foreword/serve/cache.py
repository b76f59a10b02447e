"""Rows' own keys and values, in preallocated shelves: a step writes new tokens in place and copies nothing old.

A shelf holds rows of one reserved length (a power of two), as [rows, K, length, D] for each attention site. Rows stand
side by side at its front, so that attention over all of them is a view of the shelf; when one leaves, the last takes
its place. A foreword's prefix is never in here: it stands once in the pool, whatever the number of its rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.geometry import Geometry
from foreword.prompts.bank import Site

SHORTEST = 32


@dataclass(eq=False)
class Place:
    """Where one row's keys and values are; the cache moves it when others leave."""

    shelf: "Shelf"
    index: int


@dataclass(eq=False)
class Shelf:
    """Rows of one reserved length.

    Attributes:
        length: positions a row has.
        keys, values: [rows, K, length, D] by site.
        places: who stands at each index; `len(places)` rows are in use.
        rows: how many every site has room for, at least.
    """

    length: int
    keys: dict[Site, Tensor] = field(default_factory=dict)
    values: dict[Site, Tensor] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    rows: int = 0

    @property
    def is_full(self) -> bool:
        """Whether no further row fits without growing."""
        return len(self.places) == self.rows

    def move(self, source: int, target: int) -> None:
        """Copy one row's keys and values to another index."""
        for tensor in self._tensors():
            tensor[target].copy_(tensor[source])

    def clear(self, index: int) -> None:
        """Set one row's keys and values to zero.

        Places that are masked still enter products, with weight 0, where whatever is not finite becomes NaN: garbage,
        or what the last holder's foreword made there.
        """
        for tensor in self._tensors():
            tensor[index].zero_()

    def _tensors(self) -> Iterator[Tensor]:
        for store in (self.keys, self.values):
            yield from store.values()


class KvCache:
    """All shelves of one engine, within a limit of bytes."""

    def __init__(self, geometry: Geometry, device: torch.device, dtype: torch.dtype, limit_bytes: int) -> None:
        self.geometry, self.device, self.dtype, self.limit_bytes = geometry, device, dtype, limit_bytes
        itemsize = torch.empty(0, dtype=dtype).element_size()
        self.position_bytes = itemsize * sum(shape.width for shape in geometry.sites.values())
        self.shelves: dict[int, Shelf] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all shelves, empty places included."""
        return sum(shelf.rows * shelf.length for shelf in self.shelves.values()) * self.position_bytes

    def can_ever_hold(self, total_len: int) -> bool:
        """Whether a row of this length fits into an empty cache."""
        return shelf_length(total_len) * self.position_bytes <= self.limit_bytes

    def reserve(self, total_len: int) -> Place | None:
        """Return an empty place for a row of at most `total_len` positions, or None while there is no room."""
        length = shelf_length(total_len)
        shelf = self.shelves.get(length) or Shelf(length)
        if shelf.is_full and not self._grow(shelf):
            return None
        self.shelves[length] = shelf
        place = Place(shelf, len(shelf.places))
        shelf.clear(place.index)
        shelf.places.append(place)
        return place

    def release(self, place: Place) -> None:
        """Give a place back; the shelf's last row moves into it."""
        shelf = place.shelf
        last = shelf.places.pop()
        if last is not place:
            shelf.move(last.index, place.index)
            last.index = place.index
            shelf.places[place.index] = last
        if not shelf.places:
            del self.shelves[shelf.length]  # its bytes are for other lengths

    def _grow(self, shelf: Shelf) -> bool:
        row_bytes = shelf.length * self.position_bytes
        if self.num_bytes + row_bytes > self.limit_bytes:
            for other in self.shelves.values():
                if other is not shelf:
                    self._resize(other, len(other.places))
        room = (self.limit_bytes - self.num_bytes) // row_bytes
        if room < 1:
            return False
        self._resize(shelf, shelf.rows + min(max(4, shelf.rows), room))
        return True

    def _resize(self, shelf: Shelf, rows: int) -> None:
        """Give a shelf another number of rows, site by site, so that little is there twice.

        Memory may run out between two sites. Those that are done then have another number than the others, which
        harms nothing: `shelf.rows` is what all of them have, and the next try goes on where this one ended.
        """
        used = len(shelf.places)
        shelf.rows = min(rows, shelf.rows)
        for site, shape in self.geometry.sites.items():
            for store, width in ((shelf.keys, shape.key_width), (shelf.values, shape.value_width)):
                old = store.get(site)
                if old is not None and len(old) == rows:
                    continue
                new = torch.empty(rows, shape.kv_heads, shelf.length, width, dtype=self.dtype, device=self.device)
                if old is not None:
                    new[:used] = old[:used]
                store[site] = new
        shelf.rows = rows


def shelf_length(total_len: int) -> int:
    """Return the length of the shelf for a row of `total_len` positions: the next power of two."""
    return max(SHORTEST, 1 << (total_len - 1).bit_length())
