"""The rules of the join: what a trip's records come to, in whatever order, however often; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from travelrec.trips.entities import SOURCES, IncompleteTrip, JoinedTrip

NAMES = tuple(stream.name for stream in SOURCES)

Value = str | float | None
Record = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Part:
    """A trip's record of one stream; `trace` carries the span that published it."""

    trip_id: str
    stream: str
    record: Record
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A trip of which records have come: those of each stream, and what was already published of it."""

    trip_id: str
    seen_at: float
    due_at: float | None  # when somebody must look at it; None: published
    keep_until: float | None = None
    token: str | None = None
    parts: Mapping[str, Record] = field(default_factory=dict)
    traces: Mapping[str, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()  # the streams whose records were published, incomplete
    joined: bool = False

    @property
    def whole(self) -> bool:
        """Whether all its records are there."""
        return len(self.parts) == len(NAMES)

    @property
    def has_news(self) -> bool:
        """Whether records came after it was published incomplete."""
        return bool(self.told) and not self.joined and any(name not in self.told for name in self.parts)

    @property
    def joins(self) -> bool:
        """Whether what is to be published is its joined record: it became whole in time."""
        return self.whole and not self.told

    @property
    def missing(self) -> list[str]:
        """The streams whose record has not come."""
        return [name for name in NAMES if name not in self.parts]


def first_seen(trip_id: str, now: float, due_at: float) -> Waiting:
    """A trip before its first record."""
    return Waiting(trip_id, now, due_at)


def with_part(trip: Waiting, part: Part) -> Waiting:
    """`trip` with one more record, or with a newer one of its stream; a joined trip stays as it is."""
    if trip.joined:
        return trip
    traces = trip.traces if part.trace is None else {**trip.traces, part.stream: part.trace}
    return replace(trip, parts={**trip.parts, part.stream: part.record}, traces=traces)


def leasable(trip: Waiting) -> bool:
    """Whether it is whole, and nobody has it or has published it."""
    return trip.whole and trip.token is None and trip.due_at is not None


def leased(trip: Waiting, token: str, until: float) -> Waiting:
    """`trip` in the hands of `token`, and due again if that comes to nothing."""
    return replace(trip, token=token, due_at=until)


def token_of(worker: str | None, uid: str) -> str:
    """The token `uid` of a call of `worker`, which may have no name; the store finds it by that name."""
    return uid if worker is None else f"{worker}/{uid}"


def releasable(trip: Waiting, worker: str, until: float) -> bool:
    """Whether `worker`, under whatever token, has leased it until `until` at most, and not published it."""
    leased_by_worker = trip.token is not None and trip.token.startswith(token_of(worker, ""))
    return leased_by_worker and trip.due_at is not None and trip.due_at <= until


def closed(trip: Waiting, standing: Waiting, now: float, keep_until: float) -> Waiting:
    """`standing`, once `trip` was published as it was taken: known until `keep_until`.

    The records of a joined trip are dropped. One that was published incomplete, and has had news since, is due.
    """
    if trip.joins:
        done = replace(standing, parts={}, traces={}, joined=True)
    else:
        done = replace(standing, told=tuple(trip.parts))
    return replace(done, due_at=now if done.has_news else None, keep_until=keep_until)


def to_publish(trip: Waiting, token: str) -> bool:
    """Whether the call that has just added to `trip` under `token` is to publish it."""
    return trip.has_news if trip.told or trip.due_at is None else trip.token == token


def merged(trip: Waiting) -> dict[str, Value]:
    """The fields of all its records. Where streams have a field in common, the first of them has it right."""
    fields: dict[str, Value] = {}
    for name in NAMES:
        for field_name, value in trip.parts.get(name, {}).items():
            fields.setdefault(field_name, value)
    return fields


def joined_record(trip: Waiting) -> dict[str, object]:
    """The record of a trip that joins."""
    return _only(JoinedTrip.model_fields, merged(trip))


def incomplete_record(trip: Waiting) -> dict[str, object]:
    """The record of what there is."""
    known = {**merged(trip), "trip_id": trip.trip_id}
    return {**_only(IncompleteTrip.model_fields, known), "missing": trip.missing}


def _only(names: Mapping[str, object], fields: Mapping[str, Value]) -> dict[str, object]:
    return {name: fields.get(name) for name in names}
