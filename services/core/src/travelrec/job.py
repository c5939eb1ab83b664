"""A job, its states, and the moves between them: pure, so that every store and every test shares one truth.

    accept ──> QUEUED ──claim──> RUNNING ──settle──> completed | failed
                 ^  │              │  │
       published │  └───claim──┐   │  └─ retry ──> WAITING (back-off)
                 └─── DUE <────┼───┴───────────────┘
                       └───────┘   due (the lease ran out, the back-off is over)

`due_at` is the one moment at which somebody has to look at the job again (seconds since the epoch): for a QUEUED
job when a worker should have had it, for a RUNNING one when its lease ends, for a WAITING one when its back-off
ends, for a DUE one when its sweeper should have published it, and for a job that has ended when its record may be
deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

import uuid_utils

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Params: TypeAlias = Mapping[str, str]

IDEMPOTENCY_S = 86400.0  # how long an Idempotency-Key stands for the job it made
DEADLINE_PASSED = "Deadline passed"  # the error of a job whose time was over before it had an answer
HASTY_CLAIMS = 3  # a job that was claimed more often may be what kills its workers: it waits for its lease


class Status(StrEnum):
    """What a caller sees of a job."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(StrEnum):
    """Where a pending job is; an ended job is in none."""

    QUEUED = "queued"  # its message is on its way through the broker, or was lost before it got there
    RUNNING = "running"  # a worker holds its lease until `due_at`
    WAITING = "waiting"  # it backs off until `due_at`
    DUE = "due"  # no message of it is on its way: a sweeper is about to publish one


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt that gave no result: when, why in public words, and its span's traceparent if it has one."""

    at: float
    error: str
    message: str
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request, from its acceptance to its deletion; times are seconds since the epoch."""

    uid: str
    kind: str
    params: Params
    created_at: float
    status: Status = Status.PENDING
    phase: Phase | None = Phase.QUEUED
    due_at: float = 0.0
    sent_at: float | None = (
        None  # when a sweeper last published its message; None: when it was accepted, if at all
    )
    token: str | None = None  # of the newest lease; a result is taken only from its holder
    worker: str | None = None  # the name of who claimed it last, if it had one
    claims: int = 0  # that cost an attempt or whose worker was lost; too many of those end the job
    tries: tuple[Try, ...] = ()
    earlier: tuple[Try, ...] = ()  # the tries before it was last revived
    result: Mapping[str, Json] | None = None
    trace: str | None = None  # the traceparent of the span that made the result
    error: str | None = None  # why it failed or was cancelled: a short public title, and what to do
    message: str | None = None
    ended_at: float | None = None
    idempotency_key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # request id and trace context

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status is not Status.PENDING


@dataclass(frozen=True, slots=True)
class Completed:
    """The outcome of a run that gave a result; `trace` is the traceparent of its span, if it has one."""

    result: Mapping[str, Json]
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The outcome of a run after which no other will follow; `attempt` if only for that it was the last of them."""

    last: Try
    attempt: Try | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The outcome of a run that is to be tried again at `due_at`; without `last` it cost neither attempt nor claim."""

    due_at: float
    last: Try | None = None


@dataclass(frozen=True, slots=True)
class HandedBack:
    """The outcome of a run that was stopped from outside: as if it had never been claimed."""


Outcome: TypeAlias = Completed | Failed | Retry | HandedBack


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the holder of lease `token` reports of job `uid`."""

    uid: str
    token: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Bid:
    """Job `uid` wants to make the one model call for `key`, where nobody does or only `instead_of` did."""

    key: str
    uid: str
    instead_of: str | None = None


def new_uid() -> str:
    """A UUIDv7 as 32 lowercase hex digits: unique without asking anybody, and in order of time."""
    return uuid_utils.uuid7().hex


def is_uid(text: str) -> bool:
    """Whether `text` has the form of a uid; says nothing about the job's existence."""
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)  # noqa: PLR2004 - the form's length


def claimable(job: Job, now: float) -> bool:
    """Whether a message for `job` entitles its reader to run it: it waits for a worker, or its time has run out."""
    return not job.ended and (job.phase in (Phase.QUEUED, Phase.DUE) or job.due_at <= now)


