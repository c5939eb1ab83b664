"""What tasks ask of the world; each docstring is the contract. The rules of `travelrec.ports` hold here as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from travelrec.tasks.task import Change, Row, Submission, Task, TaskStatus


@dataclass(frozen=True, slots=True)
class Taken:
    """Tasks to be submitted, in order, each with the time that it was given; and when to look again."""

    tasks: Sequence[tuple[float, Task]]
    look_again_at: float


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of the third party's rows: `known` of them are ours, and so many tasks moved to each status."""

    known: int
    moved: Mapping[TaskStatus, int] = field(default_factory=dict)


class TaskStore(Protocol):
    """The truth about tasks. Every method is atomic per task, whoever races."""

    async def create(self, task: Task) -> bool:
        """Makes `task` durable; False where one with its id stands. This call repeated (same uid) is True."""
        ...

    async def get(self, id_: str) -> Task | None:
        """The task as it stands; sees every write that has returned."""
        ...

    async def page(self, status: TaskStatus | None, after: str | None, limit: int) -> list[Task]:
        """Up to `limit` tasks in order of creation, those of `status` only and those behind the uid `after`."""
        ...

    async def change(self, id_: str, change: Change, now: float) -> Task | None:
        """Does to the task what its caller wants (see `task.changed`); answers it as it then stands, None: unknown.

        Raises `InvalidInput` where the change is none that it allows.
        """
        ...

    async def delete(self, id_: str, uid: str | None = None) -> bool:
        """Deletes the task, if it is that of `uid`; whether it was there."""
        ...

    async def keep(self, id_: str, uid: str) -> bool:
        """Gives the task, if it is that of `uid`, another one (see `task.kept`); whether it was there.

        All else of it stays. Whoever knows only its old one does not delete it any more.
        """
        ...

    async def take(self, token: str, now: float, lease_s: float, rate: float, limit: int) -> Taken:
        """Leases up to `limit` tasks that may be submitted, each for one free time (see `pace.free_times`).

        In order of creation, one of each group in turn. No time is given twice and no task leased twice, whoever
        races; of those who race one takes, and the others look again. A lease ends `lease_s` after the task's time.
        """
        ...

    async def settle(self, submissions: Sequence[Submission]) -> None:
        """Writes what submissions came to, each only under its task's present lease (see `task.settled`)."""
        ...

    async def hold(self, until: float) -> None:
        """Gives no times before `until`, to nobody."""
        ...

    async def report(self, rows: Sequence[Row]) -> Reported:
        """Moves the tasks as the third party says (see `task.reported`): at most one bulk write.

        Ids are distinct; those that are unknown are left alone. A task that is just being taken may be left to the next
        report.
        """
        ...

    async def lead(self, token: str, now: float, until: float) -> float | None:
        """Leases the polling to `token`, anew or for longer; answers when the next poll is due (0: it never was).

        None while another has it.
        """
        ...

    async def polled(self, token: str, due_at: float, until: float) -> bool:
        """Notes when the next poll is due, and leases the polling until `until`; False where another has it."""
        ...

    async def counts(self) -> Mapping[TaskStatus, int]:
        """How many tasks there are of each status."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """What the third party says of all its tasks: those that can be read, and how many can't."""

    good: Sequence[Row]
    bad: int = 0


class ThirdParty(Protocol):
    """Who works on the tasks."""

    async def submit(self, id_: str, key: str, headers: Mapping[str, str]) -> None:
        """Returns when it has the task; the same `key` twice is one submission where it honours that.

        Raises the `ThirdPartyError` that says whether trying again can help. `headers` carry the trace.
        """
        ...

    async def rows(self) -> Rows:
        """What it says of its tasks now; raises `ThirdPartyError`."""
        ...
