"""The contract of `ports.Store`, held by every adapter."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from pymongo.errors import BulkWriteError

from support import Mongo
from travelrec.adapters.memory import MemoryStore
from travelrec.adapters.sqlite import SqliteStore
from travelrec.errors import StoreUnavailable
from travelrec.job import (
    IDEMPOTENCY_S,
    Bid,
    Completed,
    Failed,
    HandedBack,
    Job,
    Phase,
    Retry,
    Settlement,
    Status,
    Try,
    new_uid,
)
from travelrec.ports import Backlog, Store

Answer = TypeVar("Answer")

NOW = 1_700_000_000.0
RETENTION_S = 1000.0

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("mongo-motor", marks=pytest.mark.real("mongo")),
        pytest.param("mongo-pymongo", marks=pytest.mark.real("mongo")),
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    match request.param.partition("-"):
        case "memory", _, _:
            yield MemoryStore(RETENTION_S)
        case "sqlite", _, _:
            async with SqliteStore.opened(tmp_path / "jobs.db", RETENTION_S) as sqlite:
                yield sqlite
        case _, _, driver:
            from travelrec.adapters.mongo import MongoStore

            server = request.getfixturevalue("mongo_server")
            url = f"{server.url.rstrip('/')}/{new_uid()}"
            async with MongoStore.opened(url, driver=driver, retention_s=RETENTION_S) as mongo:
                yield mongo


def job(**changes: object) -> Job:
    made = Job(
        uid=new_uid(),
        kind="recommendation",
        params={"country": "Côte d'Ivoire", "season": "winter"},
        created_at=NOW,
        due_at=NOW + 5,
        headers={"request-id": "r-1"},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


async def accepted(store: Store, count: int = 1, **changes: object) -> list[Job]:
    return await store.accept([job(**changes) for _ in range(count)], NOW)


async def read(store: Store, uid: str) -> Job:
    return (await store.get([uid]))[uid]


async def running(store: Store, token: str = "t1") -> Job:
    (made,) = await accepted(store)
    (claimed,) = await store.claim([made.uid], token, NOW, NOW + 30)
    return claimed


async def test_accepted_job_is_read_back_as_it_was(store: Store) -> None:
    """Every field of an accepted job survives the store."""
    made = job(idempotency_key="recommendation:k")
    assert await store.accept([made], NOW) == [made]
    assert await store.get([made.uid, new_uid()]) == {made.uid: made}


async def test_accept_repeated_changes_nothing(store: Store) -> None:
    """The same accept, after an answer that was lost, gives the same jobs."""
    made = [job(), job()]
    await store.accept(made, NOW)
    await store.claim([made[0].uid], "t", NOW, NOW + 30)
    again = await store.accept(made, NOW)
    assert [one.uid for one in again] == [one.uid for one in made]
    assert again[0].phase is Phase.RUNNING


async def test_idempotency_key_gives_the_first_job(store: Store) -> None:
    """A second job with the same key is not written; others in the same call are."""
    first = job(idempotency_key="k")
    second, other = job(idempotency_key="k"), job()
    await store.accept([first], NOW)
    assert await store.accept([second, other], NOW + 1) == [first, other]
    assert set(await store.get([first.uid, second.uid, other.uid])) == {first.uid, other.uid}


async def test_idempotency_key_within_one_call(store: Store) -> None:
    """Two jobs with one key in the same call become one."""
    first, second = job(idempotency_key="k"), job(idempotency_key="k")
    one, two = await store.accept([first, second], NOW)
    assert one.uid == two.uid
    assert len(await store.get([first.uid, second.uid])) == 1


async def test_idempotency_key_races_to_one_job(store: Store) -> None:
    """However many ask at once with one key, one job comes of it."""
    made = [job(idempotency_key="k") for _ in range(30)]
    answers = await asyncio.gather(*(store.accept([one], NOW) for one in made))
    assert len({answer[0].uid for answer in answers}) == 1
    assert len(await store.get([one.uid for one in made])) == 1


async def test_idempotency_key_expires(store: Store) -> None:
    """After 24 h a key makes a new job, and the old one stays readable."""
    first = job(idempotency_key="k")
    await store.accept([first], NOW)
    late = NOW + IDEMPOTENCY_S
    second = job(idempotency_key="k", created_at=late)
    assert (await store.accept([second], late)) == [second]
    third = job(idempotency_key="k", created_at=late + 1)
    assert (await store.accept([third], late + 1)) == [second]
    assert set(await store.get([first.uid, second.uid, third.uid])) == {first.uid, second.uid}


async def test_claim_leases_what_is_claimable(store: Store) -> None:
    """A claim wins an accepted job, with its token and time; unknown uids are left out."""
    (made,) = await accepted(store)
    (won,) = await store.claim([made.uid, new_uid()], "t1", NOW, NOW + 30)
    assert (won.phase, won.token, won.due_at, won.claims) == (Phase.RUNNING, "t1", NOW + 30, 1)
    assert await read(store, made.uid) == won


async def test_claim_is_won_once(store: Store) -> None:
    """Of many racing claims of the same jobs each job goes to exactly one."""
    uids = [one.uid for one in await accepted(store, 50)]
    claims = await asyncio.gather(*(store.claim(uids, f"t{n}", NOW, NOW + 30) for n in range(6)))
    won = [one.uid for claim in claims for one in claim]
    assert sorted(won) == sorted(uids)


async def test_claim_repeated_with_its_token_answers_the_same(store: Store) -> None:
    """A claim whose answer was lost can be asked again."""
    (made,) = await accepted(store)
    first = await store.claim([made.uid], "t1", NOW, NOW + 30)
    assert await store.claim([made.uid], "t1", NOW, NOW + 30) == first


async def test_claim_repeated_after_a_sweep_is_a_claim(store: Store) -> None:
    """What a sweeper took meanwhile is published for everybody: it is not answered unless it is leased again."""
    made = await running(store)
    await store.take_due(NOW + 31, NOW + 41, 10)
    (won,) = await store.claim([made.uid], "t1", NOW + 32, NOW + 62)
    assert (won.phase, won.token, won.due_at) == (Phase.RUNNING, "t1", NOW + 62)
    assert await store.claim([made.uid], "t2", NOW + 33, NOW + 63) == []


async def test_running_job_is_claimed_again_only_when_its_lease_is_over(store: Store) -> None:
    """A lease protects until its time, and not longer."""
    made = await running(store)
    assert await store.claim([made.uid], "t2", NOW + 29, NOW + 60) == []
    (won,) = await store.claim([made.uid], "t2", NOW + 30, NOW + 60)
    assert (won.token, won.claims) == ("t2", 2)


async def test_a_renewal_that_comes_late_shortens_nothing(store: Store) -> None:
    """Of two renewals the later time stands, in whichever order a store that hung does them."""
    held = await running(store)
    assert await store.renew([(held.uid, "t1")], NOW + 60) == {held.uid}
    assert await store.renew([(held.uid, "t1")], NOW + 50) == {held.uid}
    assert (await read(store, held.uid)).due_at == NOW + 60


async def test_release_ends_what_a_dead_worker_held(store: Store) -> None:
    """Leases of one worker's name are over at once for its successor; its own later claim, and others', stand."""
    mine, theirs, nobodys, later, ended = await accepted(store, 5)
    for one, worker in ((mine, "w-1"), (theirs, "w-2"), (nobodys, None), (ended, "w-1")):
        (claimed,) = await store.claim([one.uid], one.uid, NOW, NOW + 30, worker)
        assert claimed.worker == worker
    await store.settle([Settlement(ended.uid, ended.uid, Completed({}))], NOW + 1)
    for _ in range(2):  # the first answer was lost
        assert await store.release("w-1", NOW + 2, NOW + 32) == 1
    assert (await read(store, mine.uid)).due_at == NOW + 2
    (claimed,) = await store.claim([later.uid], "t2", NOW + 3, NOW + 33, "w-1")
    assert await store.release("w-1", NOW + 2, NOW + 32) == 1  # one that comes late
    assert [one.uid for one in await store.take_due(NOW + 4, NOW + 14, 10)] == [mine.uid]
    stand = await store.get([theirs.uid, nobodys.uid, later.uid])
    assert {(one.phase, one.due_at) for one in stand.values()} == {
        (Phase.RUNNING, NOW + 30),
        (Phase.RUNNING, NOW + 33),
    }
    (again,) = await store.claim([mine.uid], "t3", NOW + 5, NOW + 35, "w-2")
    assert (again.worker, again.claims) == ("w-2", 2)


async def test_release_leaves_what_may_have_killed_its_worker(store: Store) -> None:
    """A job that was claimed more than three times waits for its lease to run out, whoever held it."""
    (made,) = await accepted(store)
    for claims in (1, 2, 3, 4):
        now = NOW + 10 * claims
        (claimed,) = await store.claim([made.uid], f"t{claims}", now, now + 30, "w")
        assert claimed.claims == claims
        assert await store.release("w", now + 1, now + 31) == (claims <= 3)


async def test_waiting_job_is_not_claimed_before_its_time(store: Store) -> None:
    """A message that comes twice does not cut a back-off short."""
    made = await running(store)
    await store.settle([Settlement(made.uid, "t1", Retry(NOW + 9, Try(NOW, "E", "m")))], NOW)
    assert await store.claim([made.uid], "t2", NOW + 8, NOW + 60) == []
    (won,) = await store.claim([made.uid], "t3", NOW + 9, NOW + 60)
    assert won.tries == (Try(NOW, "E", "m"),)


async def test_renew_extends_what_is_held(store: Store) -> None:
    """Renewing answers the leases that stand; a stranger's token renews nothing."""
    mine, other = await running(store, "t1"), await running(store, "t2")
    kept = await store.renew([(mine.uid, "t1"), (other.uid, "wrong"), (new_uid(), "t1")], NOW + 90)
    assert kept == {mine.uid}
    assert (await read(store, mine.uid)).due_at == NOW + 90
    assert (await read(store, other.uid)).due_at == NOW + 30
    assert await store.renew([(mine.uid, "t1"), (other.uid, "t2")], NOW + 95) == {mine.uid, other.uid}


