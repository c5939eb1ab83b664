"""A Redis that was restarted is used again at once, however many connections were open to the one before."""

import asyncio
from collections.abc import Callable

import pytest

from support import Redis
from travelrec.adapters.chat_limits import SharedRateLimit
from travelrec.adapters.redis_chat import RedisChatHistory
from travelrec.adapters.redis_signals import RedisSignals

pytestmark = pytest.mark.asyncio


async def test_history_and_signals_go_on_at_once(new_redis: Callable[..., Redis]) -> None:
    """No call fails for a connection that was open before."""
    server = await asyncio.to_thread(new_redis)
    async with (
        RedisChatHistory.opened(server.url) as history,
        RedisSignals.opened(server.url, "signals") as signals,
    ):
        for _ in range(2):
            await asyncio.gather(*(part.ping() for part in (history, signals) for _ in range(10)))
            server.restart()  # in this thread: as far as the connections know, nothing has happened yet


async def test_a_limit_stays_shared(new_redis: Callable[..., Redis]) -> None:
    """What two processes take after the restart is counted together."""
    server = await asyncio.to_thread(new_redis)
    async with (
        SharedRateLimit.opened(server.url, 100) as one,
        SharedRateLimit.opened(server.url, 100) as other,
    ):
        await asyncio.gather(*(limit.take("early") for limit in (one, other) for _ in range(10)))
        server.restart()
        waits = await asyncio.gather(*(limit.take("late") for limit in (one, other) for _ in range(75)))
        assert sum(wait == 0 for wait in waits) == 100
