"""Store, broker and signals inside one process: the real semantics without a server."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from travelrec import job as moves
from travelrec.job import IDEMPOTENCY_S, Bid, Job, Settlement, Status
from travelrec.ports import Backlog, Group
from travelrec.wire import Message, Signal


class MemoryStore:
    """Jobs in a dictionary; gone with the process. `jobs` is there for tests to look at."""

    def __init__(self, retention_s: float = 7 * 86400.0) -> None:
        self.jobs: dict[str, Job] = {}
        self._keys: dict[str, str] = {}
        self._settled: dict[str, str] = {}
        self._leads: dict[str, tuple[str, float]] = {}
        self._retention_s = retention_s

    async def accept(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """See `ports.Store`."""
        return [self._accept(job, now) for job in jobs]

    def _accept(self, job: Job, now: float) -> Job:
        if job.uid in self.jobs:
            return self.jobs[job.uid]
        if job.idempotency_key is not None:
            older = self.jobs.get(self._keys.get(job.idempotency_key, ""))
            if older is not None and older.created_at + IDEMPOTENCY_S > now:
                return older
            if older is not None:
                self.jobs[older.uid] = replace(older, idempotency_key=None)
            self._keys[job.idempotency_key] = job.uid
        self.jobs[job.uid] = job
        return job

    async def get(self, uids: Sequence[str]) -> dict[str, Job]:
        """See `ports.Store`."""
        return {uid: self.jobs[uid] for uid in uids if uid in self.jobs}

    async def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None = None
    ) -> list[Job]:
        """See `ports.Store`."""
        won = []
        for uid in dict.fromkeys(uids):
            job = self.jobs.get(uid)
            if job is not None and (moves.claimable(job, now)):
                self.jobs[uid] = moves.claimed(job, token, until, worker)
                self._settled.pop(uid, None)
            if job is not None and self.jobs[uid].token == token:
                won.append(self.jobs[uid])
        return won

    async def release(self, worker: str, now: float, until: float) -> int:
        """See `ports.Store`."""
        dead = [job for job in self.jobs.values() if moves.releasable(job, worker, until)]
        self.jobs.update((job.uid, moves.released(job, now)) for job in dead)
        return len(dead)

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        """See `ports.Store`."""
        kept = set()
        for uid, token in leases:
            job = self.jobs.get(uid)
            if job is not None and not job.ended and job.token == token:
                self.jobs[uid] = moves.renewed(job, until)
                kept.add(uid)
        return kept

    async def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        """See `ports.Store`."""
        for s in settlements:
            job = self.jobs.get(s.uid)
            if job is not None and not job.ended and job.token == s.token:
                self.jobs[s.uid] = moves.settled(job, s.outcome, now, self._retention_s)
                self._settled[s.uid] = s.token
        return {s.uid for s in settlements if self._settled.get(s.uid) == s.token}

    async def cancel(self, uid: str, now: float, message: str) -> tuple[Job | None, bool]:
        """See `ports.Store`."""
        job = self.jobs.get(uid)
        if job is None:
            return None, False
        self.jobs[uid] = moves.cancelled(job, now, self._retention_s, message)
        return self.jobs[uid], not job.ended

    async def published(self, uids: Sequence[str], due_at: float, sent_at: float | None = None) -> None:
        """See `ports.Store`."""
        for uid in uids:
            if uid in self.jobs:
                self.jobs[uid] = moves.published(self.jobs[uid], due_at, sent_at)

    async def take_due(self, now: float, until: float, limit: int) -> list[Job]:
        """See `ports.Store`."""
        late = [job for job in self.jobs.values() if not job.ended and job.due_at <= now]
        taken = [moves.due(job, until) for job in sorted(late, key=lambda job: job.due_at)[:limit]]
        self.jobs.update((job.uid, job) for job in taken)
        return taken

    async def lead(self, bids: Sequence[Bid], now: float) -> list[str]:
        """See `ports.Store`."""
        for bid in bids:
            if self._leads.get(bid.key, (bid.instead_of, 0.0))[0] == bid.instead_of:
                self._leads[bid.key] = (bid.uid, now)
        return [self._leads[bid.key][0] for bid in bids]

    async def leaders(self, keys: Sequence[str]) -> dict[str, str]:
        """See `ports.Store`."""
        return {key: self._leads[key][0] for key in keys if key in self._leads}

    async def failed(self, since: float, limit: int) -> list[Job]:
        """See `ports.Store`."""
        found = [j for j in self.jobs.values() if j.status is Status.FAILED and (j.ended_at or 0.0) >= since]
        return sorted(found, key=lambda job: -(job.ended_at or 0.0))[:limit]

    async def revive(self, uids: Sequence[str], now: float) -> set[str]:
        """See `ports.Store`."""
        dead = {uid for uid in uids if uid in self.jobs and self.jobs[uid].status is Status.FAILED}
        self.jobs.update((uid, moves.revived(self.jobs[uid], now)) for uid in dead)
        return dead

    async def purge(self, now: float, limit: int) -> int:
        """See `ports.Store`."""
        old = (
            uid for uid, job in self.jobs.items() if job.status is not Status.PENDING and job.due_at <= now
        )
        uids = list(itertools.islice(old, limit))
        for key in [key for key, (_, at) in self._leads.items() if at <= now - self._retention_s][:limit]:
            del self._leads[key]
        for uid in uids:
            job = self.jobs.pop(uid)
            self._settled.pop(uid, None)
            if job.idempotency_key is not None and self._keys.get(job.idempotency_key) == uid:
                del self._keys[job.idempotency_key]
        return len(uids)

    async def backlog(self, limit: int) -> Backlog:
        """See `ports.Store`."""
        pending = [job.created_at for job in self.jobs.values() if not job.ended]
        return Backlog(min(len(pending), limit), min(pending, default=None))

    async def ping(self) -> None:
        """See `ports.Store`."""


@dataclass(slots=True)
class _Group:
    """The messages of one topic that one group has not acknowledged: to be taken, and taken by whom."""

    ready: deque[tuple[float, Message]]
    taken: dict[_MemoryDelivery, None] = field(default_factory=dict)  # in the order taken
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    members: int = 0

    def put(self, messages: Sequence[tuple[float, Message]], *, front: bool = False) -> None:
        if front:
            self.ready.extendleft(reversed(messages))
        else:
            self.ready.extend(messages)
        self.arrived.set()


class MemoryBroker:
    """Topics in one process; the newest `keep` messages of each are kept for groups that come later."""

    system = "memory"

    def __init__(self, keep: int = 10_000) -> None:
        self._keep = keep
        self._topics: dict[str, deque[tuple[float, Message]]] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._tails: dict[str, list[asyncio.Queue[Message]]] = {}

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """See `ports.Broker`."""
        now = time.time()
        timed = [(now, message) for message in messages]
        self._topics.setdefault(topic, deque(maxlen=self._keep)).extend(timed)
        for (name, _), group in self._groups.items():
            if name == topic:
                group.put(timed)
        for tail in self._tails.get(topic, ()):
            for message in messages:
                if tail.full():
                    tail.get_nowait()  # who is too slow misses the oldest
                tail.put_nowait(message)

    @asynccontextmanager
    async def tail(self, topic: str) -> AsyncIterator[AsyncIterator[Message]]:
        """See `ports.Broker`."""
        queue: asyncio.Queue[Message] = asyncio.Queue(self._keep)
        self._tails.setdefault(topic, []).append(queue)
        try:
            yield _queued(queue)
        finally:
            self._tails[topic].remove(queue)

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[_MemorySubscription]:
        """See `ports.Broker`."""
        found = self._group(topic, group)
        subscription = _MemorySubscription(found)
        found.members += 1
        try:
            yield subscription
        finally:
            found.members -= 1
            subscription.leave()

    async def oldest_waiting(self, topic: str, group: str) -> float | None:
        """See `ports.Broker`."""
        found = self._group(topic, group)
        times = [delivery.at for delivery in found.taken]
        if found.ready:
            times.append(found.ready[0][0])
        return min(times, default=None)

    async def group(self, topic: str, group: str) -> Group:
        """See `ports.Broker`."""
        found = self._group(topic, group)
        return Group(found.members, {0: len(found.ready) + len(found.taken)})

    async def ping(self) -> None:
        """See `ports.Broker`."""

    def _group(self, topic: str, group: str) -> _Group:
        if (topic, group) not in self._groups:
            self._groups[topic, group] = _Group(deque(self._topics.get(topic, ())))
        return self._groups[topic, group]


async def _queued(queue: asyncio.Queue[Message]) -> AsyncIterator[Message]:
    while True:
        yield await queue.get()


class _MemoryDelivery:
    """See `ports.Delivery`."""

    __slots__ = ("_subscription", "at", "message")

    def __init__(self, at: float, message: Message, subscription: _MemorySubscription) -> None:
        self.at = at
        self.message = message
        self._subscription = subscription

    def acknowledge(self) -> None:
        self._subscription.acknowledged(self)


class _MemorySubscription:
    """See `ports.Subscription`."""

    def __init__(self, group: _Group) -> None:
        self._group = group
        self._open: dict[_MemoryDelivery, None] = {}

    async def take(self, limit: int, timeout_s: float) -> list[_MemoryDelivery]:
        if limit <= 0:
            return []
        if not self._group.ready:
            self._group.arrived.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._group.arrived.wait()
            except TimeoutError:
                return []
        count = min(limit, len(self._group.ready))
        taken = [_MemoryDelivery(*self._group.ready.popleft(), self) for _ in range(count)]
        self._open.update(dict.fromkeys(taken))
        self._group.taken.update(dict.fromkeys(taken))
        return taken

    def acknowledged(self, delivery: _MemoryDelivery) -> None:
        if delivery in self._open:
            del self._open[delivery]
            del self._group.taken[delivery]

    def leave(self) -> None:
        unfinished = [(delivery.at, delivery.message) for delivery in self._open]
        for delivery in self._open:
            del self._group.taken[delivery]
        self._open.clear()
        if unfinished:
            self._group.put(unfinished, front=True)


class MemorySignals:
    """Signals to everybody who listens in this process."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Sequence[Signal]], Awaitable[None] | None]] = []

    async def announce(self, signals: Sequence[Signal]) -> None:
        """See `ports.Signals`."""
        for hear in list(self._listeners):
            answer = hear(signals)
            if inspect.isawaitable(answer):
                await answer

    @asynccontextmanager
    async def listen(self, hear: Callable[[Sequence[Signal]], Awaitable[None] | None]) -> AsyncIterator[None]:
        """See `ports.Signals`."""
        self._listeners.append(hear)
        try:
            yield
        finally:
            self._listeners.remove(hear)

    async def ping(self) -> None:
        """See `ports.Signals`."""
