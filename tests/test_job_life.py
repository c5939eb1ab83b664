"""Whatever is done to jobs, in any order and at any time, each store shows what the reference model shows."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reference import Reference
from travelrec.adapters.memory import MemoryStore
from travelrec.adapters.sqlite import SqliteStore
from travelrec.job import Bid, Completed, Failed, HandedBack, Job, Outcome, Retry, Settlement, Try, new_uid
from travelrec.ports import Store

Answer = TypeVar("Answer")

START = 1_700_000_000
RETENTION_S = 100_000.0
ALL = 10_000
EXAMPLES = {"memory": 120, "sqlite": 40, "mongo": 25}

places = st.integers(0, 7)  # of a job or a token among those that were made, counted from the newest
some = st.lists(places, min_size=1, max_size=4)
skews = st.sampled_from((0, 0, 0, -2, 2))  # what the caller's clock is off by
CLOCKS_S = (
    4  # what two callers' clocks differ by at the most: a sweeper whose clock is fast ends leases early
)
workers = st.sampled_from((None, "one", "other"))
times = st.sampled_from((1, 1, 2))  # twice: the first answer was lost
spans = st.sampled_from((0, 5, 30))
leases_s = spans.map(lambda span: max(1, span))  # one of no length is none
outcomes = st.sampled_from(("completed", "failed", "retry", "no attempt", "handed back"))


@dataclass(frozen=True)
class World:
    """A store on a loop of its own; empty between examples."""

    loop: asyncio.AbstractEventLoop
    store: Store

    def run(self, call: Awaitable[Answer]) -> Answer:
        async def awaited() -> Answer:
            return await call

        return self.loop.run_until_complete(awaited())


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Store]:
    if kind == "memory":
        yield MemoryStore(RETENTION_S)
    elif kind == "sqlite":
        async with SqliteStore.opened(folder / "jobs.db", RETENTION_S) as sqlite:
            yield sqlite
    else:
        from travelrec.adapters.mongo import MongoStore

        url = f"{request.getfixturevalue('mongo_server').url.rstrip('/')}/{new_uid()}"
        async with MongoStore.opened(url, retention_s=RETENTION_S) as mongo:
            yield mongo


@pytest.fixture(params=["memory", "sqlite", pytest.param("mongo", marks=pytest.mark.real("mongo"))])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    loop = asyncio.new_event_loop()
    stack = AsyncExitStack()
    try:
        store = loop.run_until_complete(stack.enter_async_context(opened(request.param, request, tmp_path)))
        yield World(loop, store)
        loop.run_until_complete(stack.aclose())
    finally:
        loop.close()


class JobLife(RuleBasedStateMachine):
    """Every rule does the same to the store and to the model; the answers and what then stands must agree."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.run, self.store = world.run, world.store
        self.model = Reference(RETENTION_S)
        self.now = START
        self.number = itertools.count()
        self.made: list[Job] = []
        self.tokens: list[str] = ["t"]
        self.ended: dict[str, Job] = {}
        self.leased: dict[str, float] = {}  # uid → until when its holder may believe that nobody else runs it

    # --- time, and what the rules talk about ----------------------------------------------------------

    @rule(by=st.sampled_from((1, 4, 9, 40, 86_400)))
    def time_passes(self, by: int) -> None:
        self.now += by

    def uids(self, indices: list[int]) -> list[str]:
        """Each once, in the order asked for."""
        count = len(self.made)
        return list(dict.fromkeys(self.made[-1 - i % count].uid for i in indices)) if count else []

    def token(self, index: int) -> str:
        return self.tokens[-1 - index % len(self.tokens)]

    def leases(self, indices: list[int], stale: int | None) -> list[tuple[str, str]]:
        """The leases as their holders know them, or with an older token."""
        standing = {uid: self.model.jobs[uid].token for uid in self.uids(indices) if uid in self.model.jobs}
        other = self.token(stale) if stale is not None else None
        return [(uid, other or token or self.token(0)) for uid, token in standing.items()]

    # --- what is done ---------------------------------------------------------------------------------

    @rule(
        keys=st.lists(st.sampled_from((None, None, "a", "b")), min_size=1, max_size=3),
        skew=skews,
        times=times,
    )
    def accept(self, keys: list[str | None], skew: int, times: int) -> None:
        now = self.now + skew
        jobs = [
            Job(new_uid(), "kind", {"n": "1"}, float(now), due_at=now + 10.0, idempotency_key=key)
            for key in keys
        ]
        self.made += jobs
        for _ in range(times):
            answered = self.run(self.store.accept(jobs, now))
            assert [job.uid for job in answered] == self.model.accept(jobs, now)
            assert answered == [self.model.jobs[job.uid] for job in answered]

    @precondition(lambda self: self.made)
    @rule(indices=some, skew=skews, lease=leases_s, times=times, worker=workers)
    def claim(self, indices: list[int], skew: int, lease: int, times: int, worker: str | None) -> None:
        now, token = self.now + skew, f"t{next(self.number)}"
        self.tokens.append(token)
        for _ in range(times):
            claimable = self.model.claimable(now)
            won = self.run(self.store.claim(self.uids(indices), token, now, now + lease, worker))
            expected = self.model.claim(self.uids(indices), token, now, now + lease, worker)
            assert {job.uid: job for job in won} == {job.uid: job for job in expected}
            assert len(won) == len(expected)
            for uid in {job.uid for job in won} & claimable:
                assert self.leased.get(uid, now) <= now + CLOCKS_S, "a lease was given while another stood"
                self.leased[uid] = now + lease

    @precondition(lambda self: self.made)
    @rule(indices=some, racers=st.integers(2, 4))
    def race(self, indices: list[int], racers: int) -> None:
        tokens = [f"t{next(self.number)}" for _ in range(racers)]
        self.tokens += tokens
        wanted, until = self.uids(indices), self.now + 30

        async def all_at_once() -> list[list[Job]]:
            return await asyncio.gather(
                *(self.store.claim(wanted, token, self.now, until) for token in tokens)
            )

        claimable = self.model.claimable(self.now) & set(wanted)
        claims = self.run(all_at_once())
        assert sorted(job.uid for won in claims for job in won) == sorted(claimable), "one winner each"
        for token, won in zip(tokens, claims, strict=True):
            mine = [job.uid for job in won]
            assert {job.uid: job for job in won} == {
                job.uid: job for job in self.model.claim(mine, token, self.now, until, None)
            }
            self.leased.update(dict.fromkeys(mine, until))

    @rule(worker=workers.filter(bool), span=spans, times=times)
    def release(self, worker: str, span: int, times: int) -> None:
        """A dead worker comes back under its name."""
        for _ in range(times):
            released = self.model.release(worker, self.now, self.now + span)
            assert self.run(self.store.release(worker, self.now, self.now + span)) == len(released)
            for uid in released:
                self.leased.pop(uid, None)

    @rule(indices=some, stale=st.none() | places, skew=skews, span=spans, times=times)
    def renew(self, indices: list[int], stale: int | None, skew: int, span: int, times: int) -> None:
        until, leases = self.now + skew + span, self.leases(indices, stale)
        if not leases:
            return
        for _ in range(times):
            kept = self.run(self.store.renew(leases, until))
            assert kept == self.model.renew(leases, until)
            self.leased.update({uid: max(until, self.leased.get(uid, until)) for uid in kept})

    @rule(indices=some, stale=st.none() | places, skew=skews, name=outcomes, times=times)
    def settle(self, indices: list[int], stale: int | None, skew: int, name: str, times: int) -> None:
        now = self.now + skew
        leases = self.leases(indices, stale)
        settlements = [Settlement(uid, token, self.outcome(name)) for uid, token in leases]
        if not settlements:
            return
        for _ in range(times):
            stood = self.run(self.store.settle(settlements, now))
            assert stood == self.model.settle(settlements, now)
            for uid in stood:
                self.leased.pop(uid, None)

    def outcome(self, name: str) -> Outcome:
        last = Try(float(self.now), "Title", f"message {next(self.number)}")
        return {
            "completed": Completed({"n": next(self.number)}),
            "failed": Failed(last),
            "retry": Retry(self.now + 8.0, last),
            "no attempt": Retry(self.now + 3.0),
            "handed back": HandedBack(),
        }[name]

    @rule(token=places, indices=some, name=outcomes)
    def settle_of_the_past(self, token: int, indices: list[int], name: str) -> None:
        """A worker that was away brings what its lease of long ago came to."""
        self.settle(indices, token, 0, name, 1)

    @rule(index=places, skew=skews, times=times)
    def cancel(self, index: int, skew: int, times: int) -> None:
        for uid in self.uids([index]):
            for _ in range(times):
                answered = self.run(self.store.cancel(uid, self.now + skew, "Cancelled."))
                assert answered == self.model.cancel(uid, self.now + skew, "Cancelled.")

    @rule(indices=some, span=spans, times=times, again=st.booleans())
    def published(self, indices: list[int], span: int, times: int, again: bool) -> None:
        sent_at = float(self.now) if again else None
        for _ in range(times):
            self.run(self.store.published(self.uids(indices), self.now + span, sent_at))
            self.model.published(self.uids(indices), self.now + span, sent_at)

    @rule(limit=st.sampled_from((1, 3, ALL)), skew=skews)
    def take_due(self, limit: int, skew: int) -> None:
        now = self.now + skew
        late = self.model.late(now)
        taken = self.run(self.store.take_due(now, now + 10, limit))
        was_due = [late[job.uid] for job in taken]
        assert was_due == sorted(late.values())[:limit], "the oldest first, nobody left out"
        assert taken == self.model.take([job.uid for job in taken], now + 10)

    @rule(limit=st.sampled_from((1, ALL)))
    def purge(self, limit: int) -> None:
        may_go, may_be_forgotten = self.model.purgeable(self.now), self.model.forgettable(self.now)
        before = set(self.model.jobs)
        count = self.run(self.store.purge(self.now, limit))
        gone = before - set(self.run(self.store.get(list(before))))
        assert gone <= may_go
        assert count == len(gone) == min(limit, len(may_go))
        forgotten = self.model.leads.keys() - self.run(self.store.leaders(list(self.model.leads) or ["a"]))
        assert forgotten <= may_be_forgotten
        assert len(forgotten) >= min(limit, len(may_be_forgotten))
        self.model.purge(gone, forgotten)

    @rule(key=st.sampled_from("ab"), index=places, instead=st.none() | places, times=times)
    def lead(self, key: str, index: int, instead: int | None, times: int) -> None:
        for uid in self.uids([index]):
            bid = Bid(key, uid, self.uids([instead])[0] if instead is not None else None)
            for _ in range(times):
                assert self.run(self.store.lead([bid], self.now)) == self.model.lead(bid, self.now)

    # --- what always holds ----------------------------------------------------------------------------

    @invariant()
    def the_store_shows_what_the_model_shows(self) -> None:
        assert self.run(self.store.get([job.uid for job in self.made])) == self.model.jobs
        leaders = {key: uid for key, (uid, _) in self.model.leads.items()}
        assert self.run(self.store.leaders(["a", "b"])) == leaders

    @invariant()
    def what_has_ended_never_changes(self) -> None:
        for uid, job in self.model.jobs.items():
            if job.ended:
                shown = self.ended.setdefault(uid, job)
                assert (job.status, job.result, job.tries, job.ended_at) == (
                    shown.status,
                    shown.result,
                    shown.tries,
                    shown.ended_at,
                )

    def teardown(self) -> None:
        """Nothing is lost: however it went, a sweeper finds every pending job, and a worker may then have it."""
        some_day = self.now + 10 * RETENTION_S
        pending = {uid for uid in self.model.jobs if self.model.pending(uid)}
        taken = self.run(self.store.take_due(some_day, some_day + 10, ALL))
        won = self.run(self.store.claim(sorted(pending), "last", some_day, some_day + 30)) if pending else []
        for uid in pending:
            self.run(self.store.cancel(uid, some_day, "The example is over."))
        self.run(self.store.purge(some_day * 2, ALL))
        assert {job.uid for job in taken} == {job.uid for job in won} == pending


def test_every_store_lives_as_the_reference(world: World, request: pytest.FixtureRequest) -> None:
    """Accept, claim, renew, settle, cancel, sweep and purge agree with the model, also repeated, stale and racing."""
    run_state_machine_as_test(
        lambda: JobLife(world),
        settings=settings(
            max_examples=EXAMPLES[request.node.callspec.params["world"]],
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
