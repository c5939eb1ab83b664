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
from travelrec_worker.progress import Progress

log = structlog.get_logger(__name__)

_AGAIN_S = 0.25


class Leases:
    """Who runs what here. A run whose job is lost or cancelled is stopped: its result would not count."""

    def __init__(self, store: Store, lease_s: float, progress: Progress, worker: str | None = None) -> None:
        self._store = store
        self._progress = progress
        self.lease_s = lease_s
        self.worker = worker
        self._held: dict[str, tuple[str, asyncio.Task[object] | None]] = {}  # no task: its run is over
        self._until: dict[str, float] = {}  # of those held
        self._abandoned: set[asyncio.Task[object]] = set()

    @contextmanager
    def held(self, job: Job) -> Iterator[None]:
        """Renews the lease of `job` while the calling task runs it."""
        task = asyncio.current_task()
        if job.token is None or task is None:
            raise ValueError("only a claimed job, in a task, can be held")
        self._held[job.uid] = (job.token, task)
        self._until[job.uid] = job.due_at
        try:
            yield
        finally:
            if self._held.get(job.uid, ("", None))[0] == job.token:
                del self._held[job.uid], self._until[job.uid]
            self._abandoned.discard(task)

    def stands(self, job: Job, now: float) -> bool:
        """Whether nobody else can have taken `job`; not so when this process was frozen or the store away too long."""
        return self._held.get(job.uid, ("", None))[0] == job.token and now < self._until[job.uid]

    def decided(self, job: Job) -> None:
        """The run of `job` is over: its lease is still renewed, but nothing is there to be stopped any more."""
        if job.token is not None and self._held.get(job.uid, ("", None))[0] == job.token:
            self._held[job.uid] = (job.token, None)

    def abandon(self, uid: str) -> None:
        """Stops the run of `uid` here, if there is one."""
        task = self._held.get(uid, ("", None))[1]
        if task is not None:
            self._abandoned.add(task)
            task.cancel()

    def abandoned(self) -> bool:
        """Whether the calling task was stopped by `abandon`, and so by nobody else."""
        task = asyncio.current_task()
        return task in self._abandoned

    async def inherit(self) -> None:
        """Ends the leases that a dead worker of this one's name has left, before this one claims any.

        When the store can't be reached now they are left to run out.
        """
        if self.worker is None:
            return
        now = time.time()
        try:
            with self._progress.calling("releasing leases", calls=1):
                left = await self._store.release(self.worker, now, now + self.lease_s)
        except StoreUnavailable as error:
            log.warning("leases not released", worker=self.worker, error=str(error))
        else:
            if left:
                log.info("leases of a dead worker released", worker=self.worker, jobs=left)

    async def keep(self) -> None:
        """Renews what is held, three times a lease, until cancelled; at once when a store that was away is back."""
        pause_s = self.lease_s / 3
        while True:
            with self._progress.calling("renewing leases", calls=2, pause_s=pause_s):
                await asyncio.sleep(pause_s)
                renewed = await self._renew()
            pause_s = self.lease_s / 3 if renewed else min(_AGAIN_S, self.lease_s / 3)

    async def _renew(self) -> bool:
        held = [(uid, token) for uid, (token, _) in self._held.items()]
        if not held:
            return True
        until = time.time() + self.lease_s
        try:
            kept = await self._store.renew(held, until)
        except StoreUnavailable as error:
            log.warning("leases not renewed", jobs=len(held), error=str(error))
            return False
        for uid, token in held:
            holder, task = self._held.get(uid, ("", None))
            if uid in kept and holder == token:
                self._until[uid] = until
            elif holder == token and task is not None:
                metrics.LOST_LEASES.inc()
                log.warning("lease lost", uid=uid)
                self.abandon(uid)
        return True
