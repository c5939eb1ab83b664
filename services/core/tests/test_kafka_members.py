"""Named members of a group on a real Kafka."""

import asyncio
from contextlib import suppress

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from support import Kafka, eventually, unique_name
from travelrec.adapters.kafka import KafkaBroker
from travelrec.errors import BrokerUnavailable
from travelrec.ports import Subscription
from travelrec.wire import Message

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

MISSED_S = 15.0  # then Kafka gives up a member that says nothing


class Taker:
    """Takes and acknowledges all the time; `taken` is what it got."""

    def __init__(self, kafka: Kafka, topic: str, member: str | None) -> None:
        self.taken: list[bytes] = []
        self.stopping = asyncio.Event()
        self._kafka, self._topic, self._member = kafka, topic, member
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with KafkaBroker.opened(self._kafka.address, member=self._member) as broker:
            while not self.stopping.is_set():
                with suppress(BrokerUnavailable):  # then it joins again, as the engine does
                    async with broker.subscribe(self._topic, self._topic) as subscription:
                        while not self.stopping.is_set():
                            await self._take(subscription)

    async def _take(self, subscription: Subscription) -> None:
        for delivery in await subscription.take(10, 0.1):
            self.taken.append(delivery.message.value)
            delivery.acknowledge()

    async def stop(self) -> None:
        self.stopping.set()
        await self.task


async def publish(kafka: Kafka, topic: str, takers: list[Taker]) -> bool:
    """Sends a few to each partition; whether each of the takers has had some."""
    async with KafkaBroker.opened(kafka.address) as broker:
        for _ in range(12):
            await broker.publish(topic, [Message(b"x")])
    return all(taker.taken for taker in takers)


async def test_who_leaves_in_order_is_not_waited_for(kafka_server: Kafka) -> None:
    """When a named member ends, the other has all the partitions long before it would be missed."""
    topic = unique_name("topic")
    one, other = Taker(kafka_server, topic, "one"), Taker(kafka_server, topic, "other")
    await eventually(lambda: publish(kafka_server, topic, [one, other]), 20)
    await one.stop()
    sent = len(other.taken)
    async with KafkaBroker.opened(kafka_server.address) as broker:
        for _ in range(12):  # each to the next partition
            await broker.publish(topic, [Message(b"later")])
    await eventually(lambda: other.taken[sent:].count(b"later") == 12, MISSED_S / 2)
    await other.stop()


async def test_two_of_one_name_do_not_fight_for_ever(kafka_server: Kafka) -> None:
    """They give the name up: Kafka knows two members, which share the partitions."""
    topic = unique_name("topic")
    takers = [Taker(kafka_server, topic, "same") for _ in range(2)]
    await eventually(lambda: members(kafka_server, topic, 2), 30)
    for taker in takers:
        taker.taken.clear()
    await eventually(lambda: publish(kafka_server, topic, takers), 10)
    await asyncio.gather(*(taker.stop() for taker in takers))


async def members(kafka: Kafka, group: str, count: int) -> bool:
    """Whether a group is at rest with so many."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([group])
        _, _, state, _, _, found, *_ = answer.groups[0]
        return state == "Stable" and len(found) == count
    except GroupCoordinatorNotAvailableError:  # Kafka makes the topic of the groups with the first of them
        return False
    finally:
        await admin.close()
