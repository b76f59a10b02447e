"""One running row: a request's text, its foreword, what it has made so far, and how far the cache has got."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from foreword.backbone import Backbone
from foreword.errors import ForewordError
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import INLINE, Row, place_inline
from foreword.prompts.soft_prompt import Realised
from foreword.serve.request import Request, Ticket

if TYPE_CHECKING:
    from foreword.serve.cache import Place
    from foreword.serve.pool import Lease
    from foreword.serve.sampling import Sampler
    from foreword.serve.text import TextStream


@dataclass(eq=False)
class LiveRow:
    """One of a request's n answers while it is made.

    Attributes:
        ticket: whose it is; `index` which of its answers.
        source: token ids before the answer, without soft tokens; `tail` of them come after a suffix or infix.
        limit: most new tokens.
        sampler, text: how its tokens are chosen, and its text so far (None before its first token).
        text_format: that its text was put into.
        lease: of the foreword's version, None for the plain backbone.
        ids: what the model reads: the source with `INLINE` where soft tokens stand (filled by `place`).
        inline_at: index of the first soft token in `ids`, -1 for none.
        cached: how many of `ids` and then `made` have keys and values in the cache.
        made: new token ids.
        place: in the cache.
        cost: tokens that the row may take in all; what its turn in the queue is charged.
    """

    ticket: Ticket
    index: int
    source: tuple[int, ...]
    tail: int
    limit: int
    sampler: "Sampler"
    text: "TextStream | None" = None
    text_format: str | None = None
    lease: "Lease | None" = None
    ids: list[int] = field(default_factory=list)
    inline_at: int = -1
    cached: int = 0
    made: list[int] = field(default_factory=list)
    place: "Place | None" = None

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.ticket.request

    @property
    def cost(self) -> int:
        """Tokens that the row may take: its text and its longest answer."""
        return len(self.source) + self.limit

    @property
    def prompt(self) -> Realised | None:
        """The foreword as the model takes it."""
        return None if self.lease is None else self.lease.prompt

    @property
    def prefix(self) -> PrefixKV | None:
        """The foreword's keys and values, if it has any."""
        return None if self.prompt is None else self.prompt.prefix

    @property
    def prefix_len(self) -> int:
        """Positions that the foreword takes before the text."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def is_reading(self) -> bool:
        """Whether some of `ids` is not in the cache yet."""
        return self.cached < len(self.ids)

    def place_soft_tokens(self, backbone: Backbone) -> None:
        """Fill `ids`, now that the foreword is there."""
        bos = backbone.tokenizer.bos_token_id
        self.ids, self.inline_at = place_inline(self.source, self.prompt, bos, self.tail)

    def next_run(self, most: int) -> int:
        """Return how many of `ids` to read next.

        A run ends where an infix ends: its offsets go onto its keys and values before anything after it reads them.
        """
        left = len(self.ids) - self.cached
        infix_end = self.infix_end
        if self.cached < infix_end:
            left = min(left, infix_end - self.cached)
        return min(left, most)

    @property
    def infix_end(self) -> int:
        """Index in `ids` after the infix, 0 without one."""
        if self.prompt is None or self.prompt.where != "infix":
            return 0
        return self.inline_at + self.prompt.inline.shape[0]

    def as_row(self) -> Row:
        """Return the row in offline generation's form."""
        return Row(self.source, tail=self.tail)


def fault_text(error: BaseException) -> str:
    """Return what is told of a fault that ends a row: our own messages as they are, others with their kind.

    Of a disk's faults the path is left out: clients are told nothing of this machine.
    """
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(told.split())
    return text if isinstance(error, ForewordError) else f"{type(error).__name__}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; PyTorch's allocator for CPUs says so in a plain RuntimeError's text alone."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


__all__ = ["INLINE", "LiveRow", "fault_text", "is_out_of_memory"]
