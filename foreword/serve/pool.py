"""The pool: forewords by name, their versions by content, and those in memory within a budget of bytes.

A name points to a source; what is in memory is kept by content digest, so that two names with one content share it,
and a name with new content leaves rows that run with the old one alone. Loading happens in threads of the pool's own:
the engine asks, goes on with other rows, and is told when to ask again.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from foreword.backbone import Backbone
from foreword.errors import ConfigError, ForewordError, PromptError, nearest
from foreword.prompts.soft_prompt import Realised
from foreword.serve.loading import Facts, Source, load, read_facts, served_bytes
from foreword.serve.request import UnknownForeword

REMEMBERED_SEC = 1.0
"""How long a failed load is told to those who ask, before another is tried."""
NAMES_SHOWN = 20


@dataclass(frozen=True)
class ForewordInfo:
    """What is known of a foreword without its tensors.

    Attributes:
        name: in the pool.
        version: content digest.
        kind: prefix, prompt or infix.
        length: virtual tokens.
        num_bytes: in memory when loaded.
        text_format: the format that texts are put into, None for plain text.
        state: whether it is on disk, being loaded, in memory, or was lately found bad.
        pinned: never unloaded for room.
        rows: running rows that use its present version now.
    """

    name: str
    version: str
    kind: str
    length: int
    num_bytes: int
    text_format: str | None
    state: Literal["cold", "loading", "resident", "failed"]
    pinned: bool
    rows: int


@dataclass(frozen=True)
class PoolStats:
    """The pool at one moment; what is counted, is counted from its start, and `load_sec` is of all loads together."""

    names: int
    resident: int
    resident_bytes: int
    budget_bytes: int
    hits: int
    misses: int
    loads: int
    failures: int
    evictions: int
    load_sec: float


@dataclass(frozen=True, eq=False)
class Lease:
    """A version in use: it stays in memory until `Pool.release`."""

    version: str
    text_format: str | None
    prompt: Realised


@dataclass(eq=False)
class _Name:
    name: str
    source: Source
    pinned: bool
    facts: Facts | None = None
    loading: bool = False
    error: ForewordError | None = None
    failed_at_sec: float = 0.0

    def recent_error(self) -> ForewordError | None:
        return self.error if time.monotonic() - self.failed_at_sec < REMEMBERED_SEC else None


@dataclass(eq=False)
class _Resident:
    prompt: Realised
    num_bytes: int
    leases: int = 0
    used: int = 0  # a count that grows with every use, for the least recently used


class Pool:
    """Forewords of one backbone; safe to call from any thread."""

    def __init__(
        self, backbone: Backbone, budget_bytes: int = 1 << 30, *, longest: int = 1024, loaders: int = 1
    ) -> None:
        """Make an empty pool.

        Args:
            backbone: what all forewords belong to.
            budget_bytes: most bytes of forewords in memory.
            longest: most virtual tokens of one.
            loaders: threads that load.
        """
        if budget_bytes < 1:
            raise ConfigError(f"pool.budget_bytes = {budget_bytes!r} must be at least 1")
        self._backbone, self._budget, self._longest = backbone, budget_bytes, longest
        self._names: dict[str, _Name] = {}
        self._resident: dict[str, _Resident] = {}
        self._pins: set[str] = set()
        self._named: dict[str, int] = {}  # how many names point to a version
        self._coming_bytes = 0
        self._clock = 0
        self._counts = dict.fromkeys(("hits", "misses", "loads", "failures", "evictions"), 0)
        self._load_sec = 0.0
        self._lock = threading.RLock()
        self._loaders = ThreadPoolExecutor(loaders, thread_name_prefix="foreword-pool")
        self._listeners: list[Callable[[], None]] = []

    @property
    def backbone(self) -> Backbone:
        """What all forewords of the pool belong to."""
        return self._backbone

    def register(self, name: str, source: Source, *, pinned: bool = False, check: bool = True) -> ForewordInfo | None:
        """Give a foreword a name, or a name new content (a hot swap: rows that run keep the version they began with).

        With `check` the manifest, the sizes in the tensors' header and the backbone are checked now (no tensor is
        read); without, at first use, which is what a store of ten thousand wants, and None is returned.

        Raises:
            ArtifactError, PromptError: it is damaged, too large for the pool, or another backbone's.
        """
        facts = self._read(source) if check or pinned else None
        with self._lock:
            self._forget(name)
            self._names[name] = entry = _Name(name, source, pinned)
            self._point(entry, facts)
            if pinned:
                self._pins.add(name)
                self._start_loading(name)
            return self.info(name) if facts else None

    def unregister(self, name: str) -> None:
        """Forget a name; rows that run go on, and its memory is given back when they end.

        Raises:
            UnknownForeword: no such name.
        """
        with self._lock:
            self._find(name)
            self._forget(name)

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a foreword in memory, loading it now, or no longer.

        Raises:
            UnknownForeword: no such name.
        """
        with self._lock:
            self._find(name).pinned = pinned
            (self._pins.add if pinned else self._pins.discard)(name)
        if pinned:
            self.preload(name)

    def preload(self, name: str) -> None:
        """Start loading a foreword in the background, without waiting.

        Raises:
            UnknownForeword: no such name.
        """
        self.info(name)
        with self._lock:
            self._start_loading(name)

    def names(self) -> list[str]:
        """Return all names, sorted."""
        with self._lock:
            return sorted(self._names)

    def info(self, name: str) -> ForewordInfo:
        """Return what is known of a foreword.

        Raises:
            UnknownForeword: no such name.
            ArtifactError, PromptError: registered unchecked, and now found bad.
        """
        entry = self._find(name)
        facts = entry.facts  # looked at once: a load that fails meanwhile takes it away
        if facts is None:
            found = self._read(entry.source)  # not under the lock: it reads files
            with self._lock:
                facts = entry.facts or found
                self._point(entry, facts)
        with self._lock:
            resident = self._resident.get(facts.version)
            state = "resident" if resident else "loading" if entry.loading else "cold"
            if state == "cold" and entry.recent_error():
                state = "failed"
            rows = resident.leases if resident else 0
            told = (facts.version, facts.kind, facts.length, facts.num_bytes, facts.text_format)
            return ForewordInfo(name, *told, state, entry.pinned, rows)

    def acquire(self, name: str) -> Lease | None:
        """Return a lease of a name's present version, or None while it is not in memory (it is loaded meanwhile).

        Raises:
            UnknownForeword: no such name any more.
            ForewordError: loading it has just failed.
        """
        with self._lock:
            entry = self._find(name)
            found = self._resident.get(entry.facts.version) if entry.facts else None
            if found is None:
                if (error := entry.recent_error()) is not None:
                    raise error
                self._start_loading(name)
                return None
            self._counts["hits"] += 1
            found.leases += 1
            found.used = self._tick()
            return Lease(entry.facts.version, entry.facts.text_format, found.prompt)

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        with self._lock:
            self._resident[lease.version].leases -= 1
            self._trim(lease.version)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have `listener` called when a load has ended: what waits for it should ask again."""
        with self._lock:
            self._listeners.append(listener)

    def stats(self) -> PoolStats:
        """Return the pool's figures now."""
        with self._lock:
            used = sum(resident.num_bytes for resident in self._resident.values())
            return PoolStats(
                names=len(self._names), resident=len(self._resident), resident_bytes=used,
                budget_bytes=self._budget, load_sec=self._load_sec, **self._counts,
            )

    def close(self) -> None:
        """Stop the loader threads; what is in memory stays."""
        self._loaders.shutdown(wait=True, cancel_futures=True)

    def _read(self, source: Source) -> Facts:
        return read_facts(source, self._backbone, self._longest, self._budget)

    def _find(self, name: str) -> _Name:
        with self._lock:
            if name not in self._names:
                hint = nearest(name, self._names) if len(self._names) <= NAMES_SHOWN else "; list the names in use"
                raise UnknownForeword(f"foreword {name!r} is not in the pool{hint}", "foreword")
            return self._names[name]

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _start_loading(self, name: str) -> None:
        """Hand a load to a thread, if there is or can be made room for it."""
        entry = self._names[name]
        if entry.loading or (entry.facts and entry.facts.version in self._resident):
            return
        needed = entry.facts.num_bytes if entry.facts else 0
        if not self._make_room(needed):
            self._refuse_if_pinned(entry, needed)
            return  # rows in use hold it all; whoever wants it asks again when one of them ends
        entry.loading = True
        self._coming_bytes += needed
        self._counts["misses"] += 1
        self._loaders.submit(self._load, name, entry, needed)

    def _load(self, name: str, entry: _Name, reserved: int) -> None:
        start, error, made = time.monotonic(), None, None
        try:
            facts = self._read(entry.source)
            version, prompt = load(entry.source, self._backbone)
            made = (Facts(version, facts.kind, facts.length, facts.num_bytes, facts.text_format), prompt)
        except ForewordError as fault:
            error = fault
        except Exception as fault:  # a hostile file must not end the loader; whoever asked for it is told
            error = PromptError(f"foreword {name!r} cannot be loaded: {' '.join(str(fault).split())}")
        with self._lock:
            self._coming_bytes -= reserved
            self._load_sec += time.monotonic() - start
            entry.loading = False
            self._settle(entry, made, error)
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _settle(self, entry: _Name, made: tuple[Facts, Realised] | None, error: ForewordError | None) -> None:
        """Keep what was loaded, or remember why not."""
        if made is None:
            self._counts["failures"] += 1
            self._point(entry, None)
            entry.error, entry.failed_at_sec = error, time.monotonic()
            return
        self._counts["loads"] += 1
        facts, prompt = made
        entry.error, size = None, served_bytes(prompt)
        self._point(entry, facts)
        if facts.version in self._named and facts.version not in self._resident and self._make_room(size):
            self._resident[facts.version] = _Resident(prompt, size, used=self._tick())

    def _point(self, entry: _Name, facts: Facts | None) -> None:
        """Let a name point to another version; an entry that its name has left behind counts no more."""
        old, entry.facts = entry.facts, facts
        if self._names.get(entry.name) is not entry:
            return
        if facts:
            self._named[facts.version] = self._named.get(facts.version, 0) + 1
        if old:
            self._unname(old.version)

    def _unname(self, version: str) -> None:
        self._named[version] -= 1
        if not self._named[version]:
            del self._named[version]
            self._trim(version)

    def _forget(self, name: str) -> None:
        entry = self._names.get(name)
        if entry is not None:
            self._point(entry, None)
            del self._names[name]
            self._pins.discard(name)

    def _refuse_if_pinned(self, entry: _Name, needed: int) -> None:
        """Remember an error where waiting will not help, as pinned forewords alone leave no room."""
        pinned = {found.facts.version for name in self._pins if (found := self._names[name]).facts} - {
            entry.facts.version if entry.facts else ""
        }
        held = sum(self._resident[version].num_bytes for version in pinned if version in self._resident)
        if held + needed > self._budget:
            entry.error, entry.failed_at_sec = PromptError(
                f"foreword {entry.name!r} takes {needed:,} bytes, pinned ones leave {self._budget - held:,} of the "
                "pool's budget; unpin some, or raise the budget"
            ), time.monotonic()

    def _make_room(self, needed: int) -> bool:
        """Unload the least recently used until `needed` more bytes fit; False, and nothing unloaded, if they cannot."""
        used = sum(resident.num_bytes for resident in self._resident.values()) + self._coming_bytes
        idle = self._idle()
        if used - sum(self._resident[version].num_bytes for version in idle) + needed > self._budget:
            return False
        for version in idle:
            if used + needed <= self._budget:
                break
            used -= self._resident.pop(version).num_bytes
            self._counts["evictions"] += 1
        return True

    def _idle(self) -> list[str]:
        """Return versions that may be unloaded, least recently used first."""
        pinned = {entry.facts.version for name in self._pins if (entry := self._names[name]).facts}
        free = [(r.used, version) for version, r in self._resident.items() if not r.leases and version not in pinned]
        return [version for _, version in sorted(free)]

    def _trim(self, version: str) -> None:
        """Drop a version that no name points to and no row uses."""
        found = self._resident.get(version)
        if found is not None and not found.leases and version not in self._named:
            del self._resident[version]
