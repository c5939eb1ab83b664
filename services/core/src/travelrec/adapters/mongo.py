"""The store in MongoDB: every move of `travelrec.job` as one conditional update, so any number of processes may race.

Runs on MongoDB 5 and newer, stand-alone, replica set or sharded by `_id`; uses no transactions, pipeline updates or
change streams. Bulk claims and takes mark their documents with a fresh token and read back what they won.

A free job has no token, so that claiming and settling, the two updates of every job, filter by `_id` and `token` alone
and one unique index serves both, also on servers that use an index only when it names every field of the filter.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any  # the two drivers share their calls, not a type

from pymongo import ASCENDING, DESCENDING, InsertOne, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, ConfigurationError, InvalidURI, PyMongoError

from travelrec.adapters.records import Record, from_record, to_record, try_to_record
from travelrec.errors import BadSetting, StoreUnavailable
from travelrec.job import (
    HASTY_CLAIMS,
    IDEMPOTENCY_S,
    Bid,
    Completed,
    Failed,
    HandedBack,
    Job,
    Outcome,
    Phase,
    Retry,
    Settlement,
    Status,
    new_uid,
)
from travelrec.ports import Backlog

_HELD = "-"  # the token of a job that is neither free to be claimed nor leased
_PENDING = {"status": Status.PENDING.value}
_LEASED = {"phase": Phase.RUNNING.value}
_DISPATCHABLE = [Phase.QUEUED.value, Phase.DUE.value]
_DUPLICATE_KEY = 11000


def client(url: str, driver: str, timeout_s: float) -> Any:
    """The one place that makes a MongoDB client: Motor, or with `driver` "pymongo" PyMongo's own asynchronous one."""
    options: dict[str, Any] = {
        "serverSelectionTimeoutMS": int(timeout_s * 1000),
        "connectTimeoutMS": int(timeout_s * 1000),
        "timeoutMS": int(timeout_s * 1000),
        "retryWrites": False,  # every call here may be repeated, and stand-alone servers don't have it
        "maxPoolSize": 20,
        "appname": "travelrec",
    }
    try:
        if driver == "pymongo":
            from pymongo import AsyncMongoClient  # noqa: PLC0415 - the driver that is not used is not loaded

            return AsyncMongoClient(url, **options)
        from motor.motor_asyncio import AsyncIOMotorClient  # noqa: PLC0415

        return AsyncIOMotorClient(url, **options)
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise BadSetting(f"STORE_URL: {_without_password(str(error))}") from error


