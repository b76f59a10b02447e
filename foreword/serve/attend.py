"""Attention of one serving step: each new token sees its row's foreword (stored once) and its row's own text.

Softmax over both parts is put together from each part's output and log-sum-exp, as FlashAttention does with blocks
(Dao et al. 2022): out = sum_i out_i exp(lse_i - lse), lse = log sum_i exp(lse_i). So no keys are ever concatenated, and
all tokens that share a foreword meet its keys in one matrix product.

Notation: N new tokens of the step, lying end to end in one row of the model; K key/value heads; G = H / K query heads
for each of them; D head width; R rows of a shelf; S positions that the longest of them has; P virtual tokens.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreword.prompts.bank import PrefixKV, Site
from foreword.prompts.inject import AttentionCall
from foreword.serve.cache import Shelf

LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True, eq=False)
class Decoding:
    """One new token for each of some rows of a shelf.

    Attributes:
        shelf: where the rows are.
        tokens: [n] their places among the step's N tokens.
        index: [n] their places in the shelf.
        at: [R] position of each row's new token in its own text; 0 for rows that take no part.
        longest: S.
    """

    shelf: Shelf
    tokens: Tensor
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
class Sharing:
    """All tokens of the step whose rows have a prefix, those of one foreword side by side.

    Attributes:
        tokens: [n] their places among the step's N tokens.
        positions: [n] absolute positions.
        always_visible: [n] bool, whether the prefix stays visible outside a sliding window.
        runs: each distinct prefix with the slice of the n tokens that use it.
        longest: P of the longest prefix.
    """

    tokens: Tensor
    positions: Tensor
    always_visible: Tensor
    runs: list[tuple[PrefixKV, slice]]
    longest: int


@dataclass(frozen=True, eq=False)
class Writing:
    """Where the keys and values of [n] tokens go: a shelf, and [n] indices and positions in it."""

    shelf: Shelf
    tokens: Tensor
    index: Tensor
    at: Tensor


@dataclass(frozen=True, eq=False)
class StepLayout:
    """Where everything lies in one step."""

    writing: list[Writing]
    decoding: list[Decoding]
    reading: list[Reading]
    sharing: Sharing | None


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention over some of the keys: normalised outputs [n, K, G, D] and log-sum-exp [n, K, G]."""

    out: Tensor
    lse: Tensor


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
        query = call.query[0].transpose(0, 1).unflatten(1, (kv_heads, heads // kv_heads))  # [N, K, G, D]
        key, value = call.key[0].transpose(0, 1), call.value[0].transpose(0, 1)  # [N, K, D]
        for part in layout.writing:
            part.shelf.keys[site][part.index, :, part.at] = key[part.tokens]
            part.shelf.values[site][part.index, :, part.at] = value[part.tokens]
        lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        made = Partial(query.new_empty(*query.shape[:3], value.shape[-1]), lse)
        for part in layout.decoding:
            _put(made, part.tokens, decode(part, site, query, call))
        for part in layout.reading:
            _put(made, slice(part.first, part.first + part.count), read(part, site, query, call))
        if (part := layout.sharing) is not None and any(site in prefix.states for prefix, _ in part.runs):
            seen = Partial(made.out.index_select(0, part.tokens), made.lse.index_select(0, part.tokens))
            _put(made, part.tokens, merge(seen, share(part, site, query, call)))
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


def share(part: Sharing, site: Site, query: Tensor, call: AttentionCall) -> Partial:
    """Return what tokens see of their rows' prefixes; where there is none at this site, their lse is the lowest number.

    Two matrix products for each distinct prefix, with the softmax of all of them done at once. With many forewords
    these products are many and small, so what costs is what surrounds them: heads come first ([K, n * G, D]), so that
    a run of tokens is a view that the product takes as it is, and all views are cut at once.
    """
    width = query.shape[2]
    sizes = [(rows.stop - rows.start) * width for _, rows in part.runs]
    states = [prefix.states.get(site) for prefix, _ in part.runs]
    queries = (query.index_select(0, part.tokens) * _scaling(query, call)).transpose(0, 1).flatten(1, 2)
    scores = queries.new_full((*queries.shape[:2], part.longest), LOWEST, dtype=torch.float32)
    with one_thread(scores.numel() // len(states), query.device):
        for state, run, room in zip(states, queries.split(sizes, 1), scores.split(sizes, 1), strict=True):
            if state is not None:
                room[..., : state[0].shape[1]] = torch.bmm(run, state[0].transpose(1, 2))
    hidden = None
    if call.window is not None:
        past = part.positions[:, None] - torch.arange(part.longest, device=query.device) >= call.window
        hidden = (past & ~part.always_visible[:, None]).repeat_interleave(width, 0)
    weights, lse = _softmax(scores, hidden, call)
    outs = []
    with one_thread(scores.numel() // len(states), query.device):
        for state, run in zip(states, weights.to(query.dtype).split(sizes, 1), strict=True):
            if state is None:
                outs.append(queries.new_zeros(*run.shape[:2], call.value.shape[-1]))
            else:
                outs.append(torch.bmm(run[..., : state[1].shape[1]], state[1]))
    return _unfold(Partial(torch.cat(outs, 1), lse), width)


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


def attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, call: AttentionCall) -> Partial:
    """Return softmax attention and its log-sum-exp.

    Args:
        query: [..., n, D].
        key: [..., S, D].
        value: [..., S, D].
        hidden: broadcasts to [..., n, S]; what a query must not see. Where that is all, its lse is the lowest number.
        call: for scaling and soft-capping.
    """
    scores = torch.matmul(query * _scaling(query, call), key.transpose(-1, -2))
    weights, lse = _softmax(scores, hidden, call)
    return Partial(torch.matmul(weights.to(value.dtype), value), lse)


def _scaling(query: Tensor, call: AttentionCall) -> float:
    given = call.options.get("scaling")
    return query.shape[-1] ** -0.5 if given is None else given


def _softmax(scores: Tensor, hidden: Tensor | None, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Return weights [..., S] in float32 and their log-sum-exp [...]; the scores may be overwritten.

    What is hidden has the lowest number, not -inf: on CPUs exp(-inf) is slow, and where all is hidden no NaN comes.
    The log-sum-exp is read off the largest weight, exp(max - lse), so there is one pass of exponentials and not two.
    """
    cap, scores = call.options.get("softcap"), scores.float()
    if cap is not None:
        scores = torch.where(scores > LOWEST, torch.tanh(scores / cap) * cap, scores)  # padding stays lowest
    if hidden is not None:
        scores = scores.masked_fill_(hidden, LOWEST)
    weights = torch.softmax(scores, -1)
    return weights, scores.amax(-1) - weights.amax(-1).log()


def merge(one: Partial, other: Partial) -> Partial:
    """Return attention over two disjoint sets of keys from attention over each.

    The other's share of the softmax is exp(lse' - lse) = sigmoid(lse' - lse of one), with lse that of both.
    """
    share_of_other = torch.sigmoid(other.lse - one.lse)[..., None]
    out = torch.lerp(one.out.float(), other.out.float(), share_of_other)
    return Partial(out.to(one.out.dtype), torch.logaddexp(one.lse, other.lse))


def with_sinks(made: Partial, sinks: Tensor | None) -> Partial:
    """Return attention that also looks at sinks [H], keys without a value (gpt-oss)."""
    if sinks is None:
        return made
    lse = torch.logaddexp(made.lse, sinks.view(made.lse.shape[1:]).to(made.lse.dtype))
    return dataclasses.replace(made, out=made.out * (made.lse - lse).exp()[..., None].to(made.out.dtype))


def _unfold(made: Partial, width: int) -> Partial:
    """Return [K, n * G, D] as [n, K, G, D]."""
    return Partial(*(t.unflatten(1, (-1, width)).transpose(0, 1) for t in (made.out, made.lse)))


def _put(made: Partial, tokens: Tensor | slice, part: Partial) -> None:
    made.out[tokens] = part.out.to(made.out.dtype)
    made.lse[tokens] = part.lse.to(made.lse.dtype)
