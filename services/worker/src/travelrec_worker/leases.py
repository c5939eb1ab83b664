"""The leases this worker holds: renewed together, one write for all, and given up when another holds them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from travelrec import metrics
from travelrec.errors import StoreUnavailable
from travelrec.job import Job
from travelrec.ports import Store

log = structlog.get_logger(__name__)


class Leases:
    """Who runs what here. A run whose job is lost or cancelled is stopped: its result would not count."""

    def __init__(self, store: Store, lease_s: float) -> None:
        self._store = store
        self.lease_s = lease_s
        self._held: dict[str, tuple[str, asyncio.Task[object]]] = {}
        self._abandoned: set[asyncio.Task[object]] = set()

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """Renews the lease of `job` while the calling task runs it."""
        task = asyncio.current_task()
        if job.token is None or task is None:
            raise ValueError("only a claimed job, in a task, can be held")
        self._held[job.uid] = (job.token, task)
        try:
            yield
        finally:
            if self._held.get(job.uid, ("", None))[1] is task:
                del self._held[job.uid]
            self._abandoned.discard(task)

    def abandon(self, uid: str) -> None:
        """Stops the run of `uid` here, if there is one."""
        if uid in self._held:
            task = self._held[uid][1]
            self._abandoned.add(task)
            task.cancel()

    def abandoned(self) -> bool:
        """Whether the calling task was stopped by `abandon`, and so by nobody else."""
        task = asyncio.current_task()
        return task in self._abandoned

    async def keep(self) -> None:
        """Renews what is held, three times a lease, until cancelled."""
        while True:
            await asyncio.sleep(self.lease_s / 3)
            held = [(uid, token) for uid, (token, _) in self._held.items()]
            if not held:
                continue
            try:
                kept = await self._store.renew(held, time.time() + self.lease_s)
            except StoreUnavailable as error:
                log.warning("leases not renewed", jobs=len(held), error=str(error))
                continue
            for uid, token in held:
                if uid not in kept and self._held.get(uid, ("", None))[0] == token:
                    metrics.LOST_LEASES.inc()
                    log.warning("lease lost", uid=uid)
                    self.abandon(uid)
