"""A job's life once more, as short as it can be said: what every store must agree with, whoever wrote it.

It shares the words of `travelrec.job` and none of its moves. `now` may differ from call to call by what clocks differ.
"""

from collections.abc import Sequence
from dataclasses import replace

from travelrec.job import Bid, Completed, Failed, Job, Phase, Retry, Settlement, Status

DAY_S = 86400
HASTY = 3  # claims


class Reference:
    """Jobs as a store must show them; `jobs` is compared with it after every step."""

    def __init__(self, retention_s: float) -> None:
        self.jobs: dict[str, Job] = {}
        self.leads: dict[str, tuple[str, float]] = {}
        self._settled: dict[str, str] = {}  # uid → the lease that was settled last; until the next claim
        self._retention_s = retention_s

    def pending(self, uid: str) -> bool:
        return uid in self.jobs and self.jobs[uid].status is Status.PENDING

    def late(self, now: float) -> dict[str, float]:
        """The pending jobs at which somebody must look by now, and since when."""
        return {uid: job.due_at for uid, job in self.jobs.items() if self.pending(uid) and job.due_at <= now}

    def purgeable(self, now: float) -> set[str]:
        return {uid for uid, job in self.jobs.items() if not self.pending(uid) and job.due_at <= now}

    def claimable(self, now: float) -> set[str]:
        waits = {uid for uid, job in self.jobs.items() if job.phase in (Phase.QUEUED, Phase.DUE)}
        return waits | set(self.late(now))

    def accept(self, jobs: Sequence[Job], now: float) -> list[str]:
        return [self._accept(job, now) for job in jobs]

    def _accept(self, job: Job, now: float) -> str:
        if job.uid in self.jobs:
            return job.uid
        for uid, older in self.jobs.items():
            if job.idempotency_key is not None and older.idempotency_key == job.idempotency_key:
                if now < older.created_at + DAY_S:
                    return uid
                self.jobs[uid] = replace(older, idempotency_key=None)
        self.jobs[job.uid] = job
        return job.uid

    def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None
    ) -> list[Job]:
        for uid in self.claimable(now) & set(uids):
            claims = self.jobs[uid].claims + 1
            self._change(uid, phase=Phase.RUNNING, token=token, worker=worker, due_at=until, claims=claims)
            self._settled.pop(uid, None)
        return [job for uid, job in self.jobs.items() if uid in uids and job.token == token]

    def release(self, worker: str, now: float, until: float) -> set[str]:
        theirs = {uid: job for uid, job in self.jobs.items() if job.worker == worker and job.claims <= HASTY}
        ends = {uid: job.due_at for uid, job in theirs.items() if job.phase is Phase.RUNNING}
        for uid in [uid for uid, end in ends.items() if now < end <= until]:
            self._change(uid, due_at=now)
        return {uid for uid, end in ends.items() if end <= until}

    def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        kept = {uid for uid, token in leases if self._holds(uid, token)}
        for uid in kept:
            self._change(uid, phase=Phase.RUNNING, due_at=max(until, self.jobs[uid].due_at))
        return kept

    def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        for one in settlements:
            if self._holds(one.uid, one.token):
                self._settled[one.uid] = one.token
                self._settle(one, now)
        return {one.uid for one in settlements if self._settled.get(one.uid) == one.token}

    def _settle(self, one: Settlement, now: float) -> None:
        job = self.jobs[one.uid]
        match one.outcome:
            case Completed(result):
                self._end(one.uid, now, status=Status.COMPLETED, result=result)
            case Failed(last):
                tries = (*job.tries, last)
                self._end(
                    one.uid, now, status=Status.FAILED, tries=tries, error=last.error, message=last.message
                )
            case Retry(due_at, last):
                tries = (*job.tries, *([last] if last else []))
                claims = job.claims - (last is None)
                self._change(
                    one.uid, phase=Phase.WAITING, token=None, due_at=due_at, tries=tries, claims=claims
                )
            case _:
                self._change(one.uid, phase=Phase.WAITING, token=None, due_at=now, claims=job.claims - 1)

    def cancel(self, uid: str, now: float, message: str) -> tuple[Job | None, bool]:
        ends = self.pending(uid)
        if ends:
            self._end(uid, now, status=Status.CANCELLED, message=message)
        return self.jobs.get(uid), ends

    def published(self, uids: Sequence[str], due_at: float, sent_at: float | None) -> None:
        for uid in uids:
            if uid in self.jobs and self.jobs[uid].phase in (Phase.QUEUED, Phase.DUE):
                self._change(uid, phase=Phase.QUEUED, due_at=due_at)
                if sent_at is not None:
                    self._change(uid, sent_at=sent_at)

    def take(self, uids: Sequence[str], until: float) -> list[Job]:
        """`take_due` after the store has chosen among equals."""
        for uid in uids:
            queued = self.jobs[uid].phase is Phase.QUEUED
            self._change(uid, phase=Phase.QUEUED if queued else Phase.DUE, due_at=until)
        return [self.jobs[uid] for uid in uids]

    def forgettable(self, now: float) -> set[str]:
        return {key for key, (_, at) in self.leads.items() if at <= now - self._retention_s}

    def purge(self, uids: set[str], keys: set[str]) -> None:
        """`purge` after the store has chosen jobs and leads."""
        for uid in uids:
            del self.jobs[uid]
            self._settled.pop(uid, None)
        for key in keys:
            del self.leads[key]

    def lead(self, bid: Bid, now: float) -> list[str]:
        if bid.key not in self.leads or self.leads[bid.key][0] == bid.instead_of:
            self.leads[bid.key] = (bid.uid, now)
        return [self.leads[bid.key][0]]

    def _holds(self, uid: str, token: str) -> bool:
        return self.pending(uid) and self.jobs[uid].token == token

    def _change(self, uid: str, **changes: object) -> None:
        self.jobs[uid] = replace(self.jobs[uid], **changes)  # type: ignore[arg-type]

    def _end(self, uid: str, now: float, **changes: object) -> None:
        self._change(uid, phase=None, token=None, ended_at=now, due_at=now + self._retention_s, **changes)
