"""The contract of `tasks.ports.TaskStore`, held by every adapter."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from travelrec.adapters.memory_tasks import MemoryTaskStore
from travelrec.adapters.sqlite import SqliteStore
from travelrec.adapters.sqlite_tasks import SqliteTaskStore
from travelrec.errors import InvalidInput, StoreUnavailable
from travelrec.job import new_uid
from travelrec.tasks import pace
from travelrec.tasks import task as moves
from travelrec.tasks.ports import TaskStore
from travelrec.tasks.task import (
    Again,
    Change,
    Rejected,
    Row,
    Submission,
    Submitted,
    Task,
    TaskStatus,
)

NOW = 1_700_000_000.0
RATE = 20.0
NOT_STARTED, IN_PROGRESS, COMPLETED, ERROR = TaskStatus

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("mongo-motor", marks=pytest.mark.real("mongo")),
        pytest.param("mongo-pymongo", marks=pytest.mark.real("mongo")),
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TaskStore]:
    match request.param.partition("-"):
        case "memory", _, _:
            yield MemoryTaskStore()
        case "sqlite", _, _:
            async with SqliteStore.opened(tmp_path / "jobs.db") as sqlite:
                yield SqliteTaskStore(sqlite)
        case _, _, driver:
            from travelrec.adapters.mongo import MongoStore
            from travelrec.adapters.mongo_tasks import MongoTaskStore

            server = request.getfixturevalue("mongo_server")
            url = f"{server.url.rstrip('/')}/{new_uid()}"
            async with MongoStore.opened(url, driver=driver) as mongo:
                yield MongoTaskStore(mongo)


async def made(store: TaskStore, *ids: str, now: float = NOW, **fields: object) -> list[Task]:
    tasks = [moves.created(id_, now, **fields) for id_ in ids]  # type: ignore[arg-type]
    assert [await store.create(task) for task in tasks] == [True] * len(tasks)
    return tasks


async def read(store: TaskStore, id_: str) -> Task:
    task = await store.get(id_)
    assert task is not None
    return task


async def taken(
    store: TaskStore, now: float = NOW, token: str = "", rate: float = RATE, limit: int = 100
) -> list[tuple[float, Task]]:
    return list((await store.take(token or new_uid(), now, 30.0, rate, limit)).tasks)


def ids(pairs: list[tuple[float, Task]]) -> list[str]:
    return [task.id for _, task in pairs]


# --- as a caller sees it -------------------------------------------------------------------------------


ODD_IDS = [
    "1",
    "0",
    "$where",
    "a.b",
    "a/b",
    "..",
    " ",
    "\x00",
    "é",
    "e\u0301",
    "🏖" * 128,
    "__proto__",
    "null",
]


async def test_a_created_task_is_read_back_as_it_was(store: TaskStore) -> None:
    """Every field survives the store, whatever characters its id has; ids that look alike are others."""
    for id_ in ODD_IDS:
        task = moves.created(
            id_,
            NOW,
            status=ERROR,
            error_message="Invalid",
            group=f"g {id_}"[:128],
            headers={"traceparent": "x"},
        )
        assert await store.create(task)
        assert await store.get(id_) == task
    assert await store.get("nope") is None
    assert [task.id for task in await store.page(None, None, 100)] == ODD_IDS


async def test_an_id_is_created_once(store: TaskStore) -> None:
    """Of many who create the same id one does; its own call repeated says so again, and changes nothing."""
    tasks = [moves.created("1", NOW) for _ in range(20)]
    won = await asyncio.gather(*(store.create(task) for task in tasks))
    assert Counter(won) == {True: 1, False: 19}
    winner = tasks[won.index(True)]
    await store.change("1", Change(COMPLETED), NOW)
    assert await store.create(winner)
    assert (await read(store, "1")).status is COMPLETED


async def test_pages_are_in_order_of_creation(store: TaskStore) -> None:
    """Pages follow each other without a gap or a repeat; with a status, of those tasks only."""
    names = [str(number) for number in range(25)]
    tasks = await made(store, *names)
    for name in names[::2]:
        await store.change(name, Change(COMPLETED), NOW)
    walked: list[str] = []
    after = None
    while page := await store.page(None, after, 10):
        walked += [task.id for task in page]
        after = page[-1].uid
    assert walked == names
    assert [task.id for task in await store.page(COMPLETED, None, 100)] == names[::2]
    assert [task.id for task in await store.page(NOT_STARTED, tasks[10].uid, 3)] == ["11", "13", "15"]


async def test_a_change_is_answered_and_stands(store: TaskStore) -> None:
    """What a caller changes is done by the rules of `changed`, or refused and not done."""
    await made(store, "1")
    wrong = await store.change("1", Change(ERROR, "broken", says_message=True), NOW)
    assert wrong is not None
    assert (wrong.status, wrong.error_message) == (ERROR, "broken")
    assert await read(store, "1") == wrong
    with pytest.raises(InvalidInput):
        await store.change("1", Change(COMPLETED, "broken", says_message=True), NOW)
    assert await read(store, "1") == wrong
    assert await store.change("2", Change(ERROR), NOW) is None


async def test_changes_that_race_all_count(store: TaskStore) -> None:
    """Of racing changes none writes what it has not seen: a message never stands with another status."""
    await made(store, "1")
    wanted = [Change(ERROR, f"m{n}", says_message=True) if n % 2 else Change(COMPLETED) for n in range(8)]
    await asyncio.gather(*(store.change("1", one, NOW) for one in wanted))
    task = await read(store, "1")
    assert (task.error_message is not None) == (task.status is ERROR)


async def test_deleted_is_gone(store: TaskStore) -> None:
    """A deleted id is unknown and may be created again; with a uid only that very task is deleted."""
    (first,) = await made(store, "1")
    assert not await store.delete("1", new_uid())
    assert await store.delete("1", first.uid)
    assert not await store.delete("1")
    assert await store.get("1") is None
    (second,) = await made(store, "1")
    assert second.uid != first.uid
    assert await store.delete("1")


async def test_a_kept_task_is_not_found_by_its_old_uid(store: TaskStore) -> None:
    """It stays what it is, where it is in the order, and under its lease; only that of the uid is kept."""
    first, second = await made(store, "1", "2")
    assert not await store.keep("1", second.uid)
    assert not await store.keep("3", first.uid)
    assert await store.keep("1", first.uid)
    assert not await store.keep("1", first.uid)
    assert not await store.delete("1", first.uid)
    kept = await read(store, "1")
    assert kept == replace(first, uid=kept.uid)
    assert [task.id for task in await store.page(None, None, 9)] == ["1", "2"]
    ((_, leased), _) = await taken(store, token="t")
    assert await store.keep("1", leased.uid)
    await store.settle([Submission("1", "t", Submitted())])
    assert (await read(store, "1")).status is IN_PROGRESS


async def test_counts_are_of_each_status(store: TaskStore) -> None:
    """How many there are."""
    await made(store, "1", "2", "3")
    await store.change("3", Change(COMPLETED), NOW)
    counts = await store.counts()
    assert {s: n for s, n in counts.items() if n} == {NOT_STARTED: 2, COMPLETED: 1}


# --- taking --------------------------------------------------------------------------------------------


async def test_tasks_are_taken_in_order_at_equal_distances(store: TaskStore) -> None:
    """Each has its time, a rate's distance from the one before, and a lease that ends after it."""
    await made(store, *"abcde")
    pairs = await taken(store, token="t1")
    assert ids(pairs) == list("abcde")
    times = [at for at, _ in pairs]
    assert times == pytest.approx([NOW + pace.LEAD_S + n * pace.gap_s(RATE) for n in range(5)])
    for at, task in pairs:
        assert (task.token, task.due_at) == ("t1", pytest.approx(at + 30.0))
        assert await read(store, task.id) == task
    assert await taken(store) == []


