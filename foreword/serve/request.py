"""A request, the pieces of its answer, and the ticket that a caller holds meanwhile."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from foreword.errors import ForewordError

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
"""Why a row ended: EOS or a stop string; its token limit or the model's last position; `Engine.cancel`; its deadline
passed; the request could not be served (`Piece.error` says why)."""


class RequestError(ForewordError):
    """A request asks for something that can never be served; the message names the field, the value and the fix.

    Attributes:
        field: of `Request` that is wrong, as `prompt` or `sampling.top_p`; None if it is not one field.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownForeword(RequestError):
    """The pool knows no foreword of that name."""


class QueueFull(ForewordError):
    """The queue has no place for the request now.

    Attributes:
        retry_after_sec: about when it will have, from the tokens that wait and the rate at which they are worked off.
        tenant_only: whether only the tenant's own share of the queue is full.
    """

    def __init__(self, message: str, retry_after_sec: float, tenant_only: bool = False) -> None:
        super().__init__(message)
        self.retry_after_sec, self.tenant_only = retry_after_sec, tenant_only


class EngineStopped(ForewordError):
    """The engine is draining or has stopped; it takes no more requests."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults are greedy. Order: penalties and biases, temperature, top-k, top-p, min-p.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: keep this many tokens; 0 keeps all.
        top_p: keep the most likely tokens that together have this probability; 1 keeps all.
        min_p: drop tokens with less than this share of the most likely one's probability.
        seed: of this request's own generator; None draws one. Answer i of n uses `seed + i`.
        presence_penalty: subtracted from the logit of every token that the answer already has.
        frequency_penalty: subtracted once for each time that the answer has it.
        repetition_penalty: Keskar et al.'s (2019), over text and answer; 1 is none.
        logit_bias: added to the logits of these token ids.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before a token is taken from them."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias)


@dataclass(frozen=True)
class Request:
    """What a caller wants.

    Attributes:
        prompt: text, put into the foreword's own text format and tokenised as in training; or token ids, as they are.
        foreword: name in the pool, or None for the plain backbone.
        max_tokens: most new tokens; None for as many as the positions (and the engine) allow.
        sampling: how tokens are chosen.
        stop: the answer ends before the first of these strings, which is not part of it.
        n: answers to the same prompt, each a row of its own.
        logprobs: tell each token's log probability and those of this many alternatives; None tells none. They are
            the model's own, before temperature and penalties.
        ignore_eos: go on after EOS (for benchmarks).
        min_tokens: EOS and stop strings do not count before this many tokens.
        tenant: whose turn in the queue it takes.
        priority: among the waiting requests of one tenant and foreword, larger goes first.
        deadline_sec: from submission; what is not finished then ends with reason "deadline". None waits for ever.
    """

    prompt: str | tuple[int, ...]
    foreword: str | None = None
    max_tokens: int | None = 16
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    tenant: str = ""
    priority: int = 0
    deadline_sec: float | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log probability, and the likeliest alternatives with theirs, most likely first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of one answer. The texts of an answer's pieces add up to its whole text (law 13).

    Attributes:
        index: which of the n answers.
        token_ids: what is new, EOS included. Text may lag behind: half a character, or what may become a stop
            string, is held back.
        text: what is new and certain.
        logprobs: one a token in `token_ids`, if they were asked for.
        finish_reason: set on the answer's last piece, and only there.
        stop: the stop string that ended it, if one did.
        error: for finish reason "error", the message.
        retry_after_sec: for finish reason "error", when the same request may succeed; None if asking again is no cure.
    """

    index: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None
    error: str | None = None
    retry_after_sec: float | None = None


@dataclass(frozen=True)
class Answer:
    """One whole answer: the sum of its pieces."""

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    stop: str | None = None
    error: str | None = None
    retry_after_sec: float | None = None


@dataclass(frozen=True)
class TokenUse:
    """Tokens of a request: of its text, made so far over all n answers, and virtual ones of its foreword."""

    prompt: int
    completion: int
    virtual: int


