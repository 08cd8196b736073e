"""Traces, as a collector of OpenTelemetry receives them."""

import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.conftest import Engine, until


@dataclass
class Collector:
    """An OTLP receiver over HTTP: what it was sent."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[tuple[str, Any]]:
        """Every span with the role of the process that sent it."""
        found = []
        for body in self.bodies[:]:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                about = {each.key: each.value.string_value for each in resource.resource.attributes}
                assert about["service.name"] == "themes"
                found += [(about["themes.role"], span) for scope in resource.scope_spans for span in scope.spans]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    server.server_close()


def test_a_destination_is_one_trace_from_enqueue_to_commit(stack: Engine, collector: Collector) -> None:
    stack.end("consumer")
    stack.env |= {
        "THEMES_PROFILING__ENABLE_TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OPENAI_API_KEY": "a-canary-key",
    }
    stack.themes("consumer", "consumer")
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\nParis, France\n")
    assert said.returncode == 0, said.stderr

    def whole() -> bool:
        return Counter(span.name for _, span in collector.spans())["commit"] == 2

    until("the spans of both commits", whole)
    until("the worker's spans", lambda: Counter(span.name for _, span in collector.spans())["process_chunk"] == 2)
    spans = collector.spans()
    assert Counter((role, span.name) for role, span in spans) == {
        ("producer", "enqueue"): 1, ("worker", "process_chunk"): 2, ("worker", "destination"): 2,
        ("worker", "stage"): 32, ("worker", "llm.call"): 32, ("worker", "publish"): 2, ("consumer", "commit"): 2,
    }  # fmt: skip
    assert len({span.trace_id for _, span in spans}) == 1
    by_id = {span.span_id: span for _, span in spans}
    parents = {(span.name, by_id[span.parent_span_id].name if span.parent_span_id else "") for _, span in spans}
    assert parents == {
        ("enqueue", ""), ("process_chunk", "enqueue"), ("destination", "process_chunk"), ("stage", "destination"),
        ("llm.call", "stage"), ("publish", "destination"), ("commit", "destination"),
    }  # fmt: skip
    (call, *_) = (span for _, span in spans if span.name == "llm.call")
    known = {each.key: each.value for each in call.attributes}
    assert known["gen_ai.response.model"].string_value == "sandbox"
    assert known["gen_ai.usage.output_tokens"].int_value > 0
    everything = b"".join(collector.bodies)
    assert b"canary" not in everything
    assert b"theme" not in everything.replace(b"themes", b""), "no prompt, no answer"


def test_without_the_switch_nothing_is_traced(stack: Engine, collector: Collector) -> None:
    stack.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n")
    assert said.returncode == 0, said.stderr
    stack.end("w")
    assert not collector.bodies


def test_without_opentelemetry_the_switch_says_what_to_install(cold: None, stack: Engine) -> None:
    hide = stack.folder / "hide" / "opentelemetry"
    hide.mkdir(parents=True)
    (hide / "__init__.py").write_text("raise ImportError('hidden')")
    path = f"{hide.parent}:{stack.env.get('PYTHONPATH', '')}"
    said = stack.run("enqueue", "-", stdin="Kyoto, Japan\n", THEMES_PROFILING__ENABLE_TRACES="true", PYTHONPATH=path)
    assert said.returncode == 2
    assert "scripts/setup --extra otel" in said.stderr
    assert "environment THEMES_PROFILING__ENABLE_TRACES" in said.stderr
