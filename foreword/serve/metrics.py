"""Prometheus figures: what happened on the wire, and the engine and the pool as they are when asked.

No label names a tenant or a foreword: their number has no bound, and who asks for the figures may not know them.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from foreword.serve.engine import Engine
    from foreword.serve.pool import Pool
    from foreword.serve.request import Ticket

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
ENGINE_GAUGES = ("running_rows", "queued_rows", "queued_tokens", "cache_bytes", "cache_limit_bytes", "prefix_bytes",
                 "tok_per_sec", "step_rows", "step_sec")
ENGINE_COUNTERS = ("steps", "prompt_tokens", "made_tokens", "refused")
POOL_GAUGES = ("names", "resident", "resident_bytes", "budget_bytes")
POOL_COUNTERS = ("hits", "misses", "loads", "failures", "evictions", "load_sec")


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("foreword_http_requests", "HTTP requests answered", ["route", "status"],
                                registry=self.registry)
        self.seconds = Histogram("foreword_http_request_sec", "From the first byte in to the last byte out", ["route"],
                                 buckets=SECONDS, registry=self.registry)
        self.first_token = Histogram("foreword_first_token_sec", "From submission to the first token", buckets=SECONDS,
                                     registry=self.registry)
        self.token = Histogram("foreword_token_sec", "Mean time of an answer's tokens after the first",
                               buckets=(0.001, 0.0025, *SECONDS), registry=self.registry)
        self.left = Counter("foreword_clients_left", "Streams whose client left or stalled", registry=self.registry)

    def watch(self, engine: "Engine", pool: "Pool") -> None:
        """Tell the engine's and the pool's figures too, read when Prometheus asks."""
        self.registry.register(Live(engine, pool))

    def ticket(self, ticket: "Ticket") -> None:
        """Count a finished request's times."""
        if ticket.first_token_sec is None:
            return
        self.first_token.observe(ticket.first_token_sec - ticket.created_sec)
        later = ticket.usage.completion - ticket.request.n
        if ticket.finished_sec is not None and later > 0:
            self.token.observe((ticket.finished_sec - ticket.first_token_sec) * ticket.request.n / later)

    def text(self) -> bytes:
        """Return the figures in Prometheus's text format."""
        return generate_latest(self.registry)


class Live(Collector):
    """The engine's and the pool's own figures as metrics."""

    def __init__(self, engine: "Engine", pool: "Pool") -> None:
        self._engine, self._pool = engine, pool

    def collect(self) -> Iterable[Metric]:
        """Return them as they are now."""
        engine, pool = self._engine.stats(), self._pool.stats()
        finished = CounterMetricFamily("foreword_rows_finished", "Rows by how they ended", labels=["reason"])
        for reason, count in sorted((engine.finished or {}).items()):
            finished.add_metric([reason], count)
        return [
            *(GaugeMetricFamily(f"foreword_engine_{n}", f"engine: {n}", getattr(engine, n)) for n in ENGINE_GAUGES),
            *(CounterMetricFamily(f"foreword_engine_{n}", f"engine: {n}", getattr(engine, n)) for n in ENGINE_COUNTERS),
            *(GaugeMetricFamily(f"foreword_pool_{n}", f"pool: {n}", getattr(pool, n)) for n in POOL_GAUGES),
            *(CounterMetricFamily(f"foreword_pool_{n}", f"pool: {n}", getattr(pool, n)) for n in POOL_COUNTERS),
            finished,
        ]