async def test_settle_completes(store: Store) -> None:
    """A result under the lease's token ends the job."""
    made = await running(store)
    result = {"recommendations": ["a", "b", "ü"]}
    assert await store.settle([Settlement(made.uid, "t1", Completed(result))], NOW + 2) == {made.uid}
    done = await read(store, made.uid)
    assert (done.status, done.phase, done.result) == (Status.COMPLETED, None, result)
    assert (done.ended_at, done.due_at, done.token) == (NOW + 2, NOW + 2 + RETENTION_S, None)


async def test_settle_fails_with_reasons(store: Store) -> None:
    """A failure carries its title, its message and every attempt."""
    made = await running(store)
    await store.settle([Settlement(made.uid, "t1", Failed(Try(NOW, "Model refused", "No.")))], NOW)
    done = await read(store, made.uid)
    assert (done.status, done.error, done.message) == (Status.FAILED, "Model refused", "No.")
    assert done.tries == (Try(NOW, "Model refused", "No."),)


async def test_settle_needs_the_newest_token(store: Store) -> None:
    """The result of a lease that another has taken over does not count, and changes nothing."""
    made = await running(store, "old")
    await store.claim([made.uid], "new", NOW + 31, NOW + 61)
    before = await read(store, made.uid)
    assert await store.settle([Settlement(made.uid, "old", Completed({"n": 1}))], NOW + 32) == set()
    assert await read(store, made.uid) == before
    assert await store.settle([Settlement(made.uid, "new", Completed({"n": 2}))], NOW + 33) == {made.uid}
    assert await store.settle([Settlement(made.uid, "old", Completed({"n": 3}))], NOW + 34) == set()
    assert (await read(store, made.uid)).result == {"n": 2}


