"""The outermost ASGI layer: request ids, the limit on bodies, and the span, metrics and log line of every request."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog
from opentelemetry.trace import INVALID_SPAN, Span
from prometheus_client import Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from travelrec import metrics, tracing
from travelrec_api.problems import RETRY_AFTER_S, problem

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 64 * 1024
_DROPPED_BYTES = 64 * 1024 * 1024  # of the rest of a body that is too large
_DROPPED_S = 5.0
_BODY_S = 30.0  # for a body to come whole
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_CALLER_GONE = 499  # nginx's own number for it
_TOO_LARGE = 413
_UNMATCHED = "(unmatched)"
_PROBES = frozenset(
    {"/healthz", "/readyz", "/metrics"}
)  # asked by machines all the time: neither traced nor logged
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Edge:
    """Wraps the application. `scope["state"]` has the request's `request_id`, its `span` and the headers that carry it
    (`trace`), and takes its job's `uid`.
    """

    def __init__(
        self, app: ASGIApp, stop: Callable[[], None], hot: Mapping[tuple[str, str], ASGIApp] | None = None
    ) -> None:
        self._app = app
        self._hot = hot or {}  # (method, path) that skip the framework's layers; see ADR 0006
        self.stop = stop  # ends what would hold the process: called from a signal handler
        self._counted: dict[tuple[str, str, int], Counter] = {}
        self._timed: dict[tuple[str, str], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id, length, chunked = _read_headers(scope)
        span = _span(scope) if tracing.on() else INVALID_SPAN
        state = scope.setdefault("state", {})
        state["request_id"], state["span"] = request_id.decode(), span
        state["trace"] = trace = tracing.carried(span)
        status, answered = 500, False
        ended_at: float | None = None  # where the answer is not the end

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered, ended_at
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                if status == _TOO_LARGE:
                    ended_at = time.perf_counter()
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                if trace:
                    message["headers"].append((b"traceresponse", trace["traceparent"].encode()))
            await send(message)

        try:
            app = self._hot.get((scope["method"], scope["path"]), self._app)
            if length > MAX_BODY_BYTES:
                await _too_large(scope, receive, send_with_id)
            elif length or chunked:
                await _with_body(app, scope, receive, send_with_id)
            else:
                await app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = _CALLER_GONE
        except asyncio.CancelledError:  # the process ends and waits no longer: this task ends with its answer
            if answered:
                raise
            await problem(503, {"Retry-After": str(RETRY_AFTER_S)})(scope, receive, send_with_id)
        finally:
            seconds = (ended_at or time.perf_counter()) - began
            self._note(scope, status, seconds)
            if tracing.on():
                _end(span, scope, status, seconds)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key = (method, route, status)
        if key not in self._counted:
            self._counted[key] = metrics.HTTP_REQUESTS.labels(method, route, str(status))
            self._timed[method, route] = metrics.HTTP_SECONDS.labels(method, route)
        self._counted[key].inc()
        self._timed[method, route].observe(seconds)
        if scope["path"] in _PROBES and status < 500:  # noqa: PLR2004 - HTTP's server errors
            return
        state = scope["state"]
        told = {"uid": state["uid"]} if "uid" in state else {}
        if trace_id := tracing.trace_id(state["trace"]):
            told["trace_id"] = trace_id
        say, event = (log.warning, "request failed") if status >= 500 else (log.info, "request")  # noqa: PLR2004
        say(
            event,
            method=method,
            route=route,
            status=status,
            seconds=round(seconds, 6),
            request_id=state["request_id"],
            **told,
        )


async def _with_body(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body before anything else happens, up to the limit.

    Also where `app` has no use for it: a connection that is closed under an unread body is reset, and the answer lost.
    """
    try:
        async with asyncio.timeout(_BODY_S):
            body = await _body(receive)
    except TimeoutError:
        await problem(408, {"Connection": "close"})(scope, receive, send)
        return
    if len(body) > MAX_BODY_BYTES:
        await _too_large(scope, receive, send)
        return
    whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal whole
        if whole is None:
            return await receive()
        message, whole = whole, None
        return message

    await app(scope, replay, send)


async def _body(receive: Receive) -> bytes:
    """All of it, or more than the limit."""
    body, more = b"", True
    while more and len(body) <= MAX_BODY_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _too_large(scope: Scope, receive: Receive, send: Send) -> None:
    """413 at once; the answer ends, and with it perhaps the connection, when the rest was read and dropped."""

    async def send_unended(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await problem(413)(scope, receive, send_unended)
    dropped, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_DROPPED_S):
            while more and dropped < _DROPPED_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                more = message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _span(scope: Scope) -> Span:
    if scope["path"] in _PROBES:
        return INVALID_SPAN
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    attributes = {"http.request.method": method, "url.scheme": scope["scheme"], "url.path": scope["path"]}
    return tracing.served(f"{method} {scope['path']}", caller_of(scope), attributes)


def caller_of(scope: Scope) -> dict[str, str]:
    """The headers that carry the caller's own span."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in {b"traceparent", b"tracestate"}
    }


def _end(span: Span, scope: Scope, status: int, seconds: float) -> None:
    failed = status >= 500  # noqa: PLR2004 - HTTP's server errors
    if not failed and not span.is_recording():
        return
    route = getattr(scope.get("route"), "path", None)
    name = f"{scope['method']} {route or _UNMATCHED}"
    attributes: dict[str, str | int] = {
        "http.response.status_code": status,
        "travelrec.request_id": scope["state"]["request_id"],
    }
    if route is not None:
        attributes["http.route"] = route
    if failed:
        tracing.rescued(name, scope["state"]["trace"], attributes, began_at=time.time() - seconds)
        tracing.failed(span, str(status))
    if span.is_recording():
        span.update_name(name)
        span.set_attributes(attributes)
    span.end()


def _read_headers(scope: Scope) -> tuple[bytes, int, bool]:
    """The request's id (the caller's own if it is sane), the declared length of its body, and whether it is chunked."""
    request_id, length, chunked = b"", 0, False
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _SANE_ID.fullmatch(value):
                request_id = value
        elif name == b"content-length":
            length = int(value) if value.isdigit() else 0
        elif name == b"transfer-encoding":
            chunked = True
    return request_id or new_request_id(), length, chunked


def request_id_of(scope: Scope) -> str:
    """The id of a request that did not come through `Edge`'s bookkeeping: a WebSocket's handshake."""
    return _read_headers(scope)[0].decode()


def new_request_id() -> bytes:
    """An id for a request whose caller gave none."""
    return os.urandom(16).hex().encode()
