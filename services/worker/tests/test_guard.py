"""The guard in a worker: a backlog is not failed because a release, a model or a prompt is bad."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import ClassVar

import pytest
import structlog
from prometheus_client import REGISTRY

from support import eventually
from support.worker import World, good_answer
from travelrec.errors import (
    BadModelRequest,
    BrokenOutput,
    ModelError,
    ProviderDown,
    RateLimited,
    Refused,
)
from travelrec.job import Job, Phase, Status
from travelrec.ports import Answer, Question
from travelrec.retry import RetryPolicy
from travelrec.wire import JOBS_TOPIC
from travelrec_worker import app, engine, gate, jobs, sweeper
from travelrec_worker.limits import State

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

STANDING = 28  # failures, of the last thirty jobs, before one more opens the guard


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "RetryPolicy", partial(RetryPolicy, base_s=0.02, cap_s=0.05))
    monkeypatch.setattr(engine, "_TAKE_S", 0.02)
    monkeypatch.setattr(jobs, "_STORE_RETRY_S", 0.02)
    monkeypatch.setattr(sweeper, "_EVERY_S", 0.02)
    monkeypatch.setattr(gate, "_GUARD_BACKOFF", RetryPolicy(base_s=0.05, cap_s=0.2))
    monkeypatch.setattr(gate, "_TRIAL_S", 0.1)
    monkeypatch.setattr(gate, "_PATIENCE_S", 0.2)


@pytest.fixture
def logs() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as logs:
        yield logs  # type: ignore[misc]


class Bench:
    """A worker whose model fails for the countries that are `bad`, or for all."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.all_bad = False
        self.error: ModelError | None = BadModelRequest("The model's name is wrong.")
        self._good = world.model.ask
        world.model.ask = self.ask  # type: ignore[method-assign]
        self.calls = 0

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        self.calls += 1
        await asyncio.sleep(0.01)
        if self.error is not None and (self.all_bad or "Country: bad" in question.user):
            raise self.error
        return await self._good(question, timeout_s)

    async def accept(self, *countries: str) -> list[str]:
        return [await self.world.accept(country) for country in countries]

    def of(self, uids: list[str]) -> list[Job]:
        return [self.world.job(uid) for uid in uids]

    def failed(self, uids: list[str]) -> int:
        return sum(job.status is Status.FAILED for job in self.of(uids))

    async def completed(self, uids: list[str]) -> None:
        def all_of_them() -> bool:
            left = [job for job in self.of(uids) if job.status is not Status.COMPLETED]
            assert not left, (len(left), left[0])
            return True

        await eventually(all_of_them, 30)


@asynccontextmanager
async def working(**settings: object) -> AsyncIterator[Bench]:
    world = World()
    bench = Bench(world)
    given = {"worker_concurrency": 20, "recommendation_cache_ttl_s": 0.0, **settings}
    async with world.worker(**given):
        yield bench


def names(count: int, prefix: str = "place") -> list[str]:
    return [f"{prefix} {number}" for number in range(count)]


async def test_a_backlog_survives_what_fails_every_job(logs: list[dict[str, object]]) -> None:
    """A few are failed; the others wait at no cost until jobs succeed again, and then all complete."""
    opened = "all jobs still fail alike: no more are taken"
    async with working() as bench:
        bench.all_bad = True
        uids = await bench.accept(*names(300))
        await eventually(lambda: [line for line in logs if line["event"] == opened], 30)
        assert bench.failed(uids) <= STANDING
        assert len(bench.world.broker.dead) == bench.failed(uids)
        assert all(job.tries == () for job in bench.of(uids) if not job.ended)
        assert REGISTRY.get_sample_value("travelrec_guard", {"topic": JOBS_TOPIC}) in (1.0, 2.0)
        bench.error = None
        left = [uid for uid in uids if not bench.world.job(uid).ended]
        await bench.completed(left)
        assert bench.failed(uids) <= STANDING
        assert REGISTRY.get_sample_value("travelrec_guard", {"topic": JOBS_TOPIC}) == 0.0
    told = [line for line in logs if "fail alike" in str(line["event"])]
    assert {(line["error"], line["log_level"]) for line in told} == {("Model rejected the request", "error")}
    assert [line for line in logs if line["event"] == "jobs succeed again"]


async def test_those_who_follow_fail_no_more_often() -> None:
    """A few keys of many jobs each: a failure that is shared is no less a failed job."""
    async with working() as bench:
        bench.all_bad = True
        uids = await bench.accept(*(names(4) * 100))
        await eventually(lambda: bench.calls > 20)
        bench.error = None
        await eventually(lambda: all(job.ended for job in bench.of(uids)), 30)
        assert bench.failed(uids) <= 2 * STANDING


