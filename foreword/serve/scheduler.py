"""Whose turn it is: waiting rows in bounded queues, shared out fairly between tenants, then between forewords.

Start-time fair queuing (Goyal, Vin & Cheng 1996) on two levels. Each tenant, and each foreword within a tenant, has a
tag: the tokens it has been served, counted from where the others stood when it came. The lowest tag goes next, so who
asks for much waits for itself, and who comes back after a pause has saved nothing up. As fair as deficit round robin,
without a quantum to choose. No clock and no tensor in here.
"""

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class Verdict(Enum):
    """What became of a row whose turn it is.

    It started; it was taken out of the queue, as it cannot be served; its foreword is not there yet; there is no room.
    """

    STARTED = "started"
    REMOVED = "removed"
    LATER = "later"
    FULL = "full"


@dataclass(eq=False)
class _Waiting(Generic[T]):
    row: T
    cost: int
    gone: bool = False


@dataclass(eq=False)
class _Flow(Generic[T]):
    """Waiting rows of one tenant and foreword, larger priority first, then the older."""

    tag: float = 0.0
    heap: list[tuple[int, int, _Waiting[T]]] = field(default_factory=list)

    def head(self) -> _Waiting[T] | None:
        while self.heap and self.heap[0][2].gone:
            heapq.heappop(self.heap)
        return self.heap[0][2] if self.heap else None


@dataclass(eq=False)
class _Tenant(Generic[T]):
    tag: float = 0.0
    now: float = 0.0  # the tag of the flow that was served last
    flows: dict[str, _Flow[T]] = field(default_factory=dict)
    rows: int = 0


class Scheduler(Generic[T]):
    """Waiting rows. Not safe under threads: its owner locks."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[T]] = {}
        self._waiting: dict[T, tuple[_Waiting[T], str]] = {}
        self._number = itertools.count()
        self._now = 0.0
        self.tokens = 0

    def __len__(self) -> int:
        """How many rows wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        """All waiting rows, oldest first."""
        return iter(list(self._waiting))

    def rows_of(self, tenant: str) -> int:
        """Return how many rows of a tenant wait."""
        return self._tenants[tenant].rows if tenant in self._tenants else 0

    def push(self, row: T, cost: int, tenant: str, foreword: str, priority: int = 0) -> None:
        """Queue a row that will take up to `cost` tokens."""
        share = self._tenants.setdefault(tenant, _Tenant())
        if not share.rows:
            share.tag = max(share.tag, self._now)
        flow = share.flows.setdefault(foreword, _Flow())
        if flow.head() is None:
            flow.tag = max(flow.tag, share.now)
        waiting = _Waiting(row, cost)
        heapq.heappush(flow.heap, (-priority, next(self._number), waiting))
        self._waiting[row] = (waiting, tenant)
        share.rows += 1
        self.tokens += cost

    def remove(self, row: T) -> bool:
        """Take a row out; False if it does not wait."""
        if row not in self._waiting:
            return False
        waiting, tenant = self._waiting.pop(row)
        waiting.gone = True
        self._tenants[tenant].rows -= 1
        self.tokens -= waiting.cost
        return True

    def start(self, offer: Callable[[T], Verdict]) -> int:
        """Offer rows in fair order until one does not fit or nobody is left; return how many started.

        A foreword whose first row is told LATER is passed over this time; FULL ends the round, so that a long row
        is not overtaken for ever by short ones.
        """
        started, later = 0, set()
        while (found := self._next(later)) is not None:
            tenant, foreword, flow = found
            waiting = flow.head()
            verdict = offer(waiting.row)
            if verdict is Verdict.FULL:
                break
            if verdict is Verdict.LATER:
                later.add((tenant, foreword))
                continue
            if verdict is Verdict.REMOVED:
                self.remove(waiting.row)
                continue
            started += 1
            self._charge(tenant, flow, waiting)
        self._forget()
        return started

    def _next(self, later: set[tuple[str, str]]) -> tuple[str, str, _Flow[T]] | None:
        """Return the tenant, foreword and flow with the lowest tags among those that may start."""
        for name, share in sorted(self._tenants.items(), key=lambda item: item[1].tag):
            open_flows = [
                (flow.tag, foreword, flow)
                for foreword, flow in share.flows.items()
                if (name, foreword) not in later and flow.head() is not None
            ]
            if share.rows and open_flows:
                _, foreword, flow = min(open_flows, key=lambda item: item[:2])
                return name, foreword, flow
        return None

    def _charge(self, tenant: str, flow: _Flow[T], waiting: _Waiting[T]) -> None:
        share = self._tenants[tenant]
        self._now, share.now = share.tag, flow.tag
        share.tag += waiting.cost
        flow.tag += waiting.cost
        self.remove(waiting.row)

    def _forget(self) -> None:
        """Drop idle flows whose tags no longer matter, so that memory does not grow with names ever seen."""
        for name, share in list(self._tenants.items()):
            for foreword, flow in list(share.flows.items()):
                if flow.head() is None and flow.tag <= share.now:
                    del share.flows[foreword]
            if not share.rows and share.tag <= self._now:
                del self._tenants[name]
        if not self._waiting:
            self._tenants.clear()
            self._now = 0.0