class Ticket:
    """A request in the engine's hands. Any number of threads and tasks may read it, each from the first piece on.

    Attributes:
        id: a number of its own in this process.
        request: as submitted.
        created_sec, first_token_sec, finished_sec: on `time.monotonic`'s clock; None until it is so.
        version: content digest of the foreword that serves it, once it runs; None for the plain backbone.
        virtual_tokens: of that foreword.
        prompt_tokens: of the request's text.
    """

    def __init__(self, number: int, request: Request, prompt_tokens: int) -> None:
        self.id, self.request, self.prompt_tokens = number, request, prompt_tokens
        self.created_sec = time.monotonic()
        self.first_token_sec: float | None = None
        self.finished_sec: float | None = None
        self.version: str | None = None
        self.virtual_tokens = 0
        self._pieces: list[Piece] = []
        self._open = request.n
        self._made = 0
        self._listeners: list[Callable[[Piece], None]] = []
        self._changed = threading.Condition()

    @property
    def deadline_at_sec(self) -> float | None:
        """When the request must be done, on `time.monotonic`'s clock; None for no limit."""
        seconds = self.request.deadline_sec
        return None if seconds is None else self.created_sec + seconds

    @property
    def done(self) -> bool:
        """Whether all n answers have ended."""
        return self._open == 0

    @property
    def open_rows(self) -> int:
        """How many of the n answers have not ended."""
        return self._open

    @property
    def usage(self) -> TokenUse:
        """Token counts so far."""
        return TokenUse(self.prompt_tokens, self._made, self.virtual_tokens)

    def __iter__(self) -> Iterator[Piece]:
        """Yield pieces as they come, in this thread, until all n answers have ended."""
        for at in itertools.count():
            with self._changed:
                self._changed.wait_for(lambda at=at: len(self._pieces) > at or self.done)
                if at >= len(self._pieces):
                    return
                piece = self._pieces[at]
            yield piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield pieces as they come, in the running event loop, until all n answers have ended."""
        loop, queue, still = asyncio.get_running_loop(), asyncio.Queue[Piece](), self.request.n

        def hand_over(piece: Piece) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, piece)

        self.listen(hand_over)
        try:
            while still:
                piece = await queue.get()
                still -= piece.finish_reason is not None
                yield piece
        finally:
            self.unlisten(hand_over)

    def listen(self, listener: Callable[[Piece], None]) -> None:
        """Have `listener` called with every piece: those that are there at once, later ones in the engine's thread.

        It must return quickly, as all rows wait for it meanwhile. What it raises over a piece that is there reaches the
        caller; over a later one it ends the listening.
        """
        with self._changed:
            for piece in self._pieces:
                listener(piece)
            self._listeners.append(listener)

    def unlisten(self, listener: Callable[[Piece], None]) -> None:
        """Stop calling `listener`."""
        with self._changed:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def result(self, timeout_sec: float | None = None) -> list[Answer]:
        """Return the n answers, in order, once all have ended.

        Raises:
            TimeoutError: they have not within `timeout_sec`; the request goes on.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout_sec):
                raise TimeoutError(f"request {self.id} has not ended within {timeout_sec} s")
            pieces = list(self._pieces)
        return [add_up(index, pieces) for index in range(self.request.n)]

    def put(self, piece: Piece) -> None:
        """Append a piece (the engine does this)."""
        now = time.monotonic()
        with self._changed:
            self._pieces.append(piece)
            self._made += len(piece.token_ids)
            if piece.token_ids and self.first_token_sec is None:
                self.first_token_sec = now
            if piece.finish_reason is not None:
                self._open -= 1
                self.finished_sec = now if self.done else None
            for listener in list(self._listeners):
                try:
                    listener(piece)
                except Exception:  # whoever listened is gone; the engine's thread must not go with him
                    self._listeners.remove(listener)
            self._changed.notify_all()


def add_up(index: int, pieces: list[Piece]) -> Answer:
    """Return one answer from all pieces of a ticket."""
    mine = [piece for piece in pieces if piece.index == index]
    last = mine[-1]
    return Answer(
        index,
        tuple(token for piece in mine for token in piece.token_ids),
        "".join(piece.text for piece in mine),
        tuple(entry for piece in mine for entry in piece.logprobs),
        last.finish_reason or "error",
        last.stop,
        last.error,
        last.retry_after_sec,
    )
