"""What the adapters of `ports.Signals` have in common: listening in the background, and telling what was heard."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

from travelrec.errors import Undecodable
from travelrec.wire import Signal, decode_signals

log = logging.getLogger(__name__)

Hear: TypeAlias = Callable[[Sequence[Signal]], Awaitable[None] | None]

_READY_S = 2.0  # to begin to listen, where the server is there


@asynccontextmanager
async def listening(
    read: Callable[[Hear, asyncio.Event], Coroutine[None, None, None]], hear: Hear
) -> AsyncIterator[None]:
    """Runs `read` until left, which sets the event once it listens; does not wait for a server that is away."""
    task = asyncio.create_task(read(hear, ready := asyncio.Event()))
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_READY_S):
                await ready.wait()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def tell(hear: Hear, value: bytes) -> None:
    """Calls `hear` with the signals of one message; one that can't be read is skipped."""
    try:
        answer = hear(decode_signals(value))
    except Undecodable as error:
        log.warning("a signal was skipped: %s", error)
        return
    if inspect.isawaitable(answer):
        await answer