async def test_no_time_is_given_twice(store: TaskStore) -> None:
    """Of many who race none gets another's task or time, and all together no more than the rate allows."""
    await made(store, *(str(number) for number in range(40)))
    found: list[tuple[float, Task]] = []
    for step in range(10):
        now = NOW + step * 0.4
        for pairs in await asyncio.gather(*(taken(store, now, limit=7) for _ in range(3))):
            found += pairs
    assert Counter(ids(found)) == {str(number): 1 for number in range(40)}
    times = sorted(at for at, _ in found)
    assert all(later - earlier > 0.999 / RATE for earlier, later in itertools.pairwise(times))


async def test_the_order_of_creation_is_that_of_the_times(store: TaskStore) -> None:
    """Whoever takes, what was created earlier has an earlier time."""
    names = [str(number) for number in range(30)]
    await made(store, *names)
    found: list[tuple[float, Task]] = []
    for step in range(12):
        for pairs in await asyncio.gather(*(taken(store, NOW + step * 0.3, limit=4) for _ in range(3))):
            found += pairs
    assert ids(sorted(found, key=lambda pair: pair[0])) == names


async def test_only_a_second_ahead_is_given(store: TaskStore) -> None:
    """A replica that dies wastes a second's worth at the most; until then it says when to look again."""
    await made(store, *(str(number) for number in range(60)))
    first = await store.take("t1", NOW, 30.0, RATE, 100)
    given = [*first.tasks, *await taken(store)]
    assert 0 < len(given) <= RATE * pace.AHEAD_S
    assert NOW < first.look_again_at < NOW + pace.AHEAD_S
    more = await taken(store, first.look_again_at)
    assert more[0][0] - given[-1][0] == pytest.approx(pace.gap_s(RATE), abs=1e-5)


