"""Group commit: concurrent calls share one bulk call, and a lone one is not delayed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from travelrec.errors import TravelrecError

Item = TypeVar("Item")
Reply = TypeVar("Reply")


def _retrieve(future: asyncio.Future[Reply]) -> None:
    if not future.cancelled():
        future.exception()


class Batcher(Generic[Item, Reply]):
    """Collects items for `call`, which answers a list of the same length and order.

    A batch starts at the end of the loop's turn when none is in flight; while some are, another starts only once
    `grow` items per batch in flight wait, so batches grow with the load instead of delaying a lone item.
    An error of `call` reaches every item of that batch. With `apart` one that nobody foresaw does not: the items are
    tried again one by one, so that what is wrong with one of them harms no other; such a `call` may be repeated. An
    item whose submitter was cancelled is still worked.
    """

    def __init__(
        self,
        call: Callable[[list[Item]], Awaitable[Sequence[Reply]]],
        *,
        max_items: int = 200,
        max_in_flight: int = 4,
        grow: int = 8,
        apart: bool = False,
    ) -> None:
        self._call = call
        self._max_items = max_items
        self._max_in_flight = max_in_flight
        self._grow = grow
        self._apart = apart
        self._waiting: list[tuple[Item, asyncio.Future[Reply]]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def submit(self, item: Item) -> Reply:
        """`call`'s reply to `item`."""
        return await self.enqueue(item)

    def enqueue(self, item: Item) -> asyncio.Future[Reply]:
        """`call`'s reply to `item`, for who must have it even when cancelled: shield it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((item, future))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._start)
        return future

    def post(self, item: Item) -> None:
        """Like `submit` for a `call` that deals with its own errors: nobody waits for the reply."""
        self.enqueue(item).add_done_callback(_retrieve)

    async def drain(self) -> None:
        """Returns when everything that was submitted is answered."""
        while self._running or self._waiting:
            await asyncio.sleep(0)
            if self._running:
                await asyncio.wait(self._running)

    @property
    def waiting(self) -> int:
        """How many items no batch has taken yet."""
        return len(self._waiting)

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._running) < self._max_in_flight:
            if len(self._waiting) < self._grow * len(self._running):
                return
            batch, self._waiting = self._waiting[: self._max_items], self._waiting[self._max_items :]
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    @staticmethod
    def _is_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Reply]]]) -> None:
        try:
            replies = await self._call([item for item, _ in batch])
            if len(replies) != len(batch):
                raise ValueError(f"{len(replies)} replies to {len(batch)} items")
        except BaseException as error:  # noqa: BLE001 - every submitter must hear of it, also of a cancellation
            is_foreseen = isinstance(error, TravelrecError) or not isinstance(error, Exception)
            if self._apart and len(batch) > 1 and not is_foreseen:
                for alone in batch:
                    await self._run([alone])
                    if alone[1].cancelled() and self._is_cancelled():
                        for _, future in batch:
                            future.cancel()
                        return
                return
            for _, future in batch:
                if not future.done():
                    if isinstance(error, asyncio.CancelledError):
                        future.cancel()
                    else:
                        future.set_exception(error)
            return
        for (_, future), reply in zip(batch, replies, strict=True):
            if not future.done():
                future.set_result(reply)