async def test_settle_repeated_stands(store: Store) -> None:
    """A settlement whose answer was lost is answered as standing, and written once."""
    made = await running(store)
    settlement = Settlement(made.uid, "t1", Completed({"n": 1}))
    await store.settle([settlement], NOW)
    assert await store.settle([settlement], NOW + 5) == {made.uid}
    assert (await read(store, made.uid)).ended_at == NOW


async def test_settle_repeated_stands_until_the_next_claim(store: Store) -> None:
    """A sweep between a settlement and its repetition changes nothing; after another's claim it is history."""
    made = await running(store)
    settlement = Settlement(made.uid, "t1", Retry(NOW + 1))
    await store.settle([settlement], NOW)
    await store.take_due(NOW + 2, NOW + 12, 10)
    await store.published([made.uid], NOW + 20)
    assert await store.settle([settlement], NOW + 3) == {made.uid}
    await store.claim([made.uid], "t2", NOW + 4, NOW + 34)
    assert await store.settle([settlement], NOW + 5) == set()
    assert (await read(store, made.uid)).token == "t2"


async def test_published_notes_when_it_was_sent_again(store: Store) -> None:
    """The time of a message that was sent again stays until the next one; a mere look does not change it."""
    (made,) = await accepted(store)
    await store.published([made.uid], NOW + 20, NOW + 15)
    await store.published([made.uid], NOW + 40)
    found = await read(store, made.uid)
    assert (found.due_at, found.sent_at) == (NOW + 40, NOW + 15)


