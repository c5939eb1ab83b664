"""Accept: the answer goes out once the store has the job; its message follows right behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import structlog
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind

from travelrec import metrics, tracing
from travelrec.batching import Batcher
from travelrec.dispatch import dispatch
from travelrec.errors import BrokerUnavailable, StoreUnavailable
from travelrec.job import Job, new_uid, settled
from travelrec.kinds import Sharing
from travelrec.ports import Broker, Store
from travelrec.wire import QUEUED_S
from travelrec_api.answers import Answers

log = structlog.get_logger(__name__)

_MAX_WAITING = 10_000  # for the store: more than it takes in a second or two
_MAX_UNPUBLISHED = 20_000
_MAX_UNSURE = 10_000
_LOOK_S = 0.25  # so often that a late write is seldom worked on before it is withdrawn
_LOOKED_UP = 500
_LOOKS = 40  # of a store that answers; by then it has done what it was sent before
_WITHDRAWN = "Withdrawn: its caller was told that nothing was accepted."


class Accepter:
    """Takes jobs on; concurrent ones share their writes and their publishes."""

    def __init__(
        self, store: Store, broker: Broker, kinds: Mapping[str, Sharing | None], retention_s: float
    ) -> None:
        self._store = store
        self._broker = broker
        self._kinds = kinds
        self._retention_s = retention_s
        self._answers = Answers(store)
        self._accepted = {kind: metrics.ACCEPTED.labels(kind) for kind in kinds}
        self._accept_s = {kind: metrics.ACCEPT_SECONDS.labels(kind) for kind in kinds}
        self._unsure: dict[str, int] = {}  # uid → how often it is still looked for
        self._accepts: Batcher[Job, Job] = Batcher(self._accept_all, max_items=500, grow=16)
        self._publishes: Batcher[Job, None] = Batcher(
            self._publish_all, max_items=500, max_in_flight=2, grow=32
        )

    async def accept(
        self,
        kind: str,
        params: dict[str, str],
        headers: dict[str, str],
        idempotency_key: str | None = None,
        *,
        span: Span = INVALID_SPAN,
    ) -> tuple[Job, bool]:
        """The durable job, and whether an earlier request with the same key had made it. Raises `StoreUnavailable`.

        Where a fresh answer of the same kind and parameters is known, the job is born completed. `span` is that of
        the request.
        """
        began = time.perf_counter()
        sharing, answered = self._kinds[kind], None
        if sharing is not None:
            answered = await self._answers.fresh(sharing.key(params), sharing.fresh_s)
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
        if answered is not None:
            job = settled(job, answered, now, self._retention_s)
            tracing.linked(span, answered.trace)
        span.set_attributes({"travelrec.uid": job.uid, "travelrec.kind": kind})
        if self._accepts.waiting >= _MAX_WAITING:
            raise StoreUnavailable("too many requests wait for it")
        with tracing.span("store accept", span, SpanKind.CLIENT):
            standing = await self._accepts.submit(job)
        if standing.uid != job.uid:
            return standing, True
        self._accepted[kind].inc()
        self._accept_s[kind].observe(time.perf_counter() - began, tracing.exemplar(headers))
        if job.ended:
            metrics.CACHE_HITS.labels("accept").inc()
            metrics.FINISHED.labels(kind, job.status.value).inc()
            metrics.JOB_SECONDS.labels(kind, job.status.value).observe(time.time() - job.created_at)
        elif self._publishes.waiting < _MAX_UNPUBLISHED:
            self._publishes.post(job)
        else:
            metrics.PUBLISH_FAILED.inc()
        return job, False

    async def drain(self) -> None:
        """Returns when every message on its way is out, or has been left to the sweeper."""
        await self._accepts.drain()
        await self._publishes.drain()

    async def withdraw(self) -> None:
        """Until cancelled: ends the jobs that stand although their callers were told that nothing was accepted.

        A write whose answer was lost may stand, or come to stand when a store that hung goes on.
        """
        while True:
            await asyncio.sleep(_LOOK_S)
            uids = list(self._unsure)[:_LOOKED_UP]
            if not uids:
                continue
            try:
                found = await self._store.get(uids)
                for uid in found:
                    await self._store.cancel(uid, time.time(), _WITHDRAWN)
            except StoreUnavailable:
                continue
            if found:
                log.info("withdrew what nobody knows of", jobs=len(found))
            for uid in uids:
                self._unsure[uid] -= 1
                if uid in found or not self._unsure[uid]:
                    del self._unsure[uid]

    async def _accept_all(self, jobs: list[Job]) -> Sequence[Job]:
        try:
            return await self._store.accept(jobs, time.time())
        except StoreUnavailable:
            # one with an idempotency key is left: whoever asks again with the key is answered with it
            unsure = [job.uid for job in jobs if job.idempotency_key is None]
            self._unsure.update(dict.fromkeys(unsure[: _MAX_UNSURE - len(self._unsure)], _LOOKS))
            raise

    async def _publish_all(self, jobs: list[Job]) -> list[None]:
        try:
            await dispatch(self._broker, jobs)
        except BrokerUnavailable as error:
            metrics.PUBLISH_FAILED.inc(len(jobs))
            log.warning("left to the sweeper", jobs=len(jobs), error=str(error))
        return [None] * len(jobs)
