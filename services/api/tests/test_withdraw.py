"""What may have been written although its caller was told that nothing was accepted."""

import asyncio
from collections.abc import Sequence

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemoryStore
from travelrec.adapters.memory_tasks import MemoryTaskStore
from travelrec.errors import StoreUnavailable
from travelrec.job import Job, Status
from travelrec.kinds import shared
from travelrec.settings import Settings
from travelrec.tasks import task as moves
from travelrec.tasks.task import Task
from travelrec_api import accept, withdraw
from travelrec_api.accept import Accepter
from travelrec_api.withdraw import Creator

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]
PARAMS = {"country": "Canada", "season": "winter"}


class HangingStore(MemoryStore):
    """Does not answer in time, and does what it was told when it goes on; `looks` counts reads."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Job] = []
        self.looks = 0

    async def accept(self, jobs: Sequence[Job], now: float) -> list[Job]:
        self.late += jobs
        raise StoreUnavailable("no answer")

    async def get(self, uids: Sequence[str]) -> dict[str, Job]:
        self.looks += 1
        return await super().get(uids)

    async def go_on(self) -> None:
        await super().accept(self.late, 0.0)


async def test_a_write_that_comes_late_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that comes to stand after its caller was told 503 is cancelled; one with a key waits for the repeat."""
    monkeypatch.setattr(accept, "_LOOK_S", 0.01)
    monkeypatch.setattr(accept, "_LOOKS", 1000)
    store = HangingStore()
    accepter = Accepter(store, MemoryBroker(), shared(Settings()), 86400.0)
    withdrawing = asyncio.create_task(accepter.withdraw())
    with pytest.raises(StoreUnavailable):
        await accepter.accept("recommendation", PARAMS, {}, "recommendation:key")
    with pytest.raises(StoreUnavailable):
        await accepter.accept("recommendation", PARAMS, {})
    await eventually(lambda: store.looks > 2)
    await store.go_on()
    with_key, without_key = (job.uid for job in store.late)
    await eventually(lambda: store.jobs[without_key].status is Status.CANCELLED)
    assert store.jobs[with_key].status is Status.PENDING
    assert not accepter._unsure
    withdrawing.cancel()


async def test_what_never_came_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uid is looked for a few times only, and the list of those looked for is bounded."""
    monkeypatch.setattr(accept, "_LOOK_S", 0.01)
    monkeypatch.setattr(accept, "_MAX_UNSURE", 3)
    accepter = Accepter(HangingStore(), MemoryBroker(), shared(Settings()), 86400.0)
    withdrawing = asyncio.create_task(accepter.withdraw())
    tries = [accepter.accept("recommendation", PARAMS, {}) for _ in range(5)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    assert len(accepter._unsure) == 3
    await eventually(lambda: not accepter._unsure)
    withdrawing.cancel()


async def test_no_more_wait_for_the_store_than_it_takes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes beyond that is refused at once, and is written nowhere."""
    monkeypatch.setattr(accept, "_MAX_WAITING", 3)
    store = HangingStore()
    accepter = Accepter(store, MemoryBroker(), shared(Settings()), 86400.0)
    tries = [accepter.accept("recommendation", PARAMS, {}) for _ in range(10)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    refused = sum("too many" in str(answer) for answer in answers)
    assert (refused >= 4, len(store.late)) == (True, 10 - refused)


class HangingTasks(MemoryTaskStore):
    """Does not answer the first create, and does it when it goes on; `looks` counts deletes."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Task] = []
        self.looks = 0

    async def create(self, task: Task) -> bool:
        if self.late:
            return await super().create(task)
        self.late.append(task)
        raise StoreUnavailable("no answer")

    async def delete(self, id_: str, uid: str | None = None) -> bool:
        self.looks += 1
        return await super().delete(id_, uid)

    async def go_on(self) -> None:
        await super().create(self.late[0])


async def test_a_task_that_another_replica_said_exists_is_not_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its caller was told 503 by one replica and 409 by the next: it stands, in its place in the order."""
    monkeypatch.setattr(withdraw, "_LOOK_S", 0.01)
    store = HangingTasks()
    first, second = Creator(store), Creator(store)
    with pytest.raises(StoreUnavailable):
        await first.create(moves.created("1", 1.0))
    await store.go_on()
    assert await second.create(moves.created("2", 2.0))
    assert not await second.create(moves.created("1", 2.0))
    withdrawing = asyncio.create_task(first.withdraw())
    await eventually(lambda: store.looks > 2)
    assert [task.id for task in await store.page(None, None, 9)] == ["1", "2"]
    withdrawing.cancel()


async def test_a_task_that_is_withdrawn_while_its_id_is_asked_for_makes_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The replica that found it there creates it after all."""
    store = HangingTasks()
    first, second = Creator(store), Creator(store)
    with pytest.raises(StoreUnavailable):
        await first.create(moves.created("1", 1.0))
    await store.go_on()
    get = store.get

    async def read_and_withdrawn(id_: str) -> Task | None:
        monkeypatch.setattr(store, "get", get)
        found = await get(id_)
        await store.delete(id_, store.late[0].uid)
        return found

    monkeypatch.setattr(store, "get", read_and_withdrawn)
    assert await second.create(moves.created("1", 2.0))
    assert set(store.tasks) == {"1"}