async def test_what_is_not_used_is_not_made_up_for(store: TaskStore) -> None:
    """After an hour without tasks there is no burst."""
    await made(store, "1")
    await taken(store)
    await made(store, *(f"late {number}" for number in range(60)))
    pairs = await taken(store, NOW + 3600)
    assert len(pairs) <= RATE * pace.AHEAD_S
    assert pairs[0][0] == pytest.approx(NOW + 3600 + pace.LEAD_S)


async def test_a_lower_rate_counts_at_once(store: TaskStore) -> None:
    """Below one a second the next time is further ahead than is given: then nobody gets one."""
    await made(store, "1", "2", "3")
    assert ids(await taken(store, rate=0.2)) == ["1"]
    assert await taken(store, NOW + 3, rate=0.2) == []
    ((at, task),) = await taken(store, NOW + 5, rate=0.2)
    assert (at, task.id) == (pytest.approx(NOW + pace.LEAD_S + pace.gap_s(0.2)), "2")


async def test_groups_are_served_in_turn(store: TaskStore) -> None:
    """A group with much to do does not hold up one with little; each goes on where it stopped."""
    await made(store, *(f"a{n}" for n in range(50)), group="a")
    await made(store, "b0", "b1", group="b")
    await made(store, "x0", "x1")
    first = ids(await taken(store, limit=5))
    assert Counter(name[0] for name in first) == {"x": 1, "a": 2, "b": 2}
    assert ids(await taken(store, NOW + 1, limit=3)) == ["x1", "a2", "a3"]
    assert ids(await taken(store, NOW + 2, limit=4)) == ["a4", "a5", "a6", "a7"]


async def test_many_groups_share_few_times(store: TaskStore) -> None:
    """Each group is served once before one is served twice, over many takes."""
    for number in range(9):
        await made(store, f"{number}-0", f"{number}-1", group=f"g{number}")
    found: list[str] = []
    for step in range(6):
        found += ids(await taken(store, NOW + step, limit=3))
    assert {name.partition("-")[0] for name in found[:9]} == {str(n) for n in range(9)}
    assert len(set(found)) == 18