async def test_settle_in_bulk_tells_winners_from_losers(store: Store) -> None:
    """Of many settlements in one call the answer names those that stand."""
    good, bad = await running(store, "g"), await running(store, "b")
    stood = await store.settle(
        [Settlement(good.uid, "g", Completed({})), Settlement(bad.uid, "x", Completed({}))], NOW
    )
    assert stood == {good.uid}


async def test_late_result_counts_while_nobody_else_has_claimed(store: Store) -> None:
    """A lease that ran out and was swept still brings its result home, so that nothing is paid for twice."""
    made = await running(store)
    await store.take_due(NOW + 31, NOW + 41, 10)
    assert await store.settle([Settlement(made.uid, "t1", Completed({}))], NOW + 32) == {made.uid}


async def test_handed_back_job_is_due_at_once_and_cost_nothing(store: Store) -> None:
    """What a stopping worker gives back is as if it had not been claimed."""
    made = await running(store)
    await store.settle([Settlement(made.uid, "t1", HandedBack())], NOW + 1)
    back = await read(store, made.uid)
    assert (back.status, back.claims, back.tries) == (Status.PENDING, 0, ())
    (due,) = await store.take_due(NOW + 1, NOW + 11, 10)
    assert (due.uid, due.phase) == (made.uid, Phase.DUE)


async def test_cancel_ends_a_pending_job_once(store: Store) -> None:
    """The first cancel ends it; the second finds it ended; a result that comes later changes nothing."""
    made = await running(store)
    done, now_ended = await store.cancel(made.uid, NOW + 1, "Cancelled.")
    assert done is not None
    assert (done.status, done.message, now_ended) == (Status.CANCELLED, "Cancelled.", True)
    assert await store.cancel(made.uid, NOW + 2, "Again.") == (done, False)
    assert await store.settle([Settlement(made.uid, "t1", Completed({}))], NOW + 3) == set()
    assert await read(store, made.uid) == done
    assert await store.cancel(new_uid(), NOW, "x") == (None, False)


async def test_cancel_leaves_an_ended_job_alone(store: Store) -> None:
    """A completed job stays completed."""
    made = await running(store)
    await store.settle([Settlement(made.uid, "t1", Completed({}))], NOW)
    done, now_ended = await store.cancel(made.uid, NOW + 1, "x")
    assert done is not None
    assert (done.status, now_ended) == (Status.COMPLETED, False)


async def test_published_moves_only_what_waits_for_a_worker(store: Store) -> None:
    """A job that was claimed before the mark arrived keeps its lease."""
    (fresh,) = await accepted(store)
    taken = await running(store)
    await store.published([fresh.uid, taken.uid, new_uid()], NOW + 600)
    assert ((await read(store, fresh.uid)).phase, (await read(store, fresh.uid)).due_at) == (
        Phase.QUEUED,
        NOW + 600,
    )
    assert await read(store, taken.uid) == taken


