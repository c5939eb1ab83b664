"""The join's state in MongoDB, beside the jobs, a document for each trip; any number of processes may race.

A trip whose records come together, the usual case, is one write: it is born leased. Filters name `_id`, or `_id` and
`token`, for which there is an index, also on servers that use one only when it names every field of the filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # the two drivers share their calls, not a type

from pymongo import ASCENDING, UpdateOne
from pymongo.errors import BulkWriteError

from travelrec.adapters.mongo import MongoStore, duplicates, translated
from travelrec.adapters.trip_records import Record, trip_from_record, trip_to_record
from travelrec.trips import joining
from travelrec.trips.joining import NAMES, Part, Waiting

_DROPPED = dict.fromkeys((*NAMES, "traces", "told", "due_at"), "")


class MongoTripStore:
    """See `trips.ports.TripStore`."""

    def __init__(self, store: MongoStore) -> None:
        self._trips = store.collection("trips")
        self._indexed = False

    async def add(
        self, parts: Sequence[Part], token: str, now: float, due_at: float, until: float
    ) -> list[Waiting]:
        """See `trips.ports.TripStore`."""
        await self._make_indexes()
        came = _by_trip(parts, now, due_at)
        whole = {id_: joining.leased(trip, token, until) for id_, trip in came.items() if trip.whole}
        new = await self._upsert(
            [_born(whole[id_]) if id_ in whole else _added(trip, due_at) for id_, trip in came.items()]
        )
        won = [trip for id_, trip in whole.items() if id_ in new]
        known = [id_ for id_ in came if id_ not in new]
        if not known:
            return won
        if later := [_added(whole[id_], due_at) for id_ in known if id_ in whole]:
            await self._upsert(later)
        found = {trip.trip_id: trip for trip in await self._find({"_id": {"$in": known}})}
        free = [trip for trip in found.values() if joining.leasable(trip)]
        found |= {trip.trip_id: trip for trip in await self._lease(free, token, until)}
        return won + [trip for trip in found.values() if joining.to_publish(trip, token)]

    async def take_due(self, token: str, now: float, until: float, limit: int) -> list[Waiting]:
        """See `trips.ports.TripStore`."""
        with translated():
            late = self._trips.find({"due_at": {"$lte": now}}).limit(limit)
            due = [_trip(record) for record in await late.to_list(None)]
        return await self._lease(due, token, until)

    async def _lease(self, trips: Sequence[Waiting], token: str, until: float) -> list[Waiting]:
        """Those of `trips` that nobody else has leased since they were read, as leased."""
        if not trips:
            return []
        mine = [joining.leased(trip, token, until) for trip in trips]
        changes = {"$set": {"token": token, "due_at": until}}
        with translated():
            done = await self._trips.bulk_write(
                [UpdateOne({"_id": trip.trip_id, "token": trip.token}, changes) for trip in trips],
                ordered=False,
            )
            if done.matched_count == len(trips):
                return mine
            ids = [trip.trip_id for trip in trips]
            found = await self._trips.find({"_id": {"$in": ids}}, {"token": 1}).to_list(None)
        won = {record["_id"] for record in found if record.get("token") == token}
        return [trip for trip in mine if trip.trip_id in won]

    async def release(self, worker: str, now: float, until: float) -> int:
        """See `trips.ports.TripStore`."""
        of_worker = joining.token_of(worker, "")
        after = of_worker[:-1] + chr(ord(of_worker[-1]) + 1)
        held = {"due_at": {"$lte": until}, "token": {"$gte": of_worker, "$lt": after}}
        with translated():
            done = await self._trips.update_many(held, {"$set": {"due_at": now}})
        return int(done.matched_count)

    async def close(self, trips: Sequence[Waiting], now: float, keep_until: float) -> None:
        """See `trips.ports.TripStore`.

        A trip that is told stays due until its news has been looked for, in case this process dies in between: what
        comes once it is told is published by whoever adds it, what came before is found here.
        """
        joined = [trip.trip_id for trip in trips if trip.joins]
        told = [trip for trip in trips if not trip.joins]
        with translated():
            if joined:
                changes = {"$set": {"joined": True, "keep_until": keep_until}, "$unset": _DROPPED}
                await self._trips.update_many({"_id": {"$in": joined}}, changes)
            if told:
                await self._trips.bulk_write([_told(trip, keep_until) for trip in told], ordered=False)
                standing = await self._find({"_id": {"$in": [trip.trip_id for trip in told]}})
                if standing:
                    await self._trips.bulk_write([_looked_at(trip, now) for trip in standing], ordered=False)

    async def purge(self, now: float, limit: int) -> int:
        """See `trips.ports.TripStore`."""
        old = {"keep_until": {"$lte": now}, "due_at": None}
        with translated():
            found = (
                await self._trips.find({"keep_until": {"$lte": now}}, {"_id": 1}).limit(limit).to_list(None)
            )
            if not found:
                return 0
            done = await self._trips.delete_many({"_id": {"$in": [record["_id"] for record in found]}, **old})
        return int(done.deleted_count)

    async def open(self, limit: int) -> int:
        """See `trips.ports.TripStore`."""
        with translated():
            return int(await self._trips.count_documents({"due_at": {"$gt": 0}}, limit=limit))

    async def _upsert(self, updates: Sequence[UpdateOne]) -> set[str]:
        """Answers the ids that were new, as far as it knows; what was written before an error is not new."""
        while True:
            with translated():
                try:
                    done = await self._trips.bulk_write(updates, ordered=False)
                    return set((done.upserted_ids or {}).values())
                except BulkWriteError as error:
                    duplicates(error)  # of two upserts of one id the other came first: now it stands

    async def _find(self, query: Mapping[str, Any]) -> list[Waiting]:
        with translated():
            return [_trip(record) for record in await self._trips.find(query).to_list(None)]

    async def _make_indexes(self) -> None:
        if self._indexed:
            return
        with translated():
            await self._trips.create_index("due_at", sparse=True)
            await self._trips.create_index("keep_until", sparse=True)
            await self._trips.create_index([("_id", ASCENDING), ("token", ASCENDING)], unique=True)
        self._indexed = True


def _by_trip(parts: Sequence[Part], now: float, due_at: float) -> dict[str, Waiting]:
    """What came of each trip."""
    came: dict[str, Waiting] = {}
    for part in parts:
        trip = came.get(part.trip_id) or joining.first_seen(part.trip_id, now, due_at)
        came[part.trip_id] = joining.with_part(trip, part)
    return came


def _born(trip: Waiting) -> UpdateOne:
    return UpdateOne({"_id": trip.trip_id}, {"$setOnInsert": trip_to_record(trip)}, upsert=True)


def _added(trip: Waiting, due_at: float) -> UpdateOne:
    changes: Record = {name: dict(part) for name, part in trip.parts.items()}
    changes |= {f"traces.{name}": trace for name, trace in trip.traces.items()}
    first = {"seen_at": trip.seen_at, "due_at": due_at}
    return UpdateOne({"_id": trip.trip_id}, {"$set": changes, "$setOnInsert": first}, upsert=True)


def _told(trip: Waiting, keep_until: float) -> UpdateOne:
    changes = {"told": list(trip.parts), "keep_until": keep_until}
    return UpdateOne({"_id": trip.trip_id}, {"$set": changes})


def _looked_at(trip: Waiting, now: float) -> UpdateOne:
    changes = {"$set": {"due_at": now}} if trip.has_news else {"$unset": {"due_at": ""}}
    return UpdateOne({"_id": trip.trip_id}, changes)


def _trip(record: Mapping[str, Any]) -> Waiting:
    return trip_from_record(record["_id"], record)
