"""What all routes share: the engine, the pool, the store, the keys and the limits, and how a request enters them."""

import contextlib
import fnmatch
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foreword.backbone import Backbone
from foreword.errors import ForewordError
from foreword.serve.catalog import Catalog, Entry
from foreword.serve.engine import Engine
from foreword.serve.faults import ApiError, too_busy, unknown_model
from foreword.serve.limits import Admission, Limits
from foreword.serve.metrics import Metrics
from foreword.serve.pool import ForewordInfo, Pool
from foreword.serve.request import EngineStopped, QueueFull, Request, RequestError, Ticket, UnknownForeword
from foreword.serve.settings import Wall
from foreword.serve.tenants import Keyring, Tenant

RETRY_DRAIN_SEC = 5.0


@dataclass
class Service:
    """One server's parts. The HTTP routes hold this and nothing else.

    Attributes:
        name: of the plain model.
        slots: most rows that decode together.
        draining: set by SIGTERM: what is under way goes on, nothing new is taken.
    """

    backbone: Backbone
    engine: Engine
    pool: Pool
    catalog: Catalog
    keyring: Keyring
    name: str
    slots: int = 128
    wall: Wall = field(default_factory=Wall)
    hub: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    log: logging.Logger = field(default_factory=lambda: logging.Logger("foreword.serve"))
    started: int = field(default_factory=lambda: int(time.time()))
    draining: threading.Event = field(default_factory=threading.Event)
    _used: Counter[str] = field(default_factory=Counter)
    _known: dict[str, Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def store(self) -> Path:
        """Where forewords, keys and batch files are."""
        return self.catalog.store

    def find(self, tenant: Tenant, model: str) -> Entry | None:
        """Return the foreword that a tenant means, known to the pool now; None for the plain backbone.

        Raises:
            ApiError: 404, it has none of that name.
        """
        if model == self.name:
            return None
        entry = self.catalog.resolve(tenant, model)
        self.know(entry)
        return entry

    def know(self, entry: Entry) -> None:
        """Tell the pool of a foreword, unchecked: its files are checked when they are first loaded.

        Raises:
            ApiError: 404, its files are gone.
        """
        with self._lock:
            known = self._known.pop(entry.id, None)
            if known is not None and known.stamp == entry.stamp and known.path == entry.path:
                self._known[entry.id] = known  # the latest used stands last
                return
            try:
                self.pool.register(entry.id, entry.path, check=False)
            except ForewordError as error:
                self.log.warning("foreword refused", extra={"foreword": entry.id, "fault": str(error)})
                raise unknown_model(entry.name) from None
            self._known[entry.id] = entry

    def info(self, entry: Entry) -> ForewordInfo | None:
        """Return what the pool knows of a foreword; None if it cannot be read."""
        try:
            self.know(entry)
            return self.pool.info(entry.id)
        except ForewordError:
            return None

    def forget(self, keep: Sequence[str]) -> list[str]:
        """Take forewords out of the pool whose files are gone or replaced, and return their ids.

        Those that a request still waits for stay until it has ended.
        """
        with self._lock:
            gone = sorted(name for name in set(self._known) - set(keep) if not self._used[name])
            for name in gone:
                del self._known[name]
                with contextlib.suppress(UnknownForeword):
                    self.pool.unregister(name)
        return gone

    def known(self) -> dict[str, Entry]:
        """Return the forewords that the pool has been told of, by id."""
        with self._lock:
            return dict(self._known)

    def submit(self, tenant: Tenant, requests: Sequence[Request]) -> tuple[Admission, list[Ticket]]:
        """Queue the requests of one HTTP request, all or none, and return the tenant's admission and the tickets.

        Raises:
            ApiError: 400 a value that can never work, 404 no such foreword, 429 a quota or the queue is full, 503
                the server is going away.
        """
        if self.draining.is_set():
            raise _leaving()
        rows = sum(request.n for request in requests)
        admission = self.limits.admit(tenant, rows, sum(map(self._most_tokens, requests)))
        admission.forewords = tuple(request.foreword for request in requests if request.foreword)
        self._used.update(admission.forewords)
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.engine.submit(request))
        except BaseException as error:
            self.finish(admission, tickets)
            if isinstance(error, ForewordError):
                raise self.answer_to(error) from None
            raise
        return admission, tickets

    def finish(self, admission: Admission, tickets: Sequence[Ticket]) -> None:
        """Settle an HTTP request: cancel what still runs, give rows and unused tokens back, count what was used."""
        for ticket in tickets:
            if not ticket.done:
                self.engine.cancel(ticket)
            admission.used_tokens += ticket.usage.prompt + ticket.usage.completion
        if not admission.closed:
            admission.close()
            self._used.subtract(admission.forewords)
            self._used = +self._used if len(self._used) > 4096 else self._used
            for ticket in tickets:
                self.metrics.ticket(ticket)

    def answer_to(self, error: ForewordError) -> ApiError:
        """Return what a client is told of a fault of engine, pool or store; never a path of this machine."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, QueueFull):
            return too_busy(f"{error}; come back later", error.retry_after_sec, "queue_full")
        if isinstance(error, EngineStopped):
            return _leaving()
        if isinstance(error, UnknownForeword):
            return unknown_model("it")
        text = self.hide(str(error))
        if isinstance(error, RequestError):
            param = (error.field or "").removeprefix("sampling.") or None
            return ApiError(400, text, param="model" if param == "foreword" else param, code="invalid_value")
        return ApiError(500, f"the foreword cannot be served: {text}", code="foreword_failed")

    def hide(self, text: str) -> str:
        """Return a message without the place of the store on this machine."""
        return text.replace(str(self.store.resolve()), "store").replace(str(self.store), "store")

    def hub_allows(self, source: str) -> bool:
        """Return whether the list of hub ids has this one."""
        return any(fnmatch.fnmatchcase(source, pattern) for pattern in self.hub)

    def _most_tokens(self, request: Request) -> int:
        """Return the most tokens that a request can use, as far as is known before it is tokenised."""
        length = len(request.prompt) if isinstance(request.prompt, tuple) else len(request.prompt) // 4 + 1
        return length + request.n * (request.max_tokens or 256)


def _leaving() -> ApiError:
    return ApiError(
        503, "the server is going away and takes no new requests; try again", code="draining",
        headers={"Retry-After": str(int(RETRY_DRAIN_SEC))},
    )
