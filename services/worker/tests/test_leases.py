"""The leases a worker holds: renewed together, and given up when another holds them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryStore
from travelrec.errors import StoreUnavailable
from travelrec.job import Job, Phase, new_uid
from travelrec_worker.leases import Leases
from travelrec_worker.progress import Progress

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

LEASE_S = 0.06  # renewed three times in it


class Store(MemoryStore):
    """Keeps each renewal it was asked for; may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals: list[list[str]] = []
        self.releases = 0
        self.away = False

    async def release(self, worker: str, now: float, until: float) -> int:
        self.releases += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().release(worker, now, until)

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        self.renewals.append([uid for uid, _ in leases])
        if self.away:
            raise StoreUnavailable("away")
        return await super().renew(leases, until)


class Run:
    """A task that holds a job until it is told to go, or stopped; `end` says which."""

    def __init__(self, leases: Leases, job: Job, *, decided: bool = False) -> None:
        self.end = ""
        self.go = asyncio.Event()
        self.task = asyncio.create_task(self._hold(leases, job, decided))

    async def _hold(self, leases: Leases, job: Job, decided: bool) -> None:
        with leases.held(job):
            if decided:
                leases.decided(job)
            try:
                await self.go.wait()
                self.end = "done"
            except asyncio.CancelledError:
                self.end = "abandoned" if leases.abandoned() else "cancelled"


@asynccontextmanager
async def keeping(store: Store) -> AsyncIterator[Leases]:
    leases = Leases(store, LEASE_S, Progress(5.0))
    task = asyncio.create_task(leases.keep())
    try:
        yield leases
        assert not task.done()
    finally:
        task.cancel()


async def claimed(store: Store, count: int = 1) -> list[Job]:
    now = time.time()
    jobs = [Job(new_uid(), "recommendation", {}, now, due_at=now + 60) for _ in range(count)]
    await store.accept(jobs, now)
    return await store.claim([job.uid for job in jobs], "mine", now, now + LEASE_S)


async def test_what_is_held_is_renewed_in_one_write() -> None:
    """All leases of a worker are extended together, for as long as they are held."""
    store = Store()
    jobs = await claimed(store, 5)
    async with keeping(store) as leases:
        runs = [Run(leases, job) for job in jobs]
        await eventually(lambda: len(store.renewals) >= 4)
        assert all(len(uids) == 5 for uids in store.renewals)
        assert all(store.jobs[job.uid].due_at > job.due_at for job in jobs)
        for run in runs:
            run.go.set()
        await asyncio.wait([run.task for run in runs])
        (late,) = await claimed(store)
        other = Run(leases, late)
        await eventually(lambda: store.renewals[-1] == [late.uid])
        other.go.set()
        await other.task
    assert [run.end for run in runs] == ["done"] * 5


async def test_nothing_held_nothing_written() -> None:
    """An idle worker does not ask the store."""
    store, other = Store(), Store()
    (job,) = await claimed(other)
    async with keeping(store), keeping(other) as leases:
        run = Run(leases, job)
        await eventually(lambda: len(other.renewals) >= 3)
        run.go.set()
        await run.task
    assert store.renewals == []


async def test_a_lost_lease_stops_its_run_only() -> None:
    """A run whose job another worker has taken is stopped, and knows why; the others go on."""
    store = Store()
    lost, kept = await claimed(store, 2)
    async with keeping(store) as leases:
        lost_run, kept_run = Run(leases, lost), Run(leases, kept)
        await eventually(lambda: store.renewals)
        store.jobs[lost.uid] = replace(store.jobs[lost.uid], token="another's")
        await asyncio.wait([lost_run.task])
        assert lost_run.end == "abandoned"
        seen = len(store.renewals)
        await eventually(lambda: len(store.renewals) > seen + 1)
        assert store.renewals[-1] == [kept.uid]
        kept_run.go.set()
        await kept_run.task
    assert kept_run.end == "done"


async def test_a_job_that_was_deleted_is_lost() -> None:
    """A record that is gone is no lease."""
    store = Store()
    (job,) = await claimed(store)
    async with keeping(store) as leases:
        run = Run(leases, job)
        await asyncio.sleep(0)
        del store.jobs[job.uid]
        await asyncio.wait([run.task])
    assert run.end == "abandoned"


async def test_a_store_that_is_away_takes_no_lease() -> None:
    """Runs go on while the store does not answer, and their leases are renewed when it is back."""
    store = Store()
    (job,) = await claimed(store)
    store.away = True
    async with keeping(store) as leases:
        run = Run(leases, job)
        await eventually(lambda: len(store.renewals) >= 4)
        assert not run.task.done()
        store.away = False
        await eventually(lambda: store.jobs[job.uid].due_at > time.time())
        run.go.set()
        await run.task
    assert run.end == "done"


