"""The chat connections of a process, and who may open one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from travelrec import metrics
from travelrec.chat.ports import ChatHistory, RateLimit
from travelrec.chat.tokens import may_speak
from travelrec.ports import Broker
from travelrec.settings import Settings


class Chats:
    """The open connections of a process, and what they share."""

    def __init__(self, settings: Settings, broker: Broker, history: ChatHistory, limit: RateLimit) -> None:
        self.history = history
        self.broker = broker
        self.limit = limit
        self.stopping = asyncio.Event()
        self._settings = settings
        self._origins = {origin.strip().rstrip("/") for origin in settings.chat_origins.split(",")} - {""}
        self._bells: dict[str, set[asyncio.Event]] = {}
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
            for bell in self._bells.get(userid, ()):
                bell.set()
        else:
            for bells in self._bells.values():
                for bell in bells:
                    bell.set()

    def enter(self, userid: str, bell: asyncio.Event) -> None:
        """A connection of `userid` is there."""
        self._bells.setdefault(userid, set()).add(bell)

    def leave(self, userid: str, bell: asyncio.Event) -> None:
        """It has gone."""
        bells = self._bells[userid]
        bells.discard(bell)
        if not bells:
            del self._bells[userid]

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
