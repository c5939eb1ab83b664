"""Tasks inside one process: the real semantics without a server."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from travelrec.tasks import pace
from travelrec.tasks import task as moves
from travelrec.tasks.pace import Pace
from travelrec.tasks.ports import Reported, Taken
from travelrec.tasks.task import Change, Row, Submission, Task, TaskStatus


class MemoryTaskStore:
    """See `tasks.ports.TaskStore`. `tasks` is there for tests to look at."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self._pace = Pace()
        self._poll = ("", 0.0, 0.0)  # whose it is, until when, and when it is due

    async def create(self, task: Task) -> bool:
        """See `tasks.ports.TaskStore`."""
        return self.tasks.setdefault(task.id, task).uid == task.uid

    async def get(self, id_: str) -> Task | None:
        """See `tasks.ports.TaskStore`."""
        return self.tasks.get(id_)

    async def page(self, status: TaskStatus | None, after: str | None, limit: int) -> list[Task]:
        """See `tasks.ports.TaskStore`."""
        return [
            task
            for task in self._ordered()
            if (status is None or task.status is status) and (after is None or task.uid > after)
        ][:limit]

    async def change(self, id_: str, change: Change, now: float) -> Task | None:
        """See `tasks.ports.TaskStore`."""
        task = self.tasks.get(id_)
        if task is not None:
            self.tasks[id_] = task = moves.changed(task, change, now)
        return task

    async def delete(self, id_: str, uid: str | None = None) -> bool:
        """See `tasks.ports.TaskStore`."""
        task = self.tasks.get(id_)
        if task is None or uid not in (None, task.uid):
            return False
        del self.tasks[id_]
        return True

    async def keep(self, id_: str, uid: str) -> bool:
        """See `tasks.ports.TaskStore`."""
        task = self.tasks.get(id_)
        if task is None or uid != task.uid:
            return False
        self.tasks[id_] = replace(task, uid=moves.kept(uid))
        return True

    async def take(self, token: str, now: float, lease_s: float, rate: float, limit: int) -> Taken:
        """See `tasks.ports.TaskStore`."""
        times = pace.free_times(self._pace, now, rate, limit)
        waiting: defaultdict[str, list[str]] = defaultdict(list)
        for task in self._ordered():
            if task.status is TaskStatus.NOT_STARTED and task.due_at <= now:
                waiting[task.group].append(task.id)
        groups = pace.served_groups(waiting, self._pace.group, len(times))
        ids = pace.in_turn({group: waiting[group] for group in groups}, len(times))
        taken = []
        for at, id_ in zip(times, ids, strict=False):
            self.tasks[id_] = leased = replace(self.tasks[id_], token=token, due_at=at + lease_s)
            taken.append((at, leased))
        if taken:
            at, last = taken[-1]
            self._pace = pace.given(self._pace, at, last.group, rate)
        return Taken(taken, pace.look_again_at(self._pace, now))

    async def settle(self, submissions: Sequence[Submission]) -> None:
        """See `tasks.ports.TaskStore`."""
        for one in submissions:
            task = self.tasks.get(one.id)
            if task is not None and task.token == one.token:
                self.tasks[one.id] = moves.settled(task, one.outcome)

    async def hold(self, until: float) -> None:
        """See `tasks.ports.TaskStore`."""
        self._pace = replace(self._pace, held_until=max(until, self._pace.held_until))

    async def report(self, rows: Sequence[Row]) -> Reported:
        """See `tasks.ports.TaskStore`."""
        known = [(self.tasks[row.id], row) for row in rows if row.id in self.tasks]
        moved = [task for before, row in known if (task := moves.reported(before, row))]
        self.tasks.update((task.id, task) for task in moved)
        return Reported(len(known), Counter(task.status for task in moved))

    async def lead(self, token: str, now: float, until: float) -> float | None:
        """See `tasks.ports.TaskStore`."""
        holder, held_until, due_at = self._poll
        if holder != token and held_until > now:
            return None
        self._poll = (token, until, due_at)
        return due_at

    async def polled(self, token: str, due_at: float, until: float) -> bool:
        """See `tasks.ports.TaskStore`."""
        if self._poll[0] != token:
            return False
        self._poll = (token, until, due_at)
        return True

    async def counts(self) -> Mapping[TaskStatus, int]:
        """See `tasks.ports.TaskStore`."""
        return Counter(task.status for task in self.tasks.values())

    def _ordered(self) -> list[Task]:
        return sorted(self.tasks.values(), key=lambda task: task.uid)
