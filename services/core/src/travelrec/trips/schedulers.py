"""Two ways to do something so many times a second: APScheduler's interval jobs, and a plain asyncio loop.

Both let a bounded number of runs overlap; a tick that finds no place is missed, not queued. The loop's ticks are due
at multiples of the period from its start: it corrects its drift by sleeping shorter, and after a delay it catches up.
APScheduler counts from the time for which the last run was planned, which corrects drift too; ticks that it wakes up
late for run one after the other in one place, and those that are late by more than a second not at all.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from apscheduler import events
from apscheduler.events import SchedulerEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

_MISFIRE_S = 1
_END_S = 30.0
_SUBMITTED_TO_REMOVED = (
    events.EVENT_JOB_SUBMITTED
    | events.EVENT_JOB_EXECUTED
    | events.EVENT_JOB_ERROR
    | events.EVENT_JOB_MISSED
    | events.EVENT_JOB_REMOVED
)

Tick = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Ticks:
    """What became of the ticks of one schedule; times are those of the monotonic clock."""

    rate: float
    planned: int
    at: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def missed(self) -> int:
        """How many did not run."""
        return max(0, self.planned - len(self.at))

    @property
    def achieved(self) -> float:
        """Ticks a second, from the first to the last."""
        return (len(self.at) - 1) / (self.at[-1] - self.at[0]) if len(self.at) > 1 else 0.0

    @property
    def drift_s(self) -> float:
        """How much later the last tick was than so many periods after the first: what was missed counts in."""
        return (self.at[-1] - self.at[0]) - (len(self.at) - 1) / self.rate if self.at else 0.0

    def jitter_s(self, share: float) -> float:
        """How far a gap between two ticks is from the period, for that `share` of the gaps at most."""
        gaps = [abs(b - a - 1 / self.rate) for a, b in zip(self.at, self.at[1:], strict=False)]
        if len(gaps) < 2:  # noqa: PLR2004 - quantiles are of two or more
            return gaps[0] if gaps else 0.0
        return statistics.quantiles(gaps, n=1000, method="inclusive")[round(share * 1000) - 1]


async def with_asyncio(tick: Tick, rate: float, for_s: float, overlap: int) -> Ticks:
    """Runs `tick` by a plain loop."""
    ticks = Ticks(rate, int(rate * for_s))
    running: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    try:
        for number in range(ticks.planned):
            await asyncio.sleep(began + number / rate - time.monotonic())
            if len(running) < overlap:
                task = asyncio.create_task(_run(tick, ticks))
                running.add(task)
                task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running, timeout=_END_S)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return ticks


async def _run(tick: Tick, ticks: Ticks) -> None:
    ticks.at.append(time.monotonic())
    try:
        await tick()
    except Exception:  # noqa: BLE001 - one run's trouble must not end the schedule; it is counted
        ticks.failed += 1


async def with_apscheduler(tick: Tick, rate: float, for_s: float, overlap: int) -> Ticks:
    """Runs `tick` by APScheduler's `AsyncIOScheduler`."""
    ticks = Ticks(rate, int(rate * for_s))
    waiting, removed, ended = 0, False, asyncio.Event()

    async def counted() -> None:
        await _run(tick, ticks)

    def look() -> None:
        if removed and not waiting:
            ended.set()

    def heard(event: SchedulerEvent) -> None:
        nonlocal waiting, removed
        match event.code:
            case events.EVENT_JOB_SUBMITTED:
                waiting += len(event.scheduled_run_times)
            case events.EVENT_JOB_REMOVED:  # with its last run, of which is told behind this
                removed = True
                loop.call_soon(look)
            case _:
                waiting -= 1
                look()

    loop = asyncio.get_running_loop()
    scheduler = AsyncIOScheduler()
    scheduler.add_listener(heard, _SUBMITTED_TO_REMOVED)
    first = datetime.now().astimezone()
    period = timedelta(seconds=1 / rate)
    last = first + (ticks.planned - 1) * period
    scheduler.add_job(
        counted,
        IntervalTrigger(seconds=period.total_seconds(), start_date=first, end_date=last),
        next_run_time=first,
        max_instances=overlap,
        misfire_grace_time=_MISFIRE_S,
        coalesce=False,
    )
    scheduler.start()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(for_s + _END_S):
                await ended.wait()
    finally:
        scheduler.shutdown(wait=False)
    return ticks


SCHEDULERS: Mapping[str, Callable[[Tick, float, float, int], Awaitable[Ticks]]] = {
    "apscheduler": with_apscheduler,
    "asyncio": with_asyncio,
}
