"""Chats in the file of the SQLite store, on its connection and its thread."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from travelrec.adapters.sqlite import SqliteStore
from travelrec.chat.message import Entry, Piece, Reply, Said, notes_of

_ID = re.compile(r"[0-9]{1,18}")
_COLUMNS = "id, kind, content, at, message"


class SqliteChatHistory:
    """See `chat.ports.ChatHistory`; its table is made by the store's migrations. One process: the bell is here."""

    def __init__(self, store: SqliteStore, limit: int = 1_000) -> None:
        self._file = store
        self._limit = limit
        self._listeners: list[tuple[Callable[[str | None], None], Callable[[Piece], None] | None]] = []

    async def append(self, reply: Reply) -> bool:
        """See `chat.ports.ChatHistory`."""
        said = reply.to

        def work(db: sqlite3.Connection) -> bool:
            if _stands(db, said.userid, notes_of(said)):
                return False
            db.executemany(
                "INSERT INTO chats (userid, kind, content, at, message, note) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (said.userid, "message", said.content, said.at, said.id, None),
                    (said.userid, reply.kind, reply.content, reply.at, said.id, reply.note),
                ],
            )
            db.execute(
                "DELETE FROM chats WHERE userid = ?1 AND id <= "
                "(SELECT id FROM chats WHERE userid = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
                (said.userid, self._limit),
            )
            return True

        added = await self._file.write(work)
        for ring, _ in list(self._listeners):
            ring(said.userid)
        return added

    async def answered(self, said: Said) -> bool:
        """See `chat.ports.ChatHistory`."""
        return await self._file.read(lambda db: _stands(db, said.userid, notes_of(said)))

    async def after(self, userid: str, since: str, limit: int) -> Sequence[Entry]:
        """See `chat.ports.ChatHistory`."""
        query = f"SELECT {_COLUMNS} FROM chats WHERE userid = ? AND id > ? ORDER BY id LIMIT ?"  # noqa: S608 - our own
        place = int(since) if _ID.fullmatch(since) else 0
        return await self._file.read(lambda db: _entries(db, query, userid, place, limit))

    async def recent(self, userid: str, limit: int) -> Sequence[Entry]:
        """See `chat.ports.ChatHistory`."""
        query = f"SELECT {_COLUMNS} FROM chats WHERE userid = ? ORDER BY id DESC LIMIT ?"  # noqa: S608 - our own
        return (await self._file.read(lambda db: _entries(db, query, userid, limit)))[::-1]

    async def tell(self, piece: Piece) -> None:
        """See `chat.ports.ChatHistory`."""
        for _, hear in list(self._listeners):
            if hear is not None:
                hear(piece)

    @asynccontextmanager
    async def listen(
        self, ring: Callable[[str | None], None], hear: Callable[[Piece], None] | None = None
    ) -> AsyncIterator[None]:
        """See `chat.ports.ChatHistory`."""
        self._listeners.append((ring, hear))
        try:
            yield
        finally:
            self._listeners.remove((ring, hear))

    async def ping(self) -> None:
        """See `chat.ports.ChatHistory`."""
        await self._file.ping()


def _stands(db: sqlite3.Connection, userid: str, notes: Iterable[str]) -> bool:
    query = "SELECT 1 FROM chats WHERE userid = ? AND note = ?"
    return any(db.execute(query, (userid, note)).fetchone() is not None for note in notes)


def _entries(db: sqlite3.Connection, query: str, *values: object) -> list[Entry]:
    return [Entry(str(row[0]), *row[1:]) for row in db.execute(query, values)]
