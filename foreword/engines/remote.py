"""An engine that computes nothing itself: it has the interface of `serve.engine.Engine`, and vLLM servers do the work.

The life of a row: `submit` checks it as the local engine does and queues it → when it is its turn, its foreword is
found on the shelf, or loaded, compiled and written there by other threads → placeholders and token ids go to the
prefix's home among the servers → its stream comes back as pieces on the ticket. Fairness, limits, deadlines and
cancelling are the gateway's own; batching and the cache are vLLM's.
"""

import asyncio
import contextlib
import itertools
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from foreword.backbone import Backbone
from foreword.engines.prefix_shelf import PrefixShelf
from foreword.engines.remote_row import RemoteRow, Writer
from foreword.engines.upstreams import Upstreams
from foreword.engines.vllm_wire import Chunk, UpstreamsDown
from foreword.errors import BackboneError, PromptError
from foreword.serve.capacity import Capacity
from foreword.serve.check import check_request, new_token_limit
from foreword.serve.ledger import EngineStats, Ledger
from foreword.serve.pool import ForewordInfo, Lease, Pool
from foreword.serve.request import EngineStopped, FinishReason, Piece, QueueFull, Request, RequestError, Ticket
from foreword.serve.rows import fault_text
from foreword.serve.scheduler import Scheduler, Verdict
from foreword.serve.words import Words

LOOK_AGAIN_SEC = 0.05
"""How often the queue is looked at while something waits for its foreword, for room or for its deadline."""
LARGEST_SEED = 1 << 62
SEEDS = 1 << 63
"""vLLM's seeds are int64, and to it -1 means none: ours count on from 0 after the largest."""


