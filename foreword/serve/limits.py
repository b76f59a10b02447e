"""Quotas while they are used: a bucket a tenant for requests and one for tokens, and its rows in the making."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from foreword.serve.faults import bad_field, too_busy
from foreword.serve.tenants import Tenant


@dataclass
class Bucket:
    """A minute's allowance that refills evenly. It may go below zero: what was used is counted, not forgotten."""

    per_min: float
    level: float
    at_sec: float

    def refill(self, now_sec: float) -> None:
        """Add what the time since the last look has brought."""
        self.level = min(self.per_min, self.level + (now_sec - self.at_sec) * self.per_min / 60)
        self.at_sec = now_sec

    def wait_sec(self, amount: float) -> float:
        """Return how long until `amount` is there, 0 if it is."""
        return max(0.0, (min(amount, self.per_min) - self.level) * 60 / self.per_min)


@dataclass
class _Use:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    rows: int = 0


@dataclass
class Admission:
    """A request that was let in; `close` gives its rows back and settles its tokens."""

    limits: "Limits"
    tenant: Tenant
    rows: int
    reserved_tokens: int
    used_tokens: int = 0
    forewords: tuple[str, ...] = ()
    closed: bool = False

    def close(self) -> None:
        """Give back what was reserved and not used. Closing twice does nothing."""
        self.limits.release(self)


@dataclass
class Limits:
    """All tenants' use of their quotas. `clock` counts seconds."""

    clock: Callable[[], float] = time.monotonic
    _uses: dict[str, _Use] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, tenant: Tenant, rows: int, tokens: int) -> Admission:
        """Let a request in, with its rows and the most tokens it can use taken from the quota.

        One that may use more tokens than a minute brings is let in when the whole minute's allowance is there.

        Raises:
            ApiError: 429 with Retry-After, 400 it asks for more rows than the quota ever allows; nothing was taken
                then.
        """
        quota = tenant.quota
        if quota.rows is not None and rows > quota.rows:
            raise bad_field("n", f"n asks for {rows} answers in one request (over all its prompts), your key allows "
                                 f"{quota.rows} at one time; ask for fewer")
        with self._lock:
            use = self._use(tenant)
            if quota.rows is not None and use.rows + rows > quota.rows:
                raise too_busy(f"rows = {use.rows + rows} at one time, your key allows {quota.rows}; wait for answers, "
                               "or ask for fewer at once", 1.0)
            less = f"; this request may use {tokens:,}, fewer with a smaller max_tokens"
            for bucket, amount, what, hint in (
                (use.requests, 1, "requests", ""), (use.tokens, tokens, "tokens", less),
            ):
                wait = bucket.wait_sec(amount) if bucket else 0.0
                if bucket and wait > 0:
                    allowed = f"{what} a minute: your key allows {bucket.per_min:g}"
                    raise too_busy(f"{allowed}; come back in {wait:.0f} s{hint}", wait)
            for bucket, amount in ((use.requests, 1), (use.tokens, tokens)):
                if bucket:
                    bucket.level -= amount
            use.rows += rows
        return Admission(self, tenant, rows, tokens)

    def reserve(self, admission: Admission, tokens: int) -> None:
        """Hold so many tokens for a request that was let in on a guess, now that its texts are counted."""
        with self._lock:
            if admission.closed:
                return
            use = self._use(admission.tenant)
            if use.tokens:
                use.tokens.level -= tokens - admission.reserved_tokens
            admission.reserved_tokens = tokens

    def release(self, admission: Admission) -> None:
        """Take an admission's rows off, and settle its tokens: what was not used comes back, what was over is owed."""
        with self._lock:
            if admission.closed:
                return
            admission.closed = True
            use = self._use(admission.tenant)
            use.rows -= admission.rows
            if use.tokens:
                use.tokens.level += admission.reserved_tokens - admission.used_tokens

    def rows_of(self, tenant: Tenant) -> int:
        """Return how many rows of a tenant are in the making or waiting."""
        with self._lock:
            return self._use(tenant).rows

    def _use(self, tenant: Tenant) -> _Use:
        now, use = self.clock(), self._uses.setdefault(tenant.name, _Use())
        use.requests = _bucket(use.requests, tenant.quota.requests_per_min, now)
        use.tokens = _bucket(use.tokens, tenant.quota.tokens_per_min, now)
        return use


def _bucket(old: Bucket | None, per_min: int | None, now: float) -> Bucket | None:
    """Return a bucket of today's quota: the old one refilled, a full one if the quota changed."""
    if per_min is None:
        return None
    if old is None or old.per_min != per_min:
        return Bucket(per_min, per_min, now)
    old.refill(now)
    return old
