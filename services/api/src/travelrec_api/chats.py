"""The chat connections of a process, and who may open one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from travelrec import metrics
from travelrec.chat.message import Piece
from travelrec.chat.ports import ChatHistory, RateLimit
from travelrec.chat.tokens import may_speak
from travelrec.ports import Broker
from travelrec.settings import Settings

_PIECES_KEPT = 100  # for a connection that does not keep up


class Ear:
    """What a connection is to look at: whether the history has `grown`, and pieces of answers, where it wants them."""

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed
        self.grown = True
        self.pieces: deque[Piece] = deque(maxlen=_PIECES_KEPT)
        self.news = asyncio.Event()

    def ring(self) -> None:
        """The history has grown, or may have."""
        self.grown = True
        self.news.set()

    def hear(self, piece: Piece) -> None:
        """A piece of an answer is there."""
        if self.streamed:
            self.pieces.append(piece)
            self.news.set()


class Chats:
    """The open connections of a process, and what they share."""

    def __init__(self, settings: Settings, broker: Broker, history: ChatHistory, limit: RateLimit) -> None:
        self.history = history
        self.broker = broker
        self.limit = limit
        self.stopping = asyncio.Event()
        self._settings = settings
        self._origins = {origin.strip().rstrip("/") for origin in settings.chat_origins.split(",")} - {""}
        self._ears: dict[str, set[Ear]] = {}
        self.open = 0

    @property
    def full(self) -> bool:
        """Whether this process has as many connections as it may."""
        return self.open >= self._settings.chat_connections

    def admits(self, token: str, userid: str) -> bool:
        """Whether this token may be used for this user."""
        return may_speak(self._settings, token, userid)

    def admits_origin(self, origin: str | None) -> bool:
        """Whether a page of this origin may connect; who is no page says none."""
        return not self._origins or origin is None or origin in self._origins

    def ring(self, userid: str | None) -> None:
        """Lets the connections of `userid`, or all, look into the history."""
        if userid is not None:
            for ear in self._ears.get(userid, ()):
                ear.ring()
        else:
            for ears in self._ears.values():
                for ear in ears:
                    ear.ring()

    def hear(self, piece: Piece) -> None:
        """Lets those connections of its user that want to hear of it."""
        for ear in self._ears.get(piece.userid, ()):
            ear.hear(piece)

    def enter(self, userid: str, ear: Ear) -> None:
        """A connection of `userid` is there."""
        self._ears.setdefault(userid, set()).add(ear)

    def leave(self, userid: str, ear: Ear) -> None:
        """It has gone."""
        ears = self._ears[userid]
        ears.discard(ear)
        if not ears:
            del self._ears[userid]

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of the places for connections, from the handshake on."""
        self.open += 1
        metrics.CHAT_CONNECTIONS.set(self.open)
        try:
            yield
        finally:
            self.open -= 1
            metrics.CHAT_CONNECTIONS.set(self.open)
