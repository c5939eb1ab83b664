"""Chats inside one process: the real semantics without a server."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from travelrec.chat.message import Entry, Piece, Reply, Said, notes_of


class MemoryChatHistory:
    """See `chat.ports.ChatHistory`; gone with the process."""

    def __init__(self, limit: int = 1_000) -> None:
        self._limit = limit
        self._entries: dict[str, list[Entry]] = {}
        self._answered: set[tuple[str, str]] = set()
        self._numbers = itertools.count(1)
        self._listeners: list[tuple[Callable[[str | None], None], Callable[[Piece], None] | None]] = []

    async def append(self, reply: Reply) -> bool:
        """See `chat.ports.ChatHistory`."""
        said = reply.to
        added = not await self.answered(said)
        if added:
            self._answered.add((said.userid, reply.note))
            entries = self._entries.setdefault(said.userid, [])
            entries += [
                Entry(str(next(self._numbers)), "message", said.content, said.at, said.id),
                Entry(str(next(self._numbers)), reply.kind, reply.content, reply.at, said.id),
            ]
            del entries[: -self._limit]
        for ring, _ in list(self._listeners):
            ring(said.userid)
        return added

    async def answered(self, said: Said) -> bool:
        """See `chat.ports.ChatHistory`."""
        return any((said.userid, note) in self._answered for note in notes_of(said))

    async def after(self, userid: str, since: str, limit: int) -> Sequence[Entry]:
        """See `chat.ports.ChatHistory`."""
        entries = self._entries.get(userid, [])
        place = next((at for at, entry in enumerate(entries) if entry.id == since), -1)
        return entries[place + 1 :][:limit]

    async def recent(self, userid: str, limit: int) -> Sequence[Entry]:
        """See `chat.ports.ChatHistory`."""
        return self._entries.get(userid, [])[-limit:]

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