async def test_take_due_takes_what_is_late_oldest_first(store: Store) -> None:
    """Up to the limit, in order, moved on; a second look finds the rest."""
    made = [job(due_at=NOW + n) for n in (3, 1, 2, 9)]
    await store.accept(made, NOW)
    taken = await store.take_due(NOW + 5, NOW + 15, 2)
    assert [one.uid for one in taken] == [made[1].uid, made[2].uid]
    assert {one.due_at for one in taken} == {NOW + 15}
    assert [one.uid for one in await store.take_due(NOW + 5, NOW + 15, 10)] == [made[0].uid]
    assert await store.take_due(NOW + 5, NOW + 15, 10) == []


async def test_take_due_keeps_what_stands_in_the_broker_apart(store: Store) -> None:
    """A job whose message is on its way comes back as queued, all others as to be published."""
    (queued,) = await accepted(store)
    ran = await running(store)
    taken = {one.uid: one.phase for one in await store.take_due(NOW + 31, NOW + 41, 10)}
    assert taken == {queued.uid: Phase.QUEUED, ran.uid: Phase.DUE}
    await store.published(list(taken), NOW + 99)
    assert {(one.phase, one.due_at) for one in (await store.get(list(taken))).values()} == {
        (Phase.QUEUED, NOW + 99)
    }


async def test_take_due_races_to_one_taker(store: Store) -> None:
    """Of racing sweepers one gets each job."""
    await accepted(store, 40)
    takes = await asyncio.gather(*(store.take_due(NOW + 6, NOW + 16, 40) for _ in range(5)))
    assert len([one for take in takes for one in take]) == 40


async def test_take_due_leaves_ended_jobs_alone(store: Store) -> None:
    """Retention is not a reason to publish."""
    made = await running(store)
    await store.settle([Settlement(made.uid, "t1", Completed({}))], NOW)
    assert await store.take_due(NOW + 10 * RETENTION_S, NOW, 10) == []


async def test_purge_deletes_ended_jobs_after_their_time(store: Store) -> None:
    """Only ended jobs, only after their retention, up to the limit; their keys are free again."""
    keyed = job(idempotency_key="k")
    await store.accept([keyed], NOW)
    await store.claim([keyed.uid], "t", NOW, NOW + 30)
    await store.settle([Settlement(keyed.uid, "t", Completed({}))], NOW)
    (pending,) = await accepted(store)
    assert await store.purge(NOW + RETENTION_S - 1, 10) == 0
    assert await store.purge(NOW + RETENTION_S, 10) == 1
    assert set(await store.get([keyed.uid, pending.uid])) == {pending.uid}
    fresh = job(idempotency_key="k")
    assert await store.accept([fresh], NOW + 1) == [fresh]


async def test_lead_goes_to_one(store: Store) -> None:
    """Of racing bids for a key one leads, and everybody is told the same one."""
    bids = [Bid("k", new_uid()) for _ in range(20)]
    led = await asyncio.gather(*(store.lead([bid], NOW) for bid in bids))
    assert len({one for (one,) in led}) == 1
    assert await store.leaders(["k", "other"]) == {"k": led[0][0]}


async def test_lead_is_taken_over_only_from_the_one_that_was_seen(store: Store) -> None:
    """A bid instead of a leader that has failed wins once; a late one finds the new leader."""
    assert await store.lead([Bid("k", "a"), Bid("l", "x")], NOW) == ["a", "x"]
    assert await store.lead([Bid("k", "b", instead_of="z")], NOW) == ["a"]
    led = await asyncio.gather(*(store.lead([Bid("k", n, instead_of="a")], NOW) for n in "bcdef"))
    assert len({one for (one,) in led}) == 1
    assert await store.lead([Bid("k", "g", instead_of="a"), Bid("l", "x")], NOW) == [led[0][0], "x"]
    assert await store.lead([Bid("new", "g", instead_of="gone")], NOW) == ["g"]


async def test_leads_are_purged_with_age(store: Store) -> None:
    """A lead lives as long as an ended job."""
    await store.lead([Bid("old", "a")], NOW)
    await store.lead([Bid("young", "b")], NOW + 10)
    await store.purge(NOW + RETENTION_S, 10)
    assert await store.leaders(["old", "young"]) == {"young": "b"}


