"""The role `relay`: brings what was answered into the user's history, and rings for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import structlog
from opentelemetry.trace import SpanKind

from travelrec import metrics, tracing
from travelrec.chat.ports import ChatHistory
from travelrec.chat.wire import decode_reply
from travelrec.errors import Unavailable, Undecodable
from travelrec.ports import Broker, Delivery
from travelrec.wire import RESPONSES_TOPIC, dead_letter_topic
from travelrec_worker.rejected import rejected

log = structlog.get_logger(__name__)

_RETRY_S = 0.5


class Relay:
    """Handles one reply; those of a user come in turn. It is acknowledged when the history has it and has rung."""

    def __init__(self, broker: Broker, history: ChatHistory) -> None:
        self._broker = broker
        self._history = history
        metrics.DEAD_LETTERS.labels(dead_letter_topic(RESPONSES_TOPIC))  # from 0 on: the first is an increase
        self._repeats = metrics.CHAT_REPEATS.labels("relay")

    async def handle(self, delivery: Delivery) -> None:
        """One reply, however long the history is away."""
        message = delivery.message
        try:
            reply = decode_reply(message)
        except Undecodable as error:
            await rejected(self._broker, RESPONSES_TOPIC, delivery, str(error))
            return
        with tracing.span("relay", message.headers, SpanKind.CONSUMER) as span:
            reply = replace(reply, trace=tracing.carried(span).get("traceparent"))
            while True:
                try:
                    added = await self._history.append(reply)
                except Unavailable as error:
                    log.warning("reply not relayed yet", message=reply.to.id, error=str(error))
                    await asyncio.sleep(_RETRY_S)
                else:
                    break
        if added:
            metrics.CHAT_SECONDS.observe(
                max(0.0, time.time() - reply.to.at), tracing.exemplar(message.headers)
            )
        else:
            self._repeats.inc()
        delivery.acknowledge()
