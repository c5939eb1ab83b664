"""What counts as work, when it hangs, and what a worker does about it."""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import structlog

from support import eventually
from support.worker import World
from travelrec.adapters.memory import MemoryBroker
from travelrec.errors import BadKey
from travelrec.job import Status
from travelrec.ports import Delivery, Question, Subscription
from travelrec.retry import RetryPolicy
from travelrec.wire import JOBS_TOPIC
from travelrec_worker import coalescing, engine, gate, jobs, progress, sweeper, watchdog
from travelrec_worker.engine import Engine
from travelrec_worker.progress import Progress
from travelrec_worker.watchdog import loop_watched, watch

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "END_S", 0.05)
    monkeypatch.setattr(progress, "_SLACK_S", 0.05)
    monkeypatch.setattr(watchdog, "_LOOK_S", 0.02)
    monkeypatch.setattr(engine, "_TAKE_S", 0.02)
    monkeypatch.setattr(engine, "_TURN_S", 0.02)
    monkeypatch.setattr(jobs, "_STORE_RETRY_S", 0.02)
    monkeypatch.setattr(coalescing, "_STORE_RETRY_S", 0.02)
    monkeypatch.setattr(coalescing, "_LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(sweeper, "_EVERY_S", 0.02)
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(base_s=5.0, cap_s=5.0))


@pytest.fixture
def logs() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as logs:
        yield logs  # type: ignore[misc]


class Deaf:
    """A call that takes no cancellation but a second one, that of a test that fails; ends when it may `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.cancels = 0
        self.running = False

    async def __call__(self) -> str:
        self.running = True
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancels += 1
                if self.cancels > 1:
                    raise
        return "late"


async def answered(value: str) -> str:
    await asyncio.sleep(0)
    return value


# --- what is begun ------------------------------------------------------------------------------------


async def test_a_call_is_answered_within_its_time() -> None:
    """Its answer is passed on, its error too, and nothing is left open."""
    work = Progress(1.0)
    assert await work.within(1.0, "run", "u", answered("a")) == "a"

    async def broken() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await work.within(1.0, "run", "u", broken())
    await asyncio.sleep(0)
    work.turned(1000.0)
    assert (work.oldest_s, work.hanging) == (0.0, [])


async def test_a_call_that_takes_too_long_is_cancelled() -> None:
    """One that ends when it is told to does not hang."""
    work, ended = Progress(1.0), asyncio.Event()

    async def slow() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "never"

    with pytest.raises(TimeoutError):
        await work.within(0.01, "run", "u", slow())
    assert ended.is_set()
    assert work.hanging == []


async def test_a_call_that_answers_although_it_was_cancelled_is_heard() -> None:
    """An answer that came in the end is not thrown away."""
    work = Progress(1.0)

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "after all"
        return "never"

    assert await work.within(0.01, "run", "u", stubborn()) == "after all"


async def test_a_call_that_can_not_be_stopped_is_left_to_hang() -> None:
    """Its caller goes on; it is named, with the line at which it waits, until it ends."""
    work, deaf = Progress(1.0), Deaf()
    with pytest.raises(TimeoutError):
        await work.within(0.01, "run", "u-1", deaf())
    (hung,) = work.hanging
    assert (hung.what, hung.uid, deaf.cancels) == ("run", "u-1", 1)
    assert work.alarm.is_set()
    assert "in __call__" in hung.where
    assert "await self.go.wait()" in hung.where
    deaf.go.set()
    await eventually(lambda: work.hanging == [])


async def test_a_cancelled_caller_waits_for_its_call() -> None:
    """The call is cancelled with its caller, and has ended before it, unless it can't be stopped."""
    work, deaf, ended = Progress(1.0), Deaf(), asyncio.Event()

    async def stops() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()
        return "never"

    for call in (stops(), deaf()):
        caller = asyncio.create_task(work.within(60.0, "run", "u", call))
        await asyncio.sleep(0.01)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert ended.is_set()
    assert [hung.uid for hung in work.hanging] == ["u"]
    deaf.go.set()


async def test_calls_to_neighbours_have_their_time_and_turns_begin_it_again() -> None:
    """So many calls and a pause may take so long, of the time in which the loop turned."""
    work = Progress(5.0)
    with work.calling("sweeping", calls=2, pause_s=3.0) as turn:
        work.turned(12.9)
        assert (work.oldest_s, work.hanging) == (12.9, [])
        work.turned(0.2)
        assert work.hanging == [turn]
        work.moved(turn)
        assert (work.oldest_s, work.hanging) == (0.0, [])
        work.turned(14.0)
        assert work.hanging == [turn]
    assert work.hanging == []


# --- what the worker does -----------------------------------------------------------------------------


