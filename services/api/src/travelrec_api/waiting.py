"""Wait: readers of a job share their reads, and sleep until a signal says that it has ended."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import structlog
from prometheus_client import Gauge

from travelrec import metrics, tracing
from travelrec.batching import Batcher
from travelrec.errors import StoreUnavailable
from travelrec.job import Job, Status
from travelrec.ports import Store
from travelrec.wire import Signal

log = structlog.get_logger(__name__)

_LOOK_AGAIN_S = 2.0


class Waiters:
    """Who waits for what in this process. Reading again now and then makes up for a signal that was lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reads: Batcher[str, Job | None] = Batcher(self._read_all, max_items=500)
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._stopped = False

    async def read(self, uid: str) -> Job | None:
        """The job as it stands, None if there is none; raises `StoreUnavailable`."""
        return await self._reads.submit(uid)

    async def until_ended(
        self, uid: str, timeout_s: float, counted: Gauge = metrics.LONG_POLLS
    ) -> Job | None:
        """The job once it has ended, or as it stands after `timeout_s` or when the process stops."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[uid].add(woken)
        try:
            job = await self.read(uid)  # after registering, so that no signal can slip through
            if job is None or job.ended or timeout_s <= 0 or self._stopped:
                return job
            with metrics.WAITERS.track_inprogress(), counted.track_inprogress():
                await asyncio.wait([woken], timeout=timeout_s)
            return await self.read(uid)
        finally:
            self._waiting[uid].discard(woken)
            if not self._waiting[uid]:
                del self._waiting[uid]

    def hear(self, signals: Sequence[Signal]) -> None:
        """Wakes who waits for these jobs."""
        metrics.SIGNALS_HEARD.inc(len(signals))
        for signal in signals:
            if signal.status is not Status.PENDING and signal.uid in self._waiting:
                attributes: dict[str, str | int] = {
                    "travelrec.uid": signal.uid,
                    "travelrec.waiters": len(self._waiting[signal.uid]),
                }
                with tracing.span("notify", {"traceparent": signal.trace or ""}, attributes=attributes):
                    self._wake(signal.uid)

    def stop(self) -> None:
        """Wakes everybody, now and from now on; may be called from a signal handler."""
        self._stopped = True
        for uid in list(self._waiting):
            for woken in self._waiting[uid]:
                woken.get_loop().call_soon_threadsafe(_wake, woken)

    @property
    def stopped(self) -> bool:
        """Whether the process is about to end."""
        return self._stopped

    async def look_again(self) -> None:
        """Reads what is waited for every two seconds, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN_S)
            uids = list(self._waiting)
            try:
                found = await self._store.get(uids) if uids else {}
            except StoreUnavailable as error:
                log.warning("store away", error=str(error))
                continue
            for uid, job in found.items():
                if job.ended and uid in self._waiting:
                    metrics.SIGNALS_LATE.inc()
                    self._wake(uid)

    def _wake(self, uid: str) -> None:
        for woken in self._waiting.get(uid, ()):
            _wake(woken)

    async def _read_all(self, uids: list[str]) -> list[Job | None]:
        found = await self._store.get(uids)
        return [found.get(uid) for uid in uids]


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