async def test_those_who_follow_a_bad_job_fail_with_it_while_others_succeed() -> None:
    """One key that is asked for often, and refused, is that key's trouble."""
    async with working() as bench:
        bad = await bench.accept(*(["bad"] * 20))
        good = await bench.accept(*names(20))
        await bench.completed(good)
        await eventually(lambda: bench.failed(bad) == len(bad))


async def test_a_probe_whose_answer_can_not_be_counted_is_over_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The breaker lets another one go."""
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(base_s=0.02, cap_s=0.02))

    class Model:
        told: ClassVar[list[Answer | ModelError]] = [
            ProviderDown("Restarting."),
            Answer(good_answer("Peru"), "test", -35, 1),
            Answer(good_answer("Peru"), "test", 1, 1),
        ]

        async def ask(self, question: Question, timeout_s: float) -> Answer:
            said = self.told.pop(0)
            if isinstance(said, ModelError):
                raise said
            return said

    only = gate.Gate([Model()], 2, [("m", None)])
    asked = Question("s", "Country: Peru\nSeason: winter", "n", {}, 10)
    for error in (ProviderDown, ValueError):
        async with only.place(20.0) as place:
            with pytest.raises(error):
                await place.ask(asked, 1.0)
    async with only.place(20.0) as place:
        assert (await place.ask(asked, 1.0)).input_tokens == 1


async def test_while_the_guard_is_open_hardly_anything_is_asked_or_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the trial no call is made but by probes; what is claimed goes back, and the rest is left in the broker."""
    monkeypatch.setattr(gate, "_TRIAL_S", 0.0)
    monkeypatch.setattr(gate, "_GUARD_BACKOFF", RetryPolicy(base_s=1e6, cap_s=1e6))
    async with working() as bench:
        bench.all_bad = True
        uids = await bench.accept(*names(300))
        await eventually(lambda: REGISTRY.get_sample_value("travelrec_guard", {"topic": JOBS_TOPIC}) == 2.0)

        def given_back() -> bool:
            held = [job for job in bench.of(uids) if job.phase is Phase.RUNNING]
            assert len(held) == 1, "the first that waits, to probe"
            return True

        await eventually(given_back)
        assert bench.calls <= STANDING + 2 + 20
        others = [job for job in bench.of(uids) if job.phase is not Phase.RUNNING and not job.ended]
        assert sum(job.phase is Phase.QUEUED for job in others) > 200
        assert all(job.claims == 0 for job in others)


async def test_attempts_are_not_counted_while_all_fail() -> None:
    """With a passing trouble of all jobs the first give up; those that come behind them keep their attempts."""
    async with working(max_attempts=2) as bench:
        bench.all_bad, bench.error = True, BrokenOutput("The answer is no JSON.")
        uids = await bench.accept(*names(60))
        await eventually(lambda: bench.failed(uids) >= STANDING, 30)
        held = "travelrec_jobs_held_total"
        labels = {"reason": "Unusable model answer"}
        before = REGISTRY.get_sample_value(held, labels) or 0.0
        await eventually(lambda: (REGISTRY.get_sample_value(held, labels) or 0.0) > before + 20, 30)
        assert bench.failed(uids) == STANDING
        assert all(len(job.tries) <= 1 for job in bench.of(uids) if not job.ended)
        bench.error = None
        await bench.completed([uid for uid in uids if not bench.world.job(uid).ended])


@pytest.mark.parametrize("flood", [1, 9])
async def test_poison_beside_live_jobs_fails_and_they_complete(flood: int) -> None:
    """Where one of ten jobs is good, the poison is failed in the end, and what is good completes."""
    async with working() as bench:
        bench.error = Refused("The model refused to answer.")
        mixed = [
            f"{'bad' if number % (flood + 1) else 'good'} {number}" for number in range(20 * (flood + 1))
        ]
        uids = await bench.accept(*mixed)
        good = [uid for uid, name in zip(uids, mixed, strict=True) if name.startswith("good")]
        await bench.completed(good)
        if flood == 1:
            await eventually(lambda: bench.failed(uids) == len(uids) - len(good))


async def test_a_held_job_still_ends_with_its_deadline() -> None:
    """A job that could not succeed in time fails although all others fail alike."""
    async with working(job_deadline_s=1.0) as bench:
        bench.all_bad = True
        uids = await bench.accept(*names(60))
        await eventually(lambda: bench.failed(uids) == 60, 20)
        late = [job for job in bench.of(uids) if job.error == "Deadline passed"]
        assert len(late) >= 60 - STANDING
        assert len(bench.world.broker.dead) == 60


