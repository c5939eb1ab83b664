"""Spans: one trace for each uid, from its request through the model call to the waiter that hears of its end.

Off, and of no cost, unless `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; sampling and the rest follow the standard
`OTEL_*` variables. Between processes a span's context travels as W3C Trace Context: in the job's record, in message
headers and in signals. Within a trace everything follows the decision made at its first span, so a span of an
unsampled trace costs nothing more.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from travelrec.errors import BadSetting

_W3C = TraceContextTextMapPropagator()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_S = 2.0
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]([0-9a-f])")
_ODD = frozenset("13579bdf")  # the last digit of the flags, whose last bit says that the trace is sampled
_tracer: Tracer | None = None  # of this process, set by `exported` as logging is by its configuration


def wanted() -> bool:
    """Whether the environment asks for traces."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not off and any(os.environ.get(name) for name in _ENDPOINTS)


@contextmanager
def exported(service: str) -> Iterator[None]:
    """While entered, spans of this process go to the collector, as `service` unless `OTEL_SERVICE_NAME` is set.

    Enter it after a fork; leaving sends what is left. Raises `BadSetting`.
    """
    global _tracer  # noqa: PLW0603 - see above
    if not wanted():
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - takes 100 ms
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise BadSetting(f"{_ENDPOINTS[0]}: needs the extra: pip install 'travelrec-core[otel]'") from error
    named = OTELResourceDetector().detect().attributes
    resource = Resource.create({} if SERVICE_NAME in named else {SERVICE_NAME: service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("travelrec")
    try:
        yield
    finally:
        _tracer = None
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_S)
        exporter.shutdown()  # type: ignore[no-untyped-call]  # where the collector is away, no longer tries


def on() -> bool:
    """Whether this process makes spans."""
    return _tracer is not None


def served(name: str, headers: Mapping[str, str], attributes: Attributes = None) -> Span:
    """The span of a request that came in, in its caller's trace if `headers` name one; to be ended."""
    if _tracer is None:
        return INVALID_SPAN
    caller = _W3C.extract(headers, context=Context())
    return _tracer.start_span(name, context=caller, kind=SpanKind.SERVER, attributes=attributes)


def begun(name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Attributes = None) -> Span:
    """The span of what nobody asked for, which begins a trace; to be ended."""
    if _tracer is None:
        return INVALID_SPAN
    return _tracer.start_span(name, context=Context(), kind=kind, attributes=attributes)


def started(
    name: str,
    parent: Span | Mapping[str, str],
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes = None,
    *,
    began_at: float | None = None,
) -> Span:
    """A span below `parent`, which is a span or the headers that carry one; to be ended. Times are since the epoch.

    Where the trace of `parent` is not sampled it is one that records nothing and belongs to no trace.
    """
    if _tracer is None or not sampled(parent):
        return INVALID_SPAN
    context = parent.get_span_context() if isinstance(parent, Span) else _context(parent)
    return _tracer.start_span(
        name,
        context=trace.set_span_in_context(NonRecordingSpan(context), Context()),
        kind=kind,
        attributes=attributes,
        start_time=_ns(began_at),
    )


@contextmanager
def span(
    name: str,
    parent: Span | Mapping[str, str],
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes = None,
) -> Iterator[Span]:
    """A span below `parent` while entered, which is the current one meanwhile; an error that leaves is noted on it."""
    if not sampled(parent):
        yield INVALID_SPAN
        return
    made = started(name, parent, kind, attributes)
    with trace.use_span(made, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield made
        except BaseException as error:
            failed(made, type(error).__name__)
            raise


def sampled(parent: Span | Mapping[str, str]) -> bool:
    """Whether a span below `parent` would be made; the cheapest of questions, since most traces are not sampled."""
    if _tracer is None:
        return False
    if isinstance(parent, Span):
        return parent.get_span_context().trace_flags.sampled
    return parent.get("traceparent", "")[-1:] in _ODD


def current() -> Span:
    """The span that was entered last by this task, or one that records nothing."""
    return trace.get_current_span() if _tracer is not None else INVALID_SPAN


def failed(span: Span, error: str) -> None:
    """Notes that what `span` stands for failed: `error` is a type or a title, never a text that may hold a secret."""
    if span.is_recording():
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)


def rescued(
    name: str,
    parent: Mapping[str, str],
    attributes: Attributes,
    *,
    began_at: float,
    events: Sequence[tuple[float, str]] = (),
) -> None:
    """Makes, after the fact, one span of a trace that was not sampled and should have been: what failed shows."""
    context = _context(parent)
    if _tracer is None or not context.is_valid or context.trace_flags.sampled:
        return
    sampled = SpanContext(
        context.trace_id, context.span_id, True, TraceFlags(TraceFlags.SAMPLED), context.trace_state
    )
    late = started(name, NonRecordingSpan(sampled), attributes=attributes, began_at=began_at)
    for at, what in events:
        late.add_event(what, timestamp=_ns(at))
    late.set_status(StatusCode.ERROR)
    late.end()


def linked(span: Span, traceparent: str | None) -> None:
    """Links `span` to another that is known by its `traceparent`."""
    if traceparent is not None and span.is_recording():
        span.add_link(_context({"traceparent": traceparent}))


def carried(span: Span) -> dict[str, str]:
    """The headers that carry `span` to another process; none when there is no trace."""
    headers: dict[str, str] = {}
    if span.get_span_context().is_valid:
        _W3C.inject(headers, context=trace.set_span_in_context(span, Context()))
    return headers


def trace_id(headers: Mapping[str, str]) -> str | None:
    """The 32 hex digits of the trace whose span `headers` carry; None where a caller's are no trace context."""
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return found[1] if found else None


def exemplar(headers: Mapping[str, str]) -> dict[str, str] | None:
    """What to `observe` beside a value: the trace whose span `headers` carry, if it is recorded."""
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return {"trace_id": found[1]} if found and found[2] in _ODD else None


def _context(headers: Mapping[str, str]) -> SpanContext:
    return trace.get_current_span(_W3C.extract(headers, context=Context())).get_span_context()


def _ns(at: float | None) -> int | None:
    return None if at is None else int(at * 1e9)
