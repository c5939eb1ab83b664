"""The role `join`: of the records of three streams one of each trip, whatever their order, the gaps and the repeats.

A record is acknowledged once it stands in the store, and if it completes its trip, once that is published. Who adds
the last record of a trip has it under a lease; what a dead worker held is published once its successor of the same
name has started, or else when the lease has run out. What is published stands under the trip's id as its key, and is
the same whoever publishes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog
from opentelemetry.trace import SpanKind

from travelrec import metrics, tracing
from travelrec.batching import Batcher
from travelrec.errors import RegistryUnavailable, SchemaRefused, TravelrecError, Unavailable, Undecodable
from travelrec.job import new_uid
from travelrec.ports import Broker, Delivery
from travelrec.trips import joining
from travelrec.trips.codec import Codec
from travelrec.trips.entities import INCOMPLETE, JOINED, SOURCES, Stream
from travelrec.trips.joining import Part, Waiting
from travelrec.trips.ports import TripStore
from travelrec.wire import JOINED_TOPIC, Message, dead_letter_topic
from travelrec_worker.backlog import show_lag
from travelrec_worker.progress import Progress
from travelrec_worker.rejected import copied

log = structlog.get_logger(__name__)

DEAD_LETTERS_TOPIC = dead_letter_topic(JOINED_TOPIC)
_LEASE_S = 15.0  # longer than a publish may take; what a dead worker held waits for so long
_REMEMBERED_S = 3600.0  # a published trip, so that a repeat of its records is known for one
_AGAIN_S = 0.5
_MOST_OF_ID = 1_000  # characters: it is a key
_MAX_BYTES = 300_000  # of a record: a broker takes 1 MiB
_LOOK_S = 5.0  # a window is looked at twenty times, but no less often
_LOOKS = 20
_FORGET_S = 60.0
_COUNT_S = 15.0
_AT_A_TIME = 500
_MOST_COUNTED = 100_000


class Join:
    """Handles the records of all three streams; concurrent ones share their writes and their publishes."""

    def __init__(
        self,
        trips: TripStore,
        broker: Broker,
        codec: Codec,
        progress: Progress,
        *,
        window_s: float,
        worker: str | None = None,
    ) -> None:
        self._trips = trips
        self._broker = broker
        self._codec = codec
        self._progress = progress
        self._window_s = window_s
        self._worker = worker
        self._keep_s = _REMEMBERED_S + window_s
        self._ended = False
        self._dead_letters = metrics.DEAD_LETTERS.labels(DEAD_LETTERS_TOPIC)
        self._closed = {what: metrics.TRIPS_CLOSED.labels(what) for what in ("joined", "incomplete", "late")}
        self._parts: Batcher[Part, None] = Batcher(
            self._join_all, max_items=500, max_in_flight=2, grow=150, apart=True
        )
        self._rejects: Batcher[Message, None] = Batcher(self._reject_all, max_in_flight=1)

    async def handle(self, stream: Stream, delivery: Delivery) -> None:
        """One record of `stream`, from its bytes to where it belongs; waits for whatever is away."""
        try:
            part = await self._part(stream, delivery.message)
        except Undecodable as error:
            await self._rejects.submit(_rejected(stream, delivery.message, str(error)))
        else:
            await self._parts.submit(part)
        delivery.acknowledge()

    async def _part(self, stream: Stream, message: Message) -> Part:
        if len(message.value) > _MAX_BYTES:
            raise Undecodable(f"a record of {len(message.value):,} bytes; three of them must fit into one")
        while True:
            try:
                record = await self._codec.decode(stream, message.value)
            except RegistryUnavailable as error:
                await self._pause("record not read yet", error, topic=stream.topic)
            else:
                break
        if any(not isinstance(each, str | float | int | None) for each in record.values()):
            raise Undecodable("a record with logical types, which our schema has not")
        trip_id = record["trip_id"]
        if not isinstance(trip_id, str) or not 0 < len(trip_id) <= _MOST_OF_ID:
            raise Undecodable("a record without a usable trip_id")
        trace = message.headers.get("traceparent") if tracing.trace_id(message.headers) else None
        return Part(trip_id, stream.name, record, trace)  # type: ignore[arg-type]  # as its schema says

    async def _join_all(self, parts: list[Part]) -> list[None]:
        """Keeps `parts`, and publishes the trips that they complete."""
        token = joining.token_of(self._worker, new_uid())
        while True:
            now = time.time()
            try:
                with self._progress.calling("adding to trips", calls=6):
                    ready = await self._trips.add(parts, token, now, now + self._window_s, now + _LEASE_S)
            except Unavailable as error:  # what was written is found by asking again with the same token
                await self._pause("records not kept yet", error, records=len(parts))
            else:
                break
        if ready:
            await self._publish(ready)
        return [None] * len(parts)

    async def _publish(self, trips: Sequence[Waiting]) -> None:
        """Publishes what became of `trips`, and notes that; waits for whatever is away."""
        while True:
            try:
                await self._codec.register((JOINED, INCOMPLETE))
                with self._progress.calling("publishing trips", calls=2):
                    await self._send(JOINED, [trip for trip in trips if trip.joins])
                    await self._send(INCOMPLETE, [trip for trip in trips if not trip.joins])
                now = time.time()
                with self._progress.calling("closing trips", calls=4):
                    await self._trips.close(trips, now, now + self._keep_s)
            except (Unavailable, SchemaRefused) as error:
                await self._pause("trips not published yet", error, trips=len(trips))
            else:
                break
        for trip in trips:
            self._closed["joined" if trip.joins else "late" if trip.told else "incomplete"].inc()
            if trip.joins:
                metrics.JOIN_SECONDS.observe(max(0.0, now - trip.seen_at))

    async def _send(self, stream: Stream, trips: Sequence[Waiting]) -> None:
        if not trips:
            return
        to_record = joining.joined_record if stream is JOINED else joining.incomplete_record
        messages = [
            Message(self._codec.encode(stream, to_record(trip)), _headers(stream, trip), trip.trip_id)
            for trip in trips
        ]
        await self._broker.publish(stream.topic, messages)

    async def _reject_all(self, messages: list[Message]) -> list[None]:
        while True:
            try:
                with self._progress.calling("rejecting records", calls=1):
                    await self._broker.publish(DEAD_LETTERS_TOPIC, messages)
            except Unavailable as error:
                await self._pause("no dead letter yet", error, records=len(messages))
            else:
                break
        self._dead_letters.inc(len(messages))
        return [None] * len(messages)

    async def inherit(self) -> None:
        """Makes due what a dead worker of this one's name has left leased, before this one leases any.

        When the store can't be reached now those leases are left to run out.
        """
        if self._worker is None:
            return
        now = time.time()
        try:
            with self._progress.calling("releasing trips", calls=1):
                left = await self._trips.release(self._worker, now, now + _LEASE_S)
        except Unavailable as error:
            log.warning("trips not released", worker=self._worker, error=str(error))
        else:
            if left:
                log.info("trips of a dead worker released", worker=self._worker, trips=left)

    async def end(self) -> None:
        """Returns when no batch is on its way: one that waits for what is away is left to another worker."""
        self._ended = True
        await self._parts.drain()
        await self._rejects.drain()

    async def _pause(self, told: str, error: TravelrecError, **more: str | int) -> None:
        log.warning(told, error=str(error), **more)
        if self._ended:
            raise error
        await asyncio.sleep(_AGAIN_S)

    async def sweep(self) -> None:
        """Until cancelled: publishes what is due, incomplete or left by the dead, and forgets what is old."""
        forget_at = 0.0
        while True:
            try:
                while await self._publish_due():
                    pass
                if time.monotonic() >= forget_at:
                    while await self._trips.purge(time.time(), _AT_A_TIME) == _AT_A_TIME:
                        pass
                    forget_at = time.monotonic() + _FORGET_S
            except Unavailable as error:
                log.warning("trips not looked at", error=str(error))
            except Exception:  # what is due is looked at again, and the process has other roles
                log.exception("trips not looked at")
            await asyncio.sleep(min(_LOOK_S, self._window_s / _LOOKS))

    async def _publish_due(self) -> int:
        now = time.time()
        with self._progress.calling("taking due trips", calls=3):
            token = joining.token_of(self._worker, new_uid())
            due = await self._trips.take_due(token, now, now + _LEASE_S, _AT_A_TIME)
        if due:
            log.info("trips due", trips=len(due), whole=sum(trip.joins for trip in due))
            await self._publish(due)
        return len(due)

    async def watch(self) -> None:
        """Until cancelled: counts what is open, and what waits in the broker."""
        while True:
            try:
                metrics.TRIPS_OPEN.set(await self._trips.open(_MOST_COUNTED))
                for stream in SOURCES:
                    await show_lag(self._broker, stream.topic, group_of(stream))
            except Unavailable as error:
                log.warning("trips not counted", error=str(error))
            await asyncio.sleep(_COUNT_S)


def group_of(stream: Stream) -> str:
    """The consumer group in which the join takes the records of `stream`."""
    return f"travelrec.join.{stream.name}"


def _headers(stream: Stream, trip: Waiting) -> dict[str, str]:
    """Those of the span that publishes a trip: below that of its first record, and linked to those of all."""
    sources = [trip.traces[name] for name in joining.NAMES if name in trip.traces]
    parent = next(
        ({"traceparent": source} for source in sources if tracing.sampled({"traceparent": source})), None
    )
    if parent is None:
        return {"traceparent": sources[0]} if sources else {}
    attributes = {"messaging.destination.name": stream.topic, "travelrec.trip_id": trip.trip_id}
    span = tracing.started(f"publish {stream.topic}", parent, SpanKind.PRODUCER, attributes)
    for source in sources:
        tracing.linked(span, source)
    span.end()
    return tracing.carried(span)


def _rejected(stream: Stream, message: Message, reason: str) -> Message:
    return copied(message, {"travelrec-error": reason, "travelrec-topic": stream.topic})
