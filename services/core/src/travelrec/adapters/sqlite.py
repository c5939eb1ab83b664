"""The store in one SQLite file: embedded, durable, one process.

One thread owns the connection and works a whole method per hop, which is faster than any asynchronous wrapper
(29k point reads a second against 2k). Moves are those of `travelrec.job`, inside `BEGIN IMMEDIATE`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from travelrec import job as moves
from travelrec.adapters.records import from_record, to_record
from travelrec.errors import StoreUnavailable
from travelrec.job import IDEMPOTENCY_S, Bid, Job, Settlement, Status
from travelrec.ports import Backlog

Answer = TypeVar("Answer")

_MIGRATIONS = (
    """
    CREATE TABLE jobs (
        uid TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        due_at REAL NOT NULL,
        idempotency_key TEXT UNIQUE,
        settled TEXT,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX jobs_by_due ON jobs (status = 'pending', due_at);
    """,
    "CREATE TABLE leads (key TEXT PRIMARY KEY, uid TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX pending_jobs_by_age ON jobs (record ->> 'created_at') WHERE status = 'pending'",
    """
    CREATE TABLE tasks (
        id TEXT PRIMARY KEY,
        uid TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        "group" TEXT NOT NULL,
        due_at REAL NOT NULL,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX tasks_by_status ON tasks (status, "group", uid);
    CREATE TABLE task_pace (free_at REAL NOT NULL, held_until REAL NOT NULL, last_group TEXT NOT NULL);
    INSERT INTO task_pace VALUES (0, 0, '');
    CREATE TABLE task_poll (token TEXT NOT NULL, until REAL NOT NULL, due_at REAL NOT NULL);
    INSERT INTO task_poll VALUES ('', 0, 0);
    """,
    """
    CREATE TABLE trips (id TEXT PRIMARY KEY, due_at REAL, keep_until REAL, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX trips_by_due ON trips (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX trips_by_end ON trips (keep_until) WHERE due_at IS NULL;
    """,
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        userid TEXT NOT NULL,
        kind TEXT NOT NULL,
        content TEXT NOT NULL,
        at REAL NOT NULL,
        message TEXT NOT NULL,
        note TEXT
    );
    CREATE UNIQUE INDEX chats_by_user ON chats (userid, id);
    CREATE UNIQUE INDEX chats_by_note ON chats (userid, note);
    """,
)


class SqliteStore:
    """See `ports.Store`; made by `opened`."""

    def __init__(
        self, connection: sqlite3.Connection, thread: ThreadPoolExecutor, retention_s: float
    ) -> None:
        self._db = connection
        self._thread = thread
        self._retention_s = retention_s

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path, retention_s: float = 7 * 86400.0) -> AsyncIterator[SqliteStore]:
        """Opens (and if needed makes or migrates) the file at `path`; raises `StoreUnavailable`."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        loop = asyncio.get_running_loop()
        try:
            with _only_user(path):
                connection = await loop.run_in_executor(thread, _connect, path)
                try:
                    yield cls(connection, thread, retention_s)
                finally:
                    await loop.run_in_executor(thread, connection.close)
        finally:
            thread.shutdown()

    async def accept(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """See `ports.Store`."""
        return await self._write(lambda: [self._accept(job, now) for job in jobs])

    def _accept(self, job: Job, now: float) -> Job:
        standing = self._find(job.uid)
        if standing is not None:
            return standing
        if job.idempotency_key is not None:
            row = self._db.execute(
                "SELECT uid, record FROM jobs WHERE idempotency_key = ?", (job.idempotency_key,)
            ).fetchone()
            if row is not None:
                older = from_record(row[0], json.loads(row[1]))
                if older.created_at + IDEMPOTENCY_S > now:
                    return older
                self._put(replace(older, idempotency_key=None))
        self._put(job)
        return job

    async def get(self, uids: Sequence[str]) -> dict[str, Job]:
        """See `ports.Store`."""
        return await self._run(lambda: {job.uid: job for job in self._select(uids)})

    async def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None = None
    ) -> list[Job]:
        """See `ports.Store`."""

        def work() -> list[Job]:
            won = []
            for job in self._select(uids):
                if moves.claimable(job, now):
                    won.append(self._put(moves.claimed(job, token, until, worker), settled=""))
                elif job.token == token:
                    won.append(job)
            return won

        return await self._write(work)

    async def release(self, worker: str, now: float, until: float) -> int:
        """See `ports.Store`."""

        def work() -> int:
            late = self._select(self._ids(pending=True, now=until, limit=-1))
            dead = [job for job in late if moves.releasable(job, worker, until)]
            return len([self._put(moves.released(job, now)) for job in dead])

        return await self._write(work)

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        """See `ports.Store`."""
        tokens = dict(leases)

        def work() -> set[str]:
            held = [
                job for job in self._select(list(tokens)) if not job.ended and job.token == tokens[job.uid]
            ]
            return {self._put(moves.renewed(job, until)).uid for job in held}

        return await self._write(work)

    async def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        """See `ports.Store`."""

        def work() -> set[str]:
            stood = set()
            for s in settlements:
                job = self._find(s.uid)
                if job is not None and not job.ended and job.token == s.token:
                    self._put(moves.settled(job, s.outcome, now, self._retention_s), settled=s.token)
                    stood.add(s.uid)
                elif self._db.execute(
                    "SELECT 1 FROM jobs WHERE uid = ? AND settled = ?", (s.uid, s.token)
                ).fetchone():
                    stood.add(s.uid)
            return stood

        return await self._write(work)

    async def cancel(self, uid: str, now: float, message: str) -> tuple[Job | None, bool]:
        """See `ports.Store`."""

        def work() -> tuple[Job | None, bool]:
            job = self._find(uid)
            if job is None or job.ended:
                return job, False
            return self._put(moves.cancelled(job, now, self._retention_s, message)), True

        return await self._write(work)

    async def published(self, uids: Sequence[str], due_at: float, sent_at: float | None = None) -> None:
        """See `ports.Store`."""

        def work() -> None:
            for job in self._select(uids):
                self._put(moves.published(job, due_at, sent_at))

        await self._write(work)

    async def take_due(self, now: float, until: float, limit: int) -> list[Job]:
        """See `ports.Store`."""
        if not await self._run(lambda: self._ids(pending=True, now=now, limit=1)):
            return []  # the usual case takes no write lock

        def work() -> list[Job]:
            late = self._select(self._ids(pending=True, now=now, limit=limit))
            return [self._put(moves.due(job, until)) for job in sorted(late, key=lambda job: job.due_at)]

        return await self._write(work)

    async def lead(self, bids: Sequence[Bid], now: float) -> list[str]:
        """See `ports.Store`."""

        def work() -> list[str]:
            self._db.executemany(
                "INSERT INTO leads (key, uid, at) VALUES (?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET uid = excluded.uid, at = excluded.at WHERE leads.uid = ?",
                [(bid.key, bid.uid, now, bid.instead_of) for bid in bids],
            )
            return [self._leader(bid.key) or bid.uid for bid in bids]

        return await self._write(work)

    async def leaders(self, keys: Sequence[str]) -> dict[str, str]:
        """See `ports.Store`."""
        return await self._run(lambda: {key: uid for key in keys if (uid := self._leader(key))})

    def _leader(self, key: str) -> str | None:
        row = self._db.execute("SELECT uid FROM leads WHERE key = ?", (key,)).fetchone()
        return str(row[0]) if row else None

    async def failed(self, since: float, limit: int) -> list[Job]:
        """See `ports.Store`."""

        def work() -> list[Job]:
            rows = self._db.execute(
                "SELECT uid, record FROM jobs WHERE status = 'failed' AND record ->> 'ended_at' >= ?"
                " ORDER BY record ->> 'ended_at' DESC LIMIT ?",
                (since, limit),
            )
            return [from_record(uid, json.loads(record)) for uid, record in rows]

        return await self._run(work)

    async def revive(self, uids: Sequence[str], now: float) -> set[str]:
        """See `ports.Store`."""

        def work() -> set[str]:
            dead = [job for job in self._select(uids) if job.status is Status.FAILED]
            return {self._put(moves.revived(job, now)).uid for job in dead}

        return await self._write(work)

    async def purge(self, now: float, limit: int) -> int:
        """See `ports.Store`."""

        def work() -> int:
            uids = self._ids(pending=False, now=now, limit=limit)
            self._db.executemany("DELETE FROM jobs WHERE uid = ?", [(uid,) for uid in uids])
            self._db.execute("DELETE FROM leads WHERE at <= ?", (now - self._retention_s,))
            return len(uids)

        return await self._write(work)

    async def backlog(self, limit: int) -> Backlog:
        """See `ports.Store`."""

        def work() -> Backlog:
            counted = self._db.execute(
                "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE status = 'pending' LIMIT ?)", (limit,)
            )
            oldest = self._db.execute(
                "SELECT min(record ->> 'created_at') FROM jobs WHERE status = 'pending'"
            )
            return Backlog(counted.fetchone()[0], oldest.fetchone()[0])

        return await self._run(work)

    async def ping(self) -> None:
        """See `ports.Store`."""
        await self._run(lambda: self._db.execute("SELECT 1 FROM jobs LIMIT 1").fetchone())

    def _find(self, uid: str) -> Job | None:
        row = self._db.execute("SELECT record FROM jobs WHERE uid = ?", (uid,)).fetchone()
        return from_record(uid, json.loads(row[0])) if row else None

    def _select(self, uids: Sequence[str]) -> list[Job]:
        found = (self._find(uid) for uid in dict.fromkeys(uids))
        return [job for job in found if job is not None]

    def _ids(self, *, pending: bool, now: float, limit: int) -> list[str]:
        query = "SELECT uid FROM jobs WHERE (status = 'pending') = ? AND due_at <= ? ORDER BY due_at LIMIT ?"
        return [uid for (uid,) in self._db.execute(query, (pending, now, limit))]

    def _put(self, job: Job, settled: str | None = None) -> Job:
        self._db.execute(
            "INSERT INTO jobs (uid, status, due_at, idempotency_key, settled, record) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (uid) DO UPDATE SET status = excluded.status, due_at = excluded.due_at,"
            " idempotency_key = excluded.idempotency_key, settled = coalesce(excluded.settled, settled),"
            " record = excluded.record",
            (job.uid, job.status, job.due_at, job.idempotency_key, settled, json.dumps(to_record(job))),
        )
        return job

    async def read(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Does `work` on the file's thread: for what else is kept in it. Raises `StoreUnavailable`."""
        return await self._run(lambda: work(self._db))

    async def write(self, work: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """As `read`, in a transaction."""
        return await self._write(lambda: work(self._db))

    async def _write(self, work: Callable[[], Answer]) -> Answer:
        def in_transaction() -> Answer:
            with _transaction(self._db):
                return work()

        return await self._run(in_transaction)

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"SQLite: {error}") from error


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def _only_user(path: Path) -> Iterator[None]:
    """Holds the lock beside the file: jobs of a second process would be dispatched by neither's broker."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"the SQLite file {path} can't be opened: {error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreUnavailable(
                f"{path} is in use by another travelrec process; end that, or name another file"
            ) from error
        yield
    finally:
        os.close(lock)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
        db.execute("PRAGMA busy_timeout = 5000")
        with _transaction(db):
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > len(_MIGRATIONS):
                raise StoreUnavailable(
                    f"the SQLite file {path} was made by a newer travelrec; use that, or another file"
                )
            for migration in _MIGRATIONS[version:]:
                for statement in filter(str.strip, migration.split(";")):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"the SQLite file {path} can't be opened: {error}") from error
    return db
