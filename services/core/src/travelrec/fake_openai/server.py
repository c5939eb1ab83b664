"""The offline model's HTTP: which path does what, what is counted, and how a fault leaves the socket."""

import asyncio
import json
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn, TypedDict

from aiohttp import web

from travelrec.fake_openai.answers import Answer, answer
from travelrec.fake_openai.asks import Ask, read_chat, read_response
from travelrec.fake_openai.batches import Batches
from travelrec.fake_openai.limits import TokenBucket
from travelrec.fake_openai.refusals import Refused, bad_key, by_fault, by_status, no_json_schema, too_many
from travelrec.fake_openai.replies import chat_events, chat_reply, response_reply
from travelrec.fake_openai.settings import FakeSettings
from travelrec.stopping import told_to_stop

_KEYS_KEPT = 10_000
_OTHER_KEYS = "(other)"
_BACKLOG = 4096
_DRIP_S = 0.05
_MODELS = ("offline-sample", "gpt-4o-mini", "gpt-4.1-mini")
_RST = struct.pack("ii", 1, 0)

_Reply = Callable[[Ask, Answer, str, int], bytes]
_Route = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Call:
    number: int
    """Counted since the last reset of the counts; the seed's faults go by it."""
    id_: str
    began: float


class Stats(TypedDict):
    """What `GET /stats` shows: calls are POSTs to a generating endpoint, the refused ones too."""

    calls: int
    in_flight: int
    max_in_flight: int
    by_status: dict[str, int]
    by_key: dict[str, int]
    """Calls by the text of the user's last message; beyond 10,000 texts they count as `(other)`."""


