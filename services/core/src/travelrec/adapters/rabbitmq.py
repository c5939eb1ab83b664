"""Broker and signals over RabbitMQ 3.10 or newer, with aio-pika.

A topic is a durable fan-out exchange, a group of it a quorum queue, a member a consumer with a prefetch. A topic whose
groups are not known beforehand (see `wire.TOPICS`) has a stream besides, its journal, from which a group that comes
later is given what it missed; dead-letter topics have nothing else. Whoever publishes makes what is missing first, so
that no message is published to nobody. Every connection is made anew when it is lost: nothing of one is of use later.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any, TypeVar  # a header is whatever AMQP has

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity, DeliveryError
from aiormq import spec
from aiormq.abc import AbstractChannel as UnderlayChannel
from aiormq.abc import DeliveredMessage

from travelrec.adapters.hearing import Hear, listening, tell
from travelrec.errors import BrokerUnavailable, SignalUnavailable, Unavailable
from travelrec.job import new_uid
from travelrec.ports import Group
from travelrec.wire import TOPICS, Message, Signal, Topic, dead_letter_topic, encode_signals

log = logging.getLogger(__name__)

_HEARTBEAT_S = 15
_ACKNOWLEDGE_EVERY_S = 0.02
_DELIVERIES = 1_000_000  # of one message: as good as no limit, which not every version can be told
_READ_S = 5.0  # for the next message of a journal
_COPIED = 500  # messages of a journal at a time
_LOOKS = 20
_LOOK_AGAIN_S = 0.01
_UNHEARD = 10_000  # messages for a listener that does not keep up, at the server and again here
_KEY, _PUBLISHED_AT, _MARK = "x-key", "x-published-at", "x-mark"  # headers that are ours alone
_PERSISTENT = 2
_RETENTION_S = 7 * 86400.0  # of a journal, where nothing else is known
_AWAY = (*CONNECTION_EXCEPTIONS, TimeoutError)

T = TypeVar("T")


class RabbitBroker:
    """See `ports.Broker`; made by `opened`. The server may be away: every call says so in its time."""

    system = "rabbitmq"

    def __init__(self, url: str, *, prefetch: int, timeout_s: float) -> None:
        self._url = url
        self._prefetch = prefetch
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        self._publisher: UnderlayChannel | None = None
        self._starting = asyncio.Lock()
        self._ensured: set[str] = set()
        self._half_made: set[str] = set()  # queues that have not all of their topic's journal yet
        self._members: dict[str, list[_RabbitSubscription]] = {}  # by queue, of this process

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str, *, prefetch: int = 200, timeout_s: float = 5.0
    ) -> AsyncIterator[RabbitBroker]:
        """A broker at `url` (`amqp://user:password@host:port/vhost`).

        A member is sent up to `prefetch` messages that it has not acknowledged: as many handlers can run that
        acknowledge late.
        """
        broker = cls(url, prefetch=prefetch, timeout_s=timeout_s)
        try:
            yield broker
        finally:
            await broker._forget()

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """See `ports.Broker`."""
        async with self._calling(BrokerUnavailable):
            await self._ensure(topic)
            await _published(await self._publishing(), topic, "", [_outgoing(m) for m in messages])

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[_RabbitSubscription]:
        """See `ports.Broker`."""
        queue = queue_of(topic, group)

        async def join() -> tuple[AbstractConnection, _RabbitSubscription]:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connected(group)
            try:
                await self._make_group(connection, topic, group)
                async with asyncio.timeout(self._timeout_s):
                    return connection, await _RabbitSubscription.joined(connection, queue, self._prefetch)
            except BaseException:
                await _closed(connection, self._timeout_s)
                raise

        connection, subscription = await _retried(join, f"joining the group {group}")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_closed, connection, self._timeout_s)
            stack.push_async_callback(subscription.leave, self._timeout_s)
            members = self._members.setdefault(queue, [])
            members.append(subscription)
            stack.callback(members.remove, subscription)
            yield subscription

    async def oldest_waiting(self, topic: str, group: str) -> float | None:
        """See `ports.Broker`. What members of other processes hold is not seen; where they may hold older messages
        than this process knows of, the answer is a time at which the oldest was not yet published."""
        queue = queue_of(topic, group)
        members = self._members.get(queue, ())
        async with self._calling(BrokerUnavailable):
            for _ in range(_LOOKS):
                counted = await self._counted(queue, members)
                if held := [at for member in members if (at := member.oldest_at) is not None]:
                    return min(held)
                if counted is None:
                    return await self._head_of_journal(topic)
                waiting, consumers = counted
                if not waiting:
                    return None
                if not consumers:
                    return await self._head(queue)
                if not members:
                    break
                await asyncio.sleep(_LOOK_AGAIN_S)  # it is on its way to one of ours
            return max((member.newest_at for member in members), default=0.0)

    async def group(self, topic: str, group: str) -> Group:
        """See `ports.Broker`. What members of other processes have been sent is not in the lag."""
        queue = queue_of(topic, group)
        members = self._members.get(queue, ())
        async with self._calling(BrokerUnavailable):
            counted = await self._counted(queue, members)
            if counted is None:
                return Group(0, {0: await self._missed(topic)})
            waiting, consumers = counted
            return Group(consumers, {0: waiting + sum(member.held for member in members)})

    async def ping(self) -> None:
        """See `ports.Broker`."""
        async with (
            self._calling(BrokerUnavailable),
            (await self._looking()).channel(publisher_confirms=False),
        ):
            pass

    async def make_topics(self, topics: Sequence[Topic]) -> list[tuple[str, str]]:
        """Makes those that are missing; says by name what is there now."""
        async with self._calling(BrokerUnavailable):
            done = []
            for topic in topics:
                await self._ensure(topic.name)
                queues = [queue_of(topic.name, group) for group in topic.groups] or [_journal_of(topic.name)]
                done.append((topic.name, f"there, with the queue {', '.join(queues)}"))
            return done

    async def announce(self, exchange: str, message: Message) -> None:
        """Sends a message to the queues that are bound to `exchange` right now, if there are any."""
        async with self._calling(SignalUnavailable):
            if exchange not in self._ensured:
                async with (await self._looking()).channel(publisher_confirms=False) as channel:
                    await _declare_exchange(channel, exchange)
                self._ensured.add(exchange)
            await _published(await self._publishing(), exchange, "", [_outgoing(message)], mandatory=False)

    @asynccontextmanager
    async def reader(self, exchange: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """What is sent to `exchange` from now on, until the connection is lost."""
        connection, heard = await self._listening(exchange)
        try:
            yield (message.body async for message in _until_none(heard))
        finally:
            await _closed(connection, self._timeout_s)

    @asynccontextmanager
    async def tail(self, topic: str) -> AsyncIterator[AsyncIterator[Message]]:
        """See `ports.Broker`."""

        async def begin() -> tuple[AbstractConnection, asyncio.Queue[DeliveredMessage | None]]:
            async with asyncio.timeout(self._timeout_s):
                await self._ensure(topic)
            return await self._listening(topic)

        async def messages() -> AsyncIterator[Message]:
            async for message in _until_none(heard):
                yield _incoming(message)
            raise BrokerUnavailable("RabbitMQ: the connection was lost")

        connection, heard = await _retried(begin, f"reading {topic}")
        try:
            yield messages()
        finally:
            await _closed(connection, self._timeout_s)

    async def _listening(
        self, exchange: str
    ) -> tuple[AbstractConnection, asyncio.Queue[DeliveredMessage | None]]:
        """A queue of its own is bound to `exchange` for as long as the connection stands; None says that it is lost."""
        heard: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue(_UNHEARD)

        def keep(value: DeliveredMessage | None) -> None:
            if heard.full():
                heard.get_nowait()  # who is too slow misses the oldest
            heard.put_nowait(value)

        async def hear(message: DeliveredMessage) -> None:
            keep(message)

        async with asyncio.timeout(self._timeout_s):
            connection = await self._connected(exchange)
            try:
                channel = await connection.channel(publisher_confirms=False)
                await _declare_exchange(channel, exchange)
                queue = await channel.declare_queue(exclusive=True, arguments={"x-max-length": _UNHEARD})
                await queue.bind(exchange)
                channel.close_callbacks.add(lambda *_: keep(None))
                await (await channel.get_underlay_channel()).basic_consume(queue.name, hear, no_ack=True)
            except BaseException:
                await _closed(connection, 1.0)
                raise
        return connection, heard

    # --- topics and groups ---------------------------------------------------------------------------

    async def _ensure(self, topic: str) -> None:
        """Makes what a topic consists of, where it is missing."""
        if topic in self._ensured:
            return
        async with (await self._looking()).channel(publisher_confirms=False) as channel:
            await self._declare_topic(channel, topic)
        self._ensured.add(topic)

    async def _declare_topic(self, channel: AbstractChannel, topic: str) -> None:
        await _declare_exchange(channel, topic)
        known = next((t for t in TOPICS if t.name == topic), None)
        if known is not None and known.groups:
            for group in known.groups:
                await self._declare_group(channel, topic, group)
            return
        retention_s = _RETENTION_S if known is None else known.retention_s
        journal = await channel.declare_queue(
            _journal_of(topic),
            durable=True,
            arguments={"x-queue-type": "stream", "x-max-age": f"{int(retention_s)}s"},
        )
        await journal.bind(topic)

    async def _declare_group(self, channel: AbstractChannel, topic: str, group: str) -> None:
        dead = dead_letter_topic(topic)
        if dead not in self._ensured:
            await self._declare_topic(channel, dead)
            self._ensured.add(dead)
        name = queue_of(topic, group)
        if await _count(await self._looking(), name) is None:  # what was made otherwise stays as it is
            await channel.declare_queue(
                name,
                durable=True,
                arguments={
                    "x-queue-type": "quorum",
                    "x-delivery-limit": _DELIVERIES,
                    "x-dead-letter-exchange": dead,
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",  # which that strategy asks for
                },
            )
        await (await channel.get_queue(name, ensure=False)).bind(topic)

    async def _make_group(self, connection: AbstractConnection, topic: str, group: str) -> None:
        """Makes the group where it is new, and gives it what its topic's journal has."""
        queue = queue_of(topic, group)
        async with asyncio.timeout(self._timeout_s):
            await self._ensure(topic)
            there = await _count(connection, queue)
            if there is not None and (there[1] or queue not in self._half_made):
                return  # it is whole, or somebody has begun with it
            if there is not None:
                await _deleted(connection, queue)
            self._half_made.add(queue)
            async with connection.channel(publisher_confirms=False) as channel:
                await self._declare_group(channel, topic, group)
            has_journal = await _count(connection, _journal_of(topic)) is not None
        if has_journal:
            try:
                await self._copy(connection, _journal_of(topic), queue)
            except BaseException:
                with suppress(*_AWAY):  # so that the next who joins begins anew, here with another connection
                    await _deleted(connection, queue)
                raise
        self._half_made.discard(queue)

    async def _copy(self, connection: AbstractConnection, journal: str, queue: str) -> None:
        async with asyncio.timeout(self._timeout_s):
            end = await _end(connection, journal)
        async with _read(connection, journal, "first") as messages, connection.channel() as channel:
            publisher = await channel.get_underlay_channel()
            batch: list[tuple[bytes, spec.Basic.Properties]] = []
            async for message in messages:
                if not _is_mark(message):
                    batch.append((message.body, _properties(_headers(message))))
                is_end = _offset(message) >= end
                if is_end or len(batch) == _COPIED:
                    async with asyncio.timeout(self._timeout_s):
                        await _published(publisher, "", queue, batch)
                    batch.clear()
                if is_end:
                    return

    async def _missed(self, topic: str) -> int:
        """How many messages a group that does not exist would begin with; a few more if others have asked before."""
        connection = await self._looking()
        if await _count(connection, _journal_of(topic)) is None:
            return 0
        end = await _end(connection, _journal_of(topic))
        async with _read(connection, _journal_of(topic), "first") as messages:
            return end - _offset(await anext(messages))

    async def _head_of_journal(self, topic: str) -> float | None:
        connection = await self._looking()
        if await _count(connection, _journal_of(topic)) is None:
            return None
        end = await _end(connection, _journal_of(topic))
        async with _read(connection, _journal_of(topic), "first") as messages:
            async for message in messages:
                if not _is_mark(message):
                    return _published_at(message)
                if _offset(message) >= end:
                    break
        return None

    async def _head(self, queue: str) -> float | None:
        """When the first message of a queue that nobody reads was published. Looking is one of its deliveries."""
        async with (await self._looking()).channel(publisher_confirms=False) as channel:
            underlay = await channel.get_underlay_channel()
            message = await underlay.basic_get(queue)
            if not isinstance(message.delivery, spec.Basic.GetOk):
                return None
            await underlay.basic_nack(message.delivery.delivery_tag or 0, requeue=True)
            return _published_at(message)

    async def _counted(
        self, queue: str, members: Sequence[_RabbitSubscription] = ()
    ) -> tuple[int, int] | None:
        """Messages that wait in a queue, and its consumers; what is on its way to our members has arrived then."""
        for member in members:
            with suppress(*_AWAY):
                return await member.counted()
        return await _count(await self._looking(), queue)

    # --- connections ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _calling(self, unavailable: type[Unavailable]) -> AsyncIterator[None]:
        """Within the time that a call may take; what has failed once is not used again."""
        try:
            with _translated(unavailable):
                async with asyncio.timeout(self._timeout_s):
                    yield
        except (Unavailable, asyncio.CancelledError):
            if self._publisher is None or self._publisher.is_closed or not self._starting.locked():
                await self._forget()
            raise

    async def _looking(self) -> AbstractConnection:
        """The connection of this process for all but taking and listening."""
        async with self._starting:
            if self._connection is None or not _stands(self._connection):
                await self._forget()
                self._connection = await self._connected("publish")
            return self._connection

    async def _publishing(self) -> UnderlayChannel:
        connection = await self._looking()
        async with self._starting:
            if self._publisher is None or self._publisher.is_closed:
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                self._publisher = await channel.get_underlay_channel()
            return self._publisher

    async def _connected(self, purpose: str) -> AbstractConnection:
        return await aio_pika.connect(
            self._url,
            timeout=self._timeout_s,
            heartbeat=_HEARTBEAT_S,
            client_properties={"connection_name": f"travelrec {purpose}"},
        )

    async def _forget(self) -> None:
        connection, self._connection, self._publisher = self._connection, None, None
        self._ensured.clear()
        if connection is not None:
            await _closed(connection, 1.0)


