"""Signals over Redis: one channel that every listener hears whole, and that keeps nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from travelrec.adapters.hearing import Hear, listening, tell
from travelrec.adapters.redis_retry import ONCE_MORE
from travelrec.errors import SignalUnavailable
from travelrec.wire import Signal, encode_signals

log = logging.getLogger(__name__)

_AWAY = (RedisError, OSError, TimeoutError)
_HEAR_S = 2.0  # how long nothing may be heard before the connection is tried
_AGAIN_S = 0.5


class RedisSignals:
    """See `ports.Signals`; made by `opened`."""

    def __init__(self, redis: Redis, ears: Redis, channel: str, timeout_s: float) -> None:
        self._redis = redis
        self._ears = ears
        self._channel = channel
        self._timeout_s = timeout_s

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, channel: str, *, timeout_s: float = 5.0) -> AsyncIterator[RedisSignals]:
        """Two clients, one of which listens; nothing is sent yet."""
        redis = Redis.from_url(
            url,
            socket_timeout=None,  # ours holds; with one of its own it swallows cancellations on Python 3.11
            socket_connect_timeout=timeout_s,
            retry=ONCE_MORE,
            max_connections=256,
        )
        ears = Redis.from_url(url, socket_timeout=None, socket_connect_timeout=timeout_s, retry=ONCE_MORE)
        async with redis, ears:
            yield cls(redis, ears, channel, timeout_s)

    async def announce(self, signals: Sequence[Signal]) -> None:
        """See `ports.Signals`."""
        await self._answer(self._redis.publish(self._channel, encode_signals(signals)))

    def listen(self, hear: Hear) -> AbstractAsyncContextManager[None]:
        """See `ports.Signals`. Does not wait for a Redis that is away; begins when it is back."""
        return listening(self._read, hear)

    async def ping(self) -> None:
        """See `ports.Signals`."""
        await self._answer(self._redis.ping())

    async def _answer(self, call: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await call
        except _AWAY as error:
            raise SignalUnavailable(f"Redis: {str(error) or 'no answer in time'}") from error

    async def _read(self, hear: Hear, ready: asyncio.Event) -> None:
        while True:
            try:
                async with self._ears.pubsub() as ear:
                    async with asyncio.timeout(self._timeout_s):
                        await ear.subscribe(self._channel)
                    async for value in self._heard(ear, ready):
                        await tell(hear, value)
            except _AWAY as error:
                log.warning("signals are not heard for now: %s", str(error) or "no answer in time")
                await asyncio.sleep(_AGAIN_S)

    async def _heard(self, ear: PubSub, ready: asyncio.Event) -> AsyncIterator[bytes]:
        """What comes; raises `TimeoutError` when a Redis that says nothing does not answer a ping either."""
        asked = False
        while True:
            message = await ear.get_message(timeout=self._timeout_s if asked else _HEAR_S)
            if message is None:
                if asked:
                    raise TimeoutError
                async with asyncio.timeout(self._timeout_s):
                    await ear.ping()
                asked = True
                continue
            asked = False
            if message["type"] == "subscribe":
                ready.set()
            elif message["type"] == "message":
                yield message["data"]
