"""The cache that `generate` runs on: room for what comes, and each row's prefix in front of its text.

Transformers' dynamic cache copies all keys and values when a token is added, attention copied them once more to put
the prefix before them, and beam search a third time to follow its beams: half the time of a small model's step. Here a
new token is written in place, the prefix is written once, and only what beams have generated is reordered, for
their source is the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from foreword.backbone import Backbone
from foreword.prompts.bank import Site
from foreword.prompts.inject import Injection
from foreword.prompts.padded import PaddedBatch

MOST_ROOM = 256
"""New tokens that a cache has room for at first, at most; where more come, it grows by half."""

STOCK = ("past_key_values", "cache_implementation", "assistant_model", "prompt_lookup_num_tokens", "custom_generate")
"""Options of `generate` that bring, want or rewind a cache of their own."""

Pair = tuple[Tensor, Tensor]


class RoomyLayer(DynamicLayer):
    """One layer's keys and values [B, K, T, D]: views into stores [B, K, F + room, D] that begin with the prefix.

    Attributes:
        front: F, positions kept for prefixes.
        room: new tokens to leave room for.
        shared: positions of the stores that the beams of a row have in common: the prefix and what came first.
        stores: keys and values with the front and the room.
    """

    def __init__(self, front: int, room: int) -> None:
        super().__init__()
        self.front, self.room, self.shared = front, room, 0
        self.stores: Pair | None = None
        self._has_front = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the stores for a first text."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.shared = self.front + key_states.shape[2]
        self.stores = tuple(_wide(states, self.shared + self.room) for states in (key_states, value_states))
        self.is_initialized, self._has_front = True, False
        self._show(0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Pair:
        """Write new keys and values [B, K, N, D] in place; return all of the text's."""
        start = self.front + self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        else:
            self.shared = min(self.shared, start)  # less than before if the cache was cropped
        stop = start + key_states.shape[2]
        if stop > self.stores[0].shape[2]:
            self._grow(start, stop + stop // 2)
        for store, states in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, start:stop] = states
        self._show(stop - self.front)
        return self.keys, self.values

    def holds(self, key: Tensor, value: Tensor) -> bool:
        """Whether these are the very tensors that this layer gave out, so that its front is before them."""
        return key is self.keys and value is self.values

    def with_front(self, prefixes: Callable[[], Pair]) -> Pair:
        """Return the text's keys and values with the prefixes [B, K, F, D] before them; they are asked for once."""
        if not self._has_front:
            for store, states in zip(self.stores, prefixes(), strict=True):
                store[:, :, : self.front] = states
            self._has_front = True
        stop = self.front + self.get_seq_length()
        return self.stores[0][:, :, :stop], self.stores[1][:, :, :stop]

    def follow(self, rows: Tensor, beams: Tensor) -> None:
        """Let each of these rows go on from what another beam of its source has generated."""
        stop = self.front + self.get_seq_length()
        if not self.is_initialized or stop == self.shared or len(rows) == 0:
            return
        for store in self.stores:
            part = store[:, :, self.shared : stop]
            part.index_copy_(0, rows.to(store.device), part.index_select(0, beams.to(store.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows that need not be beams of one source."""
        self._take(lambda store: store.index_select(0, beam_idx.to(store.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._take(lambda store: store.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        self._take(lambda store: store[indices])

    def reset(self) -> None:
        """Forget the text; Transformers 5.16 would keep its length, with zeros."""
        self.keys = self.values = self.stores = None
        self.is_initialized = False

    def _take(self, rows: Callable[[Tensor], Tensor]) -> None:
        if not self.is_initialized:
            return
        length = self.get_seq_length()
        self.stores = tuple(rows(store) for store in self.stores)
        self.shared = 0  # neighbours may have different sources now
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[:, :, self.front : self.front + length] for store in self.stores)

    def _grow(self, used: int, length: int) -> None:
        old, self.stores = self.stores, tuple(_wide(store, length) for store in self.stores)
        for store, before in zip(self.stores, old, strict=True):
            store[:, :, :used] = before[:, :, :used]


def _wide(states: Tensor, length: int) -> Tensor:
    return states.new_empty(*states.shape[:2], length, states.shape[3])


class RoomyCache(DynamicCache):
    """A dynamic cache whose layers of full attention have room; `beams` neighbouring rows have the same source."""

    def __init__(self, config: Any, front: int, room: int, beams: int) -> None:
        super().__init__(config=config)
        self.beams = beams
        self.layers = [RoomyLayer(front, room) if type(layer) is DynamicLayer else layer for layer in self.layers]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i go on from row `beam_idx[i]`; rows that stay where they are cost nothing."""
        here = torch.arange(len(beam_idx), device=beam_idx.device)
        moved = (beam_idx != here).nonzero()[:, 0]
        is_within = torch.equal(beam_idx // self.beams, here // self.beams)
        for layer in self.layers:
            if isinstance(layer, RoomyLayer) and is_within:
                layer.follow(moved, beam_idx[moved])
            else:
                layer.reorder_cache(beam_idx)


def with_room(
    backbone: Backbone, batch: PaddedBatch, options: Mapping[str, Any]
) -> tuple[dict[str, Any], Injection | None]:
    """Return what to call `generate` with, and the injection to activate meanwhile.

    Both are the batch's own where the model or an option wants another cache.

    Args:
        backbone: the frozen model.
        batch: sources and prompts.
        options: of `generate`.
    """
    injection = batch.injection
    cache = _make_cache(backbone, 0 if injection is None else injection.bank.width, options)
    if cache is None:
        return dict(batch.inputs), injection
    if injection is not None:
        injection = dataclasses.replace(injection, fronts=dict(_fronts(cache)))
    return {**batch.inputs, "past_key_values": cache}, injection


def _make_cache(backbone: Backbone, front: int, options: Mapping[str, Any]) -> Cache | None:
    options = {**backbone.model.generation_config.to_dict(), **options}
    if options.get("use_cache") is False or any(options.get(name) is not None for name in STOCK):
        return None
    config = backbone.model.config.get_text_config(decoder=True)
    plain = DynamicCache(config=config).layers
    sites = [site for site in backbone.geometry.sites if site[0] == "decoder"]
    if len(plain) != len(sites) or {type(layer) for layer in plain} - {DynamicLayer, DynamicSlidingWindowLayer}:
        return None  # layers without attention, or that share their keys
    room = min(options.get("max_new_tokens") or MOST_ROOM, MOST_ROOM)
    beams = options.get("num_beams") or 1
    own = RoomyCache(config, front, room, beams)
    return EncoderDecoderCache(own, RoomyCache(config, front, 0, beams)) if backbone.is_encoder_decoder else own


def _fronts(cache: Cache) -> Iterator[tuple[Site, RoomyLayer]]:
    stacks = {"decoder": cache}
    if isinstance(cache, EncoderDecoderCache):
        stacks = {"decoder": cache.self_attention_cache, "cross": cache.cross_attention_cache}
    for stack, part in stacks.items():
        for number, layer in enumerate(part.layers):
            if isinstance(layer, RoomyLayer):
                yield (stack, number), layer