class _RabbitDelivery:
    """See `ports.Delivery`."""

    __slots__ = ("_subscription", "_tag", "message")

    def __init__(self, message: Message, tag: int, subscription: _RabbitSubscription) -> None:
        self.message = message
        self._tag = tag
        self._subscription = subscription

    def acknowledge(self) -> None:
        self._subscription.acknowledged(self._tag)


class _RabbitSubscription:
    """See `ports.Subscription`. The server sends ahead up to the prefetch; acknowledgements are sent a little later."""

    def __init__(self, channel: UnderlayChannel, queue: str) -> None:
        self._channel = channel
        self._queue = queue
        self._tag: str | None = None
        self._sent: deque[_RabbitDelivery] = deque()
        self._held: dict[int, float] = {}  # what is not acknowledged: when it was published
        self._finished: list[int] = []
        self._arrived = asyncio.Event()
        self._dirty = asyncio.Event()
        self._lost = False
        self._leaving = False
        self.newest_at = 0.0
        self._acknowledging: asyncio.Task[None] | None = None

    @classmethod
    async def joined(cls, connection: AbstractConnection, queue: str, prefetch: int) -> _RabbitSubscription:
        """A member that is sent messages from now on."""
        opened = await connection.channel(publisher_confirms=False)
        channel = await opened.get_underlay_channel()
        await channel.basic_qos(prefetch_count=prefetch)
        subscription = cls(channel, queue)
        opened.close_callbacks.add(subscription.lose)
        channel.on_consumer_cancel_callbacks.add(subscription.lose)
        consuming = await channel.basic_consume(queue, subscription.arrive)
        subscription._tag = consuming.consumer_tag
        subscription._acknowledging = asyncio.create_task(subscription._acknowledge_now_and_then())
        return subscription

    @property
    def held(self) -> int:
        """How many messages it was sent and has not acknowledged."""
        return len(self._held)

    @property
    def oldest_at(self) -> float | None:
        """When the oldest of them was published."""
        return min(self._held.values(), default=None)

    async def counted(self) -> tuple[int, int]:
        """Messages that wait in its queue, and consumers; whatever was sent here before has arrived then."""
        for _ in range(
            2
        ):  # what the server had sent when it answered the first one is here before the second
            found = await self._channel.queue_declare(self._queue, passive=True)
        await asyncio.sleep(0)
        return found.message_count or 0, found.consumer_count or 0

    async def take(self, limit: int, timeout_s: float) -> list[_RabbitDelivery]:
        if self._lost:
            raise BrokerUnavailable("RabbitMQ: the connection was lost")
        if limit <= 0:
            return []
        if not self._sent:
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
        return [self._sent.popleft() for _ in range(min(limit, len(self._sent)))]

    async def arrive(self, message: DeliveredMessage) -> None:
        """Called with each message that the server sends."""
        tag = message.delivery_tag or 0
        self.newest_at = self._held[tag] = _published_at(message)
        self._sent.append(_RabbitDelivery(_incoming(message), tag, self))
        self._arrived.set()

    def acknowledged(self, tag: int) -> None:
        if self._held.pop(tag, None) is not None:
            self._finished.append(tag)
            self._dirty.set()

    def lose(self, *_: object) -> None:
        """Called when nothing more will come: what is not acknowledged is another member's by now."""
        self._lost = True
        self._sent.clear()
        self._held.clear()
        self._finished.clear()
        self._arrived.set()

    async def leave(self, timeout_s: float) -> None:
        self._leaving = True
        self._dirty.set()
        with suppress(*_AWAY):
            async with asyncio.timeout(timeout_s):
                if self._tag is not None and not self._lost:
                    await self._channel.basic_cancel(self._tag)
                if self._acknowledging is not None:
                    await (
                        self._acknowledging
                    )  # to its end: a cancelled one may not have sent what it had begun
                if not self._lost:
                    await self._channel.queue_declare(
                        self._queue, passive=True
                    )  # behind it, all of that stands

    async def _acknowledge_now_and_then(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            finished, self._finished = self._finished, []
            try:
                behind = next(iter(self._held), None)  # the first that is not acknowledged
                together = [tag for tag in finished if behind is None or tag < behind]
                if together:
                    await self._channel.basic_ack(max(together), multiple=True)
                for tag in set(finished).difference(together):
                    await self._channel.basic_ack(tag)
            except _AWAY as error:  # those messages come again, and their jobs are found claimed
                log.warning("messages were not acknowledged: %s", str(error) or type(error).__name__)
                return
            if self._leaving and not self._finished:
                return
            await asyncio.sleep(_ACKNOWLEDGE_EVERY_S)


class RabbitSignals:
    """See `ports.Signals`; a fan-out exchange, and a queue of its own for each listener."""

    def __init__(self, broker: RabbitBroker, exchange: str) -> None:
        self._broker = broker
        self._exchange = exchange

    async def announce(self, signals: Sequence[Signal]) -> None:
        """See `ports.Signals`."""
        await self._broker.announce(self._exchange, Message(encode_signals(signals)))

    def listen(self, hear: Hear) -> AbstractAsyncContextManager[None]:
        """See `ports.Signals`. Does not wait for a broker that is away; begins when it is back."""
        return listening(self._read, hear)

    async def _read(self, hear: Hear, ready: asyncio.Event) -> None:
        while True:
            try:
                async with self._broker.reader(self._exchange) as messages:
                    ready.set()
                    async for value in messages:
                        await tell(hear, value)
                log.warning("signals are not heard for now: the connection was lost")
            except _AWAY as error:
                log.warning("signals are not heard for now: %s", str(error) or "no answer in time")
            await asyncio.sleep(1.0)

    async def ping(self) -> None:
        """See `ports.Signals`."""
        try:
            await self._broker.ping()
        except BrokerUnavailable as error:
            raise SignalUnavailable(str(error)) from error


async def _until_none(queue: asyncio.Queue[DeliveredMessage | None]) -> AsyncIterator[DeliveredMessage]:
    while (value := await queue.get()) is not None:
        yield value


@asynccontextmanager
async def _read(
    connection: AbstractConnection, journal: str, offset: str
) -> AsyncIterator[AsyncIterator[DeliveredMessage]]:
    """The messages of a stream from `first` or `next` on; one that does not come in time raises `TimeoutError`."""
    arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    async with connection.channel(publisher_confirms=False) as channel:
        underlay = await channel.get_underlay_channel()
        await underlay.basic_qos(prefetch_count=_COPIED)

        async def arrive(message: DeliveredMessage) -> None:
            arrived.put_nowait(message)

        async def messages() -> AsyncIterator[DeliveredMessage]:
            while True:
                async with asyncio.timeout(_READ_S):
                    message = await arrived.get()
                await underlay.basic_ack(
                    message.delivery_tag or 0
                )  # not later: on a closed channel it ends all
                yield message

        await underlay.basic_consume(journal, arrive, arguments={"x-stream-offset": offset})
        yield messages()


async def _end(connection: AbstractConnection, journal: str) -> int:
    """The offset of a mark that is put behind what a stream has now: it does not say itself how much that is."""
    mark = new_uid()
    async with _read(connection, journal, "next") as messages, connection.channel() as channel:
        publisher = await channel.get_underlay_channel()
        await _published(publisher, "", journal, [(b"", _properties({_MARK: mark}))])
        async for message in messages:
            if _headers(message).get(_MARK) == mark:
                return _offset(message)
    raise AssertionError


async def _deleted(connection: AbstractConnection, queue: str) -> None:
    async with connection.channel(publisher_confirms=False) as channel:
        await channel.queue_delete(queue)


async def _count(connection: AbstractConnection, queue: str) -> tuple[int, int] | None:
    """The messages and consumers of a queue, None if there is none."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        found = await (await channel.get_underlay_channel()).queue_declare(queue, passive=True)
    except ChannelNotFoundEntity as error:
        if "no queue" in str(error):
            return None
        raise  # there is one, on a node that is not up yet
    else:
        return found.message_count or 0, found.consumer_count or 0
    finally:
        with suppress(*_AWAY):
            await channel.close()


async def _declare_exchange(channel: AbstractChannel, name: str) -> None:
    await channel.declare_exchange(name, aio_pika.ExchangeType.FANOUT, durable=True)


async def _published(
    channel: UnderlayChannel,
    exchange: str,
    routing_key: str,
    messages: Sequence[tuple[bytes, spec.Basic.Properties]],
    *,
    mandatory: bool = True,
) -> None:
    """Returns when the server has confirmed all of them, and that a queue has them if it is `mandatory`."""
    done = await asyncio.gather(
        *(
            channel.basic_publish(
                body, exchange=exchange, routing_key=routing_key, properties=properties, mandatory=mandatory
            )
            for body, properties in messages
        ),
        return_exceptions=True,
    )
    for each in done:
        if isinstance(each, BaseException):
            raise each


async def _retried(call: Callable[[], Awaitable[T]], doing: str) -> T:
    """Calls until the server answers; says that it waits."""
    for tried in itertools.count():
        try:
            return await call()
        except (*_AWAY, Unavailable) as error:
            log.warning(
                "RabbitMQ does not answer while %s; trying again: %s", doing, str(error) or "time-out"
            )
        await asyncio.sleep(min(5.0, 0.25 * 2 ** min(tried, 5)))
    raise AssertionError


async def _closed(connection: AbstractConnection, timeout_s: float) -> None:
    with suppress(*_AWAY):
        await asyncio.wait_for(connection.close(), timeout_s)


def _stands(connection: AbstractConnection) -> bool:
    transport = connection.transport
    return transport is not None and not connection.is_closed and not transport.connection.is_closed


@contextmanager
def _translated(to: type[Unavailable]) -> Iterator[None]:
    try:
        yield
    except DeliveryError as error:  # refused, or taken by no queue
        raise to("RabbitMQ: a message was not taken") from error
    except _AWAY as error:
        raise to(f"RabbitMQ: {str(error) or 'no answer in time'}") from error


def queue_of(topic: str, group: str) -> str:
    """The name of the queue in which the messages of `topic` wait for `group`."""
    return topic if group == topic else f"{topic}:{group}"


def _journal_of(topic: str) -> str:
    return f"{topic}:journal"


def _outgoing(message: Message) -> tuple[bytes, spec.Basic.Properties]:
    headers: dict[str, Any] = {**message.headers, _PUBLISHED_AT: f"{time.time():.6f}"}
    if message.key is not None:
        headers[_KEY] = message.key
    return message.value, _properties(headers)


def _properties(headers: Any) -> spec.Basic.Properties:
    return spec.Basic.Properties(delivery_mode=_PERSISTENT, headers=headers)


def _headers(message: DeliveredMessage) -> dict[str, Any]:
    return dict(message.header.properties.headers or {})


def _offset(message: DeliveredMessage) -> int:
    return int(_headers(message)["x-stream-offset"])


def _is_mark(message: DeliveredMessage) -> bool:
    return _MARK in _headers(message)


def _incoming(message: DeliveredMessage) -> Message:
    headers = _headers(message)
    ours = {
        name: value for name, value in headers.items() if isinstance(value, str) and not name.startswith("x-")
    }
    key = headers.get(_KEY)
    return Message(message.body, ours, key if isinstance(key, str) else None)


def _published_at(message: DeliveredMessage) -> float:
    try:
        return float(str(_headers(message)[_PUBLISHED_AT]))
    except (LookupError, ValueError):
        return 0.0  # another's message
