"""Prefixes in a vLLM worker's memory: this rank's heads only, in the cache's dtype, least recently used first out."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foreword.engines.prefix_files import LayerStates, read_layers
from foreword.errors import ArtifactError


@dataclass(frozen=True)
class LayerPlace:
    """What one attention layer of a worker takes: shapes on this rank, and where and how its tensors lie."""

    kv_heads: int
    key_width: int
    value_width: int
    device: torch.device
    dtype: torch.dtype


def head_range(kv_heads: int, rank: int, ranks: int) -> range:
    """Return the key/value heads that a rank of tensor parallelism holds; with more ranks than heads, several hold one.

    The rule is vLLM's own (`QKVParallelLinear`).
    """
    first = rank * kv_heads // ranks
    return range(first, max(first + 1, (rank + 1) * kv_heads // ranks))


class PrefixMemory:
    """Loaded prefixes of one worker by digest, within a budget of bytes."""

    def __init__(self, folder: Path, budget_bytes: int, rank: int = 0, ranks: int = 1) -> None:
        self._folder, self._budget, self._rank, self._ranks = folder, budget_bytes, rank, ranks
        self._kept: OrderedDict[str, dict[int, LayerStates]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def get(self, digest: str, places: Mapping[int, LayerPlace]) -> dict[int, LayerStates]:
        """Return a prefix's keys and values [P, K of this rank, D] by layer, read from its file if need be.

        Raises:
            ArtifactError: the file is gone or damaged, or made for another model.
        """
        if digest in self._kept:
            self._kept.move_to_end(digest)
            return self._kept[digest]
        made = self._read(digest, places)
        self._kept[digest] = made
        self._bytes += _bytes(made)
        while self._bytes > self._budget and len(self._kept) > 1:  # the newest stays: it is in use
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return made

    def _read(self, digest: str, places: Mapping[int, LayerPlace]) -> dict[int, LayerStates]:
        layers = read_layers(self._folder, digest)
        if not places or max(places) >= len(layers):
            raise ArtifactError(f"prefix {digest[:12]} has {len(layers)} layers, the model has layer "
                                f"{max(places, default=-1)}; export it for this model")
        return {number: self._mine(layers[number], place, digest) for number, place in places.items()}

    def _mine(self, states: LayerStates, place: LayerPlace, digest: str) -> LayerStates:
        heads = head_range(states[0].shape[1], self._rank, self._ranks)
        found = (len(heads), states[0].shape[2], states[1].shape[2])
        wanted = (place.kv_heads, place.key_width, place.value_width)
        if found != wanted:
            raise ArtifactError(f"prefix {digest[:12]} has heads and widths {found} on rank {self._rank} of "
                                f"{self._ranks}, the model has {wanted}; export it for this model")

        def moved(tensor: Tensor) -> Tensor:
            own = tensor[:, heads.start : heads.stop]
            return own.to(place.device, place.dtype).contiguous()

        return moved(states[0]), moved(states[1])


def _bytes(layers: Mapping[int, LayerStates]) -> int:
    return sum(tensor.numel() * tensor.element_size() for pair in layers.values() for tensor in pair)
