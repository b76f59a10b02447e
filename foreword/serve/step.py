"""One step: a single forward pass over new tokens of many rows, some reading their text, some making their answer.

All new tokens lie end to end in one row of the model ([1, N]), so that linear layers see no padding; attention is
`serve/attend.py`'s. Equal to Transformers' own generation of each row alone (tests/serve/test_engine.py).
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.prompts.bank import PrefixKV
from foreword.prompts.inject import activate
from foreword.serve.attend import Decoding, Reading, StepAttention, StepLayout, Writing
from foreword.serve.cache import KvCache, Shelf
from foreword.serve.capacity import Capacity
from foreword.serve.prefix_shelf import PrefixShelves, SideBySide
from foreword.serve.request import RequestError
from foreword.serve.rows import INLINE, LiveRow
from foreword.serve.share import gather


class Runner(Protocol):
    """What makes tokens for the rows it holds."""

    @property
    def rows(self) -> Sequence[LiveRow]:
        """The rows that run."""
        ...

    @property
    def in_pass(self) -> Sequence[LiveRow]:
        """The rows of the pass that runs, or ran last and still go on; none while they are being chosen."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of all rows."""
        ...

    @property
    def prefix_bytes(self) -> int:
        """Bytes of copies of the rows' prefixes."""
        ...

    def can_ever_hold(self, total_len: int) -> bool:
        """Whether a row of this length fits when nothing else runs."""
        ...

    def add(self, row: LiveRow) -> bool:
        """Start a row whose foreword is there; False while there is no room."""
        ...

    def drop(self, row: LiveRow) -> None:
        """End a row and give its place back."""
        ...

    def step(self) -> tuple[list[LiveRow], Tensor]:
        """Run one pass; return the rows that have a next token to choose, and their logits [M, V]."""
        ...


class DecoderRunner:
    """Continuous batching for decoder-only models: every step may read, decode, and take rows in or out."""

    def __init__(self, backbone: Backbone, capacity: Capacity) -> None:
        self._backbone, self._capacity = backbone, capacity
        self._cache = KvCache(backbone.geometry, backbone.device, backbone.dtype, capacity.cache_bytes)
        sites = backbone.geometry.sites
        self._prefixes = PrefixShelves(sites, backbone.device, backbone.dtype, capacity.prefix_bytes)
        self.rows: list[LiveRow] = []
        self.in_pass: list[LiveRow] = []

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of all rows."""
        return self._cache.num_bytes

    @property
    def prefix_bytes(self) -> int:
        """Bytes of copies of the rows' prefixes, which stand side by side."""
        return self._prefixes.num_bytes

    def can_ever_hold(self, total_len: int) -> bool:
        """Whether a row of this length fits when nothing else runs."""
        return self._cache.can_ever_hold(total_len)

    def add(self, row: LiveRow) -> bool:
        """Start a row whose foreword is there; False while there is no room."""
        if len(self.rows) >= self._capacity.rows:
            return False
        row.place_soft_tokens(self._backbone)
        check_start(row)
        row.place = self._cache.reserve(len(row.ids) + row.limit)
        if row.place is None:
            return False
        if row.prefix is not None:
            self._prefixes.join(row.prefix)
        self.rows.append(row)
        return True

    def drop(self, row: LiveRow) -> None:
        """End a row and give its place back."""
        self.rows.remove(row)
        self.in_pass = [other for other in self.in_pass if other is not row]  # nor may its ticket stay
        self._cache.release(row.place)
        row.place = None
        if row.prefix is not None:
            self._prefixes.leave(row.prefix)

    @torch.inference_mode()
    def step(self) -> tuple[list[LiveRow], Tensor]:
        """Run one pass; return the rows that have a next token to choose, and their logits [M, V].

        Rows that decode always take part; what is left of the step's tokens goes to reading, oldest row first.
        """
        self.in_pass = []
        runs = self._choose_runs()
        self.in_pass = [row for row, _ in runs]
        layout, positions = lay_out(runs, self._backbone.device, self._prefixes)
        last = _last_tokens(runs)
        keep = torch.tensor(list(last.values()) or [0], device=self._backbone.device)  # a model wants at least one
        inputs = self._inputs(runs)
        with activate(StepAttention(layout)):
            seen = torch.ones_like(positions)  # spares the model a warning about padding; no mask is made from it
            out = self._backbone.model(
                **inputs, attention_mask=seen, position_ids=positions, logits_to_keep=keep, use_cache=False
            )
        for row, count in runs:
            self._advance(row, count)
        return list(last), out.logits[0, : len(last)]

    def _choose_runs(self) -> list[tuple[LiveRow, int]]:
        """Return rows with the number of tokens each reads: decoding ones first, by shelf and place."""
        decoding = [row for row in self.rows if not row.is_reading]
        decoding.sort(key=lambda row: (row.place.shelf.length, row.place.index))
        runs = [(row, 1) for row in decoding]
        left = max(self._capacity.step_tokens - len(runs), 1)
        for row in self.rows:
            if row.is_reading and left:
                count = row.next_run(left)
                runs.append((row, count))
                left -= count
        return runs

    def _inputs(self, runs: list[tuple[LiveRow, int]]) -> dict[str, Tensor]:
        """Return [1, N] ids, or [1, N, E] embeddings where a run has soft tokens."""
        ids = [token for row, count in runs for token in _tokens(row, count)]
        tokens = torch.tensor([ids], device=self._backbone.device)
        if INLINE not in ids:
            return {"input_ids": tokens}
        soft = [vector for row, count in runs for vector in _soft(row, count)]
        embeds = self._backbone.embed(tokens.clamp(min=0))
        return {"inputs_embeds": embeds.masked_scatter((tokens < 0)[..., None], torch.stack(soft).to(embeds))}

    def _advance(self, row: LiveRow, count: int) -> None:
        before, row.cached = row.cached, row.cached + count
        if before < row.infix_end == row.cached:
            _add_infix(row)


