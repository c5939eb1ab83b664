"""What waits, and who is there: asked of the neighbours now and then, for the gauges of this worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from travelrec import metrics
from travelrec.errors import Unavailable
from travelrec.ports import Broker, Signals, Store
from travelrec.wire import JOB_TOPICS

log = structlog.get_logger(__name__)

_EVERY_S = 5.0
_SHARE = 20  # looking takes one part in so many of the time at the most
_COUNTED = 100_000


class Backlog:
    """Looks at store, broker and signals, whatever scrapes there are; every worker sees the same."""

    def __init__(self, store: Store, broker: Broker, signals: Signals) -> None:
        self._store = store
        self._broker = broker
        self._signals = signals
        self._oldest_at: float | None = None

    async def watch(self) -> None:
        """Looks until cancelled."""
        while True:
            began = time.monotonic()
            all_there = await self.look()
            await asyncio.sleep(_pause_s(time.monotonic() - began) if all_there else _EVERY_S)

    async def look(self) -> bool:
        """One look at all of them, and whether they were there.

        What a neighbour that is away said last stands, and what waits grows older.
        """
        there = await asyncio.gather(
            _seen("store", self._look_at_store),
            _seen("broker", self._look_at_broker),
            _seen("signals", self._signals.ping),
        )
        metrics.OLDEST_WAITING.set(max(0.0, time.time() - self._oldest_at) if self._oldest_at else 0.0)
        return all(there)

    async def _look_at_store(self) -> None:
        backlog = await self._store.backlog(_COUNTED)
        metrics.WAITING.set(backlog.pending)
        self._oldest_at = backlog.oldest_at

    async def _look_at_broker(self) -> None:
        for topic in JOB_TOPICS:
            await show_lag(self._broker, topic, topic)


async def watch_lag(broker: Broker, topic: str, group: str) -> None:
    """Until cancelled: what `group` has not taken of `topic`."""
    while True:
        began = time.monotonic()
        try:
            await show_lag(broker, topic, group)
        except Unavailable as error:
            log.info("not there", dependency="broker", error=str(error))
        await asyncio.sleep(_pause_s(time.monotonic() - began))


async def show_lag(broker: Broker, topic: str, group: str) -> None:
    """Asks for it once; raises `BrokerUnavailable`."""
    for partition, lag in (await broker.group(topic, group)).lag.items():
        metrics.LAG.labels(topic, str(partition)).set(lag)


def _pause_s(took_s: float) -> float:
    return max(_EVERY_S, _SHARE * took_s)


async def _seen(name: str, look: Callable[[], Awaitable[None]]) -> bool:
    up = metrics.DEPENDENCY_UP.labels(name)
    try:
        await look()
    except Unavailable as error:
        up.set(0)
        log.info("not there", dependency=name, error=str(error))
        return False
    up.set(1)
    return True
