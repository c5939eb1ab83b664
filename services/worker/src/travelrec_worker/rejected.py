"""What happens to a message that nobody can read."""

from __future__ import annotations

import asyncio

from travelrec import metrics
from travelrec.errors import BrokerUnavailable
from travelrec.ports import Broker, Delivery
from travelrec.wire import Message, dead_letter_topic

_RETRY_S = 0.5


async def rejected(broker: Broker, topic: str, delivery: Delivery, reason: str) -> None:
    """Acknowledges a message of `topic` once a copy of it, with the reason, is on its dead-letter topic."""
    message = delivery.message
    copy = Message(message.value, {**message.headers, "travelrec-error": reason}, message.key)
    while True:
        try:
            await broker.publish(dead_letter_topic(topic), [copy])
        except BrokerUnavailable:
            await asyncio.sleep(_RETRY_S)
        else:
            break
    metrics.DEAD_LETTERS.labels(dead_letter_topic(topic)).inc()
    delivery.acknowledge()
