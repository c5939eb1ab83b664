"""Broker and signals over Kafka, with aiokafka.

Publishing is at least once (`acks=all`, not idempotent: a claim makes a repeat harmless, and a producer without a
sequence has nothing to lose when the broker is away for long). Keyless messages go out as whole batches, a partition
each, which costs a tenth of sending them one by one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any, TypeVar  # aiokafka ships no types

from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    OffsetAndMetadata,
    TopicPartition,
)
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    IllegalStateError,
    KafkaError,
    NotCoordinatorForGroupError,
    TopicAlreadyExistsError,
    for_code,
)

from travelrec.adapters.hearing import Hear, listening, tell
from travelrec.errors import BrokerUnavailable, SignalUnavailable, Unavailable
from travelrec.offsets import Offsets
from travelrec.ports import Group
from travelrec.wire import TOPICS, Message, Signal, Topic, encode_signals

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_COMMIT_EVERY_S = 0.1
_COMMIT_AGAIN_S = 1.0  # after one that failed: what is not noted looks like a backlog to the sweepers
_BATCH_BYTES = 512 * 1024
_PEEK_BYTES = 4096
_COORDINATOR_S = 0.1  # between questions for a group's coordinator
_ASSIGN_S = 0.5  # what a take waits for a rebalance
_SPREAD = 16  # messages that share a batch before the next partition gets its turn
_NOWHERE = TopicPartition("", -1)


class KafkaBroker:
    """See `ports.Broker`; made by `opened`. The servers may be away: every call says so in its time."""

    system = "kafka"

    def __init__(
        self, servers: str, *, partitions: int, timeout_s: float, tls: bool, member: str | None
    ) -> None:
        self._options: dict[str, Any] = {
            "bootstrap_servers": servers.split(","),
            "request_timeout_ms": int(timeout_s * 1000),
            "security_protocol": "SSL" if tls else "PLAINTEXT",
            "ssl_context": ssl.create_default_context() if tls else None,
        }
        self._partitions = partitions
        self._timeout_s = timeout_s
        self._member = member
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._ensured: set[str] = set()
        self._turn = itertools.count()

    @classmethod
    @asynccontextmanager
    async def opened(
        cls,
        servers: str,
        *,
        partitions: int = 6,
        timeout_s: float = 5.0,
        tls: bool = False,
        member: str | None = None,
    ) -> AsyncIterator[KafkaBroker]:
        """A broker at `servers` (`host:port,…`); makes missing topics with `partitions` partitions.

        A `member` that was killed and comes back has its partitions at once, and the rest of its group notices nothing.
        """
        broker = cls(servers, partitions=partitions, timeout_s=timeout_s, tls=tls, member=member)
        try:
            yield broker
        finally:
            if broker._producer is not None:
                with suppress(TimeoutError, KafkaError):
                    await asyncio.wait_for(broker._producer.stop(), timeout_s)

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """See `ports.Broker`."""
        with _translated(BrokerUnavailable):
            async with asyncio.timeout(self._timeout_s):
                producer = await self._started(topic)
                sent = [*await self._send_keyless(producer, topic, [m for m in messages if m.key is None])]
                for message in messages:
                    if message.key is not None:
                        key = message.key.encode()
                        sent.append(
                            await producer.send(topic, message.value, key=key, headers=_headers(message))
                        )
                await asyncio.gather(*sent)

    async def _send_keyless(
        self, producer: AIOKafkaProducer, topic: str, messages: Sequence[Message]
    ) -> list[asyncio.Future[Any]]:
        sent = []
        places = sorted(await producer.partitions_for(topic))
        rest = list(messages)
        while rest:
            batch = producer.create_batch()
            share = max(_SPREAD, -(-len(messages) // len(places)))
            while (
                rest
                and batch.record_count() < share
                and batch.append(key=None, value=rest[0].value, timestamp=None, headers=_headers(rest[0]))
            ):
                rest.pop(0)
            batch.close()
            place = places[next(self._turn) % len(places)]
            sent.append(await producer.send_batch(batch, topic, partition=place))
        return sent

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[_KafkaSubscription]:
        """See `ports.Broker`."""
        await self._until_there(topic)
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=group,
            group_instance_id=self._member,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=15_000,
            heartbeat_interval_ms=3_000,
            rebalance_timeout_ms=60_000,
            max_poll_interval_ms=120_000,
            fetch_max_wait_ms=1_000,
        )
        async with AsyncExitStack() as stack:
            await _retried(consumer.start, "joining the group")
            stack.push_async_callback(_stop, consumer, self._timeout_s)
            # the server asked may not know of a topic that was just made, and who joins then is given no partition
            # before its next look at the topics, minutes later
            await _retried(lambda: self._partitions_of(consumer, topic), f"looking for {topic}")
            subscription = _KafkaSubscription(consumer, is_named=self._member is not None)
            consumer.subscribe([topic], listener=subscription)
            stack.push_async_callback(subscription.leave)
            try:
                yield subscription
            except BrokerUnavailable:
                self._member = None  # two of one name would take it from each other for ever
                raise

    async def oldest_waiting(self, topic: str, group: str) -> float | None:
        """See `ports.Broker`."""
        with _translated(BrokerUnavailable):
            async with asyncio.timeout(self._timeout_s), self._admin() as admin:
                committed = await _committed(admin, group)
                async with self._looking_at(topic, committed) as (consumer, heads, ends):
                    return await _oldest(consumer, {p: at for p, at in heads.items() if at < ends[p]})

    async def group(self, topic: str, group: str) -> Group:
        """See `ports.Broker`."""
        with _translated(BrokerUnavailable):
            async with asyncio.timeout(self._timeout_s), self._admin() as admin:
                committed = await _committed(admin, group)
                (described,) = await admin.describe_consumer_groups([group])
                members = described.to_object()["groups"][0]["members"]
                async with self._looking_at(topic, committed) as (_, heads, ends):
                    return Group(
                        len(members), {place.partition: ends[place] - heads[place] for place in heads}
                    )

    @asynccontextmanager
    async def _looking_at(
        self, topic: str, committed: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int], dict[TopicPartition, int]]]:
        """A consumer in no group, and of each partition the first offset that is not acknowledged and the end."""
        consumer = AIOKafkaConsumer(**self._options, max_partition_fetch_bytes=_PEEK_BYTES)
        await consumer.start()
        try:
            places = [TopicPartition(topic, p) for p in await self._partitions_of(consumer, topic)]
            ends = await consumer.end_offsets(places)
            starts = await consumer.beginning_offsets(places)
            heads = {
                place: max(committed[place].offset if place in committed else 0, starts[place])
                for place in places
            }
            yield consumer, heads, ends
        finally:
            await consumer.stop()

    async def _partitions_of(self, consumer: AIOKafkaConsumer, topic: str) -> set[int]:
        await consumer._client._wait_on_metadata(topic)
        return consumer.partitions_for_topic(topic) or set()

    async def ping(self) -> None:
        """See `ports.Broker`."""
        with _translated(BrokerUnavailable):
            async with asyncio.timeout(self._timeout_s):
                producer = await self._started(None)
                await producer.client.fetch_all_metadata()

    async def make_topics(self, topics: Sequence[Topic]) -> list[tuple[str, str]]:
        """Makes those that are missing and adds partitions where there are too few; says by name what was done.

        Else what exists is left as it is: an operator may have set it otherwise.
        """
        with _translated(BrokerUnavailable):
            async with asyncio.timeout(self._timeout_s), self._admin() as admin:
                return [(topic.name, await self._make(admin, topic)) for topic in topics]

    async def _make(self, admin: AIOKafkaAdminClient, topic: Topic) -> str:
        if await self._create(admin, topic.name):
            return f"made with {self._partitions} partitions"
        there = len((await admin.describe_topics([topic.name]))[0]["partitions"])
        if there >= self._partitions:
            return f"there with {there} partitions"
        await admin.create_partitions({topic.name: NewPartitions(self._partitions)})
        return f"grew from {there} to {self._partitions} partitions"

    async def _until_there(self, topic: str) -> None:
        async def make() -> None:
            async with asyncio.timeout(self._timeout_s):
                await self._ensure(topic)

        await _retried(make, f"looking for topic {topic}")

    async def _started(self, topic: str | None) -> AIOKafkaProducer:
        if self._producer is None:
            async with self._starting:
                if self._producer is None:
                    producer = AIOKafkaProducer(
                        **self._options, acks="all", linger_ms=0, max_batch_size=_BATCH_BYTES
                    )
                    try:
                        await producer.start()
                    except BaseException:
                        await producer.stop()
                        raise
                    self._producer = producer
        if topic is not None and topic not in self._ensured:
            await self._ensure(topic)
        return self._producer

    async def _ensure(self, topic: str) -> None:
        if topic in self._ensured:
            return
        async with self._admin() as admin:
            await self._create(admin, topic)
        self._ensured.add(topic)

    async def _create(self, admin: AIOKafkaAdminClient, topic: str) -> bool:
        """Whether it was missing."""
        new = NewTopic(topic, self._partitions, 1, topic_configs=_settings_of(topic))
        new.replication_factor = -1  # the cluster's own default, which the constructor refuses
        made = await admin.create_topics([new])
        code = made.topic_errors[0][1]
        if code not in (0, TopicAlreadyExistsError.errno):
            raise for_code(code)(f"topic {topic}: {made.topic_errors[0][2]}")
        return bool(code == 0)

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(**self._options)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    @asynccontextmanager
    async def tail(self, topic: str) -> AsyncIterator[AsyncIterator[Message]]:
        """See `ports.Broker`."""
        async with self.reader(topic) as consumer:
            yield _messages(consumer)

    @asynccontextmanager
    async def reader(self, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer of all of `topic` from now on, in no group."""
        await self._until_there(topic)
        consumer = AIOKafkaConsumer(
            **self._options, auto_offset_reset="latest", enable_auto_commit=False, fetch_max_wait_ms=1_000
        )
        async with AsyncExitStack() as stack:
            await _retried(consumer.start, f"reading {topic}")
            stack.push_async_callback(_stop, consumer, self._timeout_s)
            found = await _retried(lambda: self._partitions_of(consumer, topic), f"reading {topic}")
            places = [TopicPartition(topic, p) for p in found]
            consumer.assign(places)
            await _retried(lambda: consumer.seek_to_end(*places), f"reading {topic}")
            for place in places:
                await consumer.position(place)  # so that "from now on" has begun when this returns
            yield consumer


