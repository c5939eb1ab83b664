"""What the sweeper publishes, and what it leaves alone."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemoryStore
from travelrec.errors import BrokerUnavailable, StoreUnavailable
from travelrec.job import Job, Phase, Status, new_uid
from travelrec.wire import JOBS_GROUP, JOBS_TOPIC, QUEUED_S, Message, decode_job, encode_job
from travelrec_worker import sweeper as sweepers
from travelrec_worker.progress import Progress
from travelrec_worker.sweeper import Sweeper

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

BATCH = sweepers._BATCH


class Store(MemoryStore):
    """Counts its calls; may be away."""

    def __init__(self) -> None:
        super().__init__(retention_s=1000.0)
        self.called: list[str] = []
        self.away = False

    @property
    def calls(self) -> Counter[str]:
        return Counter(self.called)

    def _called(self, name: str) -> None:
        self.called.append(name)
        if self.away:
            raise StoreUnavailable("away")

    async def take_due(self, now: float, until: float, limit: int) -> list[Job]:
        self._called("take_due")
        return await super().take_due(now, until, limit)

    async def published(self, uids: Sequence[str], due_at: float, sent_at: float | None = None) -> None:
        self._called("published")
        await super().published(uids, due_at, sent_at)

    async def purge(self, now: float, limit: int) -> int:
        self._called("purge")
        return await super().purge(now, limit)


class Broker(MemoryBroker):
    """Keeps what was published; may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.away = False
        self.sent: list[Message] = []

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        if self.away:
            raise BrokerUnavailable("away")

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        self._called("publish")
        await super().publish(topic, messages)
        self.sent += messages

    async def oldest_waiting(self, topic: str, group: str) -> float | None:
        self._called("oldest_waiting")
        return await super().oldest_waiting(topic, group)

    async def ping(self) -> None:
        self._called("ping")

    @property
    def sent_uids(self) -> list[str]:
        return [decode_job(message) for message in self.sent]


class World:
    """A store and a broker with a sweeper; the time is `now`, as of which everything is old or young."""

    def __init__(self) -> None:
        self.store, self.broker = Store(), Broker()
        self.sweeper = Sweeper(self.store, self.broker, Progress(5.0))
        self.now = time.time()

    async def job(self, phase: Phase, *, age_s: float = 60.0, due_in_s: float = -1.0) -> Job:
        """A job in the store that was accepted `age_s` ago and is to be looked at in `due_in_s`."""
        job = Job(
            new_uid(),
            "recommendation",
            {},
            self.now - age_s,
            phase=phase,
            due_at=self.now + due_in_s,
            token=None if phase in (Phase.QUEUED, Phase.WAITING) else "t",
            headers={"x-request-id": "r-1"},
        )
        await self.store.accept([job], self.now)
        return job

    async def waiting_in_the_broker(self, job: Job) -> None:
        """The message of `job`, published when it was accepted."""
        await MemoryBroker.publish(self.broker, JOBS_TOPIC, [encode_job(job)])
        group = self.broker._group(JOBS_TOPIC, JOBS_GROUP)
        group.ready[-1] = (job.created_at, group.ready[-1][1])

    def standing(self, job: Job) -> Job:
        return self.store.jobs[job.uid]


@asynccontextmanager
async def swept(*sweepers_: Sweeper) -> AsyncIterator[None]:
    """The sweepers run in the background, and still do at the end."""
    tasks = [asyncio.create_task(one.run()) for one in sweepers_]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweepers, "_EVERY_S", 0.01)


async def test_nothing_due_costs_one_look() -> None:
    """With nothing to do the broker is not asked, and nothing is written."""
    world = World()
    await world.job(Phase.QUEUED, due_in_s=1)
    assert await world.sweeper.sweep(world.now) == 0
    assert (dict(world.store.calls), dict(world.broker.calls)) == ({"take_due": 1}, {})


async def test_exactly_what_is_due_is_published() -> None:
    """A lease that ran out and a back-off that is over are published once; all others are left alone."""
    world = World()
    due = [await world.job(phase) for phase in (Phase.RUNNING, Phase.WAITING, Phase.DUE)]
    for phase in Phase:
        await world.job(phase, due_in_s=1)
    ended = await world.job(Phase.QUEUED)
    await world.store.cancel(ended.uid, world.now - 2000, "x")
    before = dict(world.store.jobs)
    assert await world.sweeper.sweep(world.now) == 3
    assert sorted(world.broker.sent_uids) == sorted(job.uid for job in due)
    assert {world.standing(job).phase for job in due} == {Phase.QUEUED}
    changed = {uid for uid, job in world.store.jobs.items() if job != before[uid]}
    assert changed == {job.uid for job in due}
    assert await world.sweeper.sweep(world.now) == 0
    assert len(world.broker.sent) == 3