async def test_a_lease_that_is_over_is_taken_again(store: TaskStore) -> None:
    """What a dead replica had comes back with the same key; what the dead one would write no longer counts."""
    await made(store, "1")
    ((_, dead),) = await taken(store, token="dead")
    assert await taken(store, dead.due_at - 0.1) == []
    ((_, again),) = await taken(store, dead.due_at, token="alive")
    assert again.key == dead.key
    await store.settle([Submission("1", "dead", Rejected("late"))])
    assert (await read(store, "1")).status is NOT_STARTED
    await store.settle([Submission("1", "alive", Submitted())])
    assert (await read(store, "1")).status is IN_PROGRESS


async def test_outcomes_are_written_as_the_rules_say(store: TaskStore) -> None:
    """Each outcome moves its task as `settled` does; one of a deleted task is dropped; a repeat changes nothing."""
    await made(store, *"abcde")
    pairs = await taken(store, token="t")
    tasks = {task.id: task for _, task in pairs}
    outcomes = {
        "a": Submitted(),
        "b": Rejected("no"),
        "c": Again(NOW + 50),
        "d": Again(NOW + 60, failed=False),
    }
    await store.delete("e")
    submissions = [Submission(id_, "t", outcome) for id_, outcome in outcomes.items()]
    submissions.append(Submission("e", "t", Submitted()))
    for _ in range(2):
        await store.settle(submissions)
        for id_, outcome in outcomes.items():
            assert await read(store, id_) == moves.settled(tasks[id_], outcome)
    assert await store.get("e") is None
    assert ids(await taken(store, NOW + 55)) == ["c"]


async def test_what_its_caller_changed_is_not_overwritten(store: TaskStore) -> None:
    """A submission on its way does not undo what the caller has set meanwhile."""
    await made(store, "1", "2")
    await taken(store, token="t")
    await store.change("1", Change(COMPLETED), NOW)
    await store.change("2", Change(COMPLETED), NOW)
    back = await store.change("2", Change(NOT_STARTED), NOW)
    await store.settle([Submission("1", "t", Submitted()), Submission("2", "t", Submitted())])
    assert (await read(store, "1")).status is COMPLETED
    assert await read(store, "2") == back


async def test_nobody_gets_a_time_while_it_is_held(store: TaskStore) -> None:
    """A third party that asks for a pause has it from everybody; a shorter pause ends no longer one."""
    await made(store, "1")
    await store.hold(NOW + 30)
    await store.hold(NOW + 10)
    look = await store.take("t", NOW, 30.0, RATE, 10)
    assert (list(look.tasks), look.look_again_at) == ([], pytest.approx(NOW + 30 - pace.LEAD_S))
    ((at, _),) = await taken(store, NOW + 29.9)
    assert at >= NOW + 30


# --- the third party's word ----------------------------------------------------------------------------


async def test_a_report_moves_what_it_may(store: TaskStore) -> None:
    """Every pair of states, as `reported` says; unknown ids are left alone, and none is made."""
    for before in TaskStatus:
        for says in TaskStatus:
            await made(store, f"{before} {says}", status=before)
    rows = [Row(f"{b} {s}", s, "why" if s is ERROR else None) for b in TaskStatus for s in TaskStatus]
    reported = await store.report([*rows, Row("unknown", COMPLETED)])
    for before in TaskStatus:
        for says in TaskStatus:
            task = await read(store, f"{before} {says}")
            forwards = before in (NOT_STARTED, IN_PROGRESS) and says not in (NOT_STARTED, before)
            assert task.status is (says if forwards else before)
            assert task.error_message == ("why" if forwards and says is ERROR else None)
    assert reported.known == 16
    assert dict(reported.moved) == {IN_PROGRESS: 1, COMPLETED: 2, ERROR: 2}
    assert await store.get("unknown") is None
    assert dict((await store.report(rows)).moved) == {}
    assert (await store.report([])).known == 0


async def test_what_was_set_back_is_not_moved_by_old_news(store: TaskStore) -> None:
    """What the third party says of a finished run does not end the next one before it has begun."""
    await made(store, "1", status=ERROR)
    back = await store.change("1", Change(NOT_STARTED), NOW)
    assert dict((await store.report([Row("1", ERROR, "old")])).moved) == {}
    assert await read(store, "1") == back
    await taken(store, token="t")
    await store.settle([Submission("1", "t", Submitted())])
    assert dict((await store.report([Row("1", COMPLETED)])).moved) == {COMPLETED: 1}


