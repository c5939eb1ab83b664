"""A task, its states, and the moves between them: pure, so that every store and every test shares one truth.

    Not Started ──taken, sent, accepted──> In Progress ──the third party says so──> Completed | Error
        │  ^                                                                           ^
        │  └── it failed and may be tried again                                        │
        └── refused, or out of attempts; or the third party has it already ────────────┘

What the third party says moves a task only forwards. Its caller may set any state; one that is set back to
`Not Started` is submitted again, as a new submission. `due_at` is when a task that has not started may be taken:
while it is leased the end of the lease, while it backs off the end of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from travelrec.errors import InvalidInput
from travelrec.job import new_uid

MAX_TEXT = 128  # characters of an id or a group
MAX_MESSAGE = 4000  # characters of an error message
_CHANCE = 8  # digits of a UUIDv7, behind its time and its number within that


class TaskStatus(StrEnum):
    """What a caller sees of a task."""

    NOT_STARTED = "Not Started"
    IN_PROGRESS = "In Progress"
    COMPLETED = "Completed"
    ERROR = "Error"


_RANK = {
    TaskStatus.NOT_STARTED: 0,
    TaskStatus.IN_PROGRESS: 1,
    TaskStatus.COMPLETED: 2,
    TaskStatus.ERROR: 2,
}


@dataclass(frozen=True, slots=True)
class Task:
    """One task; times are seconds since the epoch."""

    id: str
    uid: str  # a UUIDv7: tasks are in order of creation by it
    since: float  # when it was created, or set back
    due_at: float
    status: TaskStatus = TaskStatus.NOT_STARTED
    error_message: str | None = None
    group: str = ""  # of which each has its fair share of the submissions; "" is that of those without one
    key: str = ""  # the Idempotency-Key of its present submission; another one after it was set back
    again: bool = (
        False  # it was set back, so that what the third party says of it is old until it is submitted
    )
    attempts: int = 0  # submissions that failed and were the third party's fault
    token: str = ""  # of the lease under which a replica submits it
    headers: Mapping[str, str] = field(default_factory=dict)  # the request's id, and its trace

    @property
    def ended(self) -> bool:
        """Whether nothing moves it any more but its caller."""
        return _RANK[self.status] == _RANK[TaskStatus.COMPLETED]


def created(
    id_: str,
    now: float,
    *,
    status: TaskStatus = TaskStatus.NOT_STARTED,
    error_message: str | None = None,
    group: str = "",
    headers: Mapping[str, str] | None = None,
) -> Task:
    """A new task; raises `InvalidInput` for a message that no error has."""
    uid = new_uid()
    _check(status, error_message)
    return Task(id_, uid, now, now, status, error_message, group, key=uid, headers=headers or {})


def kept(uid: str) -> str:
    """Another uid, with which a task keeps its place in the order."""
    return uid[:-_CHANCE] + new_uid()[-_CHANCE:]


@dataclass(frozen=True, slots=True)
class Change:
    """What a caller changes of a task; `message` None with `says_message` takes the message away."""

    status: TaskStatus | None = None
    message: str | None = None
    says_message: bool = False


def changed(task: Task, change: Change, now: float) -> Task:
    """The task as its caller wants it; raises `InvalidInput` for a message that no error has."""
    status = change.status or task.status
    message = change.message if change.says_message else task.error_message
    if not change.says_message and status is not TaskStatus.ERROR:
        message = None  # it was that of the error that is no more
    _check(status, message)
    if status is task.status:
        return replace(task, error_message=message)
    if status is TaskStatus.NOT_STARTED:
        task = replace(task, key=new_uid(), again=True, attempts=0, since=now, due_at=now)
    return replace(task, status=status, error_message=message, token="")


def _check(status: TaskStatus, message: str | None) -> None:
    if message is not None and status is not TaskStatus.ERROR:
        raise InvalidInput("error_message", f"error_message: only a task with the status {_ERROR} has one.")


_ERROR = f"`{TaskStatus.ERROR.value}`"


@dataclass(frozen=True, slots=True)
class Row:
    """What the third party says of a task."""

    id: str
    status: TaskStatus
    error_message: str | None = None


def reported(task: Task, row: Row) -> Task | None:
    """The task as the third party has it; None where that is no move, or none that is allowed."""
    if _RANK[row.status] <= _RANK[task.status]:
        return None
    if task.again and task.status is TaskStatus.NOT_STARTED:
        return None
    message = row.error_message if row.status is TaskStatus.ERROR else None
    return replace(task, status=row.status, error_message=message, token="")


# --- what a submission comes to ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """The third party has it."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """It will not be tried again, and why, in public words."""

    message: str


@dataclass(frozen=True, slots=True)
class Again:
    """It may be taken again at `due_at`; `failed` counts the attempt."""

    due_at: float
    failed: bool = True


Outcome = Submitted | Rejected | Again


@dataclass(frozen=True, slots=True)
class Submission:
    """What the submission of task `id` under the lease `token` came to."""

    id: str
    token: str
    outcome: Outcome


def settled(task: Task, outcome: Outcome) -> Task:
    """The task after its submission."""
    match outcome:
        case Submitted():
            return replace(task, status=TaskStatus.IN_PROGRESS, token="")
        case Rejected(message):
            return replace(task, status=TaskStatus.ERROR, error_message=message, token="")
        case Again(due_at, failed):
            return replace(task, due_at=due_at, attempts=task.attempts + failed, token="")
