"""The join's state in the file of the SQLite store, on its connection and its thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace

from travelrec.adapters.sqlite import SqliteStore
from travelrec.adapters.trip_records import trip_from_record, trip_to_record
from travelrec.trips import joining
from travelrec.trips.joining import Part, Waiting


class SqliteTripStore:
    """See `trips.ports.TripStore`; its table is made by the store's migrations."""

    def __init__(self, store: SqliteStore) -> None:
        self._file = store

    async def add(
        self, parts: Sequence[Part], token: str, now: float, due_at: float, until: float
    ) -> list[Waiting]:
        """See `trips.ports.TripStore`."""

        def work(db: sqlite3.Connection) -> list[Waiting]:
            trips: dict[str, Waiting] = {}
            for part in parts:
                id_ = part.trip_id
                trip = trips.get(id_) or _find(db, id_) or joining.first_seen(id_, now, due_at)
                trips[id_] = joining.with_part(trip, part)
            for id_, trip in trips.items():
                trips[id_] = joining.leased(trip, token, until) if joining.leasable(trip) else trip
            _put(db, list(trips.values()))
            return [trip for trip in trips.values() if joining.to_publish(trip, token)]

        return await self._file.write(work)

    async def take_due(self, token: str, now: float, until: float, limit: int) -> list[Waiting]:
        """See `trips.ports.TripStore`."""

        def work(db: sqlite3.Connection) -> list[Waiting]:
            late = db.execute(
                "SELECT id, record FROM trips WHERE due_at <= ? ORDER BY due_at LIMIT ?", (now, limit)
            ).fetchall()
            taken = [joining.leased(_trip(id_, record), token, until) for id_, record in late]
            _put(db, taken)
            return taken

        return await self._file.write(work)

    async def release(self, worker: str, now: float, until: float) -> int:
        """See `trips.ports.TripStore`."""

        def work(db: sqlite3.Connection) -> int:
            due = db.execute("SELECT id, record FROM trips WHERE due_at <= ?", (until,)).fetchall()
            left = [trip for row in due if joining.releasable(trip := _trip(*row), worker, until)]
            _put(db, [replace(trip, due_at=now) for trip in left])
            return len(left)

        return await self._file.write(work)

    async def close(self, trips: Sequence[Waiting], now: float, keep_until: float) -> None:
        """See `trips.ports.TripStore`."""

        def work(db: sqlite3.Connection) -> None:
            _put(db, [joining.closed(t, _find(db, t.trip_id) or t, now, keep_until) for t in trips])

        await self._file.write(work)

    async def purge(self, now: float, limit: int) -> int:
        """See `trips.ports.TripStore`."""

        def work(db: sqlite3.Connection) -> int:
            gone = "SELECT id FROM trips WHERE due_at IS NULL AND keep_until <= ? LIMIT ?"
            return db.execute(f"DELETE FROM trips WHERE id IN ({gone})", (now, limit)).rowcount  # noqa: S608 - no value in it

        return await self._file.write(work)

    async def open(self, limit: int) -> int:
        """See `trips.ports.TripStore`."""

        def work(db: sqlite3.Connection) -> int:
            counted = "SELECT count(*) FROM (SELECT 1 FROM trips WHERE due_at IS NOT NULL LIMIT ?)"
            return int(db.execute(counted, (limit,)).fetchone()[0])

        return await self._file.read(work)


def _find(db: sqlite3.Connection, trip_id: str) -> Waiting | None:
    row = db.execute("SELECT id, record FROM trips WHERE id = ?", (trip_id,)).fetchone()
    return None if row is None else _trip(*row)


def _trip(trip_id: str, record: str) -> Waiting:
    return trip_from_record(trip_id, json.loads(record))


def _put(db: sqlite3.Connection, trips: Sequence[Waiting]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO trips (id, due_at, keep_until, record) VALUES (?, ?, ?, ?)",
        [(t.trip_id, t.due_at, t.keep_until, json.dumps(trip_to_record(t))) for t in trips],
    )