async def test_a_report_ends_a_lease(store: TaskStore) -> None:
    """A task that the third party has already is not submitted again, whatever its replica writes."""
    await made(store, "1")
    await taken(store, token="t")
    await store.report([Row("1", COMPLETED)])
    await store.settle([Submission("1", "t", Again(NOW))])
    assert (await read(store, "1")).status is COMPLETED
    assert await taken(store, NOW + 100) == []


async def test_thousands_are_reported_at_once(store: TaskStore) -> None:
    """2,000 rows, all of them known, one report."""
    for number in range(200):
        await made(store, str(number))
    rows = [Row(str(number), COMPLETED) for number in range(2000)]
    reported = await store.report(rows)
    assert (reported.known, dict(reported.moved)) == (200, {COMPLETED: 200})


# --- who polls -----------------------------------------------------------------------------------------


async def test_one_leads(store: TaskStore) -> None:
    """Of many who want to poll one does, for as long as it says so; then, or at once, another."""
    tokens = [new_uid() for _ in range(10)]
    led = await asyncio.gather(*(store.lead(token, NOW, NOW + 15) for token in tokens))
    (leader,) = [token for token, due_at in zip(tokens, led, strict=True) if due_at is not None]
    other = next(token for token in tokens if token != leader)
    assert await store.polled(leader, NOW + 10, NOW + 20)
    assert not await store.polled(other, NOW + 99, NOW + 99)
    assert await store.lead(leader, NOW + 1, NOW + 20) == NOW + 10
    assert await store.lead(other, NOW + 19.9, NOW + 40) is None
    assert await store.lead(other, NOW + 20, NOW + 40) == NOW + 10
    assert await store.lead(leader, NOW + 21, NOW + 40) is None
    assert not await store.polled(leader, NOW + 30, NOW + 40)
    assert await store.polled(other, NOW + 30, 0.0)
    assert await store.lead(leader, NOW + 22, NOW + 40) == NOW + 30


async def test_a_store_that_is_away_says_so() -> None:
    """Every call of a store whose server is not there raises `StoreUnavailable`."""
    from travelrec.adapters.mongo import MongoStore
    from travelrec.adapters.mongo_tasks import MongoTaskStore

    async with MongoStore.opened("mongodb://127.0.0.1:9/x", timeout_s=0.2) as mongo:
        store = MongoTaskStore(mongo)
        task = moves.created("1", NOW)
        for call in (
            store.create(task),
            store.get("1"),
            store.page(None, None, 1),
            store.change("1", Change(COMPLETED), NOW),
            store.delete("1"),
            store.keep("1", "u"),
            store.take("t", NOW, 30.0, RATE, 1),
            store.settle([Submission("1", "t", Submitted())]),
            store.hold(NOW),
            store.report([Row("1", COMPLETED)]),
            store.lead("t", NOW, NOW),
            store.polled("t", NOW, NOW),
            store.counts(),
        ):
            with pytest.raises(StoreUnavailable):
                await call


async def test_tasks_survive_in_the_file(tmp_path: Path) -> None:
    """With SQLite a task, the times that were given and when the next poll is due are there after a restart."""
    for _ in range(2):
        async with SqliteStore.opened(tmp_path / "jobs.db") as sqlite:
            store = SqliteTaskStore(sqlite)
            if await store.get("1") is None:
                (task,) = await made(store, "1")
                await taken(store)
                await store.lead("t", NOW, NOW + 15)
                await store.polled("t", NOW + 10, NOW)
    async with SqliteStore.opened(tmp_path / "jobs.db") as sqlite:
        store = SqliteTaskStore(sqlite)
        assert replace(await read(store, "1"), token="", due_at=NOW) == task
        await made(store, "2")
        ((at, _),) = await taken(store)
        assert at == pytest.approx(NOW + pace.LEAD_S + pace.gap_s(RATE))
        assert await store.lead("u", NOW, NOW + 15) == NOW + 10
