"""What happens to a message that nobody can read, or whose handler fails whatever is tried."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from travelrec import metrics
from travelrec.errors import BrokerUnavailable
from travelrec.ports import Broker, Delivery
from travelrec.wire import Message, dead_letter_topic

_RETRY_S = 0.5
_MAX_BYTES = 512 * 1024
_MAX_HEADERS, _MAX_HEADER = 50, 2048  # of which each may have so many characters, as may the key


def copied(message: Message, more: Mapping[str, str]) -> Message:
    """A copy for a dead-letter topic, with `more` headers; of a message that brokers would refuse only the beginning.

    One that came compressed, or from a topic for larger ones, may be too large for it; `travelrec-bytes` then has its
    size.
    """
    kept = [(n, v) for n, v in message.headers.items() if len(n) + len(v) <= _MAX_HEADER][:_MAX_HEADERS]
    headers = {**dict(kept), **more}
    if len(message.value) > _MAX_BYTES:
        headers["travelrec-bytes"] = str(len(message.value))
    key = message.key if message.key is None else message.key[:_MAX_HEADER]
    return Message(message.value[:_MAX_BYTES], headers, key)


async def rejected(
    broker: Broker, topic: str, delivery: Delivery, reason: str, dead_letters: str | None = None
) -> None:
    """Acknowledges a message of `topic` once a copy of it, with the reason, is on its dead-letter topic."""
    to = dead_letters or dead_letter_topic(topic)
    copy = copied(delivery.message, {"travelrec-error": reason, "travelrec-topic": topic})
    while True:
        try:
            await broker.publish(to, [copy])
        except BrokerUnavailable:
            await asyncio.sleep(_RETRY_S)
        else:
            break
    metrics.DEAD_LETTERS.labels(to).inc()
    delivery.acknowledge()
