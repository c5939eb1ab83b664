"""Serving the API: gunicorn with several processes, or uvicorn inside a process that does more.

On SIGTERM event streams and long polls are ended first, or they would hold the process until it is killed and the
lifespan's shutdown would never run: stream end < uvicorn's deadline < gunicorn's < the pod's.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any  # gunicorn ships no types

import uvicorn
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS

from travelrec.settings import Settings
from travelrec_api.edge import Edge, new_request_id
from travelrec_api.problems import problem

_STREAMS_S = 10
_GUNICORN_S = 20
_KEY_BYTES = 16  # of a WebSocket handshake
_SOCKETS: dict[str, Any] = {
    "ws": "websockets-sansio",
    "ws_max_size": 4 * 1024 * 1024,  # so that what is merely too long is told so, and the connection stays
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,  # its windows would be most of a connection's memory
}


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, which refuses in the common shape also what it can't read.

    A handshake that `websockets` could not read, and would leave without an answer, is an ordinary request.
    """

    def _should_upgrade(self) -> bool:
        return super()._should_upgrade() and is_handshake(self.parser.get_method(), self.url, self.headers)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: the request has its answer."""

    def send_400_response(self, msg: str) -> None:
        """Called with what is wrong; the application never sees such a request."""
        refused = problem(400, {"Connection": "close", "X-Request-ID": new_request_id().decode()})
        headers = [*self.server_state.default_headers, *refused.raw_headers]
        head = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in headers), b"", b""]
        self.transport.write(b"\r\n".join(head) + bytes(refused.body))
        self.transport.close()


def is_handshake(method: bytes, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a request that asks for a WebSocket is a handshake for `/ws`, within the limits of `websockets`."""
    given = dict(headers)
    try:
        key = base64.b64decode(given.get(b"sec-websocket-key", b"").strip(), validate=True)
    except ValueError:
        return False
    lines = [len(b"GET  HTTP/1.1\r\n") + len(url), *(len(n) + len(v) + len(b": \r\n") for n, v in headers)]
    return (
        method == b"GET"
        and url.partition(b"?")[0] == b"/ws"
        and len(key) == _KEY_BYTES
        and given.get(b"sec-websocket-version", b"").strip() == b"13"
        and given.get(b"content-length", b"0") == b"0"
        and b"transfer-encoding" not in given
        and max(lines) <= MAX_LINE_LENGTH
        and len(headers) <= MAX_NUM_HEADERS
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