def claimed(job: Job, token: str, until: float, worker: str | None = None) -> Job:
    """`job` under a new lease of `worker`; the caller has checked that it is claimable."""
    return replace(job, phase=Phase.RUNNING, token=token, worker=worker, due_at=until, claims=job.claims + 1)


def renewed(job: Job, until: float) -> Job:
    """`job` whose holder goes on with it, which the caller has checked; a renewal that comes late shortens nothing."""
    return replace(job, phase=Phase.RUNNING, due_at=max(job.due_at, until))


def releasable(job: Job, worker: str, until: float) -> bool:
    """Whether `job` is leased by `worker` and its lease ends by `until`; not so a job that was claimed too often."""
    leased = job.phase is Phase.RUNNING and job.worker == worker
    return leased and job.due_at <= until and job.claims <= HASTY_CLAIMS


def released(job: Job, now: float) -> Job:
    """`job` whose holder is dead, which the caller knows: its lease is over at `now`."""
    return replace(job, due_at=min(job.due_at, now))


def answers(leader: Job, asked_at: float, now: float, fresh_s: float) -> bool:
    """Whether the result of `leader` may serve a job of the same key that was accepted at `asked_at`.

    It may when it is younger than `fresh_s`, or came after the other job was accepted: at the same time, that is.
    """
    return leader.status is Status.COMPLETED and (leader.ended_at or 0.0) >= min(now - fresh_s, asked_at)


def at_work(leader: Job, now: float) -> bool:
    """Whether a result of `leader` can be expected soon: it runs, or backs off."""
    return not leader.ended and leader.phase in (Phase.RUNNING, Phase.WAITING) and leader.due_at > now


def published(job: Job, due_at: float, sent_at: float | None = None) -> Job:
    """`job` whose message is on its way, since `sent_at` if it was sent again, to be looked at again at `due_at`.

    One that was claimed is left alone.
    """
    if job.phase not in (Phase.QUEUED, Phase.DUE):
        return job
    return replace(
        job, phase=Phase.QUEUED, due_at=due_at, sent_at=job.sent_at if sent_at is None else sent_at
    )


def due(job: Job, until: float) -> Job:
    """`job` after its time has run out, taken by a sweeper until `until`. An old lease's result still counts."""
    phase = Phase.QUEUED if job.phase is Phase.QUEUED else Phase.DUE
    return replace(job, phase=phase, due_at=until)


def settled(job: Job, outcome: Outcome, now: float, retention_s: float) -> Job:
    """`job` after a run under its newest lease ended in `outcome`."""
    match outcome:
        case Completed(result, trace):
            return _ended(job, Status.COMPLETED, now, retention_s, result=result, trace=trace)
        case Failed(last):
            tries = (*job.tries, last)
            return _ended(
                job, Status.FAILED, now, retention_s, tries=tries, error=last.error, message=last.message
            )
        case Retry(due_at, last):
            tries, claims = (job.tries, job.claims - 1) if last is None else ((*job.tries, last), job.claims)
            return replace(job, phase=Phase.WAITING, token=None, due_at=due_at, tries=tries, claims=claims)
        case HandedBack():
            return replace(job, phase=Phase.WAITING, token=None, due_at=now, claims=job.claims - 1)


def cancelled(job: Job, now: float, retention_s: float, message: str) -> Job:
    """`job` after its caller asked for its end; one that has ended already is left alone."""
    if job.ended:
        return job
    return _ended(job, Status.CANCELLED, now, retention_s, message=message)


def revived(job: Job, now: float) -> Job:
    """A failed `job` with its uid, parameters and trace, as if it had just been accepted; any other is left alone."""
    if job.status is not Status.FAILED:
        return job
    return replace(
        job,
        status=Status.PENDING,
        phase=Phase.DUE,
        created_at=now,
        due_at=now,
        claims=0,
        tries=(),
        earlier=job.tries,
        error=None,
        message=None,
        ended_at=None,
    )


def _ended(job: Job, status: Status, now: float, retention_s: float, **changes: object) -> Job:
    return replace(
        job,
        status=status,
        phase=None,
        token=None,
        due_at=now + retention_s,
        ended_at=now,
        **changes,  # type: ignore[arg-type]  # dataclasses.replace takes any field
    )
