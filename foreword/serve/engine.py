"""The engine: one frozen model, one thread, many requests with different forewords in every step.

The life of a request: `submit` checks it, makes its text tokens and queues one row for each of its n answers → the
scheduler offers the row when it is its turn → the pool lends it its foreword (loading it meanwhile) → the runner gives
it a place in the cache → it reads its text, then makes one token a step beside all others → each token goes through
sampler, text and stop strings into a piece on the ticket → its place and its lease go back.
"""

import contextlib
import itertools
import secrets
import threading
import time
from collections.abc import Sequence
from types import TracebackType

from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import BackboneError, ForewordError, PromptError
from foreword.serve.capacity import Capacity
from foreword.serve.check import check_request, new_token_limit
from foreword.serve.cohort import SequenceRunner
from foreword.serve.ledger import EngineStats, Ledger
from foreword.serve.pool import ForewordInfo, Pool
from foreword.serve.request import Answer, EngineStopped, FinishReason, Piece, QueueFull, Request, RequestError, Ticket
from foreword.serve.rows import LiveRow, fault_text, is_out_of_memory
from foreword.serve.sampling import Sampler, log_probabilities
from foreword.serve.scheduler import Scheduler, Verdict
from foreword.serve.step import DecoderRunner, Runner
from foreword.serve.text import TextStream
from foreword.serve.words import Words

LOOK_AGAIN_SEC = 0.05
"""How often the queue is looked at while nothing runs but something waits for its foreword or its deadline."""
LARGEST_SEED = 1 << 62
NO_TOKEN = -1


