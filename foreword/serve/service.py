"""What all routes share: the engine, the pool, the store, the keys and the limits, and how a request enters them."""

import contextlib
import fnmatch
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foreword.backbone import Backbone
from foreword.errors import ForewordError
from foreword.serve.catalog import Catalog, Entry
from foreword.serve.engine import Engine
from foreword.serve.faults import ApiError, bad_field, too_busy, unknown_model
from foreword.serve.files import Files
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
    _versions: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # known ids, by owner and name
    _pins: set[tuple[str, str]] = field(default_factory=set)  # pinned forewords that the pool may not know just now
    _live: set[Ticket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _storing: threading.Lock = field(default_factory=threading.Lock)

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

        A pinned foreword stays pinned when its files are touched or replaced.

        Raises:
            ApiError: 404, its files are gone.
        """
        with self._lock:
            known = self._known.get(entry.id)
            if known is None or known.stamp != entry.stamp or known.path != entry.path:
                self._register(entry)
            self._known.pop(entry.id, None)
            self._known[entry.id] = entry  # the latest used stands last

    def _register(self, entry: Entry) -> None:
        place = (entry.owner, entry.name)
        if any(map(self._is_pinned, self._versions.get(place, ()))):
            self._pins.add(place)
        try:
            self.pool.register(entry.id, entry.path, check=False)
        except ForewordError as error:
            self.log.warning("foreword refused", extra={"foreword": entry.id, "fault": str(error)})
            raise unknown_model(entry.name) from None
        known = self._versions.setdefault(place, set())
        known.add(entry.id)
        if place in self._pins:
            current = self.catalog.current(*place)  # who asks for `name@version` must not have an old version pinned
            for version in known if current is not None and current.id == entry.id else ():
                with contextlib.suppress(ForewordError):  # damaged: the pin stays for what replaces it
                    self.pool.pin(version, version == entry.id)

    def _is_pinned(self, foreword: str) -> bool:
        try:
            return self.pool.info(foreword).pinned
        except ForewordError:  # unknown to the pool, or never read and now damaged: nobody pinned it
            return False

    def info(self, entry: Entry) -> ForewordInfo | None:
        """Return what the pool knows of a foreword; None if it cannot be read."""
        try:
            self.know(entry)
            return self.pool.info(entry.id)
        except ForewordError:
            return None

    def forget(self, keep: Sequence[str]) -> list[str]:
        """Take forewords out of the pool whose files are gone or replaced, and return their ids.

        Those that a request still waits for stay until it has ended. What is not in `keep` is looked at once more: it
        may have become known, or known anew, since the caller looked. Of a pinned foreword the version that counts now
        takes the place.
        """
        pinned = []
        with self._lock:
            left = ((name, self._known[name]) for name in set(self._known) - set(keep) if not self._used[name])
            gone = {name: entry for name, entry in left if not self.catalog.unchanged(entry)}
            for name, entry in gone.items():
                place = (entry.owner, entry.name)
                if self._is_pinned(name):
                    self._pins.add(place)
                    pinned.append(place)
                self._versions[place].discard(name)
                if not self._versions[place]:
                    del self._versions[place]
                del self._known[name]
                with contextlib.suppress(UnknownForeword):
                    self.pool.unregister(name)
        for entry in filter(None, (self.catalog.current(*place) for place in pinned)):
            with contextlib.suppress(ApiError):
                self.know(entry)
        return sorted(gone)

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
        self._check_queue(requests, rows)
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
        self._live.update(tickets)
        self.limits.reserve(admission, sum(t.prompt_tokens + self._most_new(t.request) for t in tickets))
        return admission, tickets

    def _check_queue(self, requests: Sequence[Request], rows: int) -> None:
        """Refuse what the queue could not take even if it were empty: waiting for room would be in vain."""
        limits = self.engine.capacity
        waiting, most = min(limits.queued, limits.queued_per_tenant), max((r.n for r in requests), default=0)
        if most > waiting or rows > waiting + self.slots:
            raise bad_field("n", f"n asks for {most} answers to a prompt, {rows} in all, and at most {waiting} may "
                                 "wait; ask for fewer")

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
            self._live.difference_update(tickets)
            for ticket in tickets:
                self.metrics.ticket(ticket)

    def own_rows(self, tenant: Tenant) -> Counter[str]:
        """Return how many answers of a tenant's are being made, by the pool's id of their foreword ("" for none)."""
        rows: Counter[str] = Counter()
        for ticket in tuple(self._live):
            if ticket.request.tenant == tenant.name and ticket.first_token_sec is not None:
                rows[ticket.request.foreword or ""] += ticket.open_rows
        return +rows

    @contextlib.contextmanager
    def storing(self, tenant: Tenant, num_bytes: int) -> Iterator[None]:
        """Let a tenant put so many more bytes on the disk, one upload at a time: two at once could not be counted.

        Raises:
            ApiError: 403, its forewords and files would take more than its quota.
        """
        with self._storing:
            self.check_place(tenant, num_bytes)
            yield

    def check_place(self, tenant: Tenant, num_bytes: int) -> None:
        """Check that a tenant may put so many more bytes on the disk.

        Raises:
            ApiError: 403, its forewords and files would take more than its quota.
        """
        limit = tenant.quota.store_bytes
        if limit is None:
            return
        used = self.catalog.used(tenant)[1] + Files(self.store).used_bytes(tenant) + num_bytes
        if used > limit:
            raise ApiError(403, f"forewords and files would take {used:,} bytes with this, your key allows "
                                f"{limit:,}; delete some first", code="quota_exceeded")

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
        """Return the most tokens that a request can use; the length of its text is a guess until it is tokenised."""
        length = len(request.prompt) if isinstance(request.prompt, tuple) else len(request.prompt) // 4 + 1
        return length + self._most_new(request)

    def _most_new(self, request: Request) -> int:
        most = self.engine.capacity.new_tokens
        positions = self.backbone.geometry.max_positions
        return request.n * (request.max_tokens or min(most, positions or most))


def _leaving() -> ApiError:
    return ApiError(
        503, "the server is going away and takes no new requests; try again", code="draining",
        headers={"Retry-After": str(int(RETRY_DRAIN_SEC))},
    )
