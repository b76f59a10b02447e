"""Encoder-decoder models: rows that started together decode together, each cohort a step in turn.

T5 and BART count decoder positions for the whole batch, so only rows of equal phase can share a pass. Rows that arrive
while others run make a cohort of their own and wait for nobody; a cohort shrinks as its rows end.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from foreword.backbone import Backbone
from foreword.prompts.inject import Injection, activate
from foreword.prompts.padded import pad
from foreword.serve.capacity import Capacity
from foreword.serve.rows import LiveRow
from foreword.serve.step import check_start


@dataclass(eq=False)
class _Cohort:
    """Rows of equal phase, with what their next pass needs; all of it has one entry a row, in the rows' order."""

    rows: list[LiveRow]
    injection: Injection | None
    mask: Tensor
    encoded: Any
    cache: EncoderDecoderCache

    def keep(self, rows: list[LiveRow]) -> None:
        """Go on with some of the rows."""
        index = torch.tensor([self.rows.index(row) for row in rows], device=self.mask.device)
        self.mask = self.mask[index]
        self.encoded = type(self.encoded)(last_hidden_state=self.encoded.last_hidden_state[index])
        if self.injection is not None:
            self.injection = dataclasses.replace(self.injection, slots=self.injection.slots[index])
        self.cache.batch_select_indices(index)
        self.rows = rows


class SequenceRunner:
    """Batches of equal phase for encoder-decoder models."""

    def __init__(self, backbone: Backbone, capacity: Capacity) -> None:
        self._backbone, self._capacity = backbone, capacity
        width = sum(shape.width for shape in backbone.geometry.sites.values())
        self._position_bytes = width * torch.empty(0, dtype=backbone.dtype).element_size()
        self._cohorts: list[_Cohort] = []
        self.rows: list[LiveRow] = []
        self.in_pass: list[LiveRow] = []
        start = backbone.model.generation_config.decoder_start_token_id
        start = backbone.model.config.decoder_start_token_id if start is None else start
        self._start_id = backbone.model.config.pad_token_id if start is None else start

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of all rows, as reserved."""
        return sum(len(row.ids) + row.limit for row in self.rows) * self._position_bytes

    @property
    def prefix_bytes(self) -> int:
        """0: these rows' prefixes are read from where the pool has them."""
        return 0

    def can_ever_hold(self, total_len: int) -> bool:
        """Whether a row of this length fits when nothing else runs."""
        return total_len * self._position_bytes <= self._capacity.cache_bytes

    def add(self, row: LiveRow) -> bool:
        """Start a row whose foreword is there; False while there is no room."""
        row.place_soft_tokens(self._backbone)
        check_start(row)
        needed = (len(row.ids) + row.limit) * self._position_bytes
        if len(self.rows) >= self._capacity.rows or self.cache_bytes + needed > self._capacity.cache_bytes:
            return False
        self.rows.append(row)
        return True

    def drop(self, row: LiveRow) -> None:
        """End a row; its cohort leaves it out from the next step on, and goes at once where no row is left at all."""
        self.rows.remove(row)
        self.in_pass = [other for other in self.in_pass if other is not row]  # nor may its ticket stay
        if not self.rows:
            self._cohorts.clear()

    @torch.inference_mode()
    def step(self) -> tuple[list[LiveRow], Tensor]:
        """Run one pass of one cohort, newcomers first; return its rows and their logits [M, V]."""
        started = {row for cohort in self._cohorts for row in cohort.rows}
        new = [row for row in self.rows if row not in started]
        self.in_pass = new
        if new:
            self._cohorts.append(self._encode(new))
        cohort = self._next()
        self.in_pass = cohort.rows
        last = [row.made[-1] if row.made else self._start_id for row in cohort.rows]
        with activate(cohort.injection):
            out = self._backbone.model(
                encoder_outputs=cohort.encoded,
                attention_mask=cohort.mask,
                decoder_input_ids=torch.tensor(last, device=self._backbone.device)[:, None],
                past_key_values=cohort.cache,
                use_cache=True,
            )
        for row in cohort.rows:
            row.cached = len(row.ids) + len(row.made)
        return cohort.rows, out.logits[:, -1]

    def _encode(self, rows: list[LiveRow]) -> _Cohort:
        batch = pad(self._backbone, [row.as_row() for row in rows], [row.prompt for row in rows])
        with activate(batch.injection):
            encoded = self._backbone.model.get_encoder()(**batch.inputs)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return _Cohort(rows, batch.injection, batch.inputs["attention_mask"], encoded, cache)

    def _next(self) -> _Cohort:
        """Return the cohort whose turn it is, less the rows that have ended; a new one is the last and goes at once."""
        running = set(self.rows)
        for cohort in list(self._cohorts):
            left = [row for row in cohort.rows if row in running]
            if not left:
                self._cohorts.remove(cohort)
            elif len(left) < len(cohort.rows):
                self.in_pass = left
                cohort.keep(left)
        cohort = next((c for c in self._cohorts if not c.rows[0].made), self._cohorts[0])
        self._cohorts.remove(cohort)
        self._cohorts.append(cohort)
        return cohort
