"""The contracts of `ports.Broker` and `ports.Signals`, held by every adapter."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from support import Kafka, eventually
from travelrec.adapters.memory import MemoryBroker, MemorySignals
from travelrec.errors import BrokerUnavailable, SignalUnavailable
from travelrec.job import Status, new_uid
from travelrec.ports import Broker, Delivery, Signals, Subscription
from travelrec.wire import Message, Signal

pytestmark = pytest.mark.asyncio

BROKERS = [
    "memory",
    pytest.param("kafka", marks=pytest.mark.real("kafka")),
    pytest.param("rabbitmq", marks=pytest.mark.real("rabbitmq")),
]


@pytest_asyncio.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    if request.param == "memory":
        yield MemoryBroker()
        return
    if request.param == "rabbitmq":
        from travelrec.adapters.rabbitmq import RabbitBroker

        url = request.getfixturevalue("rabbitmq_server").url
        async with RabbitBroker.opened(url, timeout_s=10.0) as rabbit:
            yield rabbit
        return
    from travelrec.adapters.kafka import KafkaBroker

    server = request.getfixturevalue("kafka_server")
    async with KafkaBroker.opened(server.address, partitions=3, timeout_s=10.0) as kafka:
        yield kafka


@pytest_asyncio.fixture(params=[*BROKERS, pytest.param("redis", marks=pytest.mark.real("redis"))])
async def signals(request: pytest.FixtureRequest) -> AsyncIterator[Signals]:
    if request.param == "memory":
        yield MemorySignals()
        return
    if request.param == "rabbitmq":
        from travelrec.adapters.rabbitmq import RabbitBroker, RabbitSignals

        url = request.getfixturevalue("rabbitmq_server").url
        async with RabbitBroker.opened(url, timeout_s=10.0) as rabbit:
            yield RabbitSignals(rabbit, f"signals-{new_uid()}")
        return
    if request.param == "redis":
        from travelrec.adapters.redis_signals import RedisSignals

        url = request.getfixturevalue("redis_server").url
        async with RedisSignals.opened(url, f"signals-{new_uid()}", timeout_s=10.0) as redis:
            yield redis
        return
    from travelrec.adapters.kafka import KafkaBroker, KafkaSignals

    server = request.getfixturevalue("kafka_server")
    async with KafkaBroker.opened(server.address, partitions=1, timeout_s=10.0) as kafka:
        yield KafkaSignals(kafka, f"signals-{new_uid()}")


@pytest.fixture
def topic() -> str:
    return f"topic-{new_uid()}"


@pytest.fixture
def group() -> str:
    return f"group-{new_uid()}"


def messages(count: int) -> list[Message]:
    return [Message(f"m{n}".encode(), {"n": str(n), "ü": "ö"}) for n in range(count)]


async def take_all(subscription: Subscription, count: int, limit: int = 100) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            taken += await subscription.take(min(limit, count - len(taken)), 1.0)
    return taken


async def test_what_is_published_is_taken_once(broker: Broker, topic: str, group: str) -> None:
    """Values and headers arrive unchanged, each message once."""
    sent = messages(100)
    await broker.publish(topic, sent)
    async with broker.subscribe(topic, group) as subscription:
        taken = await take_all(subscription, 100)
        assert sorted(d.message.value for d in taken) == sorted(m.value for m in sent)
        assert {d.message.headers["n"] for d in taken} == {m.headers["n"] for m in sent}
        assert all(d.message.headers["ü"] == "ö" for d in taken)
        for delivery in taken:
            delivery.acknowledge()
        assert await subscription.take(10, 0.2) == []


async def test_take_is_bounded(broker: Broker, topic: str, group: str) -> None:
    """A take never gives more than was asked for, and nothing for 0."""
    await broker.publish(topic, messages(10))
    async with broker.subscribe(topic, group) as subscription:
        assert await subscription.take(0, 1.0) == []
        assert len(await take_all(subscription, 1, limit=1)) == 1
        assert len(await subscription.take(3, 1.0)) <= 3


async def test_keyed_messages_keep_their_order(broker: Broker, topic: str, group: str) -> None:
    """Messages of one key are taken in the order in which they were published."""
    await broker.publish(topic, [Message(str(n).encode(), key=f"k{n % 4}") for n in range(80)])
    async with broker.subscribe(topic, group) as subscription:
        taken = await take_all(subscription, 80)
    for key in ("k0", "k1", "k2", "k3"):
        numbers = [int(d.message.value) for d in taken if d.message.key == key]
        assert numbers == sorted(numbers)
        assert len(numbers) == 20


async def test_every_group_takes_everything(broker: Broker, topic: str) -> None:
    """Groups do not take from each other; a late one begins at the oldest message."""
    await broker.publish(topic, messages(5))
    async with broker.subscribe(topic, "one") as one:
        assert len(await take_all(one, 5)) == 5
    async with broker.subscribe(topic, "two") as two:
        assert len(await take_all(two, 5)) == 5


async def test_unacknowledged_comes_again_to_the_next_member(broker: Broker, topic: str, group: str) -> None:
    """Acknowledged out of order: what was not acknowledged is delivered again, and none of it is lost."""
    await broker.publish(topic, messages(20))
    async with broker.subscribe(topic, group) as first:
        taken = await take_all(first, 20)
        kept = {d.message.value for d in taken[5:7]}
        for delivery in reversed(taken):
            if delivery.message.value not in kept:
                delivery.acknowledge()
    async with broker.subscribe(topic, group) as second:
        again: set[bytes] = set()
        async with asyncio.timeout(30):
            while not kept <= again:
                again |= {d.message.value for d in await second.take(20, 1.0)}


async def test_acknowledged_does_not_come_again(broker: Broker, topic: str, group: str) -> None:
    """Leaving notes what was acknowledged."""
    await broker.publish(topic, messages(20))
    async with broker.subscribe(topic, group) as first:
        for delivery in await take_all(first, 20):
            delivery.acknowledge()
    await broker.publish(topic, [Message(b"new")])
    async with broker.subscribe(topic, group) as second:
        assert [d.message.value for d in await take_all(second, 1)] == [b"new"]


async def test_oldest_waiting_is_the_first_that_is_not_acknowledged(
    broker: Broker, topic: str, group: str
) -> None:
    """Taken but unacknowledged messages still wait; the time is that of the publish; None when nothing waits."""
    before = time.time()
    await broker.publish(topic, messages(12))
    between = time.time()
    assert before - 0.1 <= (await broker.oldest_waiting(topic, group) or 0) <= between + 0.1
    async with broker.subscribe(topic, group) as subscription:
        taken = await take_all(subscription, 12)
        assert before - 0.1 <= (await broker.oldest_waiting(topic, group) or 0) <= between + 0.1
        for delivery in taken:
            delivery.acknowledge()

        async def none_waits() -> bool:
            return await broker.oldest_waiting(topic, group) is None

        await eventually(none_waits, 20, "nothing waits")
        await eventually(lambda: time.time() > between + 0.2, 5)
        later = time.time()
        await broker.publish(topic, [Message(b"late")])
        assert later - 0.1 <= (await broker.oldest_waiting(topic, group) or 0)


async def test_a_group_tells_its_members_and_what_it_has_not_acknowledged(
    broker: Broker, topic: str, group: str
) -> None:
    """Every message lags until it is acknowledged, also before the group was ever seen and after it was left."""
    await broker.publish(topic, messages(20))
    told = await broker.group(topic, group)
    assert (told.members, sum(told.lag.values())) == (0, 20)
    async with broker.subscribe(topic, group) as subscription:
        taken = await take_all(subscription, 20)
        told = await broker.group(topic, group)
        assert (told.members, sum(told.lag.values())) == (1, 20)
        for delivery in taken:
            delivery.acknowledge()

        async def noted() -> bool:
            return not any((await broker.group(topic, group)).lag.values())

        await eventually(noted)
        await broker.publish(topic, messages(5))

    async def left() -> bool:  # a server may tell of a member for a moment longer
        told = await broker.group(topic, group)
        assert (told.members, sum(told.lag.values())) == (0, 5)
        return True

    await eventually(left)


async def test_members_share_the_messages(broker: Broker, topic: str, group: str) -> None:
    """Two members of a group get each message once between them, also while one joins and leaves."""
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(broker.subscribe(topic, group)) for _ in range(2)]
        await asyncio.gather(*(member.take(1, 3.0) for member in members))
        await broker.publish(topic, messages(60))
        seen: set[bytes] = set()
        async with asyncio.timeout(40):
            while len(seen) < 60:
                for member in members:
                    for delivery in await member.take(100, 0.1):
                        seen.add(delivery.message.value)
                        delivery.acknowledge()


async def test_ping_answers(broker: Broker) -> None:
    """A broker that is there says so."""
    await broker.ping()


async def test_signals_reach_every_listener(signals: Signals) -> None:
    """Everybody who listens hears everything that is announced from then on."""
    await signals.announce([Signal(new_uid(), Status.FAILED)])
    heard: list[list[Signal]] = [[], []]
    sent = [Signal(new_uid(), Status.COMPLETED) for _ in range(50)]
    async with signals.listen(heard[0].extend), signals.listen(heard[1].extend):
        await signals.announce(sent)
        await eventually(lambda: all(len(h) >= 50 for h in heard), 20, "both heard all")
    assert heard == [sent, sent]


async def test_signals_stop_when_left(signals: Signals) -> None:
    """Nothing is heard after leaving."""
    heard: list[Signal] = []
    async with signals.listen(heard.extend):
        pass
    await signals.announce([Signal(new_uid(), Status.COMPLETED)])
    assert heard == []


@pytest.mark.real("kafka")
async def test_a_record_of_somebody_else_is_delivered(kafka_server: Kafka, topic: str, group: str) -> None:
    """Its headers may have no value, nor it itself: an error there would end every member of the group in turn."""
    from aiokafka import AIOKafkaProducer

    from travelrec.adapters.kafka import KafkaBroker

    async with (
        KafkaBroker.opened(kafka_server.address, timeout_s=10.0) as kafka,
        kafka.subscribe(topic, group) as subscription,
        AIOKafkaProducer(bootstrap_servers=kafka_server.address) as producer,
    ):
        headers = [("none", None), ("bytes", b"\xff")]
        await producer.send_and_wait(topic, None, key=b"\xff", headers=headers)
        (delivery,) = await take_all(subscription, 1)
    assert delivery.message == Message(b"", {"none": "", "bytes": "\ufffd"}, "\ufffd")


@pytest.mark.real("kafka")
async def test_a_signal_that_is_none_ends_no_listener(kafka_server: Kafka) -> None:
    """What somebody else writes to the topic, a tombstone for one, is skipped."""
    from aiokafka import AIOKafkaProducer

    from travelrec.adapters.kafka import KafkaBroker, KafkaSignals

    heard: list[Signal] = []
    signal = Signal(new_uid(), Status.COMPLETED)
    topic = f"signals-{new_uid()}"
    async with KafkaBroker.opened(kafka_server.address, timeout_s=10.0) as kafka:
        signals = KafkaSignals(kafka, topic)
        async with (
            signals.listen(heard.extend),
            AIOKafkaProducer(bootstrap_servers=kafka_server.address) as producer,
        ):
            for value in (None, b"\xff", b"[1]"):
                for partition in await producer.partitions_for(topic):
                    await producer.send_and_wait(topic, value, key=b"k", partition=partition)
            await signals.announce([signal])
            await eventually(lambda: heard == [signal], 20, "heard the signal behind them")


async def test_kafka_away_is_said_in_time() -> None:
    """A server that does not answer is `BrokerUnavailable`, within the adapter's own time-out."""
    from support import free_port
    from travelrec.adapters.kafka import KafkaBroker, KafkaSignals

    async with KafkaBroker.opened(f"127.0.0.1:{free_port()}", timeout_s=0.5) as broker:
        for call in (broker.publish("t", messages(1)), broker.oldest_waiting("t", "g"), broker.ping()):
            with pytest.raises(BrokerUnavailable):
                await call
        with pytest.raises(SignalUnavailable):
            await KafkaSignals(broker, "s").announce([Signal(new_uid(), Status.COMPLETED)])