class MongoStore:
    """See `ports.Store`; made by `opened`."""

    def __init__(self, jobs: Any, leads: Any, retention_s: float) -> None:
        self._jobs = jobs
        self._leads = leads
        self._retention_s = retention_s
        self._indexed = False

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str, *, driver: str = "motor", timeout_s: float = 5.0, retention_s: float = 7 * 86400.0
    ) -> AsyncIterator[MongoStore]:
        """The store in the database that `url` names (default `travelrec`); the server may still be away."""
        made = client(url, driver, timeout_s)
        try:
            concern = WriteConcern(w="majority", j=True)
            database = made.get_default_database("travelrec")
            jobs, leads = (database.get_collection(name, write_concern=concern) for name in ("jobs", "leads"))
            yield cls(jobs, leads, retention_s)
        finally:
            closing = made.close()
            if closing is not None:
                await closing

    def collection(self, name: str) -> Any:
        """Another collection of its database, as durable: for what else is kept in it."""
        concern = WriteConcern(w="majority", j=True)
        return self._jobs.database.get_collection(name, write_concern=concern)

    async def accept(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """See `ports.Store`."""
        await self._make_indexes()
        refused = await self._insert(jobs)
        accepted = list(jobs)
        for index in refused:
            accepted[index] = await self._standing(jobs[index], now)
        return accepted

    async def _insert(self, jobs: Sequence[Job]) -> list[int]:
        """Inserts what it can; answers the places of those that a unique key refused."""
        with translated():
            try:
                await self._jobs.bulk_write([InsertOne(_record(job)) for job in jobs], ordered=False)
            except BulkWriteError as error:
                return duplicates(error)
        return []

    async def _standing(self, job: Job, now: float) -> Job:
        """The job that stands in the way of inserting `job`, or `job` itself once an expired key has been freed."""
        standing = (await self.get([job.uid])).get(job.uid)
        if standing is not None:
            return standing
        for _ in range(3):
            with translated():
                found = await self._jobs.find_one({"idempotency_key": job.idempotency_key})
                if found is not None and found["created_at"] > now - IDEMPOTENCY_S:
                    return _job(found)
                await self._jobs.update_many(
                    {"idempotency_key": job.idempotency_key, "created_at": {"$lte": now - IDEMPOTENCY_S}},
                    {"$unset": {"idempotency_key": ""}},
                )
            if not await self._insert([job]):
                return job
        raise StoreUnavailable("an idempotency key changes hands too often")

    async def get(self, uids: Sequence[str]) -> dict[str, Job]:
        """See `ports.Store`."""
        return {job.uid: job for job in await self._find({"_id": {"$in": list(uids)}})}

    async def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None = None
    ) -> list[Job]:
        """See `ports.Store`."""
        ids = list(dict.fromkeys(uids))
        lease = {"phase": Phase.RUNNING.value, "token": token, "due_at": until, "worker": worker}
        update = {"$set": lease, "$inc": {"claims": 1}, "$unset": {"settled": ""}}
        ready = [{"phase": {"$in": _DISPATCHABLE}}, {"due_at": {"$lte": now}}]
        with translated():
            free = [UpdateOne({"_id": uid, "token": None}, update) for uid in ids]
            done = await self._jobs.bulk_write(free, ordered=False)
            if done.matched_count < len(ids):  # repeats, and jobs whose lease or back-off is over
                others = {"_id": {"$in": ids}, **_PENDING}
                await self._jobs.update_many({**others, "$or": ready}, update)
        return [job for job in await self._find({"_id": {"$in": ids}}) if job.token == token]

    async def release(self, worker: str, now: float, until: float) -> int:
        """See `ports.Store`."""
        dead = {
            "worker": worker,
            **_LEASED,
            "due_at": {"$lte": until},
            "claims": {"$lte": HASTY_CLAIMS},
        }
        with translated():
            done = await self._jobs.update_many(dead, {"$min": {"due_at": now}})
        return int(done.matched_count)

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        """See `ports.Store`."""
        held = {
            "_id": {"$in": [uid for uid, _ in leases]},
            "token": {"$in": list({token for _, token in leases})},
        }
        with translated():
            longer = {"$set": {"phase": Phase.RUNNING.value}, "$max": {"due_at": until}}
            done = await self._jobs.update_many(held, longer)
            if done.matched_count == len(leases):
                return {uid for uid, _ in leases}
            return {found["_id"] for found in await self._jobs.find(held, {"_id": 1}).to_list(None)}

    async def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        """See `ports.Store`."""
        updates = [
            UpdateOne({"_id": s.uid, "token": s.token}, self._settlement(s.token, s.outcome, now))
            for s in settlements
        ]
        uids = {s.uid for s in settlements}
        with translated():
            done = await self._jobs.bulk_write(updates, ordered=False)
            if done.matched_count == len(settlements):
                return uids
            found = await self._jobs.find({"_id": {"$in": list(uids)}}, {"settled": 1}).to_list(None)
        stand = {record["_id"]: record.get("settled") for record in found}
        return {s.uid for s in settlements if stand.get(s.uid) == s.token}

    def _settlement(self, token: str, outcome: Outcome, now: float) -> Record:
        ended: Record = {
            "ended_at": now,
            "due_at": now + self._retention_s,
            "settled": token,
            "token": _HELD,
        }
        gone = {"phase": ""}
        match outcome:
            case Completed(result, trace):
                changes = {**ended, "status": Status.COMPLETED.value, "result": dict(result)}
                if trace is not None:
                    changes["trace"] = trace
                return {"$set": changes, "$unset": gone}
            case Failed(last):
                changes = {
                    **ended,
                    "status": Status.FAILED.value,
                    "error": last.error,
                    "message": last.message,
                }
                return {"$set": changes, "$unset": gone, "$push": {"tries": try_to_record(last)}}
            case Retry(due_at, last):
                waits: Record = {
                    "$set": {
                        "phase": Phase.WAITING.value,
                        "due_at": due_at,
                        "settled": token,
                        "token": _HELD,
                    }
                }
                if last is None:
                    return {**waits, "$inc": {"claims": -1}}
                return {**waits, "$push": {"tries": try_to_record(last)}}
            case HandedBack():
                return {
                    "$set": {
                        "phase": Phase.WAITING.value,
                        "due_at": now,
                        "settled": token,
                        "token": _HELD,
                    },
                    "$inc": {"claims": -1},
                }

    async def cancel(self, uid: str, now: float, message: str) -> tuple[Job | None, bool]:
        """See `ports.Store`."""
        changes = {
            "status": Status.CANCELLED.value,
            "message": message,
            "ended_at": now,
            "due_at": now + self._retention_s,
            "token": _HELD,
        }
        with translated():
            done = await self._jobs.update_one(
                {"_id": uid, **_PENDING}, {"$set": changes, "$unset": {"phase": ""}}
            )
        return (await self.get([uid])).get(uid), done.matched_count == 1

    async def published(self, uids: Sequence[str], due_at: float, sent_at: float | None = None) -> None:
        """See `ports.Store`."""
        changes: Record = {"phase": Phase.QUEUED.value, "due_at": due_at}
        if sent_at is not None:
            changes["sent_at"] = sent_at
        with translated():
            await self._jobs.update_many(
                {"_id": {"$in": list(uids)}, **_PENDING, "phase": {"$in": _DISPATCHABLE}},
                {"$set": changes},
            )

    async def take_due(self, now: float, until: float, limit: int) -> list[Job]:
        """See `ports.Store`."""
        late = {**_PENDING, "due_at": {"$lte": now}}
        with translated():
            found = (
                await self._jobs.find(late, {"_id": 1}).sort("due_at", ASCENDING).limit(limit).to_list(None)
            )
            ids = [record["_id"] for record in found]
            if not ids:
                return []
            token = new_uid()
            taken = {"due_at": until, "taken": token}
            unqueued = {**taken, "phase": Phase.DUE.value}
            mine = {"_id": {"$in": ids}, **late}
            await self._jobs.update_many({**mine, "phase": Phase.QUEUED.value}, {"$set": taken})
            await self._jobs.update_many(
                {**mine, "phase": Phase.WAITING.value}, {"$set": unqueued, "$unset": {"token": ""}}
            )
            leased = {"phase": {"$in": [Phase.RUNNING.value, Phase.DUE.value]}}  # an old result still counts
            await self._jobs.update_many({**mine, **leased}, {"$set": unqueued})
        place = {uid: index for index, uid in enumerate(ids)}
        return sorted(
            await self._find({"_id": {"$in": ids}, "taken": token, **_PENDING}),
            key=lambda job: place[job.uid],
        )

    async def lead(self, bids: Sequence[Bid], now: float) -> list[str]:
        """See `ports.Store`."""
        mine = {bid.key: {"uid": bid.uid, "at": now} for bid in bids}
        updates = [
            UpdateOne({"_id": bid.key, "uid": bid.instead_of}, {"$set": mine[bid.key]})
            for bid in bids
            if bid.instead_of is not None
        ]
        updates += [UpdateOne({"_id": key}, {"$setOnInsert": one}, upsert=True) for key, one in mine.items()]
        new: set[str] = set()
        with translated():
            try:
                done = await self._leads.bulk_write(updates, ordered=False)
                new.update((done.upserted_ids or {}).values())
            except BulkWriteError as error:  # two upserts of one key raced: the other stands
                duplicates(error)
        others = [bid.key for bid in bids if bid.key not in new]
        led = await self.leaders(others) if others else {}
        return [led.get(bid.key, bid.uid) for bid in bids]

    async def leaders(self, keys: Sequence[str]) -> dict[str, str]:
        """See `ports.Store`."""
        with translated():
            found = await self._leads.find({"_id": {"$in": list(keys)}}).to_list(None)
        return {record["_id"]: record["uid"] for record in found}

    async def failed(self, since: float, limit: int) -> list[Job]:
        """See `ports.Store`."""
        dead = {"status": Status.FAILED.value, "ended_at": {"$gte": since}}
        with translated():
            found = await self._jobs.find(dead).sort("ended_at", DESCENDING).limit(limit).to_list(None)
        return [_job(record) for record in found]

    async def revive(self, uids: Sequence[str], now: float) -> set[str]:
        """See `ports.Store`."""
        token = new_uid()
        gone = ("error", "message", "ended_at", "settled", "token")
        fresh = {"status": Status.PENDING.value, "phase": Phase.DUE.value, "created_at": now, "due_at": now}
        changes = {
            "$set": {**fresh, "claims": 0, "taken": token},
            "$unset": dict.fromkeys(gone, ""),
            "$rename": {"tries": "earlier"},
        }
        with translated():
            await self._jobs.bulk_write(
                [UpdateOne({"_id": uid, "status": Status.FAILED.value}, changes) for uid in uids],
                ordered=False,
            )
            found = await self._jobs.find({"_id": {"$in": list(uids)}, "taken": token}, {"_id": 1}).to_list(
                None
            )
        return {record["_id"] for record in found}

    async def purge(self, now: float, limit: int) -> int:
        """See `ports.Store`."""
        old = {"status": {"$ne": Status.PENDING.value}, "due_at": {"$lte": now}}
        with translated():
            await self._leads.delete_many({"at": {"$lte": now - self._retention_s}})
            found = await self._jobs.find(old, {"_id": 1}).limit(limit).to_list(None)
            if not found:
                return 0
            done = await self._jobs.delete_many({"_id": {"$in": [record["_id"] for record in found]}, **old})
        return int(done.deleted_count)

    async def backlog(self, limit: int) -> Backlog:
        """See `ports.Store`."""
        with translated():
            pending = await self._jobs.count_documents(_PENDING, limit=limit)
            oldest = await self._jobs.find_one(_PENDING, {"created_at": 1}, sort=[("created_at", ASCENDING)])
        return Backlog(int(pending), oldest["created_at"] if oldest else None)

    async def ping(self) -> None:
        """See `ports.Store`."""
        with translated():
            await self._jobs.database.command("ping")

    async def _find(self, query: Mapping[str, Any]) -> list[Job]:
        with translated():
            return [_job(record) for record in await self._jobs.find(query).to_list(None)]

    async def _make_indexes(self) -> None:
        if self._indexed:
            return
        with translated():
            await self._jobs.create_index([("status", ASCENDING), ("due_at", ASCENDING)])
            await self._jobs.create_index(
                [("status", ASCENDING), ("created_at", ASCENDING)], partialFilterExpression=_PENDING
            )
            await self._jobs.create_index("worker", partialFilterExpression=_LEASED)
            await self._jobs.create_index("idempotency_key", unique=True, sparse=True)
            await self._jobs.create_index([("_id", ASCENDING), ("token", ASCENDING)], unique=True)
            await self._leads.create_index("at")
        self._indexed = True


