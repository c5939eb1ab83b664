"""Tasks in MongoDB, beside the jobs: every move as one conditional update, so any number of processes may race.

Who takes tasks holds the one document that says what times are free; that is noted under the same token, so that a
replica that stood still meanwhile, and whose turn another has had, sends nothing.

A task as it was read is told by its key, its status and its `due_at`: no move leaves all three as they were, but that
of a message alone. So conditions name these, or the token, with `_id`, and one unique index serves each, also on a
server that uses an index only when it names every field of the filter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any  # the two drivers share their calls, not a type

from pymongo import ASCENDING, ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from travelrec.adapters.mongo import MongoStore, translated
from travelrec.adapters.task_records import Record, task_from_record, task_to_record
from travelrec.errors import StoreUnavailable
from travelrec.tasks import pace
from travelrec.tasks import task as moves
from travelrec.tasks.pace import Pace
from travelrec.tasks.ports import Reported, Taken
from travelrec.tasks.task import (
    Again,
    Change,
    Outcome,
    Rejected,
    Row,
    Submission,
    Submitted,
    Task,
    TaskStatus,
)

_PACE = {"_id": "pace"}
_POLL = {"_id": "poll"}
_BUSY_S = 0.03  # until another has taken what it is about to
_NOT_STARTED = {"status": TaskStatus.NOT_STARTED.value}
_CHANGES = 10
_READ = 500  # ids in one query


class MongoTaskStore:
    """See `tasks.ports.TaskStore`."""

    def __init__(self, store: MongoStore) -> None:
        self._tasks = store.collection("tasks")
        self._turns = store.collection("task_turns")
        self._prepared = False

    async def create(self, task: Task) -> bool:
        """See `tasks.ports.TaskStore`."""
        await self._prepare()
        with translated():
            try:
                await self._tasks.insert_one({"_id": task.id, **task_to_record(task)})
            except DuplicateKeyError:
                standing = await self._tasks.find_one({"_id": task.id}, {"uid": 1})
                return standing is not None and standing["uid"] == task.uid
        return True

    async def get(self, id_: str) -> Task | None:
        """See `tasks.ports.TaskStore`."""
        with translated():
            record = await self._tasks.find_one({"_id": id_})
        return None if record is None else _task(record)

    async def page(self, status: TaskStatus | None, after: str | None, limit: int) -> list[Task]:
        """See `tasks.ports.TaskStore`."""
        query: Record = {} if status is None else {"status": status.value}
        if after is not None:
            query["uid"] = {"$gt": after}
        with translated():
            found = await self._tasks.find(query).sort("uid", ASCENDING).limit(limit).to_list(None)
        return [_task(record) for record in found]

    async def change(self, id_: str, change: Change, now: float) -> Task | None:
        """See `tasks.ports.TaskStore`."""
        for _ in range(_CHANGES):
            task = await self.get(id_)
            if task is None:
                return None
            wanted = moves.changed(task, change, now)
            with translated():
                done = await self._tasks.update_one(_standing(task), {"$set": _fields(wanted, _MOVING)})
            if done.matched_count:
                return wanted
        raise StoreUnavailable("a task changes too often")

    async def delete(self, id_: str, uid: str | None = None) -> bool:
        """See `tasks.ports.TaskStore`."""
        with translated():
            done = await self._tasks.delete_one({"_id": id_} if uid is None else {"_id": id_, "uid": uid})
        return bool(done.deleted_count)

    async def keep(self, id_: str, uid: str) -> bool:
        """See `tasks.ports.TaskStore`."""
        with translated():
            done = await self._tasks.update_one({"_id": id_, "uid": uid}, {"$set": {"uid": moves.kept(uid)}})
        return bool(done.matched_count)

    async def take(self, token: str, now: float, lease_s: float, rate: float, limit: int) -> Taken:
        """See `tasks.ports.TaskStore`."""
        waiting = {**_NOT_STARTED, "due_at": {"$lte": now}}
        with translated():
            seen = _pace(await self._turns.find_one(_PACE))
            if (
                not pace.free_times(seen, now, rate, limit)
                or await self._tasks.find_one(waiting, {"_id": 1}) is None
            ):
                return Taken((), pace.look_again_at(seen, now))
            await self._prepare()
            mine = await self._turns.find_one_and_update(
                {**_PACE, "until": {"$lte": now}},
                {"$set": {"token": token, "until": now + pace.LOCK_S}},
                return_document=ReturnDocument.AFTER,
            )
            if mine is None:
                return Taken((), now + _BUSY_S)
            before = _pace(mine)
            times = pace.free_times(before, now, rate, limit)
            chosen = await self._chosen(before, waiting, len(times))
            tasks = await self._leased(token, chosen, times, lease_s)
            after = before
            if tasks:
                after = pace.given(before, tasks[-1][0], tasks[-1][1].group, rate)
            note = {"free_at": after.free_at, "last_group": after.group, "until": 0.0}
            done = await self._turns.update_one({**_PACE, "token": token}, {"$set": note})
        if not done.matched_count:  # too late: another has had its turn meanwhile
            if tasks:
                await self.settle([Submission(task.id, token, Again(now, failed=False)) for _, task in tasks])
            return Taken((), now + _BUSY_S)
        return Taken(tasks, pace.look_again_at(after, now))

    async def _chosen(self, before: Pace, waiting: Mapping[str, Any], count: int) -> list[Task]:
        """Those whose turn it is, in order."""
        groups = await self._tasks.distinct("group", waiting)
        tasks: dict[str, Task] = {}
        lines: dict[str, list[str]] = {}
        for group in pace.served_groups(groups, before.group, count):
            line = self._tasks.find({**waiting, "group": group}).sort("uid", ASCENDING).limit(count)
            found = [_task(record) for record in await line.to_list(None)]
            tasks.update((task.id, task) for task in found)
            lines[group] = [task.id for task in found]
        return [tasks[id_] for id_ in pace.in_turn(lines, count)]

    async def _leased(
        self, token: str, chosen: Sequence[Task], times: Sequence[float], lease_s: float
    ) -> list[tuple[float, Task]]:
        """Those of them that could be leased, each with its time."""
        if not chosen:
            return []
        wanted = [
            (at, task, replace(task, token=token, due_at=at + lease_s))
            for at, task in zip(times, chosen, strict=False)
        ]
        leases = [
            UpdateOne(_standing(task), {"$set": {"token": token, "due_at": leased.due_at}})
            for _, task, leased in wanted
        ]
        done = await self._tasks.bulk_write(leases, ordered=False)
        if done.matched_count == len(wanted):
            return [(at, leased) for at, _, leased in wanted]
        ids = [task.id for _, task, _ in wanted]
        found = await self._tasks.find({"_id": {"$in": ids}, "token": token}, {"_id": 1}).to_list(None)
        won = {record["_id"] for record in found}
        return [(at, leased) for at, _, leased in wanted if leased.id in won]

    async def settle(self, submissions: Sequence[Submission]) -> None:
        """See `tasks.ports.TaskStore`."""
        updates = [UpdateOne({"_id": s.id, "token": s.token}, _settlement(s.outcome)) for s in submissions]
        with translated():
            await self._tasks.bulk_write(updates, ordered=False)

    async def hold(self, until: float) -> None:
        """See `tasks.ports.TaskStore`."""
        await self._prepare()
        with translated():
            await self._turns.update_one(_PACE, {"$max": {"held_until": until}})

    async def report(self, rows: Sequence[Row]) -> Reported:
        """See `tasks.ports.TaskStore`."""
        said = {row.id: row for row in rows}
        before: list[Task] = []
        with translated():
            for start in range(0, len(rows), _READ):
                ids = [row.id for row in rows[start : start + _READ]]
                found = await self._tasks.find({"_id": {"$in": ids}}).to_list(None)
                before += map(_task, found)
            moved = [(task, after) for task in before if (after := moves.reported(task, said[task.id]))]
            if moved:
                changes = [
                    UpdateOne(_standing(task), {"$set": _fields(after, _SAID)}) for task, after in moved
                ]
                await self._tasks.bulk_write(changes, ordered=False)
        return Reported(len(before), Counter(after.status for _, after in moved))

    async def lead(self, token: str, now: float, until: float) -> float | None:
        """See `tasks.ports.TaskStore`."""
        await self._prepare()
        with translated():
            mine = await self._turns.find_one_and_update(
                {**_POLL, "$or": [{"token": token}, {"until": {"$lte": now}}]},
                {"$set": {"token": token, "until": until}},
                return_document=ReturnDocument.AFTER,
            )
        return None if mine is None else float(mine["due_at"])

    async def polled(self, token: str, due_at: float, until: float) -> bool:
        """See `tasks.ports.TaskStore`."""
        with translated():
            done = await self._turns.update_one(
                {**_POLL, "token": token}, {"$set": {"due_at": due_at, "until": until}}
            )
        return bool(done.matched_count)

    async def counts(self) -> Mapping[TaskStatus, int]:
        """See `tasks.ports.TaskStore`."""
        with translated():
            return {s: await self._tasks.count_documents({"status": s.value}) for s in TaskStatus}

    async def _prepare(self) -> None:
        """Makes the indexes, and the documents for whose turn it is, where they are not there."""
        if self._prepared:
            return
        with translated():
            await self._tasks.create_index("uid", unique=True)
            for fields in (("_id", *_STANDING), ("_id", "token")):
                await self._tasks.create_index([(field, ASCENDING) for field in fields], unique=True)
            await self._tasks.create_index([("status", ASCENDING), ("group", ASCENDING), ("uid", ASCENDING)])
            never = {
                "token": "",
                "until": 0.0,
                "due_at": 0.0,
                "free_at": 0.0,
                "held_until": 0.0,
                "last_group": "",
            }
            for turn in (_PACE, _POLL):
                try:
                    await self._turns.update_one(turn, {"$setOnInsert": never}, upsert=True)
                except DuplicateKeyError:  # another has just made it
                    continue
        self._prepared = True


_STANDING = ("key", "status", "due_at")
_SAID = ("status", "error_message", "token")
_MOVING = ("status", "error_message", "key", "again", "attempts", "due_at", "token")


def _fields(task: Task, names: Sequence[str]) -> Record:
    record = task_to_record(task)
    return {name: record[name] for name in names}


def _standing(task: Task) -> Record:
    """The condition that it is as it was read."""
    return {"_id": task.id, **_fields(task, _STANDING)}


def _settlement(outcome: Outcome) -> Record:
    match outcome:
        case Submitted():
            return {"$set": {"status": TaskStatus.IN_PROGRESS.value, "token": ""}}
        case Rejected(message):
            return {"$set": {"status": TaskStatus.ERROR.value, "error_message": message, "token": ""}}
        case Again(due_at, failed):
            return {"$set": {"due_at": due_at, "token": ""}, "$inc": {"attempts": int(failed)}}


def _task(record: Mapping[str, Any]) -> Task:
    return task_from_record(record["_id"], record)


def _pace(record: Mapping[str, Any] | None) -> Pace:
    return Pace() if record is None else Pace(record["free_at"], record["held_until"], record["last_group"])
