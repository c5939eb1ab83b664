"""What RabbitMQ does beyond the contract of every broker: late, killed, and messages that nobody can finish."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection

from support import RabbitMQ, eventually, free_port, unique_name
from travelrec.adapters import rabbitmq
from travelrec.adapters.rabbitmq import RabbitBroker, RabbitSignals, queue_of
from travelrec.errors import BrokerUnavailable, SignalUnavailable
from travelrec.job import Status, new_uid
from travelrec.ports import Delivery, Subscription
from travelrec.wire import JOBS_TOPIC, PREDICTIONS_TOPIC, TOPICS, Message, Signal, dead_letter_topic

pytestmark = pytest.mark.asyncio


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(taken) < count:
            taken += await subscription.take(count - len(taken), 1.0)
    return taken


async def test_away_is_said_in_time() -> None:
    """A server that does not answer is `BrokerUnavailable`, within the adapter's own time-out."""
    async with RabbitBroker.opened(f"amqp://127.0.0.1:{free_port()}/", timeout_s=0.5) as broker:
        calls = (
            broker.publish("t", [Message(b"x")]),
            broker.oldest_waiting("t", "g"),
            broker.group("t", "g"),
            broker.ping(),
        )
        for call in calls:
            with pytest.raises(BrokerUnavailable):
                await call
        with pytest.raises(SignalUnavailable):
            await RabbitSignals(broker, "s").announce([Signal(new_uid(), Status.COMPLETED)])


async def test_a_server_that_is_silent_is_away(rabbitmq_server: RabbitMQ) -> None:
    """One that takes connections and says nothing is given up in time, and found again when it goes on."""
    async with rabbitmq_server.proxy() as network, AsyncExitStack() as stack:
        url = f"amqp://guest:guest@{network.address}/"
        broker = await stack.enter_async_context(RabbitBroker.opened(url, timeout_s=0.5))
        await broker.ping()
        network.freeze()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable):
                await broker.publish("silent", [Message(b"x")])
        network.thaw()

        async def answers() -> bool:
            try:
                await broker.ping()
            except BrokerUnavailable:
                return False
            return True

        await eventually(answers)


@pytest.mark.real("rabbitmq")
async def test_who_is_earlier_than_the_server_waits_and_says_so(
    new_rabbitmq: Callable[..., RabbitMQ], caplog: pytest.LogCaptureFixture
) -> None:
    """Members and listeners begin by themselves when it is there; what they wait for is in the log."""
    server = new_rabbitmq()
    server.kill()
    heard: list[Signal] = []
    with caplog.at_level(logging.WARNING):
        async with RabbitBroker.opened(server.url, timeout_s=5.0) as broker:
            signals = RabbitSignals(broker, "late")
            async with signals.listen(heard.extend):

                async def taken() -> list[Delivery]:
                    async with broker.subscribe("t", "g") as subscription:
                        return await take(subscription, 1)

                taking = asyncio.create_task(taken())
                waits = "RabbitMQ does not answer while joining the group g"
                await eventually(lambda: waits in caplog.text, 30)
                await asyncio.to_thread(server.start)

                async def both() -> bool:
                    with suppress(BrokerUnavailable, SignalUnavailable):  # it has just begun
                        await broker.publish("t", [Message(b"x")])
                        await signals.announce([Signal(new_uid(), Status.COMPLETED)])
                    return bool(heard)

                await eventually(both, 60)
                assert await taking


