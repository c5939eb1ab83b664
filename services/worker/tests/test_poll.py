"""The role `poll` against the offline third party: who polls, when, and what comes of what it says."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from support import eventually
from travelrec import metrics
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.adapters.memory_tasks import MemoryTaskStore
from travelrec.connect import Parts
from travelrec.errors import StoreUnavailable
from travelrec.fake_tasks import running
from travelrec.settings import Settings
from travelrec.tasks import task as moves
from travelrec.tasks.task import TaskStatus
from travelrec_worker import poll
from travelrec_worker.app import running_roles

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

NOT_STARTED, IN_PROGRESS, COMPLETED, ERROR = TaskStatus


class Store(MemoryTaskStore):
    """Counts its calls, and is away while told to."""

    away = False

    def __init__(self) -> None:
        super().__init__()
        self.reports = 0

    async def report(self, rows):
        self.reports += 1
        if self.away:
            raise StoreUnavailable("away")
        return await super().report(rows)

    async def has(self, **statuses: TaskStatus) -> None:
        for name, status in statuses.items():
            assert await self.create(moves.created(name.removeprefix("t"), time.time(), status=status))


@asynccontextmanager
async def polling(store: MemoryTaskStore, url: str, **given: object) -> AsyncIterator[None]:
    """A replica of the role until left."""
    settings = Settings(
        **{"tasks_provider_url": url, "tasks_poll_interval_s": 0.1, "tasks_timeout_s": 2.0, **given},
        _env_file=None,
    )
    parts = Parts(MemoryStore(), MemoryBroker(), MemorySignals(), store)
    async with running_roles(["poll"], settings, parts):
        yield


@asynccontextmanager
async def saying(*answers: object) -> AsyncIterator[str]:
    """A third party that says this, the last of it again and again; its URL."""
    left = list(answers)

    async def tasks(_: web.Request) -> web.StreamResponse:
        said = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(said, web.Response):
            return said
        return web.Response(text=said) if isinstance(said, str) else web.json_response(said)

    app = web.Application()
    app.add_routes([web.get("/v1/tasks", tasks)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
    finally:
        await runner.cleanup()


def rows(outcome: str) -> float:
    return metrics.ROWS.labels(outcome)._value.get()


async def test_the_three_well_known_tasks() -> None:
    """1, 2 and 3 become what the third party says; what it does not know stays, what we don't is not made."""
    store = Store()
    await store.has(t1=NOT_STARTED, t2=IN_PROGRESS, t4=NOT_STARTED, t3=IN_PROGRESS)
    async with running() as fake, polling(store, fake.url):
        await eventually(lambda: store.tasks["3"].status is ERROR)
    assert {task.id: task.status for task in store.tasks.values()} == {
        "1": IN_PROGRESS,
        "2": COMPLETED,
        "3": ERROR,
        "4": NOT_STARTED,
    }
    assert store.tasks["3"].error_message == "Invalid IP range: 192.168.1.256"


async def test_bad_rows_are_skipped_and_counted() -> None:
    """One bad row does not cost the good ones; each poll counts what it saw."""
    store = Store()
    await store.has(t1=IN_PROGRESS, t2=COMPLETED)
    before = {name: rows(name) for name in ("moved", "known", "unknown", "bad")}
    said = [
        {"id": 1, "status": "Completed"},
        {"id": "2", "status": "In Progress"},
        {"id": "9", "status": "Completed"},
        {"id": "1", "status": "Finished"},
        "nonsense",
    ]
    async with saying(said, []) as url, polling(store, url):
        await eventually(lambda: store.reports >= 2)
    assert (store.tasks["1"].status, store.tasks["2"].status) == (COMPLETED, COMPLETED)
    assert {name: rows(name) - before[name] for name in before} == {
        "moved": 1,
        "known": 1,
        "unknown": 1,
        "bad": 2,
    }


