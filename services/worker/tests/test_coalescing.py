"""Jobs of one key at one time make one model call, on one worker and across workers."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.connect import Parts
from travelrec.errors import BadKey, ModelBusy, Refused
from travelrec.job import Bid, Completed, HandedBack, Job, Phase, Settlement, Status, new_uid
from travelrec.kinds.recommendation import NAME, key
from travelrec.ports import Answer, Question
from travelrec.retry import RetryPolicy
from travelrec.settings import Settings
from travelrec.wire import JOBS_TOPIC, Signal, encode_job
from travelrec_worker import app, sweeper
from travelrec_worker.app import running_roles

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@dataclass
class Model:
    """Counts its calls by question; answers once it may, or raises what it was told to."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    calls: Counter[str] = field(default_factory=Counter)
    raises: list[Exception] = field(default_factory=list)

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        self.calls[question.user] += 1
        await self.may_answer.wait()
        if self.raises:
            raise self.raises.pop(0)
        told = [f"Number {n} of call {self.calls.total()}." for n in range(3)]
        return Answer(json.dumps({"recommendations": told}), "test", 1, 1)


@dataclass
class Deployment:
    store: MemoryStore = field(default_factory=MemoryStore)
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    signals: MemorySignals = field(default_factory=MemorySignals)
    model: Model = field(default_factory=Model)

    @asynccontextmanager
    async def workers(self, count: int, *, fresh_s: float = 3600.0, **more: object) -> AsyncIterator[None]:
        given = {"recommendation_cache_ttl_s": fresh_s, "worker_concurrency": 20, "grace_s": 0.0, **more}
        settings = Settings(_env_file=None, **given)  # type: ignore[arg-type]
        parts = Parts(self.store, self.broker, self.signals)
        async with AsyncExitStack() as stack:
            for number in range(count):
                named = settings.model_copy(update={"metrics_port": 9001 + number})
                await stack.enter_async_context(running_roles(["jobs"], named, parts, self.model))
            yield

    async def ask(self, *countries: str, created_at: float | None = None) -> list[str]:
        now = time.time() if created_at is None else created_at
        jobs = [
            Job(new_uid(), NAME, {"country": c, "season": "winter"}, now, due_at=now + 3600)
            for c in countries
        ]
        await self.store.accept(jobs, now)
        await self.broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
        return [job.uid for job in jobs]

    async def led_elsewhere(self, country: str) -> str:
        """The uid of a job that another worker runs under the token `t`."""
        now = time.time()
        job = Job(new_uid(), NAME, {"country": country, "season": "winter"}, now, due_at=now + 3600)
        await self.store.accept([job], now)
        await self.store.claim([job.uid], "t", now, now + 60)
        await self.store.lead([Bid(key(job.params), job.uid)], now)
        return job.uid

    async def all_ended(self, uids: list[str]) -> list[Job]:
        await eventually(lambda: all(self.store.jobs[uid].ended for uid in uids), 30, "all ended")
        return [self.store.jobs[uid] for uid in uids]


async def test_one_key_is_one_call_across_workers() -> None:
    """Cold, three workers, many requests over few keys: exactly one call for each key, and each uid its own record."""
    d = Deployment()
    d.model.may_answer.set()
    async with d.workers(3):
        asked = [f"Country {min(n % 40, n % 7)}" for n in range(1000)]
        jobs = await d.all_ended(await d.ask(*asked))
    assert {job.status for job in jobs} == {Status.COMPLETED}
    assert set(d.model.calls.values()) == {1}
    assert len(d.model.calls) == len(set(asked))
    assert all(job.claims >= 1 for job in jobs)


async def test_followers_hold_no_place() -> None:
    """While many wait for one slow call, another key is worked on."""
    d = Deployment()
    async with d.workers(1):
        slow = await d.ask(*["Slowland"] * 20)
        await eventually(lambda: d.model.calls.total() == 1, 10)
        other = await d.ask("Otherland")
        await eventually(lambda: d.model.calls["Country: Otherland\nSeason: winter"] == 1, 10)
        d.model.may_answer.set()
        await d.all_ended(slow + other)
    assert d.model.calls.total() == 2


