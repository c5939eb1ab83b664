"""Withdraws tasks that stand although their callers were told that nothing was accepted."""

from __future__ import annotations

import asyncio

import structlog

from travelrec.errors import StoreUnavailable
from travelrec.tasks.ports import TaskStore
from travelrec.tasks.task import Task

log = structlog.get_logger(__name__)

_LOOK_S = 0.25  # so often that a late write is seldom worked on before it is withdrawn
_LOOKS = 40  # of a store that answers; by then it has done what it was sent before
_MAX_UNSURE = 10_000


class Creator:
    """Creates tasks. A write whose answer was lost may stand, or come to stand when a store that hung goes on."""

    def __init__(self, tasks: TaskStore) -> None:
        self._tasks = tasks
        self._unsure: dict[str, tuple[str, int]] = {}  # uid → its id, and how often it is still looked for

    async def create(self, task: Task) -> bool:
        """Whether it was created, else one with its id stands; raises `StoreUnavailable`."""
        for uid, (id_, _) in list(self._unsure.items()):
            if id_ == task.id:  # the caller asks again
                await self._tasks.delete(id_, uid)
        while not await self._created(task):
            standing = await self._tasks.get(task.id)
            if standing is not None and await self._tasks.keep(task.id, standing.uid):
                return False  # and no other replica withdraws what is said to exist here
        return True

    async def _created(self, task: Task) -> bool:
        try:
            return await self._tasks.create(task)
        except StoreUnavailable:
            if len(self._unsure) < _MAX_UNSURE:
                self._unsure[task.uid] = (task.id, _LOOKS)
            raise

    async def withdraw(self) -> None:
        """Until cancelled: deletes what nobody knows of."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for uid, (id_, looks) in list(self._unsure.items()):
                try:
                    found = await self._tasks.delete(id_, uid)
                except StoreUnavailable:
                    break
                if found:
                    log.info("withdrew a task that nobody knows of")
                if found or looks == 1:
                    del self._unsure[uid]
                else:
                    self._unsure[uid] = (id_, looks - 1)
