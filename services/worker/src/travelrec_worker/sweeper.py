"""Again: publishes what is due, and deletes what has been kept long enough. Safe in any number of workers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import structlog

from travelrec import metrics
from travelrec.dispatch import dispatch
from travelrec.errors import BrokerUnavailable, Unavailable
from travelrec.job import Job, Phase
from travelrec.ports import Broker, Store
from travelrec.wire import QUEUED_S, topic_of
from travelrec_worker.progress import Progress

log = structlog.get_logger(__name__)

_EVERY_S = 1.0
_PURGE_EVERY_S = 60.0
_RETAKE_S = 10.0  # when a sweeper that took a job and died is followed by another
_CLOCKS_S = 2.0  # what the clocks of broker and API may differ by
_HELD_S = 600.0  # the longest time between two looks at a job that waits in the broker
_BATCH = 500
_CALLS = 16  # of the store and the broker in one turn, at the most


class Sweeper:
    """Looks at every job whose `due_at` has passed."""

    def __init__(self, store: Store, broker: Broker, progress: Progress) -> None:
        self._store = store
        self._broker = broker
        self._progress = progress

    async def run(self) -> None:
        """Sweeps until cancelled."""
        purged_at = time.monotonic()
        while True:
            try:
                with self._progress.calling("sweeping", calls=_CALLS) as turn:
                    more = True
                    while more:
                        self._progress.moved(turn)
                        more = await self.sweep(time.time()) == _BATCH
                        if time.monotonic() - purged_at > _PURGE_EVERY_S:
                            if await self.purge(time.time()) == _BATCH:
                                more = True
                            else:
                                purged_at = time.monotonic()
            except Unavailable as error:
                log.warning("sweeper waits", neighbour=error.name, error=str(error))
                await self._broker_back(error)
            await asyncio.sleep(_EVERY_S)

    async def sweep(self, now: float) -> int:
        """Takes one batch of due jobs and publishes them; answers how many were due.

        A queued job is published again only when its message can't be in the broker any more, since everything that
        waits there was published after the job's own message: a long backlog is never published twice.
        """
        jobs = await self._store.take_due(now, now + _RETAKE_S, _BATCH)
        if not jobs:
            return 0
        again = [job for job in jobs if job.phase is Phase.DUE]
        queued: defaultdict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            if job.phase is Phase.QUEUED:
                queued[topic_of(job.kind)].append(job)
        for topic, some in queued.items():
            oldest = await self._broker.oldest_waiting(topic, topic)
            again += [
                job for job in some if oldest is None or (job.sent_at or job.created_at) < oldest - _CLOCKS_S
            ]
        if again:
            await dispatch(self._broker, again)
            metrics.SWEPT.inc(len(again))
            log.info("published what was due", jobs=len(again))
        sent = {job.uid for job in again}
        later: defaultdict[tuple[float, float | None], list[str]] = defaultdict(list)
        for job in jobs:
            wait_s = _look_again_s(now - job.created_at)
            later[wait_s, now if job.uid in sent else None].append(job.uid)
        for (wait_s, sent_at), uids in later.items():
            await self._store.published(uids, now + wait_s, sent_at)
        return len(jobs)

    async def purge(self, now: float) -> int:
        """Deletes one batch of ended jobs whose retention is over; answers how many."""
        purged = await self._store.purge(now, _BATCH)
        metrics.PURGED.inc(purged)
        return purged

    async def _broker_back(self, error: Unavailable) -> None:
        """Takes no more jobs while they can't be published."""
        while isinstance(error, BrokerUnavailable):
            await asyncio.sleep(_EVERY_S)
            try:
                with self._progress.calling("asking for the broker", calls=1):
                    await self._broker.ping()
            except BrokerUnavailable:
                continue
            return


def _look_again_s(age_s: float) -> float:
    """The wait of a job that waits in the broker: it doubles with its age, so that many jobs share few waits."""
    wait_s = QUEUED_S
    while 2 * wait_s <= min(age_s, _HELD_S):
        wait_s *= 2
    return wait_s