@pytest.mark.real("kafka")
async def test_kafka_member_that_is_early_gets_its_partitions(kafka_server, topic: str, group: str) -> None:  # type: ignore[no-untyped-def]
    """A topic that was just made may not be known yet to the server that a member asks: it waits for it."""
    from travelrec.adapters.kafka import KafkaBroker

    async with (
        KafkaBroker.opened(kafka_server.address, timeout_s=10.0) as early,
        KafkaBroker.opened(kafka_server.address, timeout_s=10.0) as maker,
    ):
        early._ensured.add(topic)  # as if a server that is ahead of the others had made it

        async def taken() -> list[Delivery]:
            async with early.subscribe(topic, group) as subscription:
                return await take_all(subscription, 1)

        taking = asyncio.create_task(taken())
        await asyncio.sleep(1.0)  # it has asked by now, and would have joined
        await maker.publish(topic, messages(1))
        assert len(await asyncio.wait_for(taking, 25)) == 1


@pytest.mark.real("kafka")
async def test_kafka_comes_back(new_kafka, group: str) -> None:  # type: ignore[no-untyped-def]
    """After the server was stopped and started again, the same broker publishes and delivers again."""
    from travelrec.adapters.kafka import KafkaBroker

    server = new_kafka()
    async with KafkaBroker.opened(server.address, timeout_s=2.0) as broker:
        await broker.publish("t", messages(3))
        async with broker.subscribe("t", group) as subscription:
            for delivery in await take_all(subscription, 3):
                delivery.acknowledge()
            server.kill()
            with pytest.raises(BrokerUnavailable):
                await broker.publish("t", [Message(b"lost")])
            server.start()

            async def published() -> bool:
                try:
                    await broker.publish("t", [Message(b"back")])
                except BrokerUnavailable:
                    return False
                return True

            await eventually(published, 60, "published again")
            values: set[bytes] = set()
            async with asyncio.timeout(60):
                while b"back" not in values:
                    values |= {d.message.value for d in await subscription.take(10, 1.0)}


