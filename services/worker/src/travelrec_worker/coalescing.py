"""Coalesce: jobs of one key at one time make one model call, on one worker and across workers.

The first job to ask for a key leads it, and runs. The others follow: those of this worker wait for its outcome, those
of other workers for the signal that it has ended, and take its result from its own record. There is nothing to renew
or to clean up: a leader is as alive as its job, and one that ended without a result is replaced by the first that
asks. Whatever died in between, a follower asks again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import structlog

from travelrec import metrics
from travelrec.batching import Batcher
from travelrec.errors import StoreUnavailable
from travelrec.job import (
    DEADLINE_PASSED,
    Bid,
    Completed,
    Failed,
    Job,
    Outcome,
    Retry,
    Try,
    answers,
    at_work,
)
from travelrec.ports import Store
from travelrec.wire import Signal
from travelrec_worker.progress import Progress

_LOOK_AGAIN_S = 1.0  # a signal may be lost
_FOLLOW_S = 10.0  # then a follower gives up its place in memory and comes back later
_COME_BACK_S = 2.0
_STORE_RETRY_S = 0.25

Item = TypeVar("Item")
Reply = TypeVar("Reply")

log = structlog.get_logger(__name__)


class Coalescer:
    """Who leads and who follows in this worker."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self._here: dict[
            str, asyncio.Future[Outcome | None]
        ] = {}  # key → the outcome of a run of this worker
        self._remote: dict[str, asyncio.Event] = {}  # uid of a leader elsewhere → it has ended
        self._following: set[str] = set()  # uids of the jobs that wait for another of this worker
        self._bids: Batcher[Bid, str] = Batcher(self._bid_all, grow=16, apart=True)
        self._reads: Batcher[str, Job | None] = Batcher(self._read_all, grow=16)

    async def outcome(
        self,
        job: Job,
        key: str,
        fresh_s: float,
        run: Callable[[], Awaitable[Outcome]],
        following: Callable[[], None],
    ) -> Outcome:
        """What becomes of `job`: the outcome of `run`, or another's; calls `following` before it waits for one.

        A result of the same `key` that is younger than `fresh_s` seconds will do. An attempt of another that failed is
        one of `job` too: a `Retry` with it.
        """
        deadline = time.monotonic() + _FOLLOW_S
        while True:
            if key not in self._here:
                outcome = await self._lead(job, key, fresh_s, run, following, deadline)
            else:
                following()
                outcome = _theirs(await self._follow(job, key))
                if outcome is not None:
                    metrics.FOLLOWERS.inc()
            if outcome is not None:
                return outcome

    def hear(self, signals: Sequence[Signal]) -> None:
        """Wakes the followers of leaders that have ended elsewhere."""
        for signal in signals:
            if signal.uid in self._remote:
                self._remote[signal.uid].set()

    async def _follow(self, job: Job, key: str) -> Outcome | None:
        """Waits for the one who leads `key` in this worker."""
        self._following.add(job.uid)
        if job.uid in self._remote:
            self._remote[job.uid].set()  # that one waits for this very job, which came here from elsewhere
        try:
            return await asyncio.shield(self._here[key])
        finally:
            self._following.discard(job.uid)

    async def _lead(
        self,
        job: Job,
        key: str,
        fresh_s: float,
        run: Callable[[], Awaitable[Outcome]],
        following: Callable[[], None],
        deadline: float,
    ) -> Outcome | None:
        """Leads `key` in this worker: runs, or waits for a leader elsewhere for all who ask here."""
        told: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._here[key] = told
        outcome = None
        try:
            found = await self._elsewhere(job, key, fresh_s, following, deadline)
            if found is None:
                outcome = await run()
            return found or outcome
        finally:
            del self._here[key]
            told.set_result(outcome)  # none from elsewhere: it may be too old for a follower

    async def _elsewhere(
        self, job: Job, key: str, fresh_s: float, following: Callable[[], None], deadline: float
    ) -> Outcome | None:
        """The outcome that a leader elsewhere gives `job`; None when `job` leads and is to be run."""
        instead_of = None
        while True:
            leader_uid = await _answered(self._bids, Bid(key, job.uid, instead_of))
            if leader_uid == job.uid:
                return None
            ended = self._remote[leader_uid] = (
                asyncio.Event()
            )  # before the read, so that no signal slips through
            try:
                leader = await _answered(self._reads, leader_uid)
                now = time.time()
                if leader is not None and answers(leader, job.created_at, now, fresh_s):
                    metrics.CACHE_HITS.labels("worker").inc()
                    return Completed(leader.result or {}, leader.trace)
                if leader is None or not at_work(leader, now) or leader_uid in self._following:
                    instead_of = leader_uid
                    continue
                if time.monotonic() > deadline:
                    return Retry(now + _COME_BACK_S)
                instead_of = None
                following()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await ended.wait()
            finally:
                self._remote.pop(leader_uid, None)

    async def _bid_all(self, bids: list[Bid]) -> Sequence[str]:
        with self._progress.calling("bidding", calls=3):
            return await self._store.lead(bids, time.time())

    async def _read_all(self, uids: list[str]) -> list[Job | None]:
        with self._progress.calling("reading leaders", calls=2):
            found = await self._store.get(uids)
        return [found.get(uid) for uid in uids]


async def _answered(calls: Batcher[Item, Reply], item: Item) -> Reply:
    """The reply, however long the store is away: the lease of the waiting job is renewed or lost meanwhile."""
    while True:
        try:
            return await calls.submit(item)
        except StoreUnavailable as error:
            log.warning("coalescing waits", error=str(error))
            await asyncio.sleep(_STORE_RETRY_S)


def _theirs(outcome: Outcome | None) -> Outcome | None:
    """What the outcome of a run means for who waited for it; None if nothing."""
    match outcome:
        case Failed(last) if last.error == DEADLINE_PASSED:
            return None
        case Failed(_, Try() as attempt):
            return Retry(0.0, attempt)
        case Completed() | Failed() | Retry():
            return outcome
        case _:
            return None
