"""An engine that answers by rule and at a set pace, so that what HTTP does with time can be tested exactly."""

import hashlib
import threading
import time

from foreword.backbone import Backbone
from foreword.serve.capacity import Capacity
from foreword.serve.engine import EngineStats
from foreword.serve.pool import ForewordInfo, PoolStats
from foreword.serve.request import (
    EngineStopped,
    Piece,
    QueueFull,
    Request,
    RequestError,
    Ticket,
    TokenLogprob,
    UnknownForeword,
)


class FakeEngine:
    """Answers with letters that depend on the foreword, the prompt and the answer's number, one every `token_sec`."""

    def __init__(self, backbone: Backbone, pool=None, capacity: Capacity | None = None, token_sec: float = 0.0) -> None:
        self.backbone, self.pool, self.capacity, self.token_sec = backbone, pool, capacity or Capacity(), token_sec
        self.state = "running"
        self.live: dict[int, Ticket] = {}
        self.cancelled: set[int] = set()
        self.finished: dict[str, int] = {}
        self.made = 0
        self.full = False
        self.fail: str | None = None
        self._numbers = 0
        self._lock = threading.Lock()

    def start(self) -> "FakeEngine":
        return self

    def stop(self) -> None:
        self.state = "stopped"
        self.cancelled |= set(self.live)

    def submit(self, request: Request) -> Ticket:
        if self.state != "running":
            raise EngineStopped("stopped")
        if self.full:
            raise QueueFull("the queue is full: 5 rows wait", 2.5)
        if request.max_tokens is not None and request.max_tokens > self.capacity.new_tokens:
            raise RequestError(f"max_tokens = {request.max_tokens} is over {self.capacity.new_tokens}", "max_tokens")
        ids = request.prompt if isinstance(request.prompt, tuple) else self.backbone.tokenizer(request.prompt).input_ids
        with self._lock:
            self._numbers += 1
            ticket = Ticket(self._numbers, request, len(ids))
            self.live[ticket.id] = ticket
        threading.Thread(target=self._answer, args=(ticket,), daemon=True).start()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        self.cancelled.add(ticket.id)

    def stats(self) -> EngineStats:
        rows: dict[str, int] = {}
        for ticket in list(self.live.values()):
            name = ticket.request.foreword or ""
            rows[name] = rows.get(name, 0) + ticket.request.n
        return EngineStats(
            self.state, running_rows=sum(rows.values()), made_tokens=self.made, finished=dict(self.finished),
            rows_by_foreword=rows,
        )

    def _answer(self, ticket: Ticket) -> None:
        request = ticket.request
        for step in range(request.max_tokens or 8):
            time.sleep(self.token_sec)
            late = ticket.deadline_at_sec is not None and time.monotonic() > ticket.deadline_at_sec
            why = "cancelled" if ticket.id in self.cancelled else "deadline" if late else self.fail and "error"
            if why:
                return self._end(ticket, why)
            for index in range(request.n):
                token = self._token(request, index, step)
                end = "length" if step + 1 == (request.max_tokens or 8) else None
                told = () if request.logprobs is None else (TokenLogprob(token, -0.5, ((token, -0.5), (9, -1.0))),)
                self.made += 1
                self._put(ticket, Piece(index, (token,), self.backbone.tokenizer.decode([token]), told, end))
        return None

    def _end(self, ticket: Ticket, why: str) -> None:
        for index in range(ticket.request.n):
            self._put(ticket, Piece(index, finish_reason=why, error=self.fail))

    def _put(self, ticket: Ticket, piece: Piece) -> None:
        if piece.finish_reason:
            self.finished[piece.finish_reason] = self.finished.get(piece.finish_reason, 0) + 1
            if sum(self.finished.values()) and piece.index == ticket.request.n - 1:
                self.live.pop(ticket.id, None)
        ticket.put(piece)

    def _token(self, request: Request, index: int, step: int) -> int:
        seed = f"{request.foreword}|{request.prompt}|{index}|{step}".encode()
        return 36 + hashlib.sha256(seed).digest()[0] % 50


class FakePool:
    """Names and nothing else: what the catalog and the watch do to a pool can be read off it."""

    def __init__(self) -> None:
        self.sources: dict[str, object] = {}

    def register(self, name, source, *, pinned=False, check=True) -> None:
        self.sources[name] = source

    def unregister(self, name) -> None:
        if self.sources.pop(name, None) is None:
            raise UnknownForeword(f"no {name}")

    def info(self, name) -> ForewordInfo:
        if name not in self.sources:
            raise UnknownForeword(f"no {name}")
        return ForewordInfo(name, "0" * 64, "prefix", 3, 1000, None, "resident", False, 0)

    def stats(self) -> PoolStats:
        return PoolStats(len(self.sources), len(self.sources), 0, 1 << 30, 0, 0, 0, 0, 0, 0.0)

    def close(self) -> None:
        pass
