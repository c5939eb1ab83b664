"""Plain functions beside the event loop, so many at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

import structlog

log = structlog.get_logger(__name__)


class Threads:
    """Runs `limit` functions at a time, each in a thread of its own, which holds up no process that ends.

    A thread can't be stopped: one whose caller has gone keeps its place until its function has ended.
    """

    def __init__(self, limit: int) -> None:
        self._places = asyncio.Semaphore(limit)

    async def place(self) -> None:
        """Returns once there is a place, which the next `run` takes."""
        await self._places.acquire()

    async def run(self, function: Callable[..., object], *given: object) -> object:
        """What the function returns or raises, in the place that was waited for before."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[object] = loop.create_future()

        def tell(result: object, error: BaseException | None) -> None:
            self._places.release()
            if ended.done():
                return
            if error is None:
                ended.set_result(result)
            else:
                ended.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = function(*given)
            except BaseException as raised:  # noqa: BLE001 - raised again where it is waited for
                is_plain = isinstance(raised, Exception) and not isinstance(raised, StopIteration)
                error = raised if is_plain else RuntimeError(repr(raised))  # a future takes no other
            with suppress(RuntimeError):  # the loop has ended before us
                loop.call_soon_threadsafe(tell, result, error)

        try:
            threading.Thread(target=work, name="prediction", daemon=True).start()
        except RuntimeError:  # there can be no more
            self._places.release()
            raise
        try:
            return await ended
        except asyncio.CancelledError:
            log.warning(
                "a plain function goes on, and keeps its place",
                function=getattr(function, "__qualname__", repr(function)),
            )
            raise
