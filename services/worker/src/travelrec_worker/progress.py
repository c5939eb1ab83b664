"""What this worker has begun and not ended, and for how long: what takes longer than it may hangs.

Only what must end by itself is work: a model call, a turn of a loop, a call to a neighbour. Waiting is not: for the
provider, for another's answer, for a neighbour that is away.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

END_S = 5.0  # for what was cancelled to end
_SLACK_S = 1.0

Answer = TypeVar("Answer")


@dataclass(eq=False, slots=True)
class Work:
    """Something that was begun, by whom, and how long it may take from `since` on."""

    what: str
    uid: str | None
    may_take_s: float
    task: asyncio.Task[object] | None
    since: float

    @property
    def where(self) -> str:
        """The lines at which it waits, outermost first."""
        return (
            "" if self.task is None else "".join(traceback.StackSummary.extract(_frames(self.task)).format())
        )


class Progress:
    """The work of one worker. `now` counts the seconds in which the event loop turned: a frozen process is not late."""

    def __init__(self, neighbour_timeout_s: float) -> None:
        self._call_s = neighbour_timeout_s
        self._open: dict[Work, None] = {}  # the oldest first, but for what has moved since
        self.now = 0.0
        self.alarm = asyncio.Event()
        "Set when something is known to hang before its time is over."

    @contextmanager
    def calling(self, what: str, *, calls: int, pause_s: float = 0.0) -> Iterator[Work]:
        """The calling task pauses, and makes so many calls to neighbours; then it ends or says that it `moved`."""
        may_take_s = pause_s + calls * self._call_s + _SLACK_S
        work = Work(what, None, may_take_s, asyncio.current_task(), self.now)
        self._open[work] = None
        try:
            yield work
        finally:
            del self._open[work]

    def turned(self, for_s: float) -> None:
        """The loop has turned for so long."""
        self.now += for_s

    def moved(self, work: Work) -> None:
        """Another turn of `work` begins."""
        work.since = self.now

    async def within(
        self, timeout_s: float, what: str, uid: str, call: Coroutine[object, object, Answer]
    ) -> Answer:
        """What `call` answers within `timeout_s`; else it is cancelled, and `TimeoutError` raised.

        A call that does not even end when it is cancelled is left alone, and hangs.
        """
        task = asyncio.create_task(call)
        work = Work(what, uid, timeout_s + END_S + _SLACK_S, task, self.now)
        self._open[work] = None
        task.add_done_callback(lambda _: self._ended(work, task))
        try:
            await asyncio.wait((task,), timeout=timeout_s)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=END_S)
            if not task.done():
                work.may_take_s = 0.0
                self.alarm.set()
        if not task.done() or task.cancelled():
            raise TimeoutError
        return task.result()

    def _ended(self, work: Work, task: asyncio.Task[Answer]) -> None:
        del self._open[work]
        if not task.cancelled():
            task.exception()  # of what was left alone nobody else asks

    @property
    def oldest_s(self) -> float:
        """The age of the work that was begun first."""
        return max((self.now - work.since for work in self._open), default=0.0)

    @property
    def hanging(self) -> list[Work]:
        """What has taken longer than it may."""
        return [work for work in self._open if self.now - work.since >= work.may_take_s]


def _frames(task: asyncio.Task[object]) -> Iterator[tuple[FrameType, int]]:
    """Those of the coroutines that `task` is in, each awaited by the one before."""
    waits: object = task.get_coro()
    while waits is not None:
        frame = next((f for n in ("cr", "gi", "ag") if (f := getattr(waits, f"{n}_frame", None))), None)
        if frame is not None:
            yield frame, frame.f_lineno
        inner = ("cr_await", "gi_yieldfrom", "ag_await")
        waits = next((w for name in inner if (w := getattr(waits, name, None)) is not None), None)
