"""Prefixes as tensors, and a batch's bank of them: stored once, shared by all rows that use them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foreword.shapes import BankKeys, Int, PrefixKeys

if TYPE_CHECKING:
    from foreword.prompts.attention import AttentionCall

Site = tuple[str, int]
"""`(stack, layer)` with stack in decoder, encoder, cross."""

States = dict[Site, tuple[PrefixKeys, PrefixKeys]]
"""Key and value [K, P, D] for each site."""


@dataclass(frozen=True, eq=False)
class PrefixKV:
    """One prompt as attention sees it: keys and values [K, P, D] by site; the one form in which prompts are served.

    Attributes:
        states: the prefix, keys as they enter the cache (after rotary embedding), text starting at position P.
        length: P.
        infix: an infix's offsets [K, P', D] on the keys and values of its own tokens; empty otherwise.
        infix_length: P' of the infix, 0 without one.
        always_visible: whether the prefix stays visible outside a sliding window (see PromptSpec.window).
        includes_bos: whether its first position is the BOS token, so that the text must not begin with one.
    """

    states: States
    length: int
    infix: States = field(default_factory=dict)
    infix_length: int = 0
    always_visible: bool = False
    includes_bos: bool = False

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "PrefixKV":
        """Return the prefix on another device or in another dtype."""
        move = {site: (k.to(device, dtype), v.to(device, dtype)) for site, (k, v) in self.states.items()}
        infix = {site: (k.to(device, dtype), v.to(device, dtype)) for site, (k, v) in self.infix.items()}
        return dataclasses.replace(self, states=move, infix=infix)

    def detach(self) -> "PrefixKV":
        """Return the prefix without its gradient graph."""
        states = {site: (k.detach(), v.detach()) for site, (k, v) in self.states.items()}
        infix = {site: (k.detach(), v.detach()) for site, (k, v) in self.infix.items()}
        return dataclasses.replace(self, states=states, infix=infix)

    @cached_property
    def columns(self) -> States:
        """The prefix's keys as [K, D, P], as products with queries take them, and its values; views made once."""
        return {site: (key.transpose(1, 2), value) for site, (key, value) in self.states.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        tensors = [t for pair in (*self.states.values(), *self.infix.values()) for t in pair]
        return sum(t.numel() * t.element_size() for t in tensors)


class Bank:
    """The distinct prompts of a batch, padded to one length: keys and values [U, K, P_max, D] by site."""

    def __init__(self, prefixes: Sequence[PrefixKV], device: torch.device | str) -> None:
        """Stack `prefixes` (at least one).

        Args:
            prefixes: the U distinct prompts; a site that one of them lacks is masked for it.
            device: where the bank lives.
        """
        self.prefixes = list(prefixes)
        self.device = torch.device(device)
        self.lengths = torch.tensor([p.length for p in self.prefixes], device=device)
        self.infix_lengths = torch.tensor([p.infix_length for p in self.prefixes], device=device)
        self.always_visible = torch.tensor([p.always_visible for p in self.prefixes], device=device)
        self._prefix = _stack([p.states for p in self.prefixes], device)
        self._infix = _stack([p.infix for p in self.prefixes], device)
        self._holders = {site: tuple(site in p.states for p in self.prefixes) for site in self._prefix}
        self._has = {site: torch.tensor(held, device=device) for site, held in self._holders.items()}

    @cached_property
    def requires_grad(self) -> bool:
        """Whether any prompt in the bank is being trained."""
        pairs = (*self._prefix.values(), *self._infix.values())
        return any(t.requires_grad for pair in pairs for t in pair)

    @property
    def width(self) -> int:
        """P_max: positions of every site's keys and values."""
        return next((key.shape[2] for key, _ in self._prefix.values()), 0)

    def has_prefix(self, site: Site) -> bool:
        """Whether any prompt has keys and values at `site`."""
        return site in self._prefix

    def holders(self, site: Site) -> tuple[bool, ...]:
        """Return which of the U prompts have keys and values at `site`."""
        return self._holders[site]

    def has_infix(self, site: Site) -> bool:
        """Whether any prompt has infix offsets at `site`."""
        return site in self._infix

    def site_lengths(self, site: Site, slots: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return [B] how many prefix positions each row shows at `site`: 0 for none."""
        index = slots.clamp(min=0)
        return torch.where((slots >= 0) & self._has[site][index], self.lengths[index], 0)

    def rows(self, site: Site, slots: Int[Tensor, " B"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, K, P_max, D] of each row's prompt; any slot of -1 gets the first, to be masked."""
        return _gather(self._prefix[site], slots, dtype)

    def infix_rows(self, site: Site, slots: Int[Tensor, " B"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return infix offsets [B, K, P'_max, D] of each row's prompt."""
        return _gather(self._infix[site], slots, dtype)


def _gather(pair: tuple[BankKeys, BankKeys], slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key, value = pair[0].to(dtype), pair[1].to(dtype)
    if key.shape[0] == 1:  # one prompt for all rows: a view, not a copy for each row
        return key.expand(len(slots), -1, -1, -1), value.expand(len(slots), -1, -1, -1)
    index = slots.clamp(min=0)
    return take_rows(key, index), take_rows(value, index)


def take_rows(states: Tensor, index: Int[Tensor, " M"]) -> Tensor:
    """Return `states[index]` with a backward pass that adds up in a fixed order.

    Where an index repeats, plain indexing adds the gradients atomically on several CPU threads: their order, and so the
    last bit, then depends on how busy the machine is. An embedding's backward gives each row to one thread (and sorts
    on a GPU), and is faster.
    """
    return torch.nn.functional.embedding(index, states.flatten(1)).unflatten(1, states.shape[1:])


def _stack(prompts: list[States], device: torch.device | str) -> dict[Site, tuple[BankKeys, BankKeys]]:
    """Return each site's keys and values padded with zeros to [U, K, P_max, D]."""
    longest = max((pair[0].shape[1] for states in prompts for pair in states.values()), default=0)
    stacked = {}
    for site in dict.fromkeys(site for states in prompts for site in states):
        example = next(states[site] for states in prompts if site in states)
        absent = tuple(t.new_zeros(t.shape[0], 0, t.shape[2]) for t in example)
        pairs = [states.get(site, absent) for states in prompts]
        stacked[site] = tuple(torch.stack([_pad(pair[i].to(device), longest) for pair in pairs]) for i in (0, 1))
    return stacked


def _pad(states: PrefixKeys, length: int) -> PrefixKeys:
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


@dataclass(frozen=True)
class RowLayout:
    """Where the groups of a packed batch lie: N tokens in one row of the model, G groups inside attention.

    Linear layers see no padding at all ([1, N, E]); only inside attention are queries, keys and values laid out as
    [G, ., T_max, D]. A group is one source with all its targets, or with one of them; then the source's tokens have a
    place in several groups, and their outputs are read from the first.

    Attributes:
        group_of_token: [N] group of each token (its first).
        token_at: [G, T_max] packed index of each padded place (0 where there is none).
        place_of_token: [N] flat index into [G * T_max] (its first).
        mask: [G, 1, T_max, T_max] bool, who sees whom inside a group (an empty place sees itself: no NaN).
        positions: [G, T_max] text position of each place; targets that share a source start at the same one.
    """

    group_of_token: Tensor
    token_at: Tensor
    place_of_token: Tensor
    mask: Tensor
    positions: Tensor

    def pad(self, packed: Tensor) -> Tensor:
        """Return a [N, ...] tensor as [G, T_max, ...]."""
        return packed[self.token_at]

    def unpack(self, call: "AttentionCall") -> "AttentionCall":
        """Return a packed call's queries, keys and values as [G, ., T_max, D], with the groups' mask."""
        query, key, value = (self._spread(t) for t in (call.query, call.key, call.value))
        options = {**call.options, "is_causal": False}
        mask = self._window_mask(call.window)
        return dataclasses.replace(call, query=query, key=key, value=value, mask=mask, options=options)

    def repack(self, output: Tensor) -> Tensor:
        """Return attention output [G, T_max, H, D] as the packed [1, N, H, D]."""
        return take_rows(output.flatten(0, 1), self.place_of_token)[None]

    def _spread(self, states: Tensor) -> Tensor:
        heads, width = states.shape[1], states.shape[3]
        groups, longest = self.token_at.shape
        spread = states[0].index_select(1, self.token_at.flatten()).view(heads, groups, longest, width)
        return spread.transpose(0, 1)

    def _window_mask(self, window: int | None) -> Tensor:
        """Return the mask without the keys that a sliding window has passed."""
        if window is None or window >= self.mask.shape[-1]:
            return self.mask
        near = self.positions[:, None, :, None] - self.positions[:, None, None, :] < window
        return self.mask & near