async def test_fresh_answer_is_reused_and_a_stale_one_is_not() -> None:
    """Within the time to live a later job takes the answer; after it, it is called for again."""
    d = Deployment()
    d.model.may_answer.set()
    async with d.workers(2, fresh_s=1000.0):
        first, later = (
            (await d.all_ended(await d.ask("Peru")))[0],
            (await d.all_ended(await d.ask("Peru")))[0],
        )
        assert first.result == later.result
        assert d.model.calls.total() == 1
        aged = d.store.jobs[first.uid]
        for uid in (first.uid, later.uid):
            job = d.store.jobs[uid]
            d.store.jobs[uid] = Job(
                **{
                    **{name: getattr(job, name) for name in job.__slots__},
                    "ended_at": (aged.ended_at or 0) - 2000,
                }
            )
        (newest,) = await d.all_ended(await d.ask("Peru"))
    assert d.model.calls.total() == 2
    assert newest.result != first.result


async def test_with_no_time_to_live_only_jobs_of_the_same_time_share() -> None:
    """With 0 a job that was accepted after an answer came makes a call of its own."""
    d = Deployment()
    async with d.workers(2, fresh_s=0.0):
        together = await d.ask("Peru", "Peru", "Peru")
        await eventually(lambda: d.model.calls.total() == 1, 10)
        d.model.may_answer.set()
        await d.all_ended(together)
        assert d.model.calls.total() == 1
        await d.all_ended(await d.ask("Peru"))
    assert d.model.calls.total() == 2


async def test_refusal_is_shared_and_an_error_is_tried_again_once_for_all() -> None:
    """Followers take a final failure, and after a passing one they follow the next try."""
    d = Deployment()
    d.model.raises = [Refused("No.")]
    async with d.workers(1):
        refused = await d.ask("Peru", "Peru")
        await eventually(lambda: d.model.calls.total() == 1, 10)
        d.model.may_answer.set()
        assert {job.error for job in await d.all_ended(refused)} == {"Model refused"}
        assert d.model.calls.total() == 1
        d.model.raises = [ModelBusy("busy")]
        jobs = await d.all_ended(await d.ask("Fiji", "Fiji", "Fiji"))
    assert {job.status for job in jobs} == {Status.COMPLETED}
    assert [[one.error for one in job.tries] for job in jobs] == [["Model unavailable"]] * 3


