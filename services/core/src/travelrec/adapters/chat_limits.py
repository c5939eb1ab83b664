"""Rate limits over `limits`: a moving window in Redis for all replicas, in this process while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from travelrec.adapters.redis_retry import ONCE_MORE

log = structlog.get_logger(__name__)

_TIMEOUT_S = 1.0
_AWAY_S = 3.0  # for which Redis is not asked again
_SCOPE = "chat"


class LocalRateLimit:
    """See `chat.ports.RateLimit`; for one process."""

    def __init__(self, per_minute: int) -> None:
        self._item = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def take(self, userid: str) -> float:
        """See `chat.ports.RateLimit`."""
        return await _take(self._limiter, self._item, userid)


class SharedRateLimit:
    """See `chat.ports.RateLimit`; made by `opened`."""

    def __init__(self, storage: RedisStorage, per_minute: int) -> None:
        self._item = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(storage)
        self._local = LocalRateLimit(per_minute)
        self._away_until = 0.0

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, per_minute: int) -> AsyncIterator[SharedRateLimit]:
        """Nothing is sent yet."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=256,
            socket_timeout=None,  # ours holds; with one of its own it swallows cancellations on Python 3.11
            socket_connect_timeout=_TIMEOUT_S,
            retry=ONCE_MORE,
            timeout=None,  # what waits for a connection is in our time-out too
        )
        storage = RedisStorage(
            "async+redis://",  # the pool knows the address
            implementation="redispy",
            key_prefix="travelrec:limit",
            connection_pool=pool,  # type: ignore[arg-type]  # what is handed through is typed too narrowly
        )
        try:
            yield cls(storage, per_minute)
        finally:
            await pool.aclose()

    async def take(self, userid: str) -> float:
        """See `chat.ports.RateLimit`."""
        if time.monotonic() >= self._away_until:
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    return await _take(self._limiter, self._item, userid)
            except (RedisError, OSError, TimeoutError) as error:
                self._away_until = time.monotonic() + _AWAY_S
                log.warning(
                    "rate limits hold for this process alone", error=str(error) or "no answer in time"
                )
        return await self._local.take(userid)


async def _take(limiter: MovingWindowRateLimiter, item: RateLimitItemPerMinute, userid: str) -> float:
    if await limiter.hit(item, _SCOPE, userid):
        return 0.0
    window = await limiter.get_window_stats(item, _SCOPE, userid)
    return max(1.0, window.reset_time - time.time())
