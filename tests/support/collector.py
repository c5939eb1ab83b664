"""An OpenTelemetry collector for tests: takes spans over OTLP/HTTP and keeps them to be looked at."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from support.ports import free_port, release_port
from support.waiting import eventually

Value = str | int | float | bool


@dataclass(frozen=True)
class Span:
    """One span as it came over the wire."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    began_at: float
    ended_at: float
    failed: bool
    attributes: dict[str, Value]
    links: tuple[tuple[str, str], ...]
    events: tuple[str, ...]

    @property
    def uid(self) -> Value | None:
        """The job it tells of."""
        return self.attributes.get("travelrec.uid")


@dataclass
class Collector:
    """What has come so far; `endpoint` is for `OTEL_EXPORTER_OTLP_ENDPOINT`."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)

    def of(self, trace_id: str) -> list[Span]:
        """The spans of one trace, in the order in which they began."""
        return sorted((s for s in self.spans if s.trace_id == trace_id), key=lambda span: span.began_at)

    async def trace(self, trace_id: str, *names: str, timeout_s: float = 20.0) -> list[Span]:
        """The spans of a trace, once there are as many of each of `names` as it is given times."""

        async def there() -> bool:
            missing = list(names)
            for span in self.of(trace_id):
                if span.name in missing:
                    missing.remove(span.name)
            assert not missing, f"no {missing} among {[s.name for s in self.of(trace_id)]}"
            return True

        await eventually(there, timeout_s, "the spans")
        return self.of(trace_id)

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_span(named.get("service.name", ""), span) for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


def _span(service: str, span: WireSpan) -> Span:
    return Span(
        service=service,
        name=span.name,
        kind=WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_at=span.start_time_unix_nano / 1e9,
        ended_at=span.end_time_unix_nano / 1e9,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes={a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes},
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        events=tuple(event.name for event in span.events),
    )


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a port of its own while entered."""
    port = free_port()
    collector = Collector(f"http://127.0.0.1:{port}")
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.add_routes([web.post("/v1/traces", collector._take)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield collector
    finally:
        await runner.cleanup()
        await asyncio.to_thread(release_port, port)
