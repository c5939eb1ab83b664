"""The role `submit` against the offline third party: pace, order, repeats, refusals, and what a crash leaves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from support import eventually
from travelrec import metrics
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.adapters.memory_tasks import MemoryTaskStore
from travelrec.connect import Parts
from travelrec.errors import StoreUnavailable
from travelrec.fake_tasks import FakeTasks, FakeTasksSettings, running
from travelrec.retry import RetryPolicy
from travelrec.settings import Settings
from travelrec.tasks import task as moves
from travelrec.tasks.task import Change, TaskStatus
from travelrec_worker import submit
from travelrec_worker.app import running_roles

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

NOT_STARTED, IN_PROGRESS, COMPLETED, ERROR = TaskStatus
FAST = 200.0


class Store(MemoryTaskStore):
    """Is away while told to, before it does anything or when it has."""

    away: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()

    async def take(self, *given):
        self._ask("take", self.away)
        return await super().take(*given)

    async def settle(self, submissions):
        self._ask("settle", self.away)
        await super().settle(submissions)
        self._ask("settle", self.lost)

    def _ask(self, name: str, gone: frozenset[str]) -> None:
        if name in gone:
            raise StoreUnavailable("away")

    async def has(self, *ids: str, **fields: object) -> None:
        for id_ in ids:
            assert await self.create(moves.created(id_, time.time(), **fields))  # type: ignore[arg-type]

    def all_are(self, status: TaskStatus) -> bool:
        assert {task.id: task.status for task in self.tasks.values()} == dict.fromkeys(self.tasks, status)
        return True


@asynccontextmanager
async def submitting(store: MemoryTaskStore, fake: FakeTasks, **given: object) -> AsyncIterator[None]:
    """A replica of the role until left."""
    settings = Settings(
        **{"tasks_provider_url": fake.url, "tasks_rate_limit": FAST, "grace_s": 2.0, **given}, _env_file=None
    )
    parts = Parts(MemoryStore(), MemoryBroker(), MemorySignals(), store)
    async with running_roles(["submit"], settings, parts):
        yield


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_AWAY", RetryPolicy(base_s=0.05, cap_s=0.1))
    monkeypatch.setattr(submit, "_STORE_RETRY_S", 0.05)
    monkeypatch.setattr(submit, "LATENESS_S", 5.0)  # a busy machine is late; that is another test's


async def test_tasks_are_submitted_in_order_and_become_in_progress() -> None:
    """Each is sent once, in order of creation; those in another state are not."""
    store, names = Store(), [str(number) for number in range(30)]
    await store.has(*names)
    await store.has("done", status=COMPLETED)
    async with running() as fake, submitting(store, fake):
        await eventually(lambda: all(store.tasks[name].status is IN_PROGRESS for name in names))
        assert fake.order == names
        assert store.tasks["done"].status is COMPLETED


async def test_a_task_that_comes_is_submitted_soon() -> None:
    """Also when nothing waited for a while."""
    store = Store()
    async with running() as fake, submitting(store, fake):
        for name in "ab":
            await store.has(name)
            await eventually(lambda: store.all_are(IN_PROGRESS))


async def test_groups_take_turns() -> None:
    """A group of one does not wait behind a group of many."""
    store = Store()
    await store.has(*(f"a{n}" for n in range(20)), group="a")
    await store.has("b0", group="b")
    async with running() as fake, submitting(store, fake):
        await eventually(lambda: store.all_are(IN_PROGRESS))
        assert fake.order.index("b0") <= 2


async def test_failures_are_tried_again_and_lose_nothing() -> None:
    """A third of the submissions fails, of another third the answer is lost: each task is done once all the same."""
    store, names = Store(), [str(number) for number in range(40)]
    await store.has(*names)
    trouble = FakeTasksSettings(error_rate=0.3, lose_rate=0.3)
    async with running(trouble) as fake, submitting(store, fake, max_attempts=50):
        await eventually(lambda: bool(fake.repeats), 30)
        fake.configure(error_rate=0.0, lose_rate=0.0)
        await eventually(lambda: store.all_are(IN_PROGRESS), 30)
        assert sorted(fake.order) == sorted(names)
        assert fake.repeats > 0


async def test_a_task_that_always_fails_ends_with_the_reason() -> None:
    """After JOB_MAX_ATTEMPTS; set back by its caller it is submitted again, as a new submission."""
    store = Store()
    await store.has("1")
    async with running(FakeTasksSettings(error_rate=1.0)) as fake, submitting(store, fake, max_attempts=2):
        await eventually(lambda: store.all_are(ERROR))
        assert store.tasks["1"].error_message == "The third party answered 500: As it was told to."
        assert len(fake.arrivals) == 2
        fake.configure(error_rate=0.0)
        await store.change("1", Change(NOT_STARTED), time.time())
        await eventually(lambda: store.all_are(IN_PROGRESS))
        assert store.tasks["1"].error_message is None


async def test_a_refused_task_ends_at_once() -> None:
    """With what the third party said; it is not asked again."""
    store = Store()
    await store.has("1")
    refusing = FakeTasksSettings(error_rate=1.0, error_status=422)
    async with running(refusing) as fake, submitting(store, fake):
        await eventually(lambda: store.all_are(ERROR))
        assert len(fake.arrivals) == 1
        assert "422" in (store.tasks["1"].error_message or "")


@pytest.mark.parametrize("status", [401, 403, 404, 405, 429, 501])
async def test_what_is_no_tasks_fault_costs_no_attempt(status) -> None:
    """A limit, a key, a wrong address: tasks wait, however often it is tried, and go on when it is over."""
    store = Store()
    await store.has("1")
    trouble = FakeTasksSettings(error_rate=1.0, error_status=status)
    async with running(trouble) as fake, submitting(store, fake, max_attempts=1):
        await eventually(lambda: len(fake.arrivals) >= 3)
        assert store.tasks["1"].status is NOT_STARTED
        assert store.tasks["1"].attempts == 0
        fake.configure(error_rate=0.0)
        await eventually(lambda: store.all_are(IN_PROGRESS))


async def test_a_409_says_that_it_is_there() -> None:
    """A third party that knows no keys and has the task already is believed."""
    store = Store()
    await store.has("1")
    async with running(FakeTasksSettings(error_rate=1.0, error_status=409)) as fake, submitting(store, fake):
        await eventually(lambda: store.all_are(IN_PROGRESS))


async def test_retry_after_holds_everybody() -> None:
    """Whoever is told to come back later tells the others: nobody sends before that."""
    store = Store()
    await store.has("1")
    async with running(FakeTasksSettings(rate_limit_per_s=0)) as fake:
        fake._recent.append(time.monotonic() + 3600)
        async with submitting(store, fake):
            await eventually(lambda: bool(fake.arrivals))
            await eventually(lambda: store._pace.held_until > time.time() + 3000)
            assert store.tasks["1"].attempts == 0


async def test_a_third_party_that_is_not_there_is_waited_for() -> None:
    """Nobody listens: tasks wait, and are submitted when somebody does. With a deadline, until that."""
    store = Store()
    await store.has("1")
    async with running() as gone:
        port = int(gone.url.rpartition(":")[2])
    async with submitting(store, gone, max_attempts=1):
        await eventually(lambda: store._pace.held_until > 0)
        assert store.tasks["1"].status is NOT_STARTED
        async with running(port=port):
            await eventually(lambda: store.all_are(IN_PROGRESS))
    late = Store()
    await late.has("1")
    async with submitting(late, gone, job_deadline_s=0.1):
        await eventually(lambda: late.all_are(ERROR))
        assert late.tasks["1"].error_message == "The third party can't be reached."


async def test_an_answer_that_does_not_come_is_a_failure() -> None:
    """After TASKS_TIMEOUT."""
    store = Store()
    await store.has("1")
    slow = FakeTasksSettings(latency_s=30.0)
    async with running(slow) as fake, submitting(store, fake, tasks_timeout_s=0.2, max_attempts=1):
        await eventually(lambda: store.all_are(ERROR))
        assert store.tasks["1"].error_message == "The third party did not answer in time."


async def test_a_crash_between_send_and_write_submits_nothing_twice() -> None:
    """The third party has it, the store does not know: it is sent again with the same key, and is one submission."""
    store = Store()
    store.away = frozenset({"settle"})
    await store.has("1")
    async with running() as fake:
        async with submitting(store, fake, tasks_timeout_s=0.2, grace_s=0.0):
            await eventually(lambda: bool(fake.order))
        assert store.tasks["1"].status is NOT_STARTED
        store.away = frozenset()
        store.tasks["1"] = moves.settled(
            store.tasks["1"], moves.Again(0.0, failed=False)
        )  # its lease is over
        async with submitting(store, fake):
            await eventually(lambda: store.all_are(IN_PROGRESS))
        assert (fake.order, fake.repeats) == (["1"], 1)


async def test_a_store_that_is_away_is_waited_for() -> None:
    """Before tasks are taken, and when what came of them is to be written; a lost answer changes nothing."""
    store = Store()
    store.away = frozenset({"take"})
    await store.has("1")
    async with running() as fake, submitting(store, fake):
        await asyncio.sleep(0)
        store.away, store.lost = frozenset({"settle"}), frozenset({"settle"})
        await eventually(lambda: fake.order == ["1"])
        store.away = frozenset()
        await eventually(lambda: store.all_are(IN_PROGRESS))
        store.lost = frozenset()
        assert len(fake.arrivals) == 1


async def test_a_replica_that_ends_hands_back_what_it_has_not_sent() -> None:
    """What waits for its time is free at once; what is on its way is finished."""
    store = Store()
    await store.has(*(str(number) for number in range(20)))
    async with running(FakeTasksSettings(latency_s=0.3)) as fake:
        async with submitting(store, fake, tasks_rate_limit=10.0):
            await eventually(lambda: bool(fake.arrivals))
        sent = len(fake.order)
        assert sum(task.status is IN_PROGRESS for task in store.tasks.values()) == sent < 20
        assert all(task.token == "" and task.attempts == 0 for task in store.tasks.values())
        async with submitting(store, fake):
            await eventually(lambda: store.all_are(IN_PROGRESS))
        assert len(fake.order) == 20
        assert fake.repeats == 0


async def test_a_time_that_has_passed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that is late gives its tasks back rather than send them in a bunch."""
    store = Store()
    await store.has("1")
    monkeypatch.setattr(submit, "LATENESS_S", -1.0)
    late = metrics.SUBMISSIONS.labels("late")._value
    before = late.get()
    async with running() as fake:
        async with submitting(store, fake):
            await eventually(lambda: late.get() >= before + 3)
            assert fake.arrivals == []
        assert store.tasks["1"].attempts == 0