async def test_what_is_published_is_the_jobs_own_message() -> None:
    """It names the job, and carries the headers with which it was accepted."""
    world = World()
    job = await world.job(Phase.WAITING)
    await world.sweeper.sweep(world.now)
    assert world.broker.sent == [encode_job(job)]
    assert world.broker.sent[0].headers == {"x-request-id": "r-1"}


async def test_a_late_result_still_counts() -> None:
    """A job whose lease ran out keeps its token until another claims it."""
    world = World()
    job = await world.job(Phase.RUNNING)
    await world.sweeper.sweep(world.now)
    assert world.standing(job).token == "t"


async def test_a_job_that_was_never_published_is_published() -> None:
    """When the API died between accept and publish nothing waits in the broker: the sweeper publishes."""
    world = World()
    lost = await world.job(Phase.QUEUED, age_s=11)
    assert await world.sweeper.sweep(world.now) == 1
    assert world.broker.sent_uids == [lost.uid]
    assert world.now + QUEUED_S <= world.standing(lost).due_at <= world.now + 2 * QUEUED_S


async def test_a_backlog_is_not_published_again() -> None:
    """Jobs whose messages wait in the broker are looked at again later, the older the later, and never sent twice."""
    world = World()
    backlog = [await world.job(Phase.QUEUED, age_s=3600 - n) for n in range(50)]
    for job in backlog:
        await world.waiting_in_the_broker(job)
    assert await world.sweeper.sweep(world.now) == 50
    assert world.broker.sent == []
    assert all(world.now + 60 <= world.standing(job).due_at <= world.now + 600 for job in backlog)


async def test_a_message_that_was_taken_and_not_acknowledged_waits_too() -> None:
    """What a worker holds before its claim is not published a second time."""
    world = World()
    job = await world.job(Phase.QUEUED)
    await world.waiting_in_the_broker(job)
    async with world.broker.subscribe(JOBS_TOPIC, JOBS_GROUP) as subscription:
        (delivery,) = await subscription.take(1, 1.0)
        await world.sweeper.sweep(world.now)
        assert world.broker.sent == []
        delivery.acknowledge()
        await world.store.published([job.uid], world.now - 1)
        await world.sweeper.sweep(world.now)
    assert world.broker.sent_uids == [job.uid]


async def test_what_cannot_be_in_the_broker_is_published_beside_a_backlog() -> None:
    """A job that is older than everything that waits there has lost its message; a younger one may have it there."""
    world = World()
    lost = await world.job(Phase.QUEUED, age_s=100)
    for age_s in (90, 50):
        await world.waiting_in_the_broker(await world.job(Phase.QUEUED, age_s=age_s))
    perhaps_lost = await world.job(Phase.QUEUED, age_s=60)
    await world.sweeper.sweep(world.now)
    assert world.broker.sent_uids == [lost.uid]
    assert world.standing(perhaps_lost).due_at > world.now


async def test_clocks_may_differ_a_little() -> None:
    """A message that the broker dates a second after its job's acceptance is still taken for that job's."""
    world = World()
    job = await world.job(Phase.QUEUED, age_s=61)
    await world.waiting_in_the_broker(replace(job, created_at=world.now - 60))
    await world.sweeper.sweep(world.now)
    assert world.broker.sent == []


async def test_a_young_job_does_not_wait_for_the_age_of_an_old_one() -> None:
    """How soon a job is looked at again goes by its own age, whatever else is due."""
    world = World()
    old = await world.job(Phase.QUEUED, age_s=5000)
    young = await world.job(Phase.QUEUED, age_s=11)
    for job in (old, young):
        await world.waiting_in_the_broker(job)
    await world.job(Phase.WAITING, age_s=50_000)
    await world.sweeper.sweep(world.now)
    assert world.standing(young).due_at <= world.now + 2 * QUEUED_S
    assert world.now + 300 <= world.standing(old).due_at <= world.now + 600


async def test_a_backlog_that_the_sweeper_published_is_not_published_again() -> None:
    """After a long outage of the broker, what was published late and waits there is left alone as well."""
    world = World()
    for age_s in (900, 800):
        await world.job(Phase.QUEUED, age_s=age_s)
    await world.sweeper.sweep(world.now)
    assert len(world.broker.sent) == 2
    await world.sweeper.sweep(world.now + 601)
    assert len(world.broker.sent) == 2


