"""The joined trips as they come, for who watches: one reader of the topic for all watchers of a process, and none else.

What is shown is what comes while somebody watches. A watcher that is slow misses the oldest, and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal, NamedTuple

import structlog

from travelrec.errors import BrokerUnavailable, TravelrecError, Undecodable
from travelrec.ports import Broker
from travelrec.trips.codec import Codec
from travelrec.trips.entities import JOINED

log = structlog.get_logger(__name__)

_KEPT = 200  # for a watcher that is slow
_MOST_WATCHERS = 500
_AGAIN_S = 1.0


class Happening(NamedTuple):
    """`joined` has the trip, `missed` how many; `live` and `away` say whether the topic is read."""

    what: Literal["live", "away", "joined", "missed"]
    data: object  # that JSON can tell


class Watcher:
    """What one watcher has yet to be told."""

    def __init__(self) -> None:
        self._waiting: deque[Happening] = deque()
        self._missed = 0
        self._some = asyncio.Event()

    def tell(self, happening: Happening) -> None:
        """Keeps it, in the place of the oldest if need be."""
        if len(self._waiting) == _KEPT:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(happening)
        self._some.set()

    async def told(self, within_s: float) -> list[Happening]:
        """What has happened since the last call, waited for; nothing if nothing does in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._some.wait()
        self._some.clear()
        found = [Happening("missed", self._missed)] if self._missed else []
        found += self._waiting
        self._waiting.clear()
        self._missed = 0
        return found

    def wake(self) -> None:
        """Ends the wait of `told`."""
        self._some.set()


class JoinedTrips:
    """Who watches, and the reader while anybody does."""

    def __init__(self, broker: Broker, codec: Codec) -> None:
        self._broker = broker
        self._codec = codec
        self._watchers: set[Watcher] = set()
        self._reading: asyncio.Task[None] | None = None
        self._state = Happening("away", None)
        self.stopped = False

    @property
    def is_full(self) -> bool:
        """Whether nobody more may watch."""
        return len(self._watchers) >= _MOST_WATCHERS

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Watcher]:
        """A watcher, who is told at once whether the topic is read."""
        watcher = Watcher()
        if self._reading is None or self._reading.done():
            self._state = Happening("away", None)
            self._reading = asyncio.create_task(self._read())
        watcher.tell(self._state)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and self._reading is not None:
                self._reading.cancel()
                self._reading = None

    def stop(self) -> None:
        """Ends all watching."""
        self.stopped = True
        for watcher in self._watchers:
            watcher.wake()

    async def _read(self) -> None:
        while True:
            try:
                async with self._broker.tail(JOINED.topic) as messages:
                    self._now("live")
                    async for message in messages:
                        await self._show(message.value)
            except BrokerUnavailable as error:
                log.warning("joined trips not read", error=str(error))
            self._now("away")
            await asyncio.sleep(_AGAIN_S)

    async def _show(self, value: bytes) -> None:
        try:
            self._tell(Happening("joined", await self._codec.decode(JOINED, value)))
        except Undecodable as error:
            log.warning("joined trip not shown", error=str(error))
        except TravelrecError as error:  # the registry is away
            log.warning("joined trip not shown", error=str(error))
            self._tell(Happening("missed", 1))

    def _now(self, state: Literal["live", "away"]) -> None:
        self._state = Happening(state, None)
        self._tell(self._state)

    def _tell(self, happening: Happening) -> None:
        for watcher in self._watchers:
            watcher.tell(happening)