async def test_many_of_a_key_that_always_fails_make_no_more_calls_than_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An attempt that fails is one of all that waited for it, and so is the last one."""
    monkeypatch.setattr(app, "RetryPolicy", partial(RetryPolicy, base_s=0.02, cap_s=0.05))
    monkeypatch.setattr(sweeper, "_EVERY_S", 0.02)
    d = Deployment()
    d.model.raises = [ModelBusy("busy")] * 1_000
    async with d.workers(1, max_attempts=3):
        uids = await d.ask(*["Peru"] * 10)
        await eventually(lambda: all(d.store.jobs[uid].claims for uid in uids), 10)
        d.model.may_answer.set()
        jobs = await d.all_ended(uids)
    assert {(job.error, job.message) for job in jobs} == {
        ("Model unavailable", "busy Given up after 3 attempts. Please try again later.")
    }
    assert {len(job.tries) for job in jobs} == {3}
    assert d.model.calls.total() < 2 * 3


async def test_deadline_of_a_leader_is_its_own() -> None:
    """A leader whose time is over while it waits for the provider fails alone; its follower has time left."""
    d = Deployment()
    d.model.raises = [BadKey("No.")] * 1000
    d.model.may_answer.set()
    async with d.workers(1, job_deadline_s=30.0):
        (old,) = await d.ask("Peru", created_at=time.time() - 29.0)
        await eventually(lambda: d.model.calls.total() == 1, 10)
        (young,) = await d.ask("Peru")
        (ended,) = await d.all_ended([old])
        assert (ended.error, d.store.jobs[young].ended) == ("Deadline passed", False)
        d.model.raises.clear()
        (answered,) = await d.all_ended([young])
    assert answered.status is Status.COMPLETED


async def test_cancelled_leader_is_replaced() -> None:
    """A follower takes over when the leading job is cancelled; its caller gets an answer."""
    d = Deployment()
    async with d.workers(2):
        (leader,) = await d.ask("Peru")
        await eventually(lambda: d.model.calls.total() == 1, 10)
        followers = await d.ask("Peru", "Peru")
        await eventually(lambda: all(d.store.jobs[uid].claims for uid in followers), 10)
        await d.store.cancel(leader, time.time(), "x")
        await d.signals.announce([Signal(leader, Status.CANCELLED)])
        await eventually(lambda: d.model.calls.total() == 2, 10)
        d.model.may_answer.set()
        jobs = await d.all_ended(followers)
    assert {job.status for job in jobs} == {Status.COMPLETED}
    assert d.model.calls.total() == 2


async def test_leader_that_was_killed_is_replaced() -> None:
    """A leader whose worker is gone is not followed for ever: its lease runs out, and the next job leads."""
    d = Deployment()
    d.model.may_answer.set()
    now = time.time()
    dead = Job(new_uid(), NAME, {"country": "Peru", "season": "winter"}, now, due_at=now + 3600)
    await d.store.accept([dead], now)
    await d.store.claim([dead.uid], "dead", now, now + 1.5)
    await d.store.lead([Bid(key(dead.params), dead.uid)], now)
    async with d.workers(1):
        jobs = await d.all_ended([*await d.ask("Peru"), dead.uid])
    assert {job.status for job in jobs} == {Status.COMPLETED}
    assert d.model.calls.total() == 1


async def test_leader_that_is_handed_back_to_its_followers_worker_is_not_waited_for() -> None:
    """A job that led elsewhere and comes here, where others follow it, does not wait for them in turn."""
    d = Deployment()
    d.model.may_answer.set()
    now = time.time()
    led = Job(leader := new_uid(), NAME, {"country": "Peru", "season": "winter"}, now, due_at=now + 3600)
    async with d.workers(1):
        await d.store.accept([led], now)
        await d.store.claim([leader], "another worker's", now, now + 600)
        await d.store.lead([Bid(key(led.params), leader)], now)
        (follower,) = await d.ask("Peru")
        await eventually(lambda: d.store.jobs[follower].phase is Phase.RUNNING)
        await d.store.settle([Settlement(leader, "another worker's", HandedBack())], time.time())
        await eventually(lambda: all(d.store.jobs[uid].ended for uid in (leader, follower)), 5)
    assert d.model.calls.total() == 1


async def test_a_follower_that_is_cancelled_with_its_leader_does_not_take_over() -> None:
    """Both signals come in one turn of the loop, and whatever Python makes of that there is no call."""
    d = Deployment()
    async with d.workers(1):
        elsewhere = await d.led_elsewhere("Peru")
        read, get = [], d.store.get

        async def reading(uids: Sequence[str]) -> dict[str, Job]:
            read.extend(uids)
            return await get(uids)

        d.store.get = reading  # type: ignore[method-assign]
        (follower,) = await d.ask("Peru")
        await eventually(lambda: elsewhere in read, 10)
        for uid in (elsewhere, follower):
            await d.store.cancel(uid, time.time(), "x")
        await d.signals.announce([Signal(uid, Status.CANCELLED) for uid in (elsewhere, follower)])
        await d.ask("Fiji")
        await eventually(lambda: d.model.calls["Country: Fiji\nSeason: winter"], 10)
        assert d.model.calls.total() == 1


async def test_answer_of_a_leader_elsewhere_is_taken_although_its_signal_was_lost() -> None:
    """A follower looks again by itself."""
    d = Deployment()
    async with d.workers(1):
        elsewhere = await d.led_elsewhere("Peru")
        (uid,) = await d.ask("Peru")
        await eventually(lambda: d.store.jobs[uid].claims == 1, 10)
        answer = {"recommendations": ["a", "b", "c"]}
        await d.store.settle([Settlement(elsewhere, "t", Completed(answer))], time.time())
        (job,) = await d.all_ended([uid])
    assert job.result == answer
    assert d.model.calls.total() == 0
