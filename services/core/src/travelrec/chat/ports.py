"""What chat asks of the world; the rules of `travelrec.ports` hold here too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from travelrec.chat.message import Entry, Piece, Reply, Said


class ChatHistory(Protocol):
    """What was said and answered, a bounded list for each user, and a doorbell that rings when one grows."""

    async def append(self, reply: Reply) -> bool:
        """Adds a message and its reply in one go, unless its note stands; then rings. Whether it was added."""
        ...

    async def answered(self, said: Said) -> bool:
        """Whether a reply to this message was appended; one that failed counts for this sending of it alone."""
        ...

    async def after(self, userid: str, since: str, limit: int) -> Sequence[Entry]:
        """The oldest `limit` entries behind the one of id `since`, in order; behind an unknown one: all there are."""
        ...

    async def recent(self, userid: str, limit: int) -> Sequence[Entry]:
        """The newest `limit` entries, the oldest of them first."""
        ...

    async def tell(self, piece: Piece) -> None:
        """Lets who listens right now hear a piece of an answer that is being made; it is kept nowhere."""
        ...

    def listen(
        self, ring: Callable[[str | None], None], hear: Callable[[Piece], None] | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Calls `ring` with the userid of every append until left; with None when some may have been missed.

        `hear` is called with every piece that is told, some of which may be missed. Entering does not wait for a
        server that is away.
        """
        ...

    async def ping(self) -> None:
        """Returns when the history answers; raises `Unavailable`."""
        ...


class RateLimit(Protocol):
    """How many messages a user may send, over all replicas together."""

    async def take(self, userid: str) -> float:
        """Counts a message: 0 if it may be sent, else the seconds until one may. Never raises."""
        ...