async def shut_behind_a_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> tuple[gate.Gate, asyncio.Task[bool]]:
    """A gate whose guard is open for good, and a job that waits there."""
    monkeypatch.setattr(gate, "_TRIAL_S", 0.0)
    monkeypatch.setattr(gate, "_GUARD_BACKOFF", RetryPolicy(base_s=1e6, cap_s=1e6))
    both = gate.Gate([world.model], 2, [("m", None)])
    while both.guard.state is not State.OPEN:
        async with both.place(1.0) as place:
            place.failed("Bad release", final=True)
    job = asyncio.create_task(entered(both, guarded=True))
    await eventually(lambda: before_the_gate(both) == 1)
    return both, job


async def test_the_guard_of_jobs_is_not_in_the_way_of_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are not guarded pass it while it is open, before those that wait there, and don't close it."""
    both, job = await shut_behind_a_job(World(), monkeypatch)
    for _ in range(gate._LAST):
        assert await entered(both, guarded=False)
    assert both.guard.state is State.OPEN
    async with both.place(1.0, guarded=False), both.place(1.0, guarded=False):
        third = asyncio.create_task(entered(both, guarded=False))
        await eventually(lambda: before_the_gate(both) == 2)
        assert not third.done()
    assert await third
    assert not both.intake.is_set()
    assert not job.done()
    job.cancel()


def before_the_gate(both: gate.Gate) -> int:
    """How many runs wait at the gate."""
    return sum(map(len, both._waiting.values()))


async def test_a_backlog_of_jobs_and_chats_take_turns() -> None:
    """A chat waits for one job at most, a job for one chat; among their own who was let in before goes first."""
    both = gate.Gate([World().model], 1, [("m", None)])
    let_in: list[str] = []

    async def run(name: str, *, guarded: bool, again: bool = False) -> None:
        async with both.place(20.0, again=again, guarded=guarded):
            let_in.append(name)

    async with asyncio.TaskGroup() as runs, both.place(1.0):
        for name in ("job 1", "job 2", "job 3", "job 4"):
            runs.create_task(run(name, guarded=True))
        for name in ("chat 1", "chat 2"):
            runs.create_task(run(name, guarded=False))
        await eventually(lambda: before_the_gate(both) == 6)
        runs.create_task(run("chat 0", guarded=False, again=True))
        runs.create_task(run("job 0", guarded=True, again=True))
        await eventually(lambda: before_the_gate(both) == 8)
    assert let_in == ["chat 0", "job 0", "chat 1", "job 1", "chat 2", "job 2", "job 3", "job 4"]


async def entered(both: gate.Gate, *, guarded: bool) -> bool:
    async with both.place(20.0, guarded=guarded) as place:
        place.completed()
    return True


async def test_answers_of_chat_say_nothing_of_jobs() -> None:
    """However many there are, jobs that fail alike are found out."""
    both = gate.Gate([World().model], 2, [("m", None)])
    for _ in range(STANDING + 1):
        await entered(both, guarded=False)
        async with both.place(1.0) as place:
            place.failed("Bad release", final=True)
    assert both.guard.state is not State.CLOSED


async def test_a_short_pause_of_the_provider_is_waited_for_behind_an_open_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long the guard is open already: a chat is sent away only when the provider was away for long."""
    monkeypatch.setattr(gate, "_PATIENCE_S", 20.0)
    world = World()
    both, job = await shut_behind_a_job(world, monkeypatch)
    both._shut_at -= 100.0
    world.model.says["Peru"] = [RateLimited("Slower.", retry_after_s=0.3)]
    async with both.place(1.0, guarded=False) as place:
        with pytest.raises(RateLimited):
            await place.ask(Question("s", "Country: Peru\nSeason: winter", "n", {}, 10), 1.0)
    waiting = [asyncio.create_task(entered(both, guarded=False)) for _ in range(3)]
    await eventually(lambda: before_the_gate(both) == 4)
    assert await asyncio.gather(*waiting) == [True] * 3
    assert not job.done()
    job.cancel()


async def test_what_an_answer_that_is_none_has_cost_is_counted() -> None:
    """In the metrics, and for the line in the log."""
    world = World()
    refused = Refused("No.")
    refused.input_tokens, refused.output_tokens = 11, 7
    world.model.says["Peru"] = [refused]
    only = gate.Gate([world.model], 2, [("costly", None)])
    async with only.place(1.0) as place:
        with pytest.raises(Refused):
            await place.ask(Question("s", "Country: Peru\nSeason: winter", "n", {}, 10), 1.0)
    assert (place.input_tokens, place.output_tokens) == (11, 7)
    told = [s for m in REGISTRY.collect() for s in m.samples if s.name == "travelrec_model_tokens_total"]
    assert {s.value for s in told if s.labels.get("model") == "costly"} == {11.0, 7.0}
