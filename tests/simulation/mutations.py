"""Planted bugs: each takes one care out of the product, and the simulation must find it within a few seeds."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

from simulation.network import Cluster
from simulation.world import run
from travelrec import job as moves
from travelrec.adapters.memory import MemoryStore
from travelrec.job import HandedBack, Job, Phase, Retry, Settlement, Try
from travelrec.offsets import Offsets
from travelrec.ports import Delivery
from travelrec.retry import RetryPolicy
from travelrec.wire import Signal
from travelrec_api.accept import Accepter
from travelrec_api.waiting import Waiters
from travelrec_worker.coalescing import Coalescer
from travelrec_worker.engine import Engine
from travelrec_worker.jobs import Jobs
from travelrec_worker.leases import Leases
from travelrec_worker.limits import Guard, Run
from travelrec_worker.progress import Progress
from travelrec_worker.sweeper import Sweeper

LIMIT = 200  # seeds, within which each must be found


def found_by(mutation: str, limit: int = LIMIT) -> tuple[int, str] | None:
    """How many seeds it took to find `mutation`, and by what it was found; None if `limit` were not enough."""
    with MUTATIONS[mutation]():
        for seed in range(limit):
            violations = run(seed).violations
            if violations:
                return seed + 1, violations[0]
    return None


# --- take -----------------------------------------------------------------------------------------------

_handle, _claim = Jobs.handle, Jobs._claim


async def _acknowledge_before_the_claim(self: Jobs, delivery: Delivery) -> None:
    delivery.acknowledge()
    await _handle(self, delivery)


async def _run_what_was_not_claimed(self: Jobs, uid: str) -> Job | None:
    job = await _claim(self, uid)
    if job is None:
        found = (await self._store.get([uid])).get(uid)
        job = replace(found, token="none") if found is not None and not found.ended else None
    return job


def _commit_past_a_gap(self: Offsets) -> int | None:
    return None if self._next == self._committed else self._next


def _claimable_whoever_has_it(job: Job, now: float) -> bool:
    return not job.ended


def _claimable_at_any_time(job: Job, now: float) -> bool:
    return not job.ended and (job.phase is not Phase.RUNNING or job.due_at <= now)


# --- leases ---------------------------------------------------------------------------------------------


async def _never_renew(self: Leases) -> None:
    await asyncio.Event().wait()


async def _renew_whoever_has_it(
    self: MemoryStore, leases: Sequence[tuple[str, str]], until: float
) -> set[str]:
    for uid, token in leases:
        if uid in self.jobs and not self.jobs[uid].ended:
            self.jobs[uid] = replace(self.jobs[uid], phase=Phase.RUNNING, token=token, due_at=until)
    return {uid for uid, _ in leases}


async def _release_whoever_has_it(self: MemoryStore, worker: str, now: float, until: float) -> int:
    for other in {job.worker for job in self.jobs.values()} - {None}:
        await _release(self, other, now, until)
    return 0


async def _release_at_any_time(self: MemoryStore, worker: str, now: float, until: float) -> int:
    return await _release(self, worker, now, math.inf)


_release = MemoryStore.release

# --- store ----------------------------------------------------------------------------------------------

_settle, _settled = MemoryStore.settle, moves.settled


async def _settle_without_the_token(
    self: MemoryStore, settlements: Sequence[Settlement], now: float
) -> set[str]:
    theirs = {uid: job.token for uid, job in self.jobs.items() if not job.ended and job.token}
    return await _settle(self, [replace(s, token=theirs.get(s.uid, s.token)) for s in settlements], now)


async def _settle_what_has_ended(
    self: MemoryStore, settlements: Sequence[Settlement], now: float
) -> set[str]:
    for one in settlements:
        if one.uid in self.jobs and self.jobs[one.uid].ended:
            self.jobs[one.uid] = moves.settled(self.jobs[one.uid], one.outcome, now, self._retention_s)
    return await _settle(self, settlements, now)


def _forget_when_to_try_again(job: Job, outcome: moves.Outcome, now: float, retention_s: float) -> Job:
    again = replace(outcome, due_at=math.inf) if isinstance(outcome, Retry) else outcome
    return _settled(job, again, now, retention_s)


def _count_handing_back(job: Job, outcome: moves.Outcome, now: float, retention_s: float) -> Job:
    counted = Retry(now, Try(now, "Stopped", "Its worker was stopped."))
    return _settled(job, counted if isinstance(outcome, HandedBack) else outcome, now, retention_s)


async def _hand_nothing_back(self: Jobs, job: Job) -> None:
    pass


async def _no_dead_letter(self: Jobs, job: Job, outcome: moves.Outcome) -> moves.Outcome:
    return outcome


def _no_back_off(self: RetryPolicy, attempts: int, **_: object) -> float:
    return 0.0


async def _tell_nobody(self: Jobs, signals: list[Signal]) -> list[None]:
    return [None] * len(signals)


def _let_every_failure_stand(self: Guard, run: Run, why: str, now: float, *, final: bool) -> bool:
    return True


def _close_at_no_success(self: Guard, run: Run) -> None:
    pass


def _forget_a_lost_probe(self: Guard, run: Run) -> None:
    pass


async def _wait_for_what_hangs(
    self: Progress, timeout_s: float, what: str, uid: str, call: Coroutine[object, object, Any]
) -> Any:
    async with asyncio.timeout(timeout_s):
        return await call


def _never_come_back(self: Engine, shedding: bool) -> None:
    if shedding:
        _shed(self, shedding)


_shed = Engine.shed


def _hear_no_cancel(self: Jobs, signals: Sequence[Signal]) -> None:
    self._coalescer.hear(signals)


def _mix_keys_up(self: Coalescer, job: Job, key: str, *others: Any) -> Any:
    return _outcome(self, job, key[:3], *others)


async def _each_for_itself(
    self: Coalescer, job: Job, key: str, fresh_s: float, go: Any, following: Any
) -> Any:
    return await go()


_outcome = Coalescer.outcome

# --- accept ---------------------------------------------------------------------------------------------

_accept = MemoryStore._accept


async def _answer_before_it_stands(self: Accepter, *asked: Any, **options: Any) -> tuple[Job, bool]:
    job = Job(moves.new_uid(), asked[0], asked[1], time.time(), due_at=time.time() + 10, headers=asked[2])
    self._accepts.post(job)
    return job, False


async def _publish_first(self: Accepter, jobs: list[Job]) -> Sequence[Job]:
    await self._publish_all(jobs)
    return await _accept_all(self, jobs)


_accept_all = Accepter._accept_all


def _look_for_keys_too_early(self: MemoryStore, job: Job, now: float) -> Job:
    older = self.jobs.get(self._keys.get(job.idempotency_key or "", ""))
    if older is not None and older.uid != job.uid and older.created_at > now - 0.1:
        del self._keys[older.idempotency_key or ""]  # a reader on another replica does not see it yet
    return _accept(self, job, now)


# --- again ----------------------------------------------------------------------------------------------

_take_due, _sweep = MemoryStore.take_due, Sweeper.sweep


async def _take_what_is_leased(self: MemoryStore, now: float, until: float, limit: int) -> list[Job]:
    leased = {uid for uid, job in self.jobs.items() if job.phase is Phase.RUNNING}
    for uid in leased:
        self.jobs[uid] = moves.due(self.jobs[uid], until)
    return [*(await _take_due(self, now, until, limit)), *(self.jobs[uid] for uid in sorted(leased))]


async def _forget_who_waits(self: MemoryStore, now: float, until: float, limit: int) -> list[Job]:
    late = [job for job in self.jobs.values() if not job.ended and job.due_at <= now]
    taken = [moves.due(job, until) for job in late if job.phase is not Phase.WAITING][:limit]
    self.jobs.update((job.uid, job) for job in taken)
    return taken


async def _leave_what_is_queued(self: Sweeper, now: float) -> int:
    with mock.patch.object(self._broker, "oldest_waiting", return_value=0.0):
        return await _sweep(self, now)


def _nothing_waits(self: Cluster, topic: str, group: str) -> None:
    return None


async def _purge_what_is_old(self: MemoryStore, now: float, limit: int) -> int:
    old = [uid for uid, job in self.jobs.items() if job.created_at < now - 20]
    for uid in old[:limit]:
        del self.jobs[uid]
    return len(old)


async def _never_look_again(self: Waiters) -> None:
    await asyncio.Event().wait()


def _instead(where: Any, name: str, what: Callable[..., Any]) -> Callable[[], AbstractContextManager[object]]:
    return lambda: mock.patch.object(where, name, what)


def _settled_as(what: Callable[..., Job]) -> Callable[[], AbstractContextManager[object]]:
    return _instead(moves, "settled", what)


MUTATIONS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "acknowledge before the claim": _instead(Jobs, "handle", _acknowledge_before_the_claim),
    "run what was not claimed": _instead(Jobs, "_claim", _run_what_was_not_claimed),
    "commit past a gap": _instead(Offsets, "committable", _commit_past_a_gap),
    "claim ignoring leases": _instead(moves, "claimable", _claimable_whoever_has_it),
    "claim ignoring back-off": _instead(moves, "claimable", _claimable_at_any_time),
    "leases are not renewed": _instead(Leases, "keep", _never_renew),
    "renewing revives a lost lease": _instead(MemoryStore, "renew", _renew_whoever_has_it),
    "another worker's leases are released": _instead(MemoryStore, "release", _release_whoever_has_it),
    "a late release spares nobody": _instead(MemoryStore, "release", _release_at_any_time),
    "settle without the token": _instead(MemoryStore, "settle", _settle_without_the_token),
    "a late result overwrites the end": _instead(MemoryStore, "settle", _settle_what_has_ended),
    "a retry never becomes due": _settled_as(_forget_when_to_try_again),
    "handing back costs an attempt": _settled_as(_count_handing_back),
    "a stopped run is not handed back": _instead(Jobs, "_hand_back", _hand_nothing_back),
    "no dead letter": _instead(Jobs, "_with_dead_letter", _no_dead_letter),
    "no back-off": _instead(RetryPolicy, "delay_s", _no_back_off),
    "no signal": _instead(Jobs, "_announce_all", _tell_nobody),
    "the guard never opens": _instead(Guard, "failed", _let_every_failure_stand),
    "the guard stays open": _instead(Guard, "completed", _close_at_no_success),
    "a lost probe is waited for": _instead(Guard, "unknown", _forget_a_lost_probe),
    "what hangs is waited for": _instead(Progress, "within", _wait_for_what_hangs),
    "a worker that was stuck stays away": _instead(Engine, "shed", _never_come_back),
    "a cancel stops no run": _instead(Jobs, "hear", _hear_no_cancel),
    "keys are mixed up": _instead(Coalescer, "outcome", _mix_keys_up),
    "nobody follows": _instead(Coalescer, "outcome", _each_for_itself),
    "answer before the write stands": _instead(Accepter, "accept", _answer_before_it_stands),
    "publish before the write": _instead(Accepter, "_accept_all", _publish_first),
    "idempotency race": _instead(MemoryStore, "_accept", _look_for_keys_too_early),
    "sweeper ignoring leases": _instead(MemoryStore, "take_due", _take_what_is_leased),
    "sweeper forgetting who backs off": _instead(MemoryStore, "take_due", _forget_who_waits),
    "a lost publish is not made up for": _instead(Sweeper, "sweep", _leave_what_is_queued),
    "a backlog is published again": _instead(Cluster, "oldest_waiting", _nothing_waits),
    "retention deletes what is pending": _instead(MemoryStore, "purge", _purge_what_is_old),
    "waiters trust the signals": _instead(Waiters, "look_again", _never_look_again),
}
