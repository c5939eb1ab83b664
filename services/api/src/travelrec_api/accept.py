"""Accept: the answer goes out once the store has the job; its message follows right behind."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from travelrec import metrics
from travelrec.batching import Batcher
from travelrec.errors import BrokerUnavailable
from travelrec.job import Job, new_uid
from travelrec.ports import Broker, Store
from travelrec.wire import JOBS_TOPIC, QUEUED_S, encode_job

log = structlog.get_logger(__name__)

_MAX_UNPUBLISHED = 20_000


class Accepter:
    """Takes jobs on; concurrent ones share their writes and their publishes."""

    def __init__(self, store: Store, broker: Broker) -> None:
        self._store = store
        self._broker = broker
        self._accepts: Batcher[Job, Job] = Batcher(self._accept_all, max_items=500, grow=16)
        self._publishes: Batcher[Job, None] = Batcher(
            self._publish_all, max_items=500, max_in_flight=2, grow=32
        )

    async def accept(
        self, kind: str, params: dict[str, str], headers: dict[str, str], idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        """The durable job, and whether an earlier request with the same key had made it. Raises `StoreUnavailable`."""
        now = time.time()
        job = Job(
            uid=new_uid(),
            kind=kind,
            params=params,
            created_at=now,
            due_at=now + QUEUED_S,
            idempotency_key=idempotency_key,
            headers=headers,
        )
        standing = await self._accepts.submit(job)
        if standing.uid != job.uid:
            return standing, True
        metrics.ACCEPTED.labels(kind).inc()
        if self._publishes.waiting < _MAX_UNPUBLISHED:
            self._publishes.post(job)
        else:
            metrics.PUBLISH_FAILED.inc()
        return job, False

    async def drain(self) -> None:
        """Returns when every message on its way is out, or has been left to the sweeper."""
        await self._accepts.drain()
        await self._publishes.drain()

    async def _accept_all(self, jobs: list[Job]) -> Sequence[Job]:
        return await self._store.accept(jobs, time.time())

    async def _publish_all(self, jobs: list[Job]) -> list[None]:
        try:
            await self._broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
        except BrokerUnavailable as error:
            metrics.PUBLISH_FAILED.inc(len(jobs))
            log.warning("left to the sweeper", jobs=len(jobs), error=str(error))
        return [None] * len(jobs)