async def test_a_poll_that_fails_is_followed_by_the_next() -> None:
    """No JSON, no array, an error, nobody there: nothing is moved, and the next one counts."""
    store = Store()
    await store.has(t1=IN_PROGRESS)
    bad = [
        "<html>",
        '{"id": "1"}',
        web.Response(status=500),
        web.Response(status=302, headers={"Location": "/x"}),
    ]
    async with saying(*bad, [{"id": "1", "status": "Completed"}]) as url, polling(store, url):
        await eventually(lambda: store.tasks["1"].status is COMPLETED)


async def test_retry_after_is_kept() -> None:
    """A third party that asks for time has it."""
    store = Store()
    limited = web.Response(status=429, headers={"Retry-After": "3600"})
    async with saying(limited, []) as url, polling(store, url):
        await eventually(lambda: store._poll[2] > time.time() + 3000)
        assert store.reports == 0


async def test_one_replica_polls_and_another_follows_it() -> None:
    """Of three one polls; when it ends another goes on at once."""
    store = Store()
    async with running() as fake, asyncio.TaskGroup() as group:
        ends = [asyncio.Event() for _ in range(3)]

        async def replica(end: asyncio.Event) -> None:
            async with polling(store, fake.url, tasks_timeout_s=0.1):
                await end.wait()

        def polled_by_one_more() -> bool:
            return store._poll[0] not in ("", *tokens) and fake.polls > 2 * (len(tokens) + 1)

        replicas = [group.create_task(replica(end)) for end in ends]
        tokens: list[str] = []
        await eventually(polled_by_one_more)
        tokens.append(store._poll[0])
        polls = fake.polls
        await eventually(lambda: fake.polls > polls + 3)
        assert store._poll[0] == tokens[0]
        for end, task in zip(ends, replicas, strict=True):
            end.set()
            await task
            if end is not ends[-1]:
                now = fake.polls
                await eventually(lambda now=now: fake.polls > now + 1, 20)


async def test_a_leader_that_is_killed_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves nothing but its lease, which runs out."""
    monkeypatch.setattr(poll, "_LEASE_SLACK_S", 0.3)
    store = Store()
    await store.lead("dead", time.time(), time.time() + 1.0)
    async with running() as fake, polling(store, fake.url, tasks_timeout_s=0.3):
        await eventually(lambda: fake.polls >= 2)
        assert store._poll[0] != "dead"


async def test_a_poll_that_is_late_is_made_at_once() -> None:
    """The next one is where it would have been; one that is not due is not made."""
    store = Store()
    due_at = time.time() - 1005
    await store.lead("before", 0.0, 0.0)
    await store.polled("before", due_at, 0.0)
    async with running() as fake, polling(store, fake.url, tasks_poll_interval_s=100.0):
        await eventually(lambda: store.reports == 1)
        await eventually(lambda: store._poll[2] != due_at)
        assert abs(store._poll[2] - (due_at + 1100)) <= 5.1
        assert fake.polls == 1


async def test_a_store_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said meanwhile is said again."""
    monkeypatch.setattr(poll, "_STORE_RETRY_S", 0.05)
    store = Store()
    store.away = True
    await store.has(t2=IN_PROGRESS)
    async with running() as fake, polling(store, fake.url):
        await eventually(lambda: store.reports >= 2)
        store.away = False
        await eventually(lambda: store.tasks["2"].status is COMPLETED)


async def test_a_defect_ends_no_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor its process, which has other roles: it polls again."""
    store = Store()
    await store.has(t1=NOT_STARTED)
    report = store.report
    failures = [RuntimeError("a defect")]

    async def reported(rows):
        if failures:
            raise failures.pop()
        return await report(rows)

    monkeypatch.setattr(store, "report", reported)
    monkeypatch.setattr(poll, "_LEASE_SLACK_S", -1.8)
    async with saying([{"id": "1", "status": "In Progress"}]) as url, polling(store, url):
        await eventually(lambda: store.reports, 20)
    assert not failures