class FakeOpenAI:
    """One offline model: its settings, its counts, and the handler of its requests."""

    def __init__(self, settings: FakeSettings) -> None:
        self.settings = settings
        self.base_url = ""
        self._boot = secrets.token_hex(6)
        self._served = 0
        self._in_flight = 0
        self._bucket = _bucket(settings)
        self._routes: dict[str, tuple[str, _Route]] = {
            "/chat/completions": ("POST", self._chat),
            "/responses": ("POST", self._response),
            "/models": ("GET", self._models),
            "/models/": ("GET", self._model),
            "/healthz": ("GET", self._health),
            "/stats": ("GET", self._show_stats),
            "/stats/reset": ("POST", self._reset_stats),
            "/control": ("POST", self._control),
        }
        self.batches = Batches(lambda: self.settings)
        self.reset_stats()

    def configure(self, **changes: object) -> None:
        """Change settings from the next call on; ValueError names what doesn't fit, and changes nothing."""
        before, self.settings = self.settings, self.settings.changed(changes)
        if self.settings.rate_limit_per_s != before.rate_limit_per_s:
            self._bucket = _bucket(self.settings)

    def stats(self) -> Stats:
        """Return the counts since the start or the last reset."""
        return {
            "calls": self._calls,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "by_status": {str(status): count for status, count in self._by_status.items()},
            "by_key": dict(self._by_key),
        }

    def reset_stats(self) -> None:
        """Count from 0 again, which also starts the seed's sequence of faults again."""
        self._calls = 0
        self._max_in_flight = self._in_flight
        self._by_status: dict[int, int] = {}
        self._by_key: dict[str, int] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of any path."""
        path = request.raw_path.partition("?")[0].removeprefix("/v1")
        try:
            if path.startswith(("/files", "/batches")):
                self._check_key(request)
                return await self.batches.handle(request, path)
            found = self._routes.get(path if not path.startswith("/models/") else "/models/")
            if found is None:
                raise Refused(404, f"Invalid URL ({request.method} {path}).", code="unknown_url")
            method, route = found
            if request.method != method:
                raise _not_allowed(request.method, path, method)
            return await route(request)
        except Refused as refused:
            return _refusal(refused, {})
        except RecursionError:
            return _refusal(Refused(400, "The request is nested too deeply."), {})

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._call(request, read_chat, chat_reply)

    async def _response(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._call(request, read_response, response_reply)

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        self._check_key(request)
        return _json({"object": "list", "data": [_model(name) for name in _MODELS]})

    async def _model(self, request: web.BaseRequest) -> web.StreamResponse:
        self._check_key(request)
        return _json(_model(request.path.removeprefix("/v1").removeprefix("/models/")))

    async def _health(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _json({"status": "ok"})

    async def _show_stats(self, _request: web.BaseRequest) -> web.StreamResponse:
        return _json(self.stats())

    async def _reset_stats(self, _request: web.BaseRequest) -> web.StreamResponse:
        self.reset_stats()
        return _json(self.stats())

    async def _control(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            changes = json.loads(await _body(request))
            if not isinstance(changes, dict):
                raise ValueError("the body is not a JSON object of settings")
            self.configure(**changes)
        except ValueError as problem:
            raise Refused(400, str(problem)) from problem
        return _json(self.settings.as_dict())

    async def _call(
        self, request: web.BaseRequest, read: Callable[[bytes], Ask], reply: _Reply
    ) -> web.StreamResponse:
        """Count a call, and answer it."""
        self._calls += 1
        self._served += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        call = _Call(self._calls, f"{self._boot}{self._served:08x}", time.perf_counter())
        status = 0
        try:
            response = await self._answered(request, read, reply, call)
            status = response.status
        except Refused as refused:
            status = refused.status
            response = _refusal(refused, self._headers(call))
        finally:
            self._in_flight -= 1
            if status:
                self._by_status[status] = self._by_status.get(status, 0) + 1
        return response

    async def _answered(
        self, request: web.BaseRequest, read: Callable[[bytes], Ask], reply: _Reply, call: _Call
    ) -> web.StreamResponse:
        settings = self.settings
        body = await _body(request)
        self._check_key(request)
        ask = read(body)
        self._count_key(ask.last_user_text)
        if self._bucket is not None and (wait_s := self._bucket.take(time.monotonic())):
            raise too_many(wait_s)
        if latency_s := settings.latency_of(call.number):
            await asyncio.sleep(latency_s)
        fault = self._fault(settings, call.number, ask)
        if fault == "reset":
            await _reset(request)
        if fault == "hang":
            await _forever()
        said = answer(ask, settings.seed, fault)
        created = int(time.time())
        headers = self._headers(call)
        if ask.stream:
            events = chat_events(ask, said, call.id_, created)
            headers |= {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
            if fault not in ("slow-drip", "half-body"):
                return await _stream(request, headers, events, settings.piece_s)
            payload = b"".join(events)
        else:
            payload = reply(ask, said, call.id_, created)
        if fault == "slow-drip":
            return await _drip(request, headers, payload)
        if fault == "half-body":
            await _half(request, headers, payload)
        return web.Response(body=payload, headers=headers)

    def _check_key(self, request: web.BaseRequest) -> None:
        key = self.settings.require_key
        if key is not None:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(errors="replace"), key.encode()):
                raise bad_key()

    def _count_key(self, key: str) -> None:
        if key not in self._by_key and len(self._by_key) >= _KEYS_KEPT:
            key = _OTHER_KEYS
        self._by_key[key] = self._by_key.get(key, 0) + 1

    @staticmethod
    def _fault(settings: FakeSettings, number: int, ask: Ask) -> str | None:
        """Return the fault this call suffers, unless it is an error of HTTP, which is raised."""
        trouble = settings.trouble(number)
        if trouble is None:
            return None
        if isinstance(trouble, int):
            raise by_status(trouble, settings.retry_after_s)
        if refused := by_fault(trouble, ask.model, settings.retry_after_s):
            raise refused
        if trouble == "no-json-schema" and ask.form == "json_schema":
            raise no_json_schema()
        return trouble

    def _headers(self, call: _Call) -> dict[str, str]:
        bucket = self._bucket
        limit, remaining, reset_s = (10_000, 9_999, 0.006)
        if bucket is not None:
            limit, remaining, reset_s = bucket.capacity, bucket.remaining, bucket.full_in_s
        return {
            "Content-Type": "application/json",
            "x-request-id": f"req_{call.id_}",
            "x-ratelimit-limit-requests": str(limit),
            "x-ratelimit-remaining-requests": str(remaining),
            "x-ratelimit-reset-requests": f"{reset_s:.3f}s" if reset_s >= 1 else f"{reset_s * 1000:.0f}ms",
            "openai-processing-ms": str(int((time.perf_counter() - call.began) * 1000)),
        }


@asynccontextmanager
async def running(
    settings: FakeSettings | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[FakeOpenAI]:
    """Serve until the block is left, which ends hanging requests too; OSError when the port is taken."""
    fake = FakeOpenAI(settings or FakeSettings())
    # handler_cancellation: a call whose caller has gone is no longer in flight
    server = web.Server(fake.handle, handler_cancellation=True, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, host, port, backlog=_BACKLOG)
    fake.base_url = _url(host, listener.sockets[0].getsockname()[1])
    try:
        yield fake
    finally:
        listener.close()
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await server.shutdown(timeout=1)
        await listener.wait_closed()


async def serve_until_stopped(
    settings: FakeSettings, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` gets the base URL. OSError when the port is taken."""
    with told_to_stop() as stopped:
        async with running(settings, host, port) as fake:
            on_ready(fake.base_url)
            await stopped.wait()


