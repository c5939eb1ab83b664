"""A Redis that was restarted is used again at once, and a call that is cancelled ends."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from support import Redis, eventually, unique_name
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


async def test_a_call_that_is_cancelled_ends(redis_server: Redis) -> None:
    """Whenever it is: who calls in a loop goes on for ever if a cancellation gets lost on the way."""
    async with (
        RedisChatHistory.opened(redis_server.url) as history,
        RedisSignals.opened(redis_server.url, "signals") as signals,
        SharedRateLimit.opened(redis_server.url, 10**6) as limit,
    ):

        async def going_on(call: Callable[[], Awaitable[object]]) -> None:
            for _ in range(1_000):
                await call()
                await asyncio.sleep(0)

        for call in (history.ping, signals.ping, lambda: limit.take("somebody")):
            for turn in range(300):
                task = asyncio.create_task(going_on(call))
                for _ in range(turn % 15):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()


async def test_more_calls_than_connections_wait(redis_server: Redis) -> None:
    """A burst is no outage: the limit stays shared, and every history is read."""
    user, calls = unique_name("user"), 600
    async with (
        SharedRateLimit.opened(redis_server.url, 30) as limit,
        RedisChatHistory.opened(redis_server.url) as history,
    ):
        waits = await asyncio.gather(*(limit.take(user) for _ in range(calls)))
        assert (sum(wait == 0 for wait in waits), limit._away_until) == (30, 0.0)
        assert await asyncio.gather(*(history.recent(user, 10) for _ in range(calls))) == [[]] * calls


async def test_a_piece_that_nobody_can_read_does_not_silence_the_bell(redis_server: Redis) -> None:
    """Of another release, or of somebody else."""
    rung: list[str | None] = []
    user = unique_name("user")
    async with (
        RedisChatHistory.opened(redis_server.url) as history,
        history.listen(rung.append, lambda piece: None),
    ):
        for text in ("{", "3", "[]", "[1, 2, 3, 4, 5, 6]", ""):
            await history._redis.publish(f"travelrec:chat:bell:{user}", text)
        await eventually(lambda: user in rung)
