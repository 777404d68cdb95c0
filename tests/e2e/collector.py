"""A small OTLP/HTTP collector that can also be slow, refuse, or be away.

Runs on: a thread of the test.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


class Span(NamedTuple):
    """One span that arrived; ids in hex."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    resource: dict[str, Any]
    began_ns: int
    ended_ns: int


class Collector:
    """What it was sent, and how it answers.

    Attributes:
        spans: In the order they came.
        heads: Path and headers of every request.
        status: Of its answers.
        delay: While it is cleared answers wait.
        port: Where it listens; 0 lets the kernel choose.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.heads: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.delay = threading.Event()
        self.delay.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, request_id: str) -> list[Span]:
        """The spans of one exchange."""
        return [span for span in list(self.spans) if span.attributes.get("penstock.request_id") == request_id]

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        """One request; the status to answer."""
        self.heads.append((path, headers))
        self.delay.wait(30)
        if self.status == 200:
            data = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            self.spans += _read(data)
        return self.status


def _attributes(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    found = {pair.key: value(pair) for pair in pairs}
    assert len(found) == len(pairs)
    return found


def _read(data: bytes) -> Iterator[Span]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(data)
    for group in request.resource_spans:
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield Span(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.kind,
                    span.status.code,
                    _attributes(span.attributes),
                    [(event.name, _attributes(event.attributes)) for event in span.events],
                    _attributes(group.resource.attributes),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                )


@contextmanager
def collecting(collector: Collector) -> Iterator[Collector]:
    """Listen on 127.0.0.1, at its port if it has one, until the block is left."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = collector.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that left are no news."""

    with Quiet(("127.0.0.1", collector.port), Handler) as server:
        collector.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            collector.delay.set()
            server.shutdown()
            thread.join()
