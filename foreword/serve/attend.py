"""Attention of one serving step: each new token sees its row's foreword (stored once) and its row's own text.

Both parts are put together as `serve/partial.py` has it, so no keys are ever concatenated, and tokens of many forewords
meet these in few matrix products (`serve/share.py`).

Notation: N new tokens of the step, lying end to end in one row of the model; K key/value heads; G = H / K query heads
for each of them; D head width; R rows of a shelf; S positions that the longest of them has; P virtual tokens.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreword.prompts.attention import AttentionCall
from foreword.prompts.bank import Site
from foreword.serve.cache import Shelf
from foreword.serve.partial import Partial, attention, scaled, with_sinks
from foreword.serve.share import Sharing, add_prefixes


@dataclass(frozen=True, eq=False)
class Decoding:
    """One new token for each of some rows of a shelf.

    Attributes:
        shelf: where the rows are.
        tokens: their n places among the step's N tokens.
        index: [n] their places in the shelf.
        at: [R] position of each row's new token in its own text; 0 for rows that take no part.
        longest: S.
    """

    shelf: Shelf
    tokens: slice
    index: Tensor
    at: Tensor
    longest: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @cached_property
    def is_whole(self) -> bool:
        """Whether every row of the shelf takes part, in its order."""
        return len(self.index) == len(self.at) and bool((self.index == torch.arange(len(self.at)).to(self.index)).all())

    def hidden(self, window: int | None) -> Tensor:
        """Return [R, 1, 1, S] bool: positions that a row has not reached, or that its sliding window has passed."""
        if window not in self.masks:
            positions = torch.arange(self.longest, device=self.at.device)
            hidden = positions > self.at[:, None]
            if window is not None:
                hidden |= positions <= self.at[:, None] - window
            self.masks[window] = hidden[:, None, None]
        return self.masks[window]


@dataclass(frozen=True, eq=False)
class Reading:
    """A run of one row's text that is read in this step: tokens `first` to `first + count`, from position `start`."""

    shelf: Shelf
    index: int
    first: int
    count: int
    start: int


@dataclass(frozen=True, eq=False)
class Writing:
    """Where the keys and values of [n] tokens go: a shelf, and [n] indices and positions in it."""

    shelf: Shelf
    tokens: Tensor
    index: Tensor
    at: Tensor
    places: dict[int, Tensor] = field(default_factory=dict)

    def write(self, store: Tensor, states: Tensor) -> None:
        """Write [N, K, D] into a shelf's [rows, K, length, D]: whole rows of D, much faster than by three indices."""
        heads = store.shape[1]
        if heads not in self.places:
            head = self.index[:, None] * heads + torch.arange(heads, device=self.index.device)
            self.places[heads] = (head * self.shelf.length + self.at[:, None]).flatten()
        store.view(-1, store.shape[-1]).index_copy_(0, self.places[heads], states[self.tokens].flatten(0, 1).to(store))


@dataclass(frozen=True, eq=False)
class StepLayout:
    """Where everything lies in one step."""

    writing: list[Writing]
    decoding: list[Decoding]
    reading: list[Reading]
    sharing: Sharing | None


@dataclass(frozen=True, eq=False)
class StepAttention:
    """What stands in the injection's context variable while a step runs."""

    layout: StepLayout

    def for_forward(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> tuple["StepAttention", dict[str, Any]]:
        """Return itself; the step gives positions of its own."""
        return self, kwargs

    def attend(self, call: AttentionCall) -> tuple[Tensor, None]:
        """Return [1, N, H, D]: store the new keys and values, and let each token see its text and its foreword."""
        site, layout = call.site, self.layout
        heads, kv_heads = call.query.shape[1], call.key.shape[1]
        query = call.query[0].transpose(0, 1).unflatten(1, (kv_heads, heads // kv_heads))
        query = scaled(query, call)  # [N, K, G, D]
        key, value = call.key[0].transpose(0, 1), call.value[0].transpose(0, 1)  # [N, K, D]
        for part in layout.writing:
            part.write(part.shelf.keys[site], key)
            part.write(part.shelf.values[site], value)
        lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        made = Partial(query.new_empty(*query.shape[:3], value.shape[-1]), lse)
        for part in layout.decoding:
            _put(made, part.tokens, decode(part, site, query, call))
        for part in layout.reading:
            _put(made, slice(part.first, part.first + part.count), read(part, site, query, call))
        if (part := layout.sharing) is not None and part.has(site):
            add_prefixes(made, part, site, query, call)
        return with_sinks(made, call.options.get("s_aux")).out.flatten(1, 2)[None], None


def decode(part: Decoding, site: Site, query: Tensor, call: AttentionCall) -> Partial:
    """Return what one new token in each of some rows sees of its own text."""
    rows = len(part.at)
    key = part.shelf.keys[site][:rows, :, : part.longest]
    value = part.shelf.values[site][:rows, :, : part.longest]
    if part.is_whole:
        return attention(query[part.tokens], key, value, part.hidden(call.window), call)
    spread = query.new_zeros(rows, *query.shape[1:])
    spread[part.index] = query[part.tokens]
    made = attention(spread, key, value, part.hidden(call.window), call)
    return Partial(made.out[part.index], made.lse[part.index])


def read(part: Reading, site: Site, query: Tensor, call: AttentionCall) -> Partial:
    """Return what a run of one row's text sees of that text so far, itself included."""
    total, width = part.start + part.count, query.shape[2]
    key = part.shelf.keys[site][part.index, :, :total]
    value = part.shelf.values[site][part.index, :, :total]
    at = torch.arange(part.start, total, device=query.device)[:, None]
    positions = torch.arange(total, device=query.device)
    hidden = positions > at
    if call.window is not None:
        hidden |= positions <= at - call.window
    run = query[part.first : part.first + part.count]  # [T, K, G, D] -> [K, T * G, D]
    made = attention(run.transpose(0, 1).flatten(1, 2), key, value, hidden.repeat_interleave(width, 0), call)
    return _unfold(made, width)


def _unfold(made: Partial, width: int) -> Partial:
    """Return [K, n * G, D] as [n, K, G, D]."""
    return Partial(*(t.unflatten(1, (-1, width)).transpose(0, 1) for t in (made.out, made.lse)))


def _put(made: Partial, tokens: slice, part: Partial) -> None:
    made.out[tokens] = part.out.to(made.out.dtype)
    made.lse[tokens] = part.lse.to(made.lse.dtype)
