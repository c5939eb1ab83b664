"""The role `poll`: one replica asks the third party how its tasks are, and moves ours as it says."""

from __future__ import annotations

import asyncio
import random
import time

import structlog
from opentelemetry.trace import Span, SpanKind

from travelrec import metrics, tracing
from travelrec.errors import StoreUnavailable, ThirdPartyAway, ThirdPartyError
from travelrec.job import new_uid
from travelrec.tasks.pace import next_poll_at
from travelrec.tasks.ports import TaskStore, ThirdParty
from travelrec_worker.progress import Progress

log = structlog.get_logger(__name__)

_LEASE_SLACK_S = 5.0
_STORE_RETRY_S = 1.0
_A_CALL = 500  # rows, of the store at the least
_LONGEST_AWAY_S = 3600.0


class Poller:
    """One replica, which polls while it has the lease; another has it soon after this one died."""

    def __init__(
        self,
        tasks: TaskStore,
        third_party: ThirdParty,
        progress: Progress,
        *,
        interval_s: float,
        timeout_s: float,
    ) -> None:
        self._tasks = tasks
        self._third_party = third_party
        self._progress = progress
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._lease_s = timeout_s + _LEASE_SLACK_S
        self._token = new_uid()
        self._due_at: float | None = None  # None: another polls
        self._polls = {what: metrics.POLLS.labels(what) for what in ("ok", "failed")}

    async def run(self) -> None:
        """Polls when it is time, or waits for its turn, until cancelled."""
        while True:
            try:
                pause_s = await self._turn()
            except StoreUnavailable as error:
                log.warning("store away", error=str(error))
                pause_s = _STORE_RETRY_S
            except Exception:  # the process has other roles, and another replica would fail the same way
                self._polls["failed"].inc()
                log.exception("poll failed")
                pause_s = min(self._interval_s, self._lease_s)
            await asyncio.sleep(pause_s)

    async def give_up(self) -> None:
        """Leaves the polling to another, at once."""
        if self._due_at is not None:
            try:
                await self._tasks.polled(self._token, self._due_at, 0.0)
            except StoreUnavailable as error:
                log.info("the poll's lease runs out", error=str(error))

    async def _turn(self) -> float:
        """Polls if it is due and ours; answers how long to wait then."""
        if not await self._leads():
            return random.uniform(0.5, 1.0) * self._lease_s / 3
        now = time.time()
        due_at = self._due_at or 0.0
        if due_at > now:
            return min(due_at - now, self._lease_s / 3)
        next_at = next_poll_at(due_at, now, self._interval_s, random.uniform(-1.0, 1.0))
        span = tracing.begun("poll tasks", SpanKind.CLIENT)
        try:
            next_at = max(next_at, await self._poll(span))
        finally:
            span.end()
        if await self._tasks.polled(self._token, next_at, time.time() + self._lease_s):
            self._due_at = next_at
        return 0.0

    async def _leads(self) -> bool:
        now, had_it = time.time(), self._due_at is not None
        with self._progress.calling("leading the poll", calls=2):
            self._due_at = await self._tasks.lead(self._token, now, now + self._lease_s)
        if self._due_at is not None and not had_it:
            log.info("polls the third party", every_s=self._interval_s)
        return self._due_at is not None

    async def _poll(self, span: Span) -> float:
        """One poll; answers when the third party wants to be asked again at the earliest, 0 if it doesn't say."""
        began = time.perf_counter()
        try:
            call = self._third_party.rows()
            rows = await self._progress.within(self._timeout_s, "poll", "", call)
        except (ThirdPartyError, TimeoutError) as error:
            self._polls["failed"].inc()
            tracing.failed(span, type(error).__name__)
            log.warning("poll failed", error=str(error) or "The third party did not answer in time.")
            asked_s = error.retry_after_s if isinstance(error, ThirdPartyAway) else None
            return time.time() + min(asked_s or 0.0, _LONGEST_AWAY_S)
        if not await self._leads():
            return 0.0  # it took so long that another polls
        with self._progress.calling("writing what a poll said", calls=2 + len(rows.good) // _A_CALL):
            reported = await self._tasks.report(rows.good)
        moved = sum(reported.moved.values())
        span.set_attributes({"travelrec.tasks.rows": len(rows.good), "travelrec.tasks.moved": moved})
        self._polls["ok"].inc()
        metrics.POLL_SECONDS.observe(time.perf_counter() - began)
        for outcome, count in (
            ("moved", moved),
            ("known", reported.known - moved),
            ("unknown", len(rows.good) - reported.known),
            ("bad", rows.bad),
        ):
            metrics.ROWS.labels(outcome).inc(count)
        say = log.warning if rows.bad else log.info if moved else log.debug
        say("polled", rows=len(rows.good), bad=rows.bad, **{s.value: n for s, n in reported.moved.items()})
        return 0.0