async def failed_job(store: Store, at: float) -> Job:
    made = await running(store)
    await store.settle([Settlement(made.uid, "t1", Failed(Try(at, "Model refused", "No.")))], at)
    return await read(store, made.uid)


async def test_failed_jobs_are_listed_newest_first(store: Store) -> None:
    """Only failed ones, from a time on, up to the limit."""
    await accepted(store)
    made = [await failed_job(store, NOW + n) for n in (1, 3, 2)]
    assert await store.failed(NOW + 2, 10) == [made[1], made[2]]
    assert await store.failed(NOW, 1) == [made[1]]


async def test_revived_job_is_due_with_its_uid_and_nothing_of_its_past(store: Store) -> None:
    """A failed job becomes pending once, and can be claimed and completed; others are left alone."""
    dead, (pending,) = await failed_job(store, NOW + 1), await accepted(store)
    assert await store.revive([dead.uid, pending.uid, new_uid()], NOW + 50) == {dead.uid}
    assert await store.revive([dead.uid], NOW + 51) == set()
    alive = await read(store, dead.uid)
    assert (alive.status, alive.phase, alive.due_at, alive.tries) == (Status.PENDING, Phase.DUE, NOW + 50, ())
    assert (alive.params, alive.headers, alive.error, alive.ended_at) == (
        dead.params,
        dead.headers,
        None,
        None,
    )
    assert alive.earlier == dead.tries
    assert dead.uid in {one.uid for one in await store.take_due(NOW + 50, NOW + 60, 10)}
    (won,) = await store.claim([dead.uid], "t2", NOW + 51, NOW + 80)
    assert await store.settle([Settlement(won.uid, "t2", Completed({}))], NOW + 52) == {won.uid}


async def test_the_traces_of_runs_are_kept(store: Store) -> None:
    """A try and a result carry the traceparent of the run that they came of."""
    (job_,) = await accepted(store)
    (won,) = await store.claim([job_.uid], "t1", NOW, NOW + 30)
    tried = Try(NOW + 1, "Model unavailable", "Busy.", "00-aa-01")
    await store.settle([Settlement(won.uid, "t1", Retry(NOW + 2, tried))], NOW + 1)
    (won,) = await store.claim([job_.uid], "t2", NOW + 3, NOW + 30)
    assert won.tries == (tried,)
    await store.settle([Settlement(won.uid, "t2", Completed({}, "00-bb-01"))], NOW + 4)
    assert (await read(store, job_.uid)).trace == "00-bb-01"


async def test_backlog_is_what_has_not_ended(store: Store) -> None:
    """Queued, running and backing off count, up to the limit; the oldest is the first to have been accepted."""
    assert await store.backlog(10) == Backlog(0, None)
    oldest, ended, second = [(await accepted(store, created_at=NOW - age))[0] for age in (30.0, 20.0, 10.0)]
    await store.claim([oldest.uid, ended.uid], "t", NOW, NOW + 30.0)
    assert await store.backlog(10) == Backlog(3, NOW - 30.0)
    assert await store.backlog(2) == Backlog(2, NOW - 30.0)
    await store.settle([Settlement(ended.uid, "t", Completed({}))], NOW)
    await store.settle([Settlement(oldest.uid, "t", Retry(NOW + 5.0, Try(NOW, "Busy", "Busy.")))], NOW)
    assert await store.backlog(10) == Backlog(2, NOW - 30.0)
    await store.cancel(oldest.uid, NOW, "Cancelled.")
    assert await store.backlog(10) == Backlog(1, second.created_at)


async def test_ping_answers(store: Store) -> None:
    """A store that is there says so."""
    await store.ping()


async def test_sqlite_refuses_a_second_process(tmp_path: Path) -> None:
    """The jobs of a second process would be dispatched by neither broker."""
    async with SqliteStore.opened(tmp_path / "jobs.db"):
        with pytest.raises(StoreUnavailable, match="in use"):
            async with SqliteStore.opened(tmp_path / "jobs.db"):
                pass


async def test_sqlite_survives_reopening(tmp_path: Path) -> None:
    """What was accepted is there after the process has gone."""
    made = job()
    async with SqliteStore.opened(tmp_path / "sub" / "jobs.db") as store:
        await store.accept([made], NOW)
    async with SqliteStore.opened(tmp_path / "sub" / "jobs.db") as store:
        assert await read(store, made.uid) == made