def duplicates(error: BulkWriteError) -> list[int]:
    """The places of the writes that a unique key refused; raises `error` if there is any other trouble in it."""
    details = error.details or {}
    errors = details.get("writeErrors", [])
    others = any(e.get("code") != _DUPLICATE_KEY for e in errors)
    if not errors or others or details.get("writeConcernErrors"):
        raise error
    return [int(e["index"]) for e in errors]


def _record(job: Job) -> Record:
    record = {"_id": job.uid, **to_record(job)}
    if job.token is None and job.phase not in (Phase.QUEUED, Phase.DUE):
        record["token"] = _HELD
    return record


def _job(record: Mapping[str, Any]) -> Job:
    if record.get("token") == _HELD:
        return from_record(record["_id"], {**record, "token": None})
    return from_record(record["_id"], record)


@contextmanager
def translated() -> Iterator[None]:
    """The driver's errors in this project's words, without what was to be written.

    A bulk write that a server did not confirm, when it shuts down for one, may stand, like one that got no answer.
    """
    try:
        yield
    except BulkWriteError as error:
        details = error.details or {}
        codes = {
            e.get("code") for name in ("writeErrors", "writeConcernErrors") for e in details.get(name, ())
        }
        told = ", ".join(sorted(map(str, codes)))
        raise StoreUnavailable(f"MongoDB did not confirm a write (code {told})") from error
    except PyMongoError as error:
        told = str(error).partition(", Timeout:")[0]  # behind which PyMongo says all it knows of the servers
        raise StoreUnavailable(f"MongoDB: {_without_password(told)[:300]}") from error


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)
