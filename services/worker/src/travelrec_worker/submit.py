"""The role `submit`: sends tasks that have not started to the third party, at the pace that all replicas share."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog
from opentelemetry.trace import SpanKind

from travelrec import metrics, tracing
from travelrec.batching import Batcher
from travelrec.errors import (
    StoreUnavailable,
    ThirdPartyAway,
    ThirdPartyError,
    ThirdPartyFailed,
    ThirdPartyRefused,
)
from travelrec.job import new_uid
from travelrec.retry import RetryPolicy
from travelrec.tasks.pace import LATENESS_S
from travelrec.tasks.ports import Taken, TaskStore, ThirdParty
from travelrec.tasks.task import Again, Outcome, Rejected, Submission, Submitted, Task
from travelrec_worker.progress import Progress

log = structlog.get_logger(__name__)

_LOOK_S = 0.1  # for tasks that come, at the least; twice that at the most
_STORE_RETRY_S = 0.5
_COUNT_EVERY_S = 5.0
_CALLS = 8  # of the store, to take tasks
_LEASE_SLACK_S = 10.0  # of a lease, for what a call takes longer than it may, and for writing its outcome
_AWAY = RetryPolicy(base_s=1.0, cap_s=30.0)
_LONGEST_AWAY_S = 3600.0
_TOO_LATE = "The third party did not answer in time."


class Submitter:
    """One replica. What it has taken and not sent when it dies is taken again when its lease is over."""

    def __init__(
        self,
        tasks: TaskStore,
        third_party: ThirdParty,
        progress: Progress,
        *,
        rate: float,
        concurrency: int,
        retry: RetryPolicy,
        timeout_s: float,
        deadline_s: float,
    ) -> None:
        self._tasks = tasks
        self._third_party = third_party
        self._progress = progress
        self._rate = rate
        self._concurrency = concurrency
        self._retry = retry
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._aways = 0  # in a row
        self._held_until = 0.0
        self._settlements: Batcher[Submission, None] = Batcher(self._settle_all, max_items=500)

    async def run(self) -> None:
        """Takes tasks and submits each at its time, until `stop`."""
        while not self._stopping.is_set():
            taken = await self._taken()
            for at, task in taken.tasks:
                running = asyncio.create_task(self._submit(at, task))
                self._running.add(running)
                running.add_done_callback(self._running.discard)
            pause_s = taken.look_again_at - time.time()
            if not taken.tasks:
                pause_s = max(pause_s, random.uniform(_LOOK_S, 2 * _LOOK_S))
            await self._stopped_within(pause_s)

    async def stop(self, grace_s: float) -> None:
        """Takes no more, hands back what is not on its way, and waits `grace_s` for what is."""
        self._stopping.set()
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        for running in self._running:
            running.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def count(self) -> None:
        """Counts the tasks of each status now and then, until cancelled."""
        while True:
            try:
                for status, count in (await self._tasks.counts()).items():
                    metrics.TASKS.labels(status.value).set(count)
            except StoreUnavailable as error:
                log.info("tasks not counted", error=str(error))
            await asyncio.sleep(_COUNT_EVERY_S)

    async def _taken(self) -> Taken:
        free = self._concurrency - len(self._running)
        if free <= 0:
            return Taken((), time.time())
        try:
            with self._progress.calling("taking tasks", calls=_CALLS):
                return await self._tasks.take(
                    new_uid(), time.time(), self._timeout_s + _LEASE_SLACK_S, self._rate, free
                )
        except StoreUnavailable as error:
            log.warning("store away", error=str(error))
            return Taken((), time.time() + _STORE_RETRY_S)

    async def _submit(self, at: float, task: Task) -> None:
        """Waits for the task's time, sends it, and writes down what came of it."""
        await self._stopped_within(at - time.time())
        now = time.time()
        if self._stopping.is_set() or now < self._held_until or now - at > LATENESS_S:
            metrics.SUBMISSIONS.labels("late").inc()
            outcome: Outcome = Again(now, failed=False)
        else:
            outcome = await self._sent(task)
        if isinstance(outcome, Submitted):
            metrics.TASK_WAIT_SECONDS.observe(time.time() - task.since, tracing.exemplar(task.headers))
        await self._settlements.submit(Submission(task.id, task.token, outcome))

    async def _sent(self, task: Task) -> Outcome:
        began, attributes = time.perf_counter(), {"travelrec.task.attempt": task.attempts + 1}
        ended = "accepted"
        with tracing.span("submit task", task.headers, SpanKind.CLIENT, attributes) as span:
            try:
                call = self._third_party.submit(task.id, task.key, tracing.carried(span))
                await self._progress.within(self._timeout_s, "submission", task.id, call)
                self._aways = 0
                return Submitted()
            except ThirdPartyError as error:
                ended, outcome = await self._refused(task, error)
            except TimeoutError:
                ended, outcome = await self._refused(task, ThirdPartyFailed(_TOO_LATE))
            except (
                Exception
            ):  # a task is supervised here: it is tried again, and ends as any other that fails
                log.exception("submission failed", task=task.id)
                ended, outcome = await self._refused(task, ThirdPartyFailed("The submission failed."))
            finally:
                metrics.SUBMISSIONS.labels(ended).inc()
                metrics.SUBMISSION_SECONDS.labels(ended).observe(time.perf_counter() - began)
            tracing.failed(span, ended)
        return outcome

    async def _refused(self, task: Task, error: ThirdPartyError) -> tuple[str, Outcome]:
        """What comes of a submission that was not taken, by whose fault that was."""
        now = time.time()
        match error:
            case ThirdPartyRefused():
                log.warning("task refused", task=task.id, error=str(error))
                return "refused", Rejected(str(error))
            case ThirdPartyAway(retry_after_s=asked_s):
                self._aways += 1
                wait_s = min(_AWAY.delay_s(self._aways, retry_after_s=asked_s), _LONGEST_AWAY_S)
                await self._hold(now + wait_s, error)
                if now - task.since > self._deadline_s:
                    return "away", Rejected(str(error))
                return "away", Again(now + wait_s, failed=False)
        attempts = task.attempts + 1
        if self._retry.exhausted(attempts):
            log.warning("task given up", task=task.id, attempts=attempts, error=str(error))
            return "failed", Rejected(str(error))
        return "failed", Again(now + self._retry.delay_s(attempts))

    async def _hold(self, until: float, error: ThirdPartyError) -> None:
        """Sends nothing until then, here; and nobody gets a time before, if the store can be told."""
        if until <= self._held_until:
            return
        if self._held_until < time.time():
            log.warning("third party away", error=str(error), for_s=round(until - time.time(), 1))
        self._held_until = until
        with suppress(StoreUnavailable):
            await self._tasks.hold(until)

    async def _settle_all(self, submissions: Sequence[Submission]) -> list[None]:
        """Writes down what came of them, however long the store is away."""
        while True:
            try:
                await self._tasks.settle(submissions)
            except StoreUnavailable as error:
                log.warning("outcomes wait for the store", tasks=len(submissions), error=str(error))
                await asyncio.sleep(_STORE_RETRY_S)
            else:
                return [None] * len(submissions)

    async def _stopped_within(self, seconds: float) -> None:
        """Returns after so long, or when told to stop."""
        if seconds > 0 and not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
