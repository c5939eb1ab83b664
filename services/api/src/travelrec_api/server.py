"""Serving the API: gunicorn with several processes, or uvicorn inside a process that does more.

On SIGTERM event streams and long polls are ended first, or they would hold the process until it is killed and the
lifespan's shutdown would never run: stream end < uvicorn's deadline < gunicorn's < the pod's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any  # gunicorn ships no types

import httptools
import uvicorn
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker
from websockets.http11 import Request
from websockets.server import ServerProtocol

from travelrec.settings import Settings
from travelrec_api.edge import Edge, request_id_of
from travelrec_api.problems import problem

_STREAMS_S = 10
_GUNICORN_S = 20
_SOCKETS: dict[str, Any] = {
    "ws": "websockets-sansio",
    "ws_max_size": 4 * 1024 * 1024,  # so that what is merely too long is told so, and the connection stays
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,  # its windows would be most of a connection's memory
}


_CONNECTION = {b"connection", b"proxy-connection"}  # the two that llhttp takes for the same


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, which refuses in the common shape also what it can't read.

    The only upgrade is a WebSocket's handshake. llhttp takes no body of a request that asks for any other, and takes
    what follows for a request; so its head is read again as one that asks for none.
    """

    _handshake = False
    _put_off = False

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but for other upgrades."""
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        try:
            while rest:
                try:
                    self.parser.feed_data(rest)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                if self._handshake:
                    self.handle_websocket_upgrade()
                    return
                if not self._put_off:  # CONNECT: what follows would be a tunnel's
                    self.cycle.keep_alive = False
                    return
                kept = b"keep-alive" if self.parser.should_keep_alive() else b"close"
                others = [(name, value) for name, value in self.headers if name not in _CONNECTION]
                head = self._head([*others, (b"connection", kept)])
                self.parser = httptools.HttpRequestParser(self)  # as uvicorn's: that one is done at a `close`
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Blanks behind a value are none of it; llhttp leaves them."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Decides what becomes of a request that asks for an upgrade."""
        asks = self.parser.should_upgrade()
        self._handshake = asks and is_handshake(self.url, self._head(self.headers))
        self._put_off = asks and not self._handshake and self.parser.get_method() != b"CONNECT"
        if not self._put_off:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Also called where the head alone was read."""
        if not self._put_off:
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return self._handshake

    def _head(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        version = self.parser.get_http_version().encode()
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
        return b"\r\n".join([line, *(b"%s: %s" % header for header in headers), b"", b""])

    def send_400_response(self, msg: str) -> None:
        """Called with what is wrong; the application never sees such a request."""
        request_id = request_id_of({"headers": self.headers or ()})
        self.logger.warning(msg, extra={"request_id": request_id})
        refused = problem(400, {"Connection": "close", "X-Request-ID": request_id})
        headers = [*self.server_state.default_headers, *refused.raw_headers]
        head = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in headers), b"", b""]
        self.transport.write(b"\r\n".join(head) + bytes(refused.body))
        self.transport.close()


def is_handshake(url: bytes, head: bytes) -> bool:
    """Whether a request that asks for an upgrade is for `/ws`, and `websockets` takes it."""
    if url.partition(b"?")[0] != b"/ws":
        return False
    server = ServerProtocol(logger=logging.getLogger("uvicorn.error"))
    server.receive_data(head)
    return any(
        isinstance(event, Request) and server.accept(event).status_code == HTTPStatus.SWITCHING_PROTOCOLS
        for event in server.events_received()
    )


class Server(uvicorn.Server):
    """A uvicorn server that tells the application when it is asked to end."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler: readiness flips and streams end before connections are waited for."""
        if isinstance(self.config.app, Edge):
            self.config.app.stop()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, which kills the process by the signal again where its own end only begins."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


class Worker(UvicornWorker):  # type: ignore[misc]  # uvicorn_worker ships no types
    """gunicorn's worker, with that server."""

    CONFIG_KWARGS = {  # noqa: RUF012 - as the base class has it
        "loop": "uvloop",
        "http": Protocol,
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": _STREAMS_S,
        **_SOCKETS,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logger = logging.getLogger("uvicorn.error")  # which the base class has just made as loud as gunicorn
        logger.propagate = True
        logger.setLevel(logging.WARNING)

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = Server(config=self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            raise SystemExit(3)  # gunicorn's WORKER_BOOT_ERROR: it ends instead of starting others for ever


class _Log(Logger):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn's log, in the same stream and form as everything else."""

    def setup(self, cfg: object) -> None:
        """Called with gunicorn's configuration."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.setLevel(logging.NOTSET)
        self.error_log.propagate = True


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        options: dict[str, Any] = {
            "bind": f"{host}:{self._settings.port}",
            "workers": self._settings.web_concurrency,
            "worker_class": "travelrec_api.server.Worker",
            "graceful_timeout": _GUNICORN_S,
            "timeout": 60,
            "keepalive": 75,
            "control_socket_disable": True,
            "worker_tmp_dir": "/dev/shm" if Path("/dev/shm").is_dir() else None,  # noqa: S108 - a heartbeat file
            "proc_name": "travelrec-api",
            "logger_class": _Log,
        }
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            options["child_exit"] = _forget_process
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Edge:
        from travelrec_api.app import create_app  # noqa: PLC0415 - after the fork

        return create_app(self._settings)[1]


def _forget_process(_: object, worker: Any) -> None:
    from prometheus_client import multiprocess  # noqa: PLC0415 - reads the environment when imported

    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped


def serve_with_gunicorn(settings: Settings) -> None:
    """Serves until SIGTERM; several processes share their metrics in `PROMETHEUS_MULTIPROC_DIR`. Does not return."""
    _Application(settings).run()


@asynccontextmanager
async def served_in_process(app: Edge, listening: socket.socket) -> AsyncIterator[asyncio.Task[None]]:
    """Serves `app` on a bound socket while entered; the task ends by itself after SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STREAMS_S,
        **_SOCKETS,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield serving
    finally:
        app.stop()
        server.should_exit = True
        await serving