def check_start(row: LiveRow) -> None:
    """Raise where the model would have nothing to read.

    Raises:
        RequestError: the prompt is empty.
    """
    if not row.ids:
        raise RequestError("prompt has no token to start from; give it at least one", "prompt")


def lay_out(
    runs: list[tuple[LiveRow, int]], device: torch.device, shelves: Iterable[SideBySide] = ()
) -> tuple[StepLayout, Tensor]:
    """Return where everything lies, and [1, N] absolute positions.

    Args:
        runs: rows and how many tokens each takes; those with one token that decode come first, by shelf and place.
        device: where the model lives.
        shelves: where prefixes stand side by side.
    """
    starts, total = [], 0
    for _, count in runs:
        starts.append(total)
        total += count
    at = [row.cached + i for row, count in runs for i in range(count)]
    owner = [number for number, (_, count) in enumerate(runs) for _ in range(count)]
    positions = [place + runs[number][0].prefix_len for place, number in zip(at, owner, strict=True)]
    decoding, reading = [], []
    for shelf in dict.fromkeys(row.place.shelf for row, _ in runs):
        here = [n for n, (row, _) in enumerate(runs) if row.place.shelf is shelf and not row.is_reading]
        if here:
            decoding.append(_decoding(shelf, [runs[n][0] for n in here], here[0], device))  # their tokens: side by side
    for (row, count), start in zip(runs, starts, strict=True):
        if row.is_reading:
            reading.append(Reading(row.place.shelf, row.place.index, start, count, row.cached))
    writing = _writing([row for row, _ in runs], owner, at, device)
    sharing = gather(_tokens_of_prefixes([row for row, _ in runs], owner), positions, shelves, device)
    return StepLayout(writing, decoding, reading, sharing), torch.tensor([positions], device=device)


def _decoding(shelf: Shelf, rows: list[LiveRow], first: int, device: torch.device) -> Decoding:
    at = [0] * len(shelf.places)
    for row in rows:
        at[row.place.index] = row.cached
    index = torch.tensor([row.place.index for row in rows], device=device)
    return Decoding(shelf, slice(first, first + len(rows)), index, torch.tensor(at, device=device), max(at) + 1)


def _writing(rows: list[LiveRow], owner: list[int], at: list[int], device: torch.device) -> list[Writing]:
    parts = []
    for shelf in dict.fromkeys(row.place.shelf for row in rows):
        tokens = [n for n, number in enumerate(owner) if rows[number].place.shelf is shelf]
        index = [rows[owner[n]].place.index for n in tokens]
        tensors = (torch.tensor(values, device=device) for values in (tokens, index, [at[n] for n in tokens]))
        parts.append(Writing(shelf, *tensors))
    return parts


def _tokens_of_prefixes(rows: list[LiveRow], owner: list[int]) -> dict[PrefixKV, list[int]]:
    """Return, by prefix, the places of its rows' tokens in the step."""
    found: dict[PrefixKV, list[int]] = {}
    for token, number in enumerate(owner):
        if (prefix := rows[number].prefix) is not None:
            found.setdefault(prefix, []).append(token)
    return found


def _tokens(row: LiveRow, count: int) -> list[int]:
    return row.ids[row.cached : row.cached + count] if row.is_reading else row.made[-1:]


def _soft(row: LiveRow, count: int) -> list[Tensor]:
    """Return the embeddings of the soft tokens that a run reads."""
    if row.inline_at < 0 or not row.is_reading:
        return []
    first, last = (min(max(n - row.inline_at, 0), len(row.prompt.inline)) for n in (row.cached, row.cached + count))
    return list(row.prompt.inline[first:last])


def _last_tokens(runs: list[tuple[LiveRow, int]]) -> dict[LiveRow, int]:
    """Return the rows that will have read all their text, with the place of their last token in the step."""
    ends, total = {}, 0
    for row, count in runs:
        total += count
        if row.cached + count >= len(row.ids):
            ends[row] = total - 1
    return ends


def _add_infix(row: LiveRow) -> None:
    """Add an infix's offsets to the keys and values of its own tokens: what comes after sees them so (section 7.3)."""
    shelf, where = row.place.shelf, slice(row.inline_at, row.infix_end)
    for site, (key, value) in row.prefix.infix.items():
        shelf.keys[site][row.place.index, :, where] += key.to(shelf.keys[site])
        shelf.values[site][row.place.index, :, where] += value.to(shelf.values[site])
