"""OpenTelemetry traces, an extra: one span a request, with the names of the GenAI conventions."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from foreword.errors import MissingExtraError

if TYPE_CHECKING:
    from foreword.serve.gate import Seen

NAMES = {"model": "gen_ai.request.model", "prompt_tokens": "gen_ai.usage.input_tokens",
         "completion_tokens": "gen_ai.usage.output_tokens"}


class Span:
    """A span that is not recorded."""

    def end(self, seen: "Seen") -> None:
        """Do nothing."""


class Tracer:
    """Traces nothing."""

    @contextlib.contextmanager
    def span(self, scope: Any, seen: "Seen") -> Iterator[Span]:
        """Open a span around a request."""
        yield Span()

    def close(self) -> None:
        """Send what waits."""


class OpenSpan(Span):
    """A span of OpenTelemetry's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def end(self, seen: "Seen") -> None:
        """Name it by its route and give it what is known of the request."""
        self._inner.update_name(f"{seen.method} {seen.route}")
        known = {"http.route": seen.route, "http.response.status_code": seen.status or 499}
        known |= {NAMES[key]: value for key, value in seen.facts.items() if key in NAMES}
        self._inner.set_attributes({"foreword.request_id": seen.id, **known})


class OpenTracer(Tracer):
    """Traces to a collector, continuing the client's trace (`traceparent`)."""

    def __init__(self, exporter: Any = None) -> None:
        """Set up; `exporter` replaces OTLP over HTTP (its address: OTEL_EXPORTER_OTLP_ENDPOINT).

        Raises:
            MissingExtraError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.propagate import extract
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise MissingExtraError(
                f"otel = true needs {error.name}, which is not installed; pip install 'foreword[otel]'"
            ) from None
        self._extract = extract
        self._provider = TracerProvider(resource=Resource.create({"service.name": "foreword"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("foreword.serve")

    @contextlib.contextmanager
    def span(self, scope: Any, seen: "Seen") -> Iterator[Span]:
        """Open a span around a request."""
        carrier = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        with self._tracer.start_as_current_span(scope["method"], context=self._extract(carrier)) as inner:
            yield OpenSpan(inner)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
