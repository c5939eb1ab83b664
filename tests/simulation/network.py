"""What is between the processes and their neighbours, and the neighbours: a store, a broker like Kafka, signals."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from simulation.history import History
from simulation.loop import EPOCH, Process, VirtualLoop, process_now
from travelrec import ports
from travelrec.errors import BrokerUnavailable, SignalUnavailable, StoreUnavailable, Unavailable
from travelrec.offsets import Offsets
from travelrec.wire import Message, Signal, decode_signals, encode_signals

Answer = TypeVar("Answer")

TIMEOUT_S = 5.0
SESSION_S = 6.0
COMMIT_EVERY_S = 0.1
COMMIT_AGAIN_S = 1.0
PARTITIONS = 3


class Network:
    """Calls take their time; while it is `faulty` some are lost, late or done twice, and some answers are lost."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.faulty = False
        self.forgetful = False  # signals may be lost at any time
        self.away: set[type[Unavailable]] = set()

    def chance(self, share: float) -> bool:
        """Whether a fault that strikes `share` of the calls strikes now."""
        return self.faulty and self.rng.random() < share

    def delay_s(self) -> float:
        if self.chance(0.01):
            return self.rng.uniform(TIMEOUT_S, 2 * TIMEOUT_S)  # done when its caller has long given up
        return self.rng.uniform(0.1, 2.0) if self.chance(0.05) else self.rng.uniform(0.001, 0.02)

    async def call(self, effect: Callable[[], Answer], away: type[Unavailable]) -> Answer:
        """`effect` at the other end; its answer, or `away`. What was sent arrives although its sender dies."""
        if away in self.away or self.chance(0.01):
            await asyncio.sleep(0.001)
            raise away("connection refused")
        answer: asyncio.Future[Answer] = self.loop.create_future()

        def answered(value: Answer) -> None:
            if not answer.done():
                answer.set_result(value)

        def arrive() -> None:
            value = effect()
            if not self.chance(0.02):
                self.loop.call_later(self.delay_s(), answered, value, context=contextvars.Context())

        for _ in range(2 if self.chance(0.02) else 1):
            if not self.chance(0.02):
                self.loop.call_later(self.delay_s(), arrive, context=contextvars.Context())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise away("no answer") from None


class Store:
    """`ports.Store` at the end of a wire."""

    def __init__(self, network: Network, history: History) -> None:
        self._network = network
        self._history = history

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        async def call(*args: object) -> object:
            caller = process_now.get()
            return await self._network.call(lambda: self._history.store(name, args, caller), StoreUnavailable)

        return call


@dataclass(eq=False)
class Record:
    """A message where it stands in its partition."""

    offset: int
    at: float
    message: Message
    finished: bool = False  # somebody has acknowledged it


@dataclass
class Group:
    """Who reads which partition, and from where the next owner will."""

    members: list[Subscription] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def owner(self, partition: int) -> Subscription | None:
        return self.members[partition % len(self.members)] if self.members else None

    def join(self, member: Subscription) -> None:
        self._rebalance([*self.members, member])

    def leave(self, member: Subscription) -> None:
        self._rebalance([other for other in self.members if other is not member])

    def _rebalance(self, members: list[Subscription]) -> None:
        before = [self.owner(partition) for partition in range(PARTITIONS)]
        self.members = members
        for partition in range(PARTITIONS):
            owner = self.owner(partition)
            if owner is not None and owner is not before[partition]:
                owner.assigned(partition, self.committed[partition])


class Cluster:
    """The topics, for everybody; `publish` may keep messages twice, as a producer that tries again does."""

    def __init__(self, network: Network, history: History) -> None:
        self.network = network
        self.history = history
        self.topics: dict[str, list[list[Record]]] = defaultdict(lambda: [[] for _ in range(PARTITIONS)])
        self.groups: dict[tuple[str, str], Group] = defaultdict(Group)
        self._turn = 0

    def append(self, topic: str, messages: Sequence[Message], at: float) -> None:
        for message in messages:
            self.history.published(topic, message)
            self._turn += 1
            self._append(topic, self._turn % PARTITIONS, at, message)
            if self.network.chance(0.05):
                delay_s = self.network.rng.uniform(0.0, 10.0)
                self.network.loop.call_later(
                    delay_s, self._append, topic, self._turn % PARTITIONS, at, message
                )

    def _append(self, topic: str, partition: int, at: float, message: Message) -> None:
        log = self.topics[topic][partition]
        log.append(Record(len(log), at, message))
        for (name, _), group in self.groups.items():
            for member in group.members if name == topic else ():
                member.arrived.set()

    def commit(self, topic: str, group: Group, member: Subscription, positions: dict[int, int]) -> set[int]:
        noted = {partition for partition in positions if group.owner(partition) is member}
        for partition in noted:
            if positions[partition] < group.committed[partition]:
                continue  # a member's requests come in their order: this one has been overtaken on its way here
            before, group.committed[partition] = group.committed[partition], positions[partition]
            passed = self.topics[topic][partition][before : positions[partition]]
            self.history.committed([record.message for record in passed if not record.finished])
        return noted

    def oldest_waiting(self, topic: str, group: str) -> float | None:
        committed = self.groups[topic, group].committed
        logs = self.topics[topic]
        return min(
            (log[committed[p]].at for p, log in enumerate(logs) if committed[p] < len(log)), default=None
        )

    def group(self, topic: str, group: str) -> ports.Group:
        known = self.groups[topic, group]
        lag = {p: len(log) - known.committed[p] for p, log in enumerate(self.topics[topic])}
        return ports.Group(len(known.members), lag)


