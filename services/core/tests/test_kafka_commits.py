"""Offsets are noted in the end, whatever the broker says in between."""

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from travelrec.adapters import kafka

pytestmark = pytest.mark.asyncio
PLACE = TopicPartition("jobs", 0)


class Consumer:
    """Hands out one message; its first commit fails."""

    def __init__(self) -> None:
        self._coordinator = SimpleNamespace()
        self.commits: list[int] = []
        self.noted = asyncio.Event()

    def assignment(self) -> set[TopicPartition]:
        return {PLACE}

    async def getmany(self, *_: object, **__: object) -> dict[TopicPartition, list[object]]:
        return {PLACE: [SimpleNamespace(offset=0, value=b"", headers=(), key=None)]}

    async def commit(self, offsets: dict[TopicPartition, SimpleNamespace]) -> None:
        self.commits.append(offsets[PLACE].offset)
        if len(self.commits) == 1:
            raise KafkaError("away")
        self.noted.set()


async def test_a_commit_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nothing else is acknowledged: else the sweepers would take a finished message for a backlog."""
    monkeypatch.setattr(kafka, "_COMMIT_AGAIN_S", 0.01)
    consumer = Consumer()
    subscription = kafka._KafkaSubscription(consumer, is_named=False)
    try:
        (delivery,) = await subscription.take(1, 1.0)
        delivery.acknowledge()
        await asyncio.wait_for(consumer.noted.wait(), 5.0)
    finally:
        await subscription.leave()
    assert consumer.commits == [1, 1]
