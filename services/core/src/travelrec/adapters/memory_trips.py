"""The join's state inside one process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from travelrec.trips import joining
from travelrec.trips.joining import Part, Waiting


class MemoryTripStore:
    """See `trips.ports.TripStore`. `trips` is there for tests to look at."""

    def __init__(self) -> None:
        self.trips: dict[str, Waiting] = {}

    async def add(
        self, parts: Sequence[Part], token: str, now: float, due_at: float, until: float
    ) -> list[Waiting]:
        """See `trips.ports.TripStore`."""
        for part in parts:
            trip = self.trips.get(part.trip_id) or joining.first_seen(part.trip_id, now, due_at)
            self.trips[part.trip_id] = joining.with_part(trip, part)
        touched = dict.fromkeys(part.trip_id for part in parts)
        for trip_id in touched:
            if joining.leasable(self.trips[trip_id]):
                self.trips[trip_id] = joining.leased(self.trips[trip_id], token, until)
        return [trip for id_ in touched if joining.to_publish(trip := self.trips[id_], token)]

    async def take_due(self, token: str, now: float, until: float, limit: int) -> list[Waiting]:
        """See `trips.ports.TripStore`."""
        late = [trip for trip in self.trips.values() if trip.due_at is not None and trip.due_at <= now]
        taken = [joining.leased(t, token, until) for t in sorted(late, key=lambda t: t.due_at or 0.0)[:limit]]
        self.trips.update((trip.trip_id, trip) for trip in taken)
        return taken

    async def release(self, worker: str, now: float, until: float) -> int:
        """See `trips.ports.TripStore`."""
        left = [trip for trip in self.trips.values() if joining.releasable(trip, worker, until)]
        self.trips.update((trip.trip_id, replace(trip, due_at=now)) for trip in left)
        return len(left)

    async def close(self, trips: Sequence[Waiting], now: float, keep_until: float) -> None:
        """See `trips.ports.TripStore`."""
        for trip in trips:
            standing = self.trips.get(trip.trip_id, trip)
            self.trips[trip.trip_id] = joining.closed(trip, standing, now, keep_until)

    async def purge(self, now: float, limit: int) -> int:
        """See `trips.ports.TripStore`."""
        gone = (
            id_ for id_, trip in self.trips.items() if trip.due_at is None and (trip.keep_until or 0.0) <= now
        )
        ids = list(itertools.islice(gone, limit))
        for id_ in ids:
            del self.trips[id_]
        return len(ids)

    async def open(self, limit: int) -> int:
        """See `trips.ports.TripStore`."""
        return min(limit, sum(trip.due_at is not None for trip in self.trips.values()))