async def test_of_two_sweepers_one_publishes() -> None:
    """However many workers sweep, each job is published once."""
    world = World()
    jobs = [await world.job(Phase.WAITING) for _ in range(50)]
    others = [Sweeper(world.store, world.broker, Progress(5.0)) for _ in range(5)]
    counts = await asyncio.gather(*(one.sweep(world.now) for one in others))
    assert sum(counts) == 50
    assert sorted(world.broker.sent_uids) == sorted(job.uid for job in jobs)


@pytest.mark.usefixtures("_quick")
async def test_more_than_a_batch_is_swept_at_once() -> None:
    """A pile of due jobs is worked batch after batch, without a pause between."""
    world = World()
    jobs = [await world.job(Phase.WAITING) for _ in range(2 * BATCH + 1)]
    assert await world.sweeper.sweep(world.now) == BATCH
    async with swept(world.sweeper):
        await eventually(lambda: len(world.broker.sent) == len(jobs))
    assert sorted(world.broker.sent_uids) == sorted(job.uid for job in jobs)


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.WAITING])
async def test_a_broker_that_is_away_loses_nothing(phase: Phase) -> None:
    """What was taken and could not be published is due again before long."""
    world = World()
    job = await world.job(phase)
    world.broker.away = True
    with pytest.raises(BrokerUnavailable):
        await world.sweeper.sweep(world.now)
    assert world.now < world.standing(job).due_at <= world.now + 30
    world.broker.away = False
    assert await world.sweeper.sweep(world.standing(job).due_at) == 1
    assert world.broker.sent_uids == [job.uid]


@pytest.mark.usefixtures("_quick")
async def test_the_sweeper_outlives_the_broker() -> None:
    """While the broker is away the store is left in peace; when it is back, everything is published."""
    world = World()
    world.broker.away = True
    await world.job(Phase.WAITING)
    async with swept(world.sweeper):
        await eventually(lambda: world.broker.calls["ping"] > 3)
        assert world.store.calls["take_due"] == 1
        late = await world.job(Phase.WAITING)
        world.broker.away = False
        await eventually(lambda: world.broker.sent_uids == [late.uid])


@pytest.mark.usefixtures("_quick")
async def test_the_sweeper_outlives_the_store() -> None:
    """It asks again until the store answers."""
    world = World()
    job = await world.job(Phase.WAITING)
    world.store.away = True
    async with swept(world.sweeper):
        await eventually(lambda: world.store.calls["take_due"] > 3)
        world.store.away = False
        await eventually(lambda: world.broker.sent_uids == [job.uid])


async def test_a_publish_that_could_not_be_noted_is_repeated() -> None:
    """When the store goes away behind the publish, the job is due again: twice is harmless, never is not."""
    world = World()
    job = await world.job(Phase.WAITING)
    world.store.published = _away  # type: ignore[method-assign]  # the store is away for this one call
    with pytest.raises(StoreUnavailable):
        await world.sweeper.sweep(world.now)
    del world.store.published
    await world.sweeper.sweep(world.now + 60)
    assert world.broker.sent_uids == [job.uid, job.uid]


async def _away(*_: object) -> None:
    raise StoreUnavailable("away")


async def test_purge_deletes_what_was_kept_long_enough() -> None:
    """Only ended jobs go, and only after their retention."""
    world = World()
    old, young, pending = [await world.job(Phase.QUEUED, age_s=90_000) for _ in range(3)]
    await world.store.cancel(old.uid, world.now - 2000, "x")
    await world.store.cancel(young.uid, world.now - 10, "x")
    assert await world.sweeper.purge(world.now) == 1
    assert set(world.store.jobs) == {young.uid, pending.uid}
    assert world.standing(young).status is Status.CANCELLED


@pytest.mark.usefixtures("_quick")
async def test_purging_goes_on_beside_sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """From time to time the sweeper deletes all that is old, batch after batch."""
    monkeypatch.setattr(sweepers, "_PURGE_EVERY_S", 0.0)
    world = World()
    for _ in range(2 * BATCH + 1):
        job = await world.job(Phase.QUEUED, due_in_s=3600)
        await world.store.cancel(job.uid, world.now - 2000, "x")
    async with swept(world.sweeper):
        await eventually(lambda: not world.store.jobs)
    assert ("purge", "purge") not in pairwise(world.store.called)  # what is due does not wait for all of it