class _KafkaDelivery:
    """See `ports.Delivery`."""

    __slots__ = ("_offset", "_offsets", "_subscription", "message")

    def __init__(
        self, message: Message, offset: int, offsets: Offsets, subscription: _KafkaSubscription
    ) -> None:
        self.message = message
        self._offset = offset
        self._offsets = offsets
        self._subscription = subscription

    def acknowledge(self) -> None:
        self._offsets.finished(self._offset)
        self._subscription.wake()


class _KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka ships no types
    """See `ports.Subscription`. Offsets are committed a little later, and before partitions are given up."""

    def __init__(self, consumer: AIOKafkaConsumer, *, is_named: bool) -> None:
        self._consumer = consumer
        self._is_named = is_named
        self._offsets: dict[TopicPartition, Offsets] = {}
        self._id: str | None = None
        self._is_replaced = False
        self._turn = itertools.count()
        self._dirty = asyncio.Event()
        self._committing = asyncio.create_task(self._commit_now_and_then())

    async def take(self, limit: int, timeout_s: float) -> list[_KafkaDelivery]:
        if self._is_named and self._is_replaced:
            raise BrokerUnavailable("Kafka: another has this member's name, or it was missed for too long")
        deliveries: list[_KafkaDelivery] = []
        with _translated(BrokerUnavailable):
            try:
                async with asyncio.timeout(timeout_s + _ASSIGN_S):  # getmany's own begins after a rebalance
                    if limit <= 0:
                        # a turn that drains nothing, resets the clock of max.poll.interval and keeps the buffer
                        await self._consumer.getmany(_NOWHERE, timeout_ms=0)
                        return []
                    await self._drain(limit, timeout_s, deliveries)
            except TimeoutError:
                pass
        return deliveries

    async def _drain(self, limit: int, timeout_s: float, deliveries: list[_KafkaDelivery]) -> None:
        """A share of each partition, so that a long one holds up no other; then of whichever has more, or the next."""
        places = list(self._consumer.assignment())
        share = max(1, limit // max(1, len(places)))
        first = next(self._turn) % max(1, len(places))
        for place in places[first:] + places[:first]:
            found = await self._consumer.getmany(place, timeout_ms=0, max_records=share)
            self._deliver(found, deliveries)
            if len(deliveries) >= limit:
                return
        left, wait_ms = limit - len(deliveries), 0 if deliveries else int(timeout_s * 1000)
        self._deliver(await self._consumer.getmany(timeout_ms=wait_ms, max_records=left), deliveries)

    def _deliver(self, found: Any, deliveries: list[_KafkaDelivery]) -> None:
        for place, records in found.items():
            offsets = self._offsets.setdefault(place, Offsets())
            for record in records:
                offsets.taken(record.offset)
                deliveries.append(_KafkaDelivery(_message(record), record.offset, offsets, self))

    def wake(self) -> None:
        self._dirty.set()

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Called by aiokafka before a rebalance: what is finished is noted, the rest belongs to the next owner."""
        await self._commit()
        for place in revoked:
            self._offsets.pop(place, None)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Called by aiokafka after a rebalance."""
        for place in assigned:
            self._offsets.pop(place, None)
        given = self._consumer._coordinator.member_id
        self._is_replaced = self._id not in (None, given)
        self._id = given

    async def leave(self) -> None:
        self._committing.cancel()
        await asyncio.gather(self._committing, return_exceptions=True)
        await self._commit()
        self._consumer._coordinator._group_instance_id = None  # a named one would not tell that it leaves

    async def _commit_now_and_then(self) -> None:
        pause_s = _COMMIT_EVERY_S
        while True:
            await self._dirty.wait()
            await asyncio.sleep(pause_s)
            self._dirty.clear()
            noted = await self._commit()
            pause_s = _COMMIT_EVERY_S if noted else _COMMIT_AGAIN_S

    async def _commit(self) -> bool:
        assigned = self._consumer.assignment()
        positions = {
            place: position
            for place, offsets in self._offsets.items()
            if place in assigned and (position := offsets.committable()) is not None
        }
        if not positions:
            return True
        try:
            async with asyncio.timeout(10.0):
                await self._consumer.commit({p: OffsetAndMetadata(at, "") for p, at in positions.items()})
        except (CommitFailedError, IllegalStateError, KafkaError, TimeoutError) as error:
            # not noted: if this process ends now, those messages come again and their jobs are found claimed
            log.warning("offsets were not committed: %s", error or type(error).__name__)
            self._dirty.set()
            return False
        for place, position in positions.items():
            if place in self._offsets:
                self._offsets[place].committed(position)
        return True


class KafkaSignals:
    """See `ports.Signals`; one topic that every listener reads whole."""

    def __init__(self, broker: KafkaBroker, topic: str) -> None:
        self._broker = broker
        self._topic = topic

    async def announce(self, signals: Sequence[Signal]) -> None:
        """See `ports.Signals`."""
        try:
            await self._broker.publish(self._topic, [Message(encode_signals(signals))])
        except BrokerUnavailable as error:
            raise SignalUnavailable(str(error)) from error

    def listen(self, hear: Hear) -> AbstractAsyncContextManager[None]:
        """See `ports.Signals`. Does not wait for a broker that is away; begins when it is back."""
        return listening(self._read, hear)

    async def _read(self, hear: Hear, ready: asyncio.Event) -> None:
        while True:
            try:
                async with self._broker.reader(self._topic) as consumer:
                    ready.set()
                    async for record in consumer:
                        await tell(hear, record.value or b"")
            except KafkaError as error:
                log.warning("signals are not heard for now: %s", error)
                await asyncio.sleep(1.0)

    async def ping(self) -> None:
        """See `ports.Signals`."""
        try:
            await self._broker.ping()
        except BrokerUnavailable as error:
            raise SignalUnavailable(str(error)) from error


async def _oldest(consumer: AIOKafkaConsumer, heads: dict[TopicPartition, int]) -> float | None:
    """The time of the oldest of the records at these places, in seconds; they all exist."""
    consumer.assign(list(heads))
    for place, offset in heads.items():
        consumer.seek(place, offset)
    oldest: float | None = None
    unseen = set(heads)
    while unseen:
        for place, records in (await consumer.getmany(*unseen, timeout_ms=1_000)).items():
            unseen.discard(place)
            at = records[0].timestamp / 1000
            oldest = at if oldest is None else min(oldest, at)
    return oldest


def _settings_of(topic: str) -> dict[str, str]:
    known = next((t for t in TOPICS if t.name == topic), None)
    return {} if known is None else {"retention.ms": str(int(known.retention_s * 1000))}


async def _committed(admin: AIOKafkaAdminClient, group: str) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """What `group` has committed; a server that never had a group makes the place for offsets when first asked."""
    while True:
        try:
            offsets: Mapping[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(
                group
            )
        except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
            await asyncio.sleep(_COORDINATOR_S)
        else:
            return offsets


async def _retried(call: Callable[[], Awaitable[Answer]], doing: str) -> Answer:
    """What the servers answer, however long they don't; says that it waits."""
    for tried in itertools.count():
        try:
            return await call()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("Kafka does not answer while %s; trying again: %s", doing, str(error) or "time-out")
            await asyncio.sleep(min(5.0, 0.25 * 2 ** min(tried, 5)))
    raise AssertionError("unreachable")


async def _stop(consumer: AIOKafkaConsumer, timeout_s: float) -> None:
    with suppress(TimeoutError, KafkaError):
        await asyncio.wait_for(consumer.stop(), timeout_s)


@contextmanager
def _translated(to: type[Unavailable]) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise to(f"Kafka: {str(error) or 'no answer in time'}") from error


async def _messages(consumer: AIOKafkaConsumer) -> AsyncIterator[Message]:
    with _translated(BrokerUnavailable):
        async for record in consumer:
            yield _message(record)


def _message(record: Any) -> Message:
    headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    return Message(
        record.value or b"", headers, record.key.decode("utf-8", "replace") if record.key else None
    )


def _headers(message: Message) -> list[tuple[str, bytes]]:
    return [(name, value.encode()) for name, value in message.headers.items()]