class RemoteEngine:
    """Serves requests over vLLM servers; safe to call from any thread.

    Attributes:
        backbone: the model that the servers run; here it makes token ids and compiles prompts, no answers.
        pool: its forewords by name.
        capacity: limits; `rows` is for each server.
    """

    def __init__(
        self, backbone: Backbone, pool: Pool, shelf: PrefixShelf, upstreams: Upstreams,
        capacity: Capacity | None = None, scope_of: Callable[[str], str] = lambda tenant: "",
    ) -> None:
        """Make an engine that does not run yet.

        Args:
            backbone: what the servers run.
            pool: forewords by name.
            shelf: where their prefix files go.
            upstreams: the servers.
            capacity: limits.
            scope_of: what keeps a tenant's cached blocks apart from others'.

        Raises:
            BackboneError: an encoder-decoder, or a model that prefixes cannot enter.
        """
        if backbone.is_encoder_decoder or not backbone.geometry.sites:
            name = type(backbone.model).__name__
            raise BackboneError(f"{name} is not served through vLLM: prefixes are for decoders; use `foreword serve`")
        self.backbone, self.pool, self.capacity = backbone, pool, capacity or Capacity()
        self._shelf, self._upstreams, self._scope_of = shelf, upstreams, scope_of
        self._words = Words(backbone)
        self._writer = Writer(backbone.tokenizer, self._words.ending)
        self._queue: Scheduler[RemoteRow] = Scheduler()
        self._running: dict[RemoteRow, asyncio.Task[None]] = {}
        self._rows_of: dict[Ticket, set[RemoteRow]] = {}
        self._writing: set[str] = set()
        self._ledger, self._numbers = Ledger(), itertools.count(1)
        self._state, self._lock = "new", threading.RLock()
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="foreword-shelf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell = asyncio.Event()
        self._thread: threading.Thread | None = None
        pool.on_change(self._nudge)

    def start(self) -> "RemoteEngine":
        """Start the engine's thread and return the engine once it takes requests.

        Raises:
            EngineStopped: it was stopped before, or its thread ended as it began.
        """
        if self._state != "new":
            raise EngineStopped(f"the engine is {self._state}; make a new one")
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(ready)), name="foreword-remote", daemon=True
        )
        self._thread.start()
        ready.wait()
        if self._state != "running":
            raise EngineStopped(f"the engine is {self._state}: it could not start; the reason is on stderr")
        return self

    def stop(self) -> None:
        """Stop the thread; rows that have not ended get reason "cancelled", here and on the servers."""
        with self._lock:
            self._state = "stopped"
        self._nudge()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            for row in [row for rows in self._rows_of.values() for row in rows]:
                self._end(row, "cancelled")
        self._writers.shutdown(wait=True, cancel_futures=True)

    def submit(self, request: Request) -> Ticket:
        """Queue a request and return its ticket at once.

        Raises:
            RequestError: it can never be served (bad value, too long); `UnknownForeword` for a name not in the pool.
            QueueFull: no place in the queue; it says when to come back.
            EngineStopped: not running.
        """
        info = None if request.foreword is None else self.pool.info(request.foreword)
        check_request(request, self.capacity, self.backbone)
        _check_kind(info, self._shelf)
        text_format = info.text_format if info else None
        source, _ = self._words.source(request.prompt, text_format)
        if not source:
            raise RequestError("prompt has no token to start from; give it at least one", "prompt")
        limit = new_token_limit(request, len(source), info, self.backbone, self.capacity)
        ticket = Ticket(next(self._numbers), request, len(source))
        seed = request.sampling.seed
        seed = secrets.randbelow(LARGEST_SEED) if seed is None else seed
        seeds = [(seed + index) % SEEDS for index in range(request.n)]
        rows = [RemoteRow(ticket, at, source, limit, chosen, text_format) for at, chosen in enumerate(seeds)]
        self._enqueue(ticket, rows)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End what has not ended of a ticket with reason "cancelled"; harmless afterwards."""
        with self._lock:
            for row in list(self._rows_of.get(ticket, ())):
                task = self._running.get(row)
                if task is None:
                    self._end(row, "cancelled")
                else:
                    self._loop.call_soon_threadsafe(task.cancel)

    def stats(self) -> EngineStats:
        """Return the engine's figures now."""
        with self._lock:
            names = [row.request.foreword or "" for row in self._running]
            return self._ledger.stats(
                state=self._state, running_rows=len(names), queued_rows=len(self._queue),
                queued_tokens=self._queue.tokens, rows_by_foreword={name: names.count(name) for name in set(names)},
            )

    def _enqueue(self, ticket: Ticket, rows: list[RemoteRow]) -> None:
        request = ticket.request
        with self._lock:
            if self._state != "running":
                raise EngineStopped(f"the engine is {self._state}; it takes no more requests")
            self._check_room(request)
            self._rows_of[ticket] = set(rows)
            for row in rows:
                self._queue.push(row, row.cost, request.tenant, request.foreword or "", request.priority)
        self._nudge()

    def _check_room(self, request: Request) -> None:
        waiting, mine, limits = len(self._queue), self._queue.rows_of(request.tenant), self.capacity
        full = waiting + request.n > limits.queued
        if not full and mine + request.n <= limits.queued_per_tenant:
            return
        self._ledger.refused += 1
        wait = self._ledger.retry_after_sec(self._queue.tokens)
        found, most = (f"{waiting} rows", limits.queued) if full else (f"{mine} of your rows", limits.queued_per_tenant)
        raise QueueFull(f"{found} wait, at most {most} may; come back in {wait:.0f} s", wait, tenant_only=not full)

    async def _main(self, ready: threading.Event) -> None:
        """The engine's thread. Whatever ends it, nobody waits for an answer that cannot come."""
        try:
            await self._work(ready)
        except BaseException as error:
            with self._lock:
                self._state = "stopped"  # as `/health` then tells
                for row in [row for rows in self._rows_of.values() for row in rows]:
                    self._end(row, "error", f"the engine failed: {fault_text(error)}")
            raise
        finally:
            ready.set()

    async def _work(self, ready: threading.Event) -> None:
        """Look at the queue whenever something has changed, until stopped."""
        async with self._upstreams:
            self._loop = asyncio.get_running_loop()
            with self._lock:
                self._state = "running"
            ready.set()
            while self._state == "running":
                self._bell.clear()
                waiting = self._pump()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._bell.wait(), LOOK_AGAIN_SEC if waiting else None)
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)  # their last callbacks

    def _nudge(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nothing is left to do
                self._loop.call_soon_threadsafe(self._bell.set)

    def _pump(self) -> bool:
        """Start what may start, end what has waited too long, and return whether anything still waits."""
        with self._lock:
            for row in self._queue:
                if row.ticket.deadline_at_sec is not None and row.ticket.deadline_at_sec <= self._loop.time():
                    self._end(row, "deadline")
            self._queue.start(self._offer)
            return len(self._queue) > 0

    def _offer(self, row: RemoteRow) -> Verdict:
        if len(self._running) >= self.capacity.rows * len(self._upstreams.servers):
            return Verdict.FULL
        try:
            if row.request.foreword is not None and not self._find_prefix(row):
                return Verdict.LATER
        except Exception as error:  # a disk's fault, or the text's: the others go on
            self._end(row, "error", fault_text(error))
            return Verdict.REMOVED
        task = self._loop.create_task(self._answer(row))
        self._running[row] = task
        task.add_done_callback(lambda _: self._done(row))
        return Verdict.STARTED

    def _find_prefix(self, row: RemoteRow) -> bool:
        """Give a row its foreword's present version; False while that is not on the shelf yet."""
        name = row.request.foreword
        info = self.pool.info(name)
        file = self._shelf.find(info.version)
        if file is None:
            self._fetch(name)
            return False
        if info.text_format != row.text_format:  # swapped while the row waited, for one with another text format
            row.source, _ = self._words.source(row.request.prompt, info.text_format)
            row.text_format = info.text_format
        row.limit = min(row.limit, new_token_limit(row.request, len(row.source), info, self.backbone, self.capacity))
        row.prefix = file
        row.ticket.version, row.ticket.virtual_tokens = info.version, info.length
        return True

    def _fetch(self, name: str) -> None:
        """Have a foreword loaded, and once it is there, written to the shelf."""
        if name in self._writing:
            return
        lease = self.pool.acquire(name)
        if lease is not None:
            self._writing.add(name)
            self._writers.submit(self._write, name, lease)

    def _write(self, name: str, lease: Lease) -> None:
        fault = None
        try:
            self._shelf.write(lease)
        except Exception as error:  # a full disk ends the rows that wait for this foreword, nothing else
            fault = error
        finally:
            self.pool.release(lease)
        with self._lock:
            self._writing.discard(name)
            waiting = [row for row in self._queue if row.request.foreword == name] if fault else []
            for row in waiting:
                self._end(row, "error", f"the prefix file cannot be written: {fault_text(fault)}")
        self._nudge()

    async def _answer(self, row: RemoteRow) -> None:
        """Have one row answered, and hand its pieces out as they come."""
        try:
            body = row.body(self.backbone.tokenizer.bos_token_id, self._scope_of(row.request.tenant))
            async with asyncio.timeout_at(row.ticket.deadline_at_sec):
                async with contextlib.aclosing(self._upstreams.stream(row.key, body)) as chunks:
                    async for chunk in chunks:
                        if self._hand_out(row, chunk):
                            return
            self._end(row, "error", "the vLLM server ended the answer without a reason; try again")
        except TimeoutError:
            self._end(row, "deadline")
        except UpstreamsDown as error:
            self._end(row, "error", str(error), error.retry_after_sec)
        except Exception as error:  # whatever a server sends must not take the other rows along
            self._end(row, "error", fault_text(error))

    def _hand_out(self, row: RemoteRow, chunk: Chunk) -> bool:
        """Put a chunk's pieces on the ticket and return whether the row has ended."""
        new = len(chunk.tokens) + (0 if row.made else len(row.source))
        for piece in self._writer.pieces(row, chunk):
            if piece.finish_reason is not None:
                self._leave(row, piece.finish_reason)
            row.ticket.put(piece)
        with self._lock:
            self._ledger.count_step(len(chunk.tokens), new, 0.0, len(self._running))
            return row not in self._rows_of.get(row.ticket, ())

    def _done(self, row: RemoteRow) -> None:
        """Take a row's task off; one that was cancelled, perhaps before it began, ends here."""
        with self._lock:
            self._running.pop(row, None)
            self._end(row, "cancelled")
        self._bell.set()

    def _end(
        self, row: RemoteRow, reason: FinishReason, error: str | None = None, retry_after_sec: float | None = None
    ) -> None:
        """End a row that has not ended of itself; harmless on one that has."""
        if self._leave(row, reason):
            text = ""
            with contextlib.suppress(Exception):  # a fault in a row's text must not keep its end from the client
                text = row.text.finish() if row.text is not None else ""
            row.ticket.put(Piece(row.index, (), text, (), reason, None, error, retry_after_sec))

    def _leave(self, row: RemoteRow, reason: FinishReason) -> bool:
        """Take a row out of the queue and off its ticket; False if that was done before."""
        with self._lock:
            mine = self._rows_of.get(row.ticket, set())
            if row not in mine:
                return False
            self._queue.remove(row)
            mine.discard(row)
            if not mine:
                del self._rows_of[row.ticket]
            self._ledger.finished[reason] = self._ledger.finished.get(reason, 0) + 1
            return True


def _check_kind(info: ForewordInfo | None, shelf: PrefixShelf) -> None:
    """Refuse at once what is known never to be served.

    Raises:
        RequestError: the foreword stands inside the text, or was found not to fit vLLM.
    """
    if info is None:
        return
    if info.kind == "infix":
        text = "model is an infix, which stands inside the text; vLLM serves leading prompts only"
        raise RequestError(text, "foreword")
    try:
        shelf.find(info.version)
    except PromptError as error:
        raise RequestError(f"model: {error}", "foreword") from None