def _bucket(settings: FakeSettings) -> TokenBucket | None:
    rate = settings.rate_limit_per_s
    return None if rate is None else TokenBucket(rate, time.monotonic())


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - a name, not a bind
    return f"http://[{reachable}]:{port}/v1" if ":" in reachable else f"http://{reachable}:{port}/v1"


async def _body(request: web.BaseRequest) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, "The body of the request is larger than 1 MiB.") from None


def _json(value: object) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "travelrec-offline"}


def _refusal(refused: Refused, headers: dict[str, str]) -> web.Response:
    all_headers = {"Content-Type": "application/json", **headers, **refused.headers}
    return web.Response(status=refused.status, body=refused.body(), headers=all_headers)


def _not_allowed(method: str, path: str, allowed: str) -> Refused:
    refused = Refused(405, f"Not allowed to {method} on {path}.", code="method_not_supported")
    refused.headers["Allow"] = allowed
    return refused


async def _stream(
    request: web.BaseRequest, headers: dict[str, str], events: Iterable[bytes], piece_s: float
) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    for event in events:
        await response.write(event)
        await asyncio.sleep(piece_s)
    await response.write_eof()
    return response


async def _drip(request: web.BaseRequest, headers: dict[str, str], payload: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    response.content_length = len(payload)
    await response.prepare(request)
    for at in range(len(payload)):
        await response.write(payload[at : at + 1])
        await asyncio.sleep(_DRIP_S)
    await response.write_eof()
    return response


async def _half(request: web.BaseRequest, headers: dict[str, str], payload: bytes) -> NoReturn:
    response = web.StreamResponse(headers=headers)
    response.content_length = len(payload)
    await response.prepare(request)
    await response.write(payload[: len(payload) // 2])
    if request.transport is not None:
        request.transport.close()
    await _forever()


async def _reset(request: web.BaseRequest) -> NoReturn:
    """Close so that the caller sees a reset (RST) instead of an end."""
    transport = request.transport
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        transport.abort()
    await _forever()


async def _forever() -> NoReturn:
    """Wait until the caller has gone or the server stops, either of which cancels the call."""
    nothing: Awaitable[NoReturn] = asyncio.get_running_loop().create_future()
    await nothing
    raise AssertionError("unreachable: nothing sets this future")