async def test_nothing_is_lost_when_the_server_is_killed(new_rabbitmq: Callable[..., RabbitMQ]) -> None:
    """What was published, and what was taken and not acknowledged, is there again when it is back, and ends there."""
    server = new_rabbitmq()
    sent = {f"m{n}".encode() for n in range(300)}
    async with RabbitBroker.opened(server.url, timeout_s=5.0) as broker:
        await broker.publish("t", [Message(value) for value in sent])
        async with broker.subscribe("t", "g"):
            pass
        await eventually(lambda: server.keeps("t:g"))
        async with broker.subscribe("t", "g") as subscription:
            await take(subscription, 100)
            await asyncio.to_thread(server.kill)
            with pytest.raises(BrokerUnavailable):
                await take(subscription, 300)
        with pytest.raises(BrokerUnavailable):
            await broker.publish("t", [Message(b"refused")])
        await asyncio.to_thread(server.start)
        seen: set[bytes] = set()
        async with broker.subscribe("t", "g") as subscription, asyncio.timeout(30):
            while not sent <= seen:
                for delivery in await subscription.take(100, 1.0):
                    seen.add(delivery.message.value)
                    delivery.acknowledge()
        async with broker.subscribe("t", "g") as subscription:
            assert await subscription.take(100, 1.0) == []


async def test_what_members_leave_again_and_again_stays(rabbitmq_server: RabbitMQ) -> None:
    """A bad release joins and leaves for hours, each time with all that it was sent: none of that is lost to it."""
    topic = f"topic-{new_uid()}"
    sent = {f"m{n}".encode() for n in range(5)}
    async with RabbitBroker.opened(rabbitmq_server.url, timeout_s=10.0) as broker:
        await broker.publish(topic, [Message(value) for value in sent])
        for _ in range(30):
            async with broker.subscribe(topic, "g") as subscription:
                taken = await take(subscription, 5)
        assert {delivery.message.value for delivery in taken} == sent


async def test_a_queue_that_was_made_otherwise_stays_as_it_is(rabbitmq_server: RabbitMQ) -> None:
    """One with a limit of deliveries, as earlier releases made it, is published to and read; what is over its limit
    is a dead letter, with its headers and its key."""
    topic = f"topic-{new_uid()}"
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2,
        "x-dead-letter-exchange": dead_letter_topic(topic),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    connection = await aio_pika.connect(rabbitmq_server.url)
    async with (
        connection,
        connection.channel() as channel,
        RabbitBroker.opened(rabbitmq_server.url, timeout_s=10.0) as broker,
    ):
        await broker.publish(topic, [])
        await broker.publish(dead_letter_topic(topic), [])
        queue = await channel.declare_queue(queue_of(topic, "g"), durable=True, arguments=arguments)
        await queue.bind(topic)
        await broker.publish(topic, [Message(b"bad", {"a": "b"}, "k")])
        for _ in range(3):
            async with broker.subscribe(topic, "g") as subscription:
                assert await take(subscription, 1)
        await broker.publish(topic, [Message(b"good")])
        async with broker.subscribe(topic, "g") as subscription:
            assert [d.message.value for d in await take(subscription, 1)] == [b"good"]
        async with broker.subscribe(dead_letter_topic(topic), "looking") as subscription:
            (dead,) = await take(subscription, 1)
        assert dead.message == Message(b"bad", {"a": "b"}, "k")


async def test_a_known_groups_queue_that_was_made_otherwise_is_published_to(
    rabbitmq_server: RabbitMQ,
) -> None:
    """Whoever publishes makes what is missing, and only that."""
    connection = await aio_pika.connect(rabbitmq_server.url)
    async with (
        connection,
        connection.channel() as channel,
        RabbitBroker.opened(rabbitmq_server.url, timeout_s=10.0) as broker,
    ):
        await channel.queue_delete(JOBS_TOPIC)
        await channel.declare_queue(JOBS_TOPIC, durable=True, arguments={"x-queue-type": "quorum"})
        await broker.publish(JOBS_TOPIC, [Message(b"x")])
        assert sum((await broker.group(JOBS_TOPIC, JOBS_TOPIC)).lag.values()) == 1
        await channel.queue_delete(JOBS_TOPIC)


async def test_prefetch_bounds_what_a_member_holds(rabbitmq_server: RabbitMQ) -> None:
    """What is not acknowledged is no more than the prefetch; acknowledging makes room."""
    topic = f"topic-{new_uid()}"
    async with (
        RabbitBroker.opened(rabbitmq_server.url, prefetch=5, timeout_s=10.0) as broker,
        broker.subscribe(topic, "g") as subscription,
    ):
        await broker.publish(topic, [Message(b"x") for _ in range(12)])
        held = await take(subscription, 5)
        assert await subscription.take(5, 0.2) == []
        for delivery in held:
            delivery.acknowledge()
        assert len(await take(subscription, 5)) == 5


