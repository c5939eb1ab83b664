"""Publish: three Avro records of each made-up trip, keyed by its id, in one go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from opentelemetry.trace import Span, SpanKind

from travelrec import metrics, tracing
from travelrec.errors import BrokerUnavailable
from travelrec.ports import Broker
from travelrec.trips.codec import Codec
from travelrec.trips.entities import SOURCES, Stream
from travelrec.trips.made_up import MadeUp, made_up, new_request_id
from travelrec.wire import PUBLISHED_AT, Message

REQUEST_ID = "travelrec-request-id"  # header


class TripPublisher:
    """Makes trips up and publishes them."""

    def __init__(self, broker: Broker, codec: Codec) -> None:
        self._broker = broker
        self._codec = codec

    async def publish(self, count: int, span: Span) -> tuple[str, list[str]]:
        """A request id and the ids of `count` new trips, once the broker has acknowledged every record of theirs.

        Raises `BrokerUnavailable` where one may not be, `RegistryUnavailable`, and `SchemaRefused`.
        """
        await self._codec.register(SOURCES)
        request_id = new_request_id()
        trips = made_up(request_id, count)
        sent = await asyncio.gather(
            *(self._publish(stream, trips, request_id, span) for stream in SOURCES), return_exceptions=True
        )
        for error in sent:
            if error is not None:
                raise error
        metrics.TRIPS_MADE.inc(count)
        return request_id, [made.trip.trip_id for made in trips]

    async def _publish(self, stream: Stream, trips: Sequence[MadeUp], request_id: str, parent: Span) -> None:
        attributes = {"messaging.system": self._broker.system, "messaging.destination.name": stream.topic}
        with tracing.span(f"publish {stream.topic}", parent, SpanKind.PRODUCER, attributes) as span:
            headers = {**tracing.carried(span), REQUEST_ID: request_id, PUBLISHED_AT: f"{time.time():.6f}"}
            records = [getattr(made, stream.name) for made in trips]
            messages = [
                Message(self._codec.encode(stream, vars(record)), headers, record.trip_id)
                for record in records
            ]
            try:
                await self._broker.publish(stream.topic, messages)
            except BrokerUnavailable:
                metrics.TRIP_RECORDS.labels(stream.topic, "unacknowledged").inc(len(messages))
                raise
            metrics.TRIP_RECORDS.labels(stream.topic, "acknowledged").inc(len(messages))