class Broker:
    """`ports.Broker` as one process sees it."""

    system = "simulated"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        process = process_now.get()
        at = EPOCH + self._cluster.network.loop.now + (process.skew_s if process else 0.0)
        await self._call(lambda: self._cluster.append(topic, messages, at))

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[Subscription]:
        while True:
            try:
                await self.ping()
                break
            except BrokerUnavailable:
                await asyncio.sleep(1.0)
        member = Subscription(self._cluster, topic, self._cluster.groups[topic, group])
        member.group.join(member)
        committing = asyncio.create_task(member.commit_now_and_then())
        try:
            yield member
        finally:
            committing.cancel()
            await asyncio.wait([committing])
            await member.commit()
            member.group.leave(member)

    async def oldest_waiting(self, topic: str, group: str) -> float | None:
        return await self._call(lambda: self._cluster.oldest_waiting(topic, group))

    async def group(self, topic: str, group: str) -> ports.Group:
        return await self._call(lambda: self._cluster.group(topic, group))

    async def ping(self) -> None:
        await self._call(lambda: None)

    async def _call(self, effect: Callable[[], Answer]) -> Answer:
        return await self._cluster.network.call(effect, BrokerUnavailable)


class Subscription:
    """A member; out of the group when its process is dead or frozen for `SESSION_S`, and back when it asks again."""

    def __init__(self, cluster: Cluster, topic: str, group: Group) -> None:
        self._cluster = cluster
        self._topic = topic
        self.group = group
        self.arrived = asyncio.Event()
        self.process = process_now.get()
        self._offsets: dict[int, Offsets] = {}
        self._position: dict[int, int] = {}
        self._dirty = asyncio.Event()

    def assigned(self, partition: int, position: int) -> None:
        self._offsets[partition] = Offsets()
        self._position[partition] = position
        self.arrived.set()

    async def take(self, limit: int, timeout_s: float) -> list[Delivery]:
        if self not in self.group.members:
            self.group.join(self)
        if limit <= 0:
            return []
        if BrokerUnavailable not in self._cluster.network.away and (taken := self._fetched(limit)):
            await asyncio.sleep(0)
            return taken
        self.arrived.clear()
        try:
            await asyncio.wait_for(self.arrived.wait(), timeout_s)
        except TimeoutError:
            return []
        await asyncio.sleep(self._cluster.network.delay_s())
        return self._fetched(limit) if self in self.group.members else []

    def _fetched(self, limit: int) -> list[Delivery]:
        taken: list[Delivery] = []
        for partition, log in enumerate(self._cluster.topics[self._topic]):
            if self.group.owner(partition) is not self:
                continue
            begin = self._position[partition]
            for record in log[begin : begin + limit - len(taken)]:
                self._offsets[partition].taken(record.offset)
                self._position[partition] = record.offset + 1
                taken.append(Delivery(record, self, self._offsets[partition]))
        return taken

    def acknowledged(self, record: Record) -> None:
        self._cluster.history.acknowledged(record.message)
        record.finished = True
        self._dirty.set()

    async def commit_now_and_then(self) -> None:
        pause_s = COMMIT_EVERY_S
        while True:
            await self._dirty.wait()
            await asyncio.sleep(pause_s)
            self._dirty.clear()
            pause_s = COMMIT_EVERY_S if await self.commit() else COMMIT_AGAIN_S

    async def commit(self) -> bool:
        positions = {
            partition: position
            for partition, offsets in self._offsets.items()
            if self.group.owner(partition) is self and (position := offsets.committable()) is not None
        }
        if not positions:
            return True
        try:
            noted = await self._cluster.network.call(
                lambda: self._cluster.commit(self._topic, self.group, self, positions), BrokerUnavailable
            )
        except BrokerUnavailable:
            self._dirty.set()
            return False
        for partition in noted:
            self._offsets[partition].committed(positions[partition])
        return True


class Delivery:
    """See `ports.Delivery`."""

    def __init__(self, record: Record, subscription: Subscription, offsets: Offsets) -> None:
        self.message = record.message
        self._record = record
        self._subscription = subscription
        self._offsets = offsets

    def acknowledge(self) -> None:
        self._offsets.finished(self._record.offset)
        self._subscription.acknowledged(self._record)


class Signals:
    """`ports.Signals`: each listener hears each signal, but for those that are lost on the way."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._listeners: list[
            tuple[Process | None, contextvars.Context, Callable[[Sequence[Signal]], object]]
        ] = []

    async def announce(self, signals: Sequence[Signal]) -> None:
        value = encode_signals(signals)
        await self._network.call(lambda: self._send(value), SignalUnavailable)

    def _send(self, value: bytes) -> None:
        for _, context, hear in self._listeners:
            for _ in range(2 if self._network.chance(0.05) else 1):
                if not (self._network.forgetful and self._network.rng.random() < 0.2):
                    self._network.loop.call_later(
                        self._network.delay_s(),
                        lambda hear=hear: hear(decode_signals(value)),
                        context=context,
                    )

    @asynccontextmanager
    async def listen(self, hear: Callable[[Sequence[Signal]], object]) -> AsyncIterator[None]:
        listener = (process_now.get(), contextvars.copy_context(), hear)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def ping(self) -> None:
        await self._network.call(lambda: None, SignalUnavailable)
