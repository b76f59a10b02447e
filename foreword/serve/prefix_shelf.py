"""Prefixes of the rows that run, copied side by side, so that one product meets many of them.

With many forewords, products with each one's keys and values are many and small: on a CPU most of their time goes to
what surrounds them, on a GPU each is a launch. So prefixes of one length stand on one shelf (`serve/cache.py`), and all
of them are one view.

The copies are the runner's own: no view of them outlives a step, so a place that is handed on shows nobody another
tenant's prefix, and the pool's own are evicted as ever. Where the limit of bytes leaves no room, a prefix is met alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from foreword.geometry import SiteShape
from foreword.prompts.bank import PrefixKV, Site, States
from foreword.serve.cache import Place, Shelf, Shelves
from foreword.serve.rows import is_out_of_memory

Kind = tuple[int, tuple[Site, ...]]
"""Length, and the sites that have keys and values: what prefixes must have in common to share a shelf."""


@dataclass(frozen=True, eq=False)
class SideBySide:
    """The prefixes of one shelf.

    Attributes:
        length: P.
        held: R of them, in the order of their places.
        columns: keys [R * K, D, P] and values [R * K, P, D] by site, as products take them; views.
    """

    length: int
    held: list[PrefixKV]
    columns: States


class PrefixShelves(Shelves):
    """The prefixes of one runner's rows; iterating yields those that stand side by side, a shelf at a time."""

    def __init__(
        self, sites: dict[Site, SiteShape], device: torch.device, dtype: torch.dtype, limit_bytes: int
    ) -> None:
        super().__init__(sites, device, dtype, limit_bytes)
        self._users: dict[PrefixKV, int] = {}
        self._places: dict[PrefixKV, Place] = {}
        self._standing: list[SideBySide] | None = None

    def __iter__(self) -> Iterator[SideBySide]:
        """Yield what stands side by side; made anew only after somebody came or left."""
        if self._standing is None:
            prefixes = {place: prefix for prefix, place in self._places.items()}
            self._standing = [
                SideBySide(shelf.length, [prefixes[place] for place in shelf.places], _columns(shelf))
                for shelf in self.shelves.values()
            ]
        return iter(self._standing)

    def join(self, prefix: PrefixKV) -> None:
        """Count one more row with this prefix; it gets a place if it has none and there is room."""
        if prefix.states and prefix not in self._places:  # an infix has no states
            self._put(prefix)
        self._users[prefix] = self._users.get(prefix, 0) + 1

    def leave(self, prefix: PrefixKV) -> None:
        """Count one row less; after the last one the place is free."""
        self._users[prefix] -= 1
        if self._users[prefix]:
            return
        del self._users[prefix]
        place = self._places.pop(prefix, None)
        if place is not None:
            self._standing = None
            self.give_back(_kind(prefix), place)

    def _put(self, prefix: PrefixKV) -> None:
        self._standing = None  # growing moves what is there already
        try:
            place = self.take_place(_kind(prefix), *_kind(prefix))
        except Exception as error:  # a prefix can be met without a place, a row cannot do without one
            if not is_out_of_memory(error):
                raise
            return
        if place is None:
            return
        for site, (key, value) in prefix.states.items():
            place.shelf.keys[site][place.index] = key
            place.shelf.values[site][place.index] = value
        self._places[prefix] = place


def _kind(prefix: PrefixKV) -> Kind:
    return prefix.length, tuple(prefix.states)


def _columns(shelf: Shelf) -> States:
    used = {
        site: (shelf.keys[site][: len(shelf.places)], shelf.values[site][: len(shelf.places)]) for site in shelf.sites
    }
    return {site: (key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)) for site, (key, value) in used.items()}