async def test_known_groups_are_there_before_their_members(rabbitmq_server: RabbitMQ) -> None:
    """`travelrec topics` makes a queue for each: KEDA can look at it, and nothing is kept twice."""
    async with RabbitBroker.opened(rabbitmq_server.url, timeout_s=10.0) as broker:
        made = dict(await broker.make_topics(TOPICS[:4]))
        assert made[JOBS_TOPIC].endswith(JOBS_TOPIC)
        assert dead_letter_topic(JOBS_TOPIC) in made
        before = sum((await broker.group(PREDICTIONS_TOPIC, PREDICTIONS_TOPIC)).lag.values())
        await broker.publish(PREDICTIONS_TOPIC, [Message(b"x")])
        after = await broker.group(PREDICTIONS_TOPIC, PREDICTIONS_TOPIC)
        assert (after.members, sum(after.lag.values())) == (0, before + 1)
        assert await broker.oldest_waiting(PREDICTIONS_TOPIC, PREDICTIONS_TOPIC) is not None


async def test_looking_into_a_journal_costs_no_connection(
    rabbitmq_server: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """Who reads its first message alone leaves the others without a word that a closed channel would not take."""
    topic = f"topic-{new_uid()}"
    async with RabbitBroker.opened(rabbitmq_server.url, timeout_s=10.0) as broker:
        await broker.publish(topic, [Message(b"x") for _ in range(300)])
        for number in range(10):
            found = await broker.group(topic, f"g{number}")
            assert sum(found.lag.values()) >= 300
    assert "CHANNEL_ERROR" not in caplog.text


async def test_who_reads_slowly_misses_the_oldest(
    rabbitmq_server: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is kept for one that does not keep up; that the connection was lost is told all the same."""
    monkeypatch.setattr(rabbitmq, "_UNHEARD", 5)
    topic, sent = unique_name("topic"), [f"{n}".encode() for n in range(200)]
    async with rabbitmq_server.proxy() as network, AsyncExitStack() as stack:
        broker = await stack.enter_async_context(RabbitBroker.opened(rabbitmq_server.url, timeout_s=10.0))
        far_url = f"amqp://guest:guest@{network.address}/"
        far = await stack.enter_async_context(RabbitBroker.opened(far_url, timeout_s=10.0))
        slow = await stack.enter_async_context(far.tail(topic))
        fast = await stack.enter_async_context(broker.tail(topic))
        for value in sent:
            await broker.publish(topic, [Message(value)])
            assert (await anext(fast)).value == value
        network.cut()
        late: list[bytes] = []

        async def read_on() -> None:
            async for message in slow:
                late.append(message.value)

        with pytest.raises(BrokerUnavailable, match="lost"):
            await read_on()
        assert late
        assert sent[0] not in late


@pytest.mark.real("rabbitmq")
async def test_a_group_whose_making_broke_off_gets_everything(
    rabbitmq_server: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that filled its queue is lost in the middle: the next one begins anew."""
    topic, group = unique_name("topic"), unique_name("group")
    sent = {f"m{n}".encode() for n in range(50)}
    copy = RabbitBroker._copy
    broken: list[str] = []

    async def breaks_off(
        self: RabbitBroker, connection: AbstractConnection, journal: str, queue: str
    ) -> None:
        if broken:
            await copy(self, connection, journal, queue)
            return
        broken.append(queue)
        await connection.close()
        raise ConnectionError("lost")

    monkeypatch.setattr(RabbitBroker, "_copy", breaks_off)
    async with RabbitBroker.opened(rabbitmq_server.url, timeout_s=5.0) as broker:
        await broker.publish(topic, [Message(value) for value in sent])
        async with broker.subscribe(topic, group) as subscription:
            taken = await take(subscription, 50)
    assert broken
    assert {delivery.message.value for delivery in taken} == sent
