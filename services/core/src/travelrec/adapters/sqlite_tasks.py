"""Tasks in the file of the SQLite store, on its connection and its thread."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from travelrec.adapters.sqlite import SqliteStore
from travelrec.adapters.task_records import task_from_record, task_to_record
from travelrec.tasks import pace
from travelrec.tasks import task as moves
from travelrec.tasks.pace import Pace
from travelrec.tasks.ports import Reported, Taken
from travelrec.tasks.task import Change, Row, Submission, Task, TaskStatus

_WAITING = "FROM tasks WHERE status = 'Not Started' AND due_at <= ?"


class SqliteTaskStore:
    """See `tasks.ports.TaskStore`; its tables are made by the store's migrations."""

    def __init__(self, store: SqliteStore) -> None:
        self._file = store

    async def create(self, task: Task) -> bool:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> bool:
            standing = _find(db, task.id)
            if standing is None:
                _put(db, task)
            return standing is None or standing.uid == task.uid

        return await self._file.write(work)

    async def get(self, id_: str) -> Task | None:
        """See `tasks.ports.TaskStore`."""
        return await self._file.read(lambda db: _find(db, id_))

    async def page(self, status: TaskStatus | None, after: str | None, limit: int) -> list[Task]:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> list[Task]:
            rows = db.execute(
                "SELECT id, record FROM tasks WHERE (?1 IS NULL OR status = ?1) AND uid > ?2 ORDER BY uid LIMIT ?3",
                (status, after or "", limit),
            )
            return [_task(id_, record) for id_, record in rows]

        return await self._file.read(work)

    async def change(self, id_: str, change: Change, now: float) -> Task | None:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> Task | None:
            task = _find(db, id_)
            return None if task is None else _put(db, moves.changed(task, change, now))

        return await self._file.write(work)

    async def delete(self, id_: str, uid: str | None = None) -> bool:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> bool:
            query = "DELETE FROM tasks WHERE id = ?1 AND (?2 IS NULL OR uid = ?2)"
            return db.execute(query, (id_, uid)).rowcount == 1

        return await self._file.write(work)

    async def keep(self, id_: str, uid: str) -> bool:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> bool:
            task = _find(db, id_)
            if task is None or task.uid != uid:
                return False
            kept = replace(task, uid=moves.kept(uid))
            db.execute("UPDATE tasks SET uid = ? WHERE id = ?", (kept.uid, id_))
            _put(db, kept)
            return True

        return await self._file.write(work)

    async def take(self, token: str, now: float, lease_s: float, rate: float, limit: int) -> Taken:
        """See `tasks.ports.TaskStore`."""

        def look(db: sqlite3.Connection) -> tuple[Pace, bool]:
            return _pace(db), db.execute(f"SELECT 1 {_WAITING} LIMIT 1", (now,)).fetchone() is not None

        seen, waits = await self._file.read(look)
        if not waits or not pace.free_times(seen, now, rate, limit):
            return Taken((), pace.look_again_at(seen, now))  # the usual case takes no write lock

        def work(db: sqlite3.Connection) -> Taken:
            before = _pace(db)
            times = pace.free_times(before, now, rate, limit)
            groups = [group for (group,) in db.execute(f'SELECT DISTINCT "group" {_WAITING}', (now,))]
            waiting = {
                group: _ids(db, group, now, len(times))
                for group in pace.served_groups(groups, before.group, len(times))
            }
            taken = []
            for at, id_ in zip(times, pace.in_turn(waiting, len(times)), strict=False):
                task = _find(db, id_)
                if task is not None:
                    taken.append((at, _put(db, replace(task, token=token, due_at=at + lease_s))))
            if not taken:  # others have had the times meanwhile
                return Taken((), pace.look_again_at(before, now))
            after = pace.given(before, taken[-1][0], taken[-1][1].group, rate)
            db.execute("UPDATE task_pace SET free_at = ?, last_group = ?", (after.free_at, after.group))
            return Taken(taken, pace.look_again_at(after, now))

        return await self._file.write(work)

    async def settle(self, submissions: Sequence[Submission]) -> None:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> None:
            for one in submissions:
                task = _find(db, one.id)
                if task is not None and task.token == one.token:
                    _put(db, moves.settled(task, one.outcome))

        await self._file.write(work)

    async def hold(self, until: float) -> None:
        """See `tasks.ports.TaskStore`."""
        await self._file.write(
            lambda db: db.execute("UPDATE task_pace SET held_until = max(held_until, ?)", (until,))
        )

    async def report(self, rows: Sequence[Row]) -> Reported:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> Reported:
            known = [(task, row) for row in rows if (task := _find(db, row.id)) is not None]
            moved = [_put(db, task) for before, row in known if (task := moves.reported(before, row))]
            return Reported(len(known), Counter(task.status for task in moved))

        return await self._file.write(work)

    async def lead(self, token: str, now: float, until: float) -> float | None:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> float | None:
            query = (
                "UPDATE task_poll SET token = ?1, until = ?2 WHERE token = ?1 OR until <= ?3 RETURNING due_at"
            )
            row = db.execute(query, (token, until, now)).fetchone()
            return None if row is None else float(row[0])

        return await self._file.write(work)

    async def polled(self, token: str, due_at: float, until: float) -> bool:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> bool:
            query = "UPDATE task_poll SET due_at = ?, until = ? WHERE token = ?"
            return db.execute(query, (due_at, until, token)).rowcount == 1

        return await self._file.write(work)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """See `tasks.ports.TaskStore`."""

        def work(db: sqlite3.Connection) -> Mapping[TaskStatus, int]:
            rows = db.execute("SELECT status, count(*) FROM tasks GROUP BY status")
            return {TaskStatus(status): int(count) for status, count in rows}

        return await self._file.read(work)


def _task(id_: str, record: str) -> Task:
    return task_from_record(id_, json.loads(record))


def _find(db: sqlite3.Connection, id_: str) -> Task | None:
    row = db.execute("SELECT record FROM tasks WHERE id = ?", (id_,)).fetchone()
    return _task(id_, row[0]) if row else None


def _ids(db: sqlite3.Connection, group: str, now: float, limit: int) -> list[str]:
    rows = db.execute(f'SELECT id {_WAITING} AND "group" = ? ORDER BY uid LIMIT ?', (now, group, limit))
    return [id_ for (id_,) in rows]


def _pace(db: sqlite3.Connection) -> Pace:
    return Pace(*db.execute("SELECT free_at, held_until, last_group FROM task_pace").fetchone())


def _put(db: sqlite3.Connection, task: Task) -> Task:
    db.execute(
        'INSERT INTO tasks (id, uid, status, "group", due_at, record) VALUES (?, ?, ?, ?, ?, ?)'
        " ON CONFLICT (id) DO UPDATE SET status = excluded.status, due_at = excluded.due_at, record = excluded.record",
        (task.id, task.uid, task.status, task.group, task.due_at, json.dumps(task_to_record(task))),
    )
    return task