async def test_sqlite_leaves_a_file_of_a_newer_release_as_it_is(tmp_path: Path) -> None:
    """It would not know what it breaks."""
    path = tmp_path / "jobs.db"
    async with SqliteStore.opened(path):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 1000")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="newer travelrec"):
            async with SqliteStore.opened(path):
                pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1000,)


async def test_sqlite_says_what_is_wrong_with_the_path(tmp_path: Path) -> None:
    """A path that can't be a file is one clear line."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        async with SqliteStore.opened(tmp_path / "file" / "jobs.db"):
            pass


class Unconfirmed:
    """A collection whose bulk writes are done, and answered as by a server that is about to step down."""

    def __init__(self, collection: Any) -> None:
        self._collection = collection
        self.left = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def bulk_write(self, *arguments: Any, **options: Any) -> Any:
        done = await self._collection.bulk_write(*arguments, **options)
        if not self.left:
            return done
        self.left -= 1
        concern = {"code": 91, "codeName": "ShutdownInProgress", "errmsg": "Côte d'Ivoire"}
        raise BulkWriteError({**done.bulk_api_result, "writeConcernErrors": [concern]})


@pytest.mark.real("mongo")
@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_mongo_is_asked_again_for_a_write_that_it_did_not_confirm(
    mongo_server: Mongo, driver: str
) -> None:
    """Such a write is `StoreUnavailable` for every method, says nothing of its contents, and may stand."""
    from travelrec.adapters.mongo import MongoStore

    url = f"{mongo_server.url.rstrip('/')}/{new_uid()}"
    async with MongoStore.opened(url, driver=driver) as store:
        jobs, leads = store._jobs, store._leads

        async def again(call: Callable[[], Awaitable[Answer]]) -> Answer:
            store._jobs, store._leads = Unconfirmed(jobs), Unconfirmed(leads)
            with pytest.raises(StoreUnavailable, match="did not confirm") as unsure:
                await call()
            assert "Ivoire" not in str(unsure.value)
            return await call()

        made = job()
        assert await again(lambda: store.accept([made], NOW)) == [made]
        assert await again(lambda: store.lead([Bid("k", made.uid)], NOW)) == [made.uid]
        (mine,) = await again(lambda: store.claim([made.uid], "t", NOW, NOW + 30))
        assert (mine.token, mine.claims) == ("t", 1)
        ended = [Settlement(made.uid, "t", Failed(Try(NOW, "Refused", "No.")))]
        assert await again(lambda: store.settle(ended, NOW)) == {made.uid}
        assert len((await read(store, made.uid)).tries) == 1
        store._jobs = Unconfirmed(jobs)
        with pytest.raises(StoreUnavailable, match="did not confirm"):
            await store.revive([made.uid], NOW)
        assert not (await read(store, made.uid)).ended


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_mongo_away_is_said_in_time(driver: str) -> None:
    """A server that does not answer is `StoreUnavailable`, for every method, without the password."""
    from support import free_port
    from travelrec.adapters.mongo import MongoStore

    url = f"mongodb://user:s3cret@127.0.0.1:{free_port()}/db"
    async with MongoStore.opened(url, driver=driver, timeout_s=0.2) as store:
        calls = (
            store.accept([job()], NOW),
            store.get(["a"]),
            store.claim(["a"], "t", NOW, NOW),
            store.release("w", NOW, NOW),
            store.renew([("a", "t")], NOW),
            store.settle([Settlement("a", "t", Completed({}))], NOW),
            store.cancel("a", NOW, "x"),
            store.published(["a"], NOW),
            store.take_due(NOW, NOW, 1),
            store.purge(NOW, 1),
            store.lead([Bid("k", "a")], NOW),
            store.failed(NOW, 1),
            store.revive(["a"], NOW),
            store.leaders(["k"]),
            store.ping(),
        )
        for call in calls:
            with pytest.raises(StoreUnavailable) as caught:
                await call
            assert "s3cret" not in str(caught.value)
