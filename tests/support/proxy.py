"""A bad network: a TCP proxy on 127.0.0.1 that cuts, freezes and delays what passes through it."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from support.ports import free_port, release_port

CHUNK_BYTES = 64 * 1024


class Proxy:
    """Listens on `port` and passes connections on to `target_port` while it is open (`async with`)."""

    def __init__(self, target_port: int, *, port: int | None = None) -> None:
        self.target_port = target_port
        self._owned = port is None
        self.port = free_port() if port is None else port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_cut = False
        self._delay_s = 0.0

    @property
    def address(self) -> str:
        """Where clients connect to."""
        return f"127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections pass through now."""
        return len(self._connections)

    def cut(self) -> None:
        """Reset every connection, and every new one as soon as it is made, until `restore`."""
        self._is_cut = True
        self._abort_all()

    def drop(self) -> None:
        """Reset every connection once; new ones pass."""
        self._abort_all()

    def freeze(self) -> None:
        """Let no more bytes through; connections stay open and new ones are accepted."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let bytes flow again, those held back first."""
        self._flowing.set()

    def delay(self, seconds: float) -> None:
        """Hold every piece of data back for this long, in both directions."""
        self._delay_s = seconds

    def restore(self) -> None:
        """Be a good network again."""
        self._is_cut, self._delay_s = False, 0.0
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, reuse_address=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        connections = list(self._connections)
        self._abort_all()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        if self._owned:
            release_port(self.port)

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        target: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            if self._is_cut:
                return
            answers, target = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(target)
            async with asyncio.TaskGroup() as directions:
                directions.create_task(self._pass_on(reader, target))
                directions.create_task(self._pass_on(answers, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side went away, or the proxy is closed: the connection ends below
        finally:
            self._connections.discard(task)
            for end in (writer, target):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(CHUNK_BYTES):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._flowing.wait()
            sink.write(data)
            await sink.drain()
        with suppress(OSError):  # the other side may have closed first
            sink.write_eof()