class Engine:
    """Serves requests over one backbone; safe to call from any thread.

    Attributes:
        backbone: the frozen model.
        pool: its forewords by name.
        capacity: limits.
    """

    def __init__(self, backbone: Backbone, pool: Pool | None = None, capacity: Capacity | None = None) -> None:
        """Make an engine that does not run yet; `pool` may be filled and changed at any time.

        Raises:
            BackboneError: the model does not route attention through Transformers' interface.
        """
        if not backbone.geometry.sites:
            name = type(backbone.model).__name__
            raise BackboneError(f"{name} does not route attention through Transformers' interface: it is not served")
        self.backbone, self.capacity = backbone, capacity or Capacity()
        self.pool = pool or Pool(backbone)
        self._words = Words(backbone)
        self._runner: Runner = _runner(backbone, self.capacity)
        self._queue: Scheduler[LiveRow] = Scheduler()
        self._cancelled: set[Ticket] = set()
        self._rows_of: dict[Ticket, set[LiveRow]] = {}
        self._ledger = Ledger()
        self._numbers = itertools.count(1)
        self._state = "new"
        self._thread: threading.Thread | None = None
        self._wake = threading.Condition(threading.RLock())
        self.pool.on_change(self._nudge)

    def __enter__(self) -> "Engine":
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> "Engine":
        """Start the engine's thread and return the engine; `with Engine(...) as engine:` does it and stops it."""
        with self._wake:
            if self._state == "running":
                return self
            if self._state != "new":
                raise EngineStopped(f"the engine is {self._state}; make a new one")
            self._state = "running"
            self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)
            self._thread.start()
        return self

    def submit(self, request: Request) -> Ticket:
        """Queue a request and return its ticket at once.

        Raises:
            RequestError: it can never be served (bad value, too long); `UnknownForeword` for a name not in the pool.
            QueueFull: no place in the queue; it says when to come back.
            EngineStopped: draining or stopped.
        """
        info = None if request.foreword is None else self.pool.info(request.foreword)
        check_request(request, self.capacity, self.backbone)
        source, tail = self._words.source(request.prompt, info.text_format if info else None)
        limit = new_token_limit(request, len(source), info, self.backbone, self.capacity)
        self._check_fits(len(source) + (info.length if info else 0) + limit)
        ticket = Ticket(next(self._numbers), request, len(source))
        seed = request.sampling.seed
        seed = secrets.randbelow(LARGEST_SEED) if seed is None else seed
        rows = []
        for index in range(request.n):
            sampler = Sampler(request.sampling, seed + index, request.min_tokens, self._words.ending)
            row = LiveRow(ticket, index, source, tail, limit, sampler, text_format=info.text_format if info else None)
            rows.append(row)
        self._enqueue(ticket, rows)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End what has not ended of a ticket with reason "cancelled" (at the next step); harmless afterwards."""
        with self._wake:
            if ticket in self._rows_of:
                self._cancelled.add(ticket)
                self._wake.notify_all()

    def drain(self, timeout_sec: float | None = None) -> bool:
        """Take no more requests and wait for those accepted; False where the time was not enough (they go on)."""
        with self._wake:
            if self._state == "running":
                self._state = "draining"
            self._wake.notify_all()
            return self._wake.wait_for(lambda: not self._rows_of or self._state == "stopped", timeout_sec)

    def stop(self) -> None:
        """Stop the thread; rows that have not ended get reason "cancelled"."""
        with self._wake:
            self._state = "stopped"
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._wake:
            for row in [row for rows in self._rows_of.values() for row in rows]:
                self._end(row, "cancelled")

    def stats(self) -> EngineStats:
        """Return the engine's figures now."""
        with self._wake:
            names = [row.request.foreword or "" for row in self._runner.rows]
            return self._ledger.stats(
                state=self._state,
                running_rows=len(names),
                queued_rows=len(self._queue),
                queued_tokens=self._queue.tokens,
                cache_bytes=self._runner.cache_bytes,
                cache_limit_bytes=self.capacity.cache_bytes,
                prefix_bytes=self._runner.prefix_bytes,
                rows_by_foreword={name: names.count(name) for name in dict.fromkeys(names)},
            )

    def generate(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """Return the answers of all requests, submitted as the queue has room: for batch files.

        Raises:
            RequestError: one of them can never be served; those before it are cancelled.
        """
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self._submit_patiently(request, tickets))
        except ForewordError:
            for ticket in tickets:
                self.cancel(ticket)
            raise
        return [ticket.result() for ticket in tickets]

    def _submit_patiently(self, request: Request, before: Sequence[Ticket]) -> Ticket:
        while True:
            try:
                return self.submit(request)
            except QueueFull:
                if all(ticket.done for ticket in before):
                    raise  # nothing will ever make room
                time.sleep(LOOK_AGAIN_SEC)

    def _check_fits(self, total_len: int) -> None:
        if not self._runner.can_ever_hold(total_len):
            raise RequestError(f"a row of {total_len} tokens is larger than the cache; shorten it", "max_tokens")

    def _enqueue(self, ticket: Ticket, rows: list[LiveRow]) -> None:
        request = ticket.request
        with self._wake:
            if self._state not in ("new", "running"):
                raise EngineStopped(f"the engine is {self._state}; it takes no more requests")
            self._check_room(request)
            self._rows_of[ticket] = set(rows)
            for row in rows:
                self._queue.push(row, row.cost, request.tenant, request.foreword or "", request.priority)
            self._wake.notify_all()

    def _check_room(self, request: Request) -> None:
        """Raise where the queue, or the tenant's share of it, has no place for the request's rows."""
        mine, limits = self._queue.rows_of(request.tenant), self.capacity
        full = len(self._queue) + request.n > limits.queued
        if not full and mine + request.n <= limits.queued_per_tenant:
            return
        self._ledger.refused += 1
        wait = self._ledger.retry_after_sec(self._queue.tokens)
        if full:
            text = f"{len(self._queue)} rows wait, at most {limits.queued} may; come back in {wait:.0f} s"
            raise QueueFull(text, wait)
        text = f"{mine} of your rows wait, at most {limits.queued_per_tenant} may; come back in {wait:.0f} s"
        raise QueueFull(text, wait, tenant_only=True)

    def _nudge(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _run(self) -> None:
        """The engine's thread. Whatever ends it, nobody waits for an answer that cannot come."""
        try:
            self._work()
        except BaseException as error:
            self._die(f"the engine failed: {fault_text(error)}")
            raise

    def _die(self, error: str) -> None:
        """Stop for good, as `/health` then tells, and end all rows with an error."""
        with self._wake:
            self._state = "stopped"
            for row in [row for rows in self._rows_of.values() for row in rows]:
                try:
                    self._end(row, "error", error)
                except Exception:  # what ended the thread may stand in the way here too, as a GPU that is gone does
                    row.ticket.put(Piece(row.index, finish_reason="error", error=error))
            self._rows_of.clear()
            self._wake.notify_all()

    def _work(self) -> None:
        """Admit, step, hand out, until stopped."""
        while True:
            with self._wake:
                if self._state == "stopped":
                    return
                self._end_unwanted()
                self._queue.start(self._offer)
                if not self._runner.rows:
                    self._wake.wait(LOOK_AGAIN_SEC if len(self._queue) else None)
                    continue
            self._step()

    def _end_unwanted(self) -> None:
        """End rows whose client has left or whose time is up, waiting or running."""
        for ticket in list(self._cancelled):
            for row in list(self._rows_of.get(ticket, ())):
                self._end(row, "cancelled")
        self._cancelled.clear()
        now = time.monotonic()
        late = [t for t in self._rows_of if t.deadline_at_sec is not None and t.deadline_at_sec <= now]
        for row in [row for ticket in late for row in self._rows_of[ticket]]:
            self._end(row, "deadline")

    def _offer(self, row: LiveRow) -> Verdict:
        """Start a row if its foreword is in memory and there is room."""
        if len(self._runner.rows) >= self.capacity.rows:
            return Verdict.FULL
        try:
            if row.request.foreword is not None and not self._lend(row):
                return Verdict.LATER
            if self._runner.add(row):
                return Verdict.STARTED
        except Exception as error:  # no memory for its place, a disk's fault: the others go on
            if not (is_out_of_memory(error) and self._runner.rows):  # when one of those leaves there may be room
                self._end(row, "error", fault_text(error))
                return Verdict.REMOVED
        self._give_back(row)
        return Verdict.FULL

    def _lend(self, row: LiveRow) -> bool:
        """Lease the row's foreword; False while it is not in memory."""
        lease = self.pool.acquire(row.request.foreword)
        if lease is None:
            return False
        row.lease = lease
        if lease.text_format != row.text_format:  # swapped while the row waited, for one with another text format
            row.source, row.tail = self._words.source(row.request.prompt, lease.text_format)
            row.text_format = lease.text_format
        length = row.prefix_len + (0 if lease.prompt.inline is None else len(lease.prompt.inline))
        info = ForewordInfo(row.request.foreword, lease.version, "", length, 0, None, "resident", False, 0)
        row.limit = min(row.limit, new_token_limit(row.request, len(row.source), info, self.backbone, self.capacity))
        row.ticket.version, row.ticket.virtual_tokens = lease.version, length
        return True

    def _give_back(self, row: LiveRow) -> None:
        if row.lease is not None:
            self.pool.release(row.lease)
            row.lease = None

    def _step(self) -> None:
        """Run one pass and hand out its tokens; a pass that fails ends the rows in it, and no others."""
        start = time.monotonic()
        before = sum(row.cached for row in self._runner.rows)
        try:
            rows, logits = self._runner.step()
            tokens = self._choose(rows, logits)
        except Exception as error:  # out of memory, a model's own fault: the engine goes on with the next rows
            with self._wake:
                running = list(self._runner.rows)
                for row in [row for row in self._runner.in_pass if row in running] or running:
                    self._end(row, "error", f"the step failed: {fault_text(error)}")
            return
        with self._wake:
            read = sum(row.cached for row in self._runner.rows) - before
            self._ledger.count_step(len(rows), read, time.monotonic() - start, len(self._runner.rows))
            for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                self._hand_out(row, token, logits[number])

    def _choose(self, rows: list[LiveRow], logits: Tensor) -> list[int | Exception]:
        """Return each row's next token, or why there is none; those that take the likeliest are looked at together."""
        if not rows:
            return []
        top = logits.argmax(-1)
        finite = logits.gather(-1, top[:, None])[:, 0].isfinite()  # a NaN counts as the largest
        likeliest = top.where(finite, NO_TOKEN).tolist()
        return [_choice(row, best, logits[i]) for i, (row, best) in enumerate(zip(rows, likeliest, strict=True))]

    def _hand_out(self, row: LiveRow, token: int | Exception, logits: Tensor) -> None:
        """Take a row's next token; a fault in one row's settings or text ends that row alone."""
        try:
            if isinstance(token, Exception):
                raise token
            self._accept(row, token, logits)
        except Exception as error:  # the engine's thread must outlive whatever a request brings
            self._end(row, "error", fault_text(error))

    def _accept(self, row: LiveRow, token: int, logits: Tensor) -> None:
        """Take a row's next token: into its text, into a piece, and perhaps its end."""
        request = row.request
        row.made.append(token)
        row.text = row.text or TextStream(self.backbone.tokenizer, request.stop, strip=row.text_format is not None)
        armed = len(row.made) >= request.min_tokens
        text = row.text.push(token, armed)
        told = () if request.logprobs is None else (log_probabilities(logits, token, request.logprobs),)
        ends = armed and not request.ignore_eos and token in self._words.ending
        if row.text.stop is None and not ends and len(row.made) < row.limit:
            row.ticket.put(Piece(row.index, (token,), text, told))
            return
        if row.text.stop is None:
            text += row.text.finish()
        reason: FinishReason = "stop" if ends or row.text.stop is not None else "length"
        self._leave(row)
        self._ledger.finished[reason] = self._ledger.finished.get(reason, 0) + 1
        row.ticket.put(Piece(row.index, (token,), text, told, reason, row.text.stop))

    def _end(self, row: LiveRow, reason: FinishReason, error: str | None = None) -> None:
        """End a row that has not ended of itself, waiting or running."""
        text = ""
        with contextlib.suppress(Exception):  # a fault in a row's text must not keep the row here
            text = row.text.finish() if row.text is not None else ""
        self._leave(row)
        self._ledger.finished[reason] = self._ledger.finished.get(reason, 0) + 1
        row.ticket.put(Piece(row.index, (), text, (), reason, None, error))

    def _leave(self, row: LiveRow) -> None:
        """Take a row out of the queue or the runner, give its foreword back, and wake who waits for the end."""
        if not self._queue.remove(row) and row in self._runner.rows:
            self._runner.drop(row)
        self._give_back(row)
        mine = self._rows_of[row.ticket]
        mine.discard(row)
        if not mine:
            del self._rows_of[row.ticket]
            self._wake.notify_all()


def _choice(row: LiveRow, likeliest: int, logits: Tensor) -> int | Exception:
    if likeliest == NO_TOKEN:
        whose = "the text" if row.lease is None else "the foreword, whose numbers may be too large, or the text"
        return PromptError(f"the model's scores of the next token are not finite; change {whose}")
    try:
        if row.sampler.is_plain(len(row.made)):
            return likeliest
        return row.sampler.choose(logits, row.source, row.made)
    except (RuntimeError, IndexError) as error:  # as multinomial's, where settings leave no token a chance
        return error


def _runner(backbone: Backbone, capacity: Capacity) -> Runner:
    return SequenceRunner(backbone, capacity) if backbone.is_encoder_decoder else DecoderRunner(backbone, capacity)


__all__ = ["Engine", "EngineStats"]
