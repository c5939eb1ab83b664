"""A task as a flat record of JSON values, and back: what SQLite and MongoDB keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # a record's values are whatever the database hands back

from travelrec.tasks.task import Task, TaskStatus

Record = dict[str, Any]


def task_to_record(task: Task) -> Record:
    """Every field of `task` except its id."""
    return {
        "uid": task.uid,
        "since": task.since,
        "due_at": task.due_at,
        "status": task.status.value,
        "error_message": task.error_message,
        "group": task.group,
        "key": task.key,
        "again": task.again,
        "attempts": task.attempts,
        "token": task.token,
        "headers": dict(task.headers),
    }


def task_from_record(id_: str, record: Mapping[str, Any]) -> Task:
    """The task that `task_to_record` wrote."""
    return Task(
        id=id_,
        uid=record["uid"],
        since=record["since"],
        due_at=record["due_at"],
        status=TaskStatus(record["status"]),
        error_message=record["error_message"],
        group=record["group"],
        key=record["key"],
        again=record["again"],
        attempts=record["attempts"],
        token=record["token"],
        headers=record["headers"],
    )
