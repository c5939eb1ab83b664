"""The consumer engine: up to N handlers in flight over however few partitions, and it never stops polling.

A handler acknowledges its own message, early (jobs: once the claim stands) or late (streams: once the effect stands).
What is unacknowledged when the engine ends is delivered to another member of the group.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from travelrec.errors import BrokerUnavailable
from travelrec.ports import Broker, Delivery, Subscription
from travelrec_worker.progress import Progress
from travelrec_worker.rejected import rejected

log = structlog.get_logger(__name__)

_TAKE_S = 0.5
_TURN_S = 5.0
_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0
_TRIES = 3  # of a message whose handler fails unforeseen
_MOVED = 10  # such messages without a success: from then on it is the handler that is bad


class _Watched:
    """A delivery that knows whether it was acknowledged."""

    __slots__ = ("_delivery", "acknowledged", "message")

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.message = delivery.message
        self.acknowledged = False

    def acknowledge(self) -> None:
        self.acknowledged = True
        self._delivery.acknowledge()


class Engine:
    """Takes messages of `topic` as a member of `group` and runs `handle` on each, `concurrency` at most at a time.

    Handlers that acknowledge `early` are waited for after the group was left, so that nobody waits for them; others
    before that, or what they are about to acknowledge would be delivered again. While `intake` is not set nothing is
    taken, and the broker is told that this member is alive; to leave its messages to others there is `shed`.

    A message whose handler fails unforeseen, and unacknowledged, is handled again, and in the end is moved to
    `dead_letters`: left as it is it would hold up what its group has done. While no handler succeeds none is moved but
    the first few, for a bad release must not empty its topic: the engine leaves its group, so that the others come
    again, and joins it after a pause, ever longer ones, behind each of which it may move one more (see ADR 25).

    `in_key_order` messages of one key are handled one after the other, in the order taken. Those that wait for their
    turn have a place as well, so that one busy key may take them all.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        group: str,
        handle: Callable[[Delivery], Awaitable[None]],
        *,
        concurrency: int,
        intake: asyncio.Event,
        progress: Progress,
        early: bool = False,
        in_key_order: bool = False,
        dead_letters: str | None = None,
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._group = group
        self._handle = handle
        self._concurrency = concurrency
        self._intake = intake
        self._progress = progress
        self._early = early
        self._in_key_order = in_key_order
        self._dead_letters = dead_letters
        self._given_up = 0  # messages, since a handler last succeeded
        self._pauses = 0
        self._must_pause = False
        self._running: set[asyncio.Task[object]] = set()
        self._lanes: dict[str, deque[Delivery]] = {}  # key → what waits behind the one that runs
        self._queued = 0
        self._stopping = asyncio.Event()
        self._freed = asyncio.Event()
        self._membership: asyncio.Timeout | None = None
        self._fit = asyncio.Event()
        self._fit.set()
        self.joined = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """How many handlers run."""
        return len(self._running)

    def stop(self) -> None:
        """Takes no more; what runs goes on until `run` has waited out the grace period."""
        self._stopping.set()
        self._freed.set()
        self._intake.set()  # wakes `run`, which takes nothing more
        self._fit.set()
        if not self.joined.is_set():
            self._end_membership()

    def shed(self, shedding: bool) -> None:
        """Leaves the group at once, whatever the taking waits for, and stays out of it while `shedding`."""
        if not shedding:
            self._fit.set()
        elif self._fit.is_set():
            if not self._stopping.is_set():
                self._fit.clear()
            self._end_membership()

    async def run(self, grace_s: float) -> None:
        """Runs until `stop`, then waits `grace_s` for the handlers and cancels the rest; leaves the group."""
        try:
            while not self._stopping.is_set():
                try:
                    await self._be_member(grace_s)
                except BrokerUnavailable as error:
                    log.warning("broker away", error=str(error), topic=self._topic)
                    self.joined.clear()
                    await asyncio.sleep(_RETRY_S)
                if self._must_pause:
                    await self._stops_within(min(_RETRY_S * 2.0**self._pauses, _LONGEST_RETRY_S))
                    self._must_pause = False
                    self._given_up = min(self._given_up, _MOVED - 1)  # bad ones must not bar the way for ever
                    self._pauses = min(self._pauses + 1, 10)
                if not self._fit.is_set():
                    log.error("left the group", topic=self._topic, in_flight=self.in_flight)
                    await self._fit.wait()
            await self._finish(grace_s)
        finally:
            await self._finish(0.0)

    async def _be_member(self, grace_s: float) -> None:
        """Joins the group, which may take until the broker is back, and takes until `stop` or `shed`."""
        try:
            async with (
                asyncio.timeout(None) as self._membership,
                self._broker.subscribe(self._topic, self._group) as subscription,
            ):
                self.joined.set()
                await self._take_until_stopped(subscription)
                if not self._early:
                    await self._finish(grace_s)
        except TimeoutError:
            if self._membership is None or not self._membership.expired():
                raise  # not by us
            self.joined.clear()
        finally:
            self._membership = None
            for lane in self._lanes.values():  # the next member gets them
                self._queued -= len(lane)
                lane.clear()

    def _end_membership(self) -> None:
        if self._membership is not None and not self._membership.expired():
            self._membership.reschedule(0.0)

    async def _take_until_stopped(self, subscription: Subscription) -> None:
        with self._progress.calling(f"taking from {self._topic}", calls=2, pause_s=_TURN_S) as turn:
            while not self._stopping.is_set():
                self._progress.moved(turn)
                free = self._concurrency - len(self._running) - self._queued
                if free <= 0 or not self._intake.is_set():
                    if not await self._may_take(free):
                        await subscription.take(0, 0.0)
                    continue
                for delivery in await subscription.take(free, _TAKE_S):
                    self._start(delivery)

    def _start(self, delivery: Delivery) -> None:
        key = delivery.message.key if self._in_key_order else None
        task: asyncio.Task[object]
        if key is None:
            task = asyncio.create_task(self._supervise(delivery))
        elif key not in self._lanes:
            self._lanes[key] = deque()
            task = asyncio.create_task(self._in_turn(key, delivery))
        else:
            self._lanes[key].append(delivery)
            self._queued += 1
            return
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        self._freed.set()

    async def _in_turn(self, key: str, delivery: Delivery) -> None:
        lane = self._lanes[key]
        try:
            goes_on = await self._supervise(delivery)
            while goes_on and lane and not self._stopping.is_set():
                delivery = lane.popleft()
                self._queued -= 1
                self._freed.set()
                goes_on = await self._supervise(delivery)
        finally:
            self._queued -= len(lane)
            del self._lanes[key]

    async def _supervise(self, delivery: Delivery) -> bool:
        """Whether this message is done with, so that the next of its key may be handled."""
        watched, membership = _Watched(delivery), self._membership
        for tries in range(1, _TRIES + 1):
            try:
                await self._handle(watched)
            except Exception:  # the process is supervised here
                log.exception("handler failed", topic=self._topic, tries=tries)
            else:
                self._given_up = self._pauses = 0
                return True
            if watched.acknowledged:
                return True
            if tries < _TRIES and await self._stops_within(_RETRY_S * 2.0 ** (tries - 1)):
                return False
            if self._must_pause:
                return False  # it comes again
            if self._membership is not membership:
                return True  # it has come again, and waits behind this one if it came to this engine
        if self._given_up == _MOVED:
            log.error("all handlers fail: no more messages are moved away", topic=self._topic)
            self._must_pause = True
            if not self._stopping.is_set():
                self._end_membership()
            return False
        self._given_up += 1
        await rejected(self._broker, self._topic, delivery, "Its handler failed.", self._dead_letters)
        return True

    async def _stops_within(self, pause_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                return await self._stopping.wait()
        return False

    async def _may_take(self, free: int) -> bool:
        """Whether a hindrance has gone within the time that the broker may be left without a word."""
        hindrance = self._freed if free <= 0 else self._intake
        if free <= 0:
            self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_TURN_S):
                return await hindrance.wait()
        return False

    async def _finish(self, grace_s: float) -> None:
        if self._running and grace_s > 0:
            await asyncio.wait(self._running, timeout=grace_s)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
