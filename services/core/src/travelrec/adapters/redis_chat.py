"""Chats in Redis: a stream for each user, and a channel that rings when it grows, and has pieces of answers.

A script appends a message, its reply and the note that it is answered, and publishes, all in one go. The keys of a
user share a hash tag, so that a cluster keeps them together.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any  # what a reply may be is written wider than what it is

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from travelrec.adapters.redis_retry import ONCE_MORE
from travelrec.chat.message import Entry, Piece, Reply, Said, notes_of
from travelrec.errors import HistoryUnavailable

log = structlog.get_logger(__name__)

_BELL = "travelrec:chat:bell:"
_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")  # Redis takes no number above 2**64
_APPEND = """
local added = redis.call('EXISTS', KEYS[3], KEYS[4]) == 0
if added then
  redis.call('SET', KEYS[2], 1, 'EX', ARGV[1])
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'record', ARGV[4])
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'record', ARGV[5])
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', ARGV[3], '')
return added and 1 or 0
"""
_HEAR_S = 2.0  # how long the bell is listened for before the connection is tried
_AGAIN_S = 0.5
_READY_S = 2.0
_CONNECTIONS = 256


class RedisChatHistory:
    """See `chat.ports.ChatHistory`; made by `opened`."""

    def __init__(self, redis: Redis, bells: Redis, timeout_s: float, limit: int, ttl_s: float) -> None:
        self._redis = redis
        self._bells = bells
        self._timeout_s = timeout_s
        self._limit = limit
        self._ttl_s = int(ttl_s)
        self._append = redis.register_script(_APPEND)

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str, *, timeout_s: float = 5.0, limit: int = 1_000, ttl_s: float = 30 * 86400.0
    ) -> AsyncIterator[RedisChatHistory]:
        """Two clients, one of which waits for the bell; nothing is sent yet."""
        pool = BlockingConnectionPool.from_url(
            url,
            decode_responses=True,
            socket_timeout=None,  # ours holds; with one of its own it swallows cancellations on Python 3.11
            socket_connect_timeout=timeout_s,
            retry=ONCE_MORE,
            max_connections=_CONNECTIONS,
            timeout=None,  # what waits for a connection is in our time-out too
        )
        redis = Redis.from_pool(pool)
        bells = Redis.from_url(
            url, decode_responses=True, socket_timeout=None, socket_connect_timeout=timeout_s, retry=ONCE_MORE
        )
        async with redis, bells:
            yield cls(redis, bells, timeout_s, limit, ttl_s)

    async def append(self, reply: Reply) -> bool:
        """See `chat.ports.ChatHistory`."""
        said = reply.to
        records = [
            ["message", said.content, said.at, said.id],
            [reply.kind, reply.content, reply.at, said.id, *([reply.trace] if reply.trace else ())],
        ]
        texts = [json.dumps(record, ensure_ascii=False) for record in records]
        async with self._answering():
            added = await self._append(
                keys=[
                    _stream(said.userid),
                    *(_note(said.userid, note) for note in (reply.note, *notes_of(said))),
                ],
                args=[self._ttl_s, self._limit, _BELL + said.userid, *texts],
            )
        return bool(added)

    async def answered(self, said: Said) -> bool:
        """See `chat.ports.ChatHistory`."""
        async with self._answering():
            return bool(await self._redis.exists(*(_note(said.userid, note) for note in notes_of(said))))

    async def after(self, userid: str, since: str, limit: int) -> Sequence[Entry]:
        """See `chat.ports.ChatHistory`."""
        begin = f"({since}" if _ID.fullmatch(since) else "-"
        async with self._answering():
            return _entries(await self._redis.xrange(_stream(userid), begin, "+", limit))

    async def recent(self, userid: str, limit: int) -> Sequence[Entry]:
        """See `chat.ports.ChatHistory`."""
        async with self._answering():
            return _entries(await self._redis.xrevrange(_stream(userid), "+", "-", limit))[::-1]

    async def tell(self, piece: Piece) -> None:
        """See `chat.ports.ChatHistory`."""
        text = json.dumps([piece.message, piece.offset, piece.content], ensure_ascii=False)
        async with self._answering():
            await self._redis.publish(_BELL + piece.userid, text)

    @asynccontextmanager
    async def listen(
        self, ring: Callable[[str | None], None], hear: Callable[[Piece], None] | None = None
    ) -> AsyncIterator[None]:
        """See `chat.ports.ChatHistory`."""
        ready = asyncio.Event()
        task = asyncio.create_task(self._listen(ring, hear, ready))
        try:
            await asyncio.wait([waiting := asyncio.create_task(ready.wait())], timeout=_READY_S)
            waiting.cancel()
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _listen(
        self,
        ring: Callable[[str | None], None],
        hear: Callable[[Piece], None] | None,
        ready: asyncio.Event,
    ) -> None:
        while True:
            try:
                async with self._bells.pubsub() as bell:
                    async with asyncio.timeout(self._timeout_s):
                        await bell.psubscribe(f"{_BELL}*")
                    while True:
                        message = await bell.get_message(timeout=_HEAR_S)
                        if message is None:
                            async with asyncio.timeout(self._timeout_s):
                                await bell.ping()
                        elif message["type"] == "pmessage":
                            userid = message["channel"].removeprefix(_BELL)
                            if not message["data"]:
                                ring(userid)
                            elif hear is not None:
                                _hear(hear, userid, message["data"])
                        elif message["type"] == "psubscribe":
                            ready.set()
                            ring(None)
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("the bell of chats is not heard for now", error=str(error) or "no answer in time")
                await asyncio.sleep(_AGAIN_S)

    async def ping(self) -> None:
        """See `chat.ports.ChatHistory`."""
        async with self._answering():
            await self._redis.ping()

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        with _translated():
            async with asyncio.timeout(self._timeout_s):
                yield


def _hear(hear: Callable[[Piece], None], userid: str, data: str) -> None:
    try:
        piece = Piece(userid, *json.loads(data))
    except (ValueError, TypeError):
        log.warning("a piece of an answer was skipped: another release writes it", userid=userid)
    else:
        hear(piece)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise HistoryUnavailable(f"Redis: {str(error) or 'no answer in time'}") from error


def _stream(userid: str) -> str:
    return f"travelrec:chat:{{{userid}}}:stream"


def _note(userid: str, note: str) -> str:
    return f"travelrec:chat:{{{userid}}}:answered:{note}"


def _entries(found: Any) -> list[Entry]:
    return [Entry(id_, *json.loads(fields["record"])) for id_, fields in found]