@pytest.mark.real("kafka")
async def test_a_long_partition_holds_up_no_other(kafka_server, topic: str, group: str) -> None:  # type: ignore[no-untyped-def]
    """A take has something of every partition that has something, however much waits in one of them."""
    from travelrec.adapters.kafka import KafkaBroker

    async with KafkaBroker.opened(kafka_server.address, partitions=3, timeout_s=10.0) as broker:
        await broker.publish(topic, [Message(b"", key="many") for _ in range(1000)])
        await broker.publish(topic, [Message(b"", key=f"few {n}") for n in range(9)])
        async with broker.subscribe(topic, group) as subscription:
            taken = await take_all(subscription, 300, limit=30)
            few = {d.message.key for d in taken} - {"many"}
            assert len(few) == 7, "all whose partition is another one"
            assert len(await subscription.take(300, 1.0)) == 300, "and one alone may fill a take"


@pytest.mark.real("kafka")
async def test_take_ends_in_time_while_kafka_assigns_anew(kafka_server, topic: str, group: str) -> None:  # type: ignore[no-untyped-def]
    """A member that waits for another one's consent to a rebalance is not held up in its turn."""
    from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener

    from travelrec.adapters.kafka import KafkaBroker

    consents, asked = asyncio.Event(), asyncio.Event()

    class Reluctant(ConsumerRebalanceListener):
        async def on_partitions_revoked(self, revoked: set[object]) -> None:
            if revoked:
                asked.set()
                await consents.wait()

        async def on_partitions_assigned(self, assigned: set[object]) -> None:
            pass

    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            KafkaBroker.opened(kafka_server.address, partitions=3, timeout_s=10.0)
        )
        member = await stack.enter_async_context(broker.subscribe(topic, group))
        reluctant = AIOKafkaConsumer(
            bootstrap_servers=kafka_server.address, group_id=group, rebalance_timeout_ms=60_000
        )
        await reluctant.start()
        stack.push_async_callback(reluctant.stop)
        stack.callback(consents.set)
        reluctant.subscribe([topic], listener=Reluctant())
        async with asyncio.timeout(30):
            while not reluctant.assignment():
                await member.take(1, 0.1)
        await stack.enter_async_context(broker.subscribe(topic, group))
        async with asyncio.timeout(30):
            await asked.wait()
            await eventually(lambda: member._consumer._subscription.reassignment_in_progress, 20)
            assert await member.take(1, 0.1) == []
            assert await member.take(0, 0.0) == []
