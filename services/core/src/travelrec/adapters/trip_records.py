"""A trip that the join has seen records of as a flat record, and back: what SQLite and MongoDB keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # a record's values are whatever the database hands back

from travelrec.trips.joining import NAMES, Waiting

Record = dict[str, Any]


def trip_to_record(trip: Waiting) -> Record:
    """Every field of `trip` except its id, leaving out those that say nothing."""
    record: Record = {
        "seen_at": trip.seen_at,
        "due_at": trip.due_at,
        "keep_until": trip.keep_until,
        "token": trip.token,
        "traces": dict(trip.traces) or None,
        "told": list(trip.told) or None,
        "joined": trip.joined or None,
        **{name: dict(part) for name, part in trip.parts.items()},
    }
    return {name: value for name, value in record.items() if value is not None}


def trip_from_record(trip_id: str, record: Mapping[str, Any]) -> Waiting:
    """The trip that `trip_to_record` wrote; of a joined one nothing is left but that."""
    joined = record.get("joined", False)
    return Waiting(
        trip_id=trip_id,
        seen_at=record["seen_at"],
        due_at=record.get("due_at"),
        keep_until=record.get("keep_until"),
        token=record.get("token"),
        parts={} if joined else {name: record[name] for name in NAMES if name in record},
        traces={} if joined else record.get("traces", {}),
        told=tuple(record.get("told", ())),
        joined=joined,
    )
