"""OpenTelemetry: one span a request, continuing the client's trace, without names that are nobody's business."""

from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, serving

from foreword.serve.tracing import OpenTracer


def test_a_request_is_one_span_of_the_client_s_trace(tmp_path):
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    backbone, exporter = make("llama"), InMemorySpanExporter()
    tracer = OpenTracer(exporter)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    engine = FakeEngine(backbone)
    with serving(backbone, tmp_path, engine, FakePool(), tracer=tracer) as running, running.client() as http:
        http.post("/v1/completions", json={"model": PLAIN, "prompt": "abc", "max_tokens": 4},
                  headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
        http.get("/v1/forewords/nothing")
    tracer.close()
    first, second = exporter.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == trace and f"{second.context.trace_id:032x}" != trace
    assert (first.name, second.name) == ("POST /v1/completions", "GET /v1/forewords/{name}")
    assert first.attributes["gen_ai.request.model"] == PLAIN
    assert (first.attributes["gen_ai.usage.input_tokens"], first.attributes["gen_ai.usage.output_tokens"]) == (3, 4)
    assert second.attributes["http.response.status_code"] == 404