class Hanging(MemoryBroker):
    """While `hangs`, its subscriptions do not end a take, whatever they were told."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = False
        self.taking = 0
        self.members = 0

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[Subscription]:
        async with super().subscribe(topic, group) as subscription:
            self.members += 1
            try:
                yield _Taker(self, subscription)
            finally:
                self.members -= 1


class _Taker:
    def __init__(self, broker: Hanging, subscription: Subscription) -> None:
        self._broker = broker
        self._subscription = subscription

    async def take(self, limit: int, timeout_s: float) -> Sequence[Delivery]:
        if self._broker.hangs:
            self._broker.taking += 1
            await asyncio.Event().wait()
        return await self._subscription.take(limit, timeout_s)


@asynccontextmanager
async def taking(broker: Hanging, work: Progress) -> AsyncIterator[Engine]:
    async def handle(delivery: Delivery) -> None:
        delivery.acknowledge()

    intake = asyncio.Event()
    intake.set()
    made = Engine(broker, "t", "g", handle, concurrency=1, intake=intake, progress=work)
    running = asyncio.create_task(made.run(0.0))
    watching = asyncio.create_task(watch(work, [made]))
    try:
        yield made
    finally:
        made.stop()
        async with asyncio.timeout(5):
            await running
        watching.cancel()


async def test_a_take_that_hangs_is_broken_off(logs: list[dict[str, object]]) -> None:
    """The engine leaves its group although the taking does not end, and joins again."""
    broker, work = Hanging(), Progress(0.05)
    async with taking(broker, work) as made:
        await made.joined.wait()
        broker.hangs = True
        await eventually(lambda: broker.taking == 2)
        broker.hangs = False
        await eventually(lambda: [line for line in logs if line["event"] == "hangs no more"])
        await eventually(made.joined.is_set)
    hung = next(line for line in logs if line["event"] == "hangs")
    assert hung["what"] == "taking from t"
    assert "in take" in str(hung["stack"])


async def test_a_worker_with_hanging_work_is_in_no_group() -> None:
    """It leaves before its time is over, stays out, ends when it is told to, and is back when nothing hangs."""
    broker, work, deaf = Hanging(), Progress(5.0), Deaf()
    async with taking(broker, work) as made:
        await made.joined.wait()
        with pytest.raises(TimeoutError):
            await work.within(0.01, "run", "u", deaf())
        await eventually(lambda: broker.members == 0)
        assert not made.joined.is_set()
        deaf.go.set()
        await eventually(lambda: broker.members == 1)
        other = Deaf()
        with pytest.raises(TimeoutError):
            await work.within(0.01, "run", "u", other())
        await eventually(lambda: broker.members == 0)
    assert broker.members == 0
    other.go.set()


async def test_waiting_is_no_work(monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, object]]) -> None:
    """For a provider, for another's answer, for a store that is away: a worker that waits is well."""
    monkeypatch.setattr(progress, "_SLACK_S", 0.2)
    world, seen = World(), Progress(0.1)
    world.model.says["Peru"] = [BadKey("The key is wrong.")]
    async with world.worker(model_timeout_s=0.2, neighbour_timeout_s=0.1, progress=seen):
        gated = [await world.accept() for _ in range(3)]  # one waits at the gate, the others follow it
        await eventually(lambda: world.model.calls == 1)
        began = seen.now
        await eventually(lambda: seen.now > began + 1.0)
        world.diary.away.add("settle")
        for uid in gated:
            await eventually(lambda uid=uid: world.job(uid).ended or world.model.calls == 2, 20)
        began = seen.now
        await eventually(lambda: seen.now > began + 1.0)
        world.diary.away.clear()
        for uid in gated:
            await eventually(lambda uid=uid: world.job(uid).status is Status.COMPLETED)
    assert [line for line in logs if line["event"] == "hangs"] == []


async def test_a_kind_that_hangs_costs_an_attempt_and_is_told(
    monkeypatch: pytest.MonkeyPatch, logs: list[dict[str, object]]
) -> None:
    """Its job backs off like after any time-out, those that wait for it too, and nothing more is taken meanwhile."""
    world, deaf = World(), Deaf()

    async def ask(question: Question, timeout_s: float) -> object:
        return await deaf()

    monkeypatch.setattr(world.model, "ask", ask)
    async with world.worker(model_timeout_s=0.05):
        led, follows = await world.accept(), await world.accept()
        await eventually(lambda: world.job(led).tries and world.job(follows).tries)
        await eventually(lambda: [line for line in logs if line["event"] == "left the group"])
        assert [one.error for one in world.job(led).tries] == ["Model timeout"]
        await world.accept("Japan")
        assert await world.broker.oldest_waiting(JOBS_TOPIC, "travelrec.jobs") is not None
        deaf.go.set()
        await eventually(lambda: [line for line in logs if line["event"] == "hangs no more"])
    (hung,) = [line for line in logs if line["event"] == "hangs"]
    assert (hung["what"], hung["uid"]) == ("run", led)


async def test_a_probe_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the breaker waits for a probe that can't be stopped, another job probes, and the provider is back."""
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(base_s=0.02, cap_s=0.02))
    world, deaf = World(), Deaf()
    good, calls = world.model.ask, itertools.count()

    async def ask(question: Question, timeout_s: float) -> object:
        match next(calls):
            case 0:
                raise BadKey("The key is wrong.")
            case 1:
                return await deaf()
        return await good(question, timeout_s)

    monkeypatch.setattr(world.model, "ask", ask)
    async with world.worker(model_timeout_s=0.05, worker_concurrency=1):
        hung = await world.accept("Peru")
        await eventually(lambda: deaf.running)
        other = await world.accept("Kenya")
        await eventually(lambda: world.job(other).status is Status.COMPLETED)
        assert world.job(hung).tries
        deaf.go.set()


async def test_a_blocked_loop_is_told_once(logs: list[dict[str, object]]) -> None:
    """From outside of the loop, with the stack of what blocks it; then that it turns again."""
    enough = threading.Event()

    def block() -> None:
        enough.wait(10)

    def look() -> None:
        for _ in range(500):
            if any(line["event"] == "event loop blocked" for line in logs):
                break
            enough.wait(0.01)
        enough.set()

    async with loop_watched():
        threading.Thread(target=look).start()
        block()
        await eventually(lambda: [line for line in logs if line["event"] == "event loop turns again"])
    (blocked,) = [line for line in logs if line["event"] == "event loop blocked"]
    assert "in block" in str(blocked["stack"])