async def test_a_lease_that_ran_out_unnoticed_is_taken_up_again() -> None:
    """A job that a sweeper has taken meanwhile, and no worker, is renewed as if nothing had been."""
    store = Store()
    (job,) = await claimed(store)
    await store.take_due(time.time() + 60, time.time() + 70, 10)
    assert store.jobs[job.uid].phase is Phase.DUE
    async with keeping(store) as leases:
        run = Run(leases, job)
        await eventually(lambda: store.jobs[job.uid].phase is Phase.RUNNING)
        run.go.set()
        await run.task
    assert run.end == "done"


async def test_a_run_that_has_decided_is_not_stopped() -> None:
    """While its outcome is being written the lease is renewed, but there is nothing to stop any more."""
    store = Store()
    (job,) = await claimed(store)
    async with keeping(store) as leases:
        run = Run(leases, job, decided=True)
        await eventually(lambda: store.renewals)
        del store.jobs[job.uid]
        leases.abandon(job.uid)
        seen = len(store.renewals)
        await eventually(lambda: len(store.renewals) > seen + 1)
        run.go.set()
        await run.task
    assert run.end == "done"


async def test_abandon_stops_the_run_of_that_job() -> None:
    """A cancelled job's run ends at once; one of another job, or of nobody, is not touched."""
    store = Store()
    one, other = await claimed(store, 2)
    leases = Leases(store, LEASE_S, Progress(5.0))
    run, other_run = Run(leases, one), Run(leases, other)
    await asyncio.sleep(0)
    leases.abandon(new_uid())
    leases.abandon(one.uid)
    leases.abandon(one.uid)
    await asyncio.wait([run.task])
    other_run.go.set()
    await other_run.task
    assert (run.end, other_run.end) == ("abandoned", "done")


async def test_a_run_that_is_stopped_from_outside_was_not_abandoned() -> None:
    """A worker that ends cancels its runs too: their jobs are to be handed back."""
    store = Store()
    (job,) = await claimed(store)
    leases = Leases(store, LEASE_S, Progress(5.0))
    run = Run(leases, job)
    await asyncio.sleep(0)
    run.task.cancel()
    await asyncio.wait([run.task])
    assert run.end == "cancelled"


async def test_an_older_run_does_not_give_up_a_newer_lease() -> None:
    """When a job is claimed again here, the end of its first run leaves the second one's lease alone."""
    store = Store()
    (job,) = await claimed(store)
    async with keeping(store) as leases:
        older = Run(leases, job)
        await asyncio.sleep(0)
        (again,) = await store.claim([job.uid], "mine again", time.time() + 60, time.time() + 120)
        newer = Run(leases, again)
        await asyncio.sleep(0)
        older.go.set()
        await older.task
        seen = len(store.renewals)
        await eventually(lambda: len(store.renewals) > seen + 1)
        assert store.renewals[-1] == [job.uid]
        newer.go.set()
        await newer.task
    assert (older.end, newer.end) == ("done", "done")


async def test_only_a_claimed_job_is_held() -> None:
    """A job without a token is nobody's lease."""
    job = Job(new_uid(), "recommendation", {}, 0.0)
    with pytest.raises(ValueError, match="claimed"), Leases(Store(), LEASE_S, Progress(5.0)).held(job):
        pass


async def test_the_successor_of_a_dead_worker_inherits_its_leases() -> None:
    """They are over at once; those of another name are not, nor those of a worker without one."""
    store = Store()
    now = time.time()
    jobs = [Job(new_uid(), "recommendation", {}, now, due_at=now + 60) for _ in range(3)]
    await store.accept(jobs, now)
    for job, name in zip(jobs, ("mine", "another's", None), strict=True):
        await store.claim([job.uid], job.uid, now, now + 60, name)
    await Leases(store, 60.0, Progress(5.0)).inherit()
    assert [store.jobs[job.uid].due_at for job in jobs] == [now + 60] * 3
    await Leases(store, 60.0, Progress(5.0), "mine").inherit()
    assert [store.jobs[job.uid].due_at <= time.time() for job in jobs] == [True, False, False]


async def test_a_worker_starts_although_it_can_not_inherit() -> None:
    """While the store is away the leases of a dead worker are left to run out."""
    store = Store()
    store.away = True
    await Leases(store, LEASE_S, Progress(5.0), "mine").inherit()
    assert store.releases == 1
