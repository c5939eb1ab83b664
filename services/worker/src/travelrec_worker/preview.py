"""What is told of an answer while it is made, to who asked for it. Best effort: the reply alone counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from travelrec.chat.message import Piece, Said, plain
from travelrec.chat.ports import ChatHistory
from travelrec.errors import Unavailable

log = structlog.get_logger(__name__)

_EVERY_S = 0.1  # so much of an answer goes together
_AWAY_S = 1.0


@asynccontextmanager
async def previewed(history: ChatHistory, said: Said) -> AsyncIterator[Callable[[str], None]]:
    """Tells of the answer to `said` until left; it is given what there is of it, from the beginning."""
    preview = _Preview(history, said)
    telling = asyncio.create_task(preview.tell())
    try:
        yield preview.hear
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


class _Preview:
    """Pieces of which each goes on where what was told before ends, or begins anew where that no longer holds."""

    def __init__(self, history: ChatHistory, said: Said) -> None:
        self._history = history
        self._said = said
        self._text = ""
        self._more = asyncio.Event()

    def hear(self, text: str) -> None:
        self._text = text
        self._more.set()

    async def tell(self) -> None:
        told = ""
        while True:
            await self._more.wait()
            self._more.clear()
            text = plain(self._text)
            offset = len(told) if text.startswith(told) else 0
            if text[offset:]:
                piece = Piece(self._said.userid, self._said.id, offset, text[offset:])
                try:
                    await self._history.tell(piece)
                    told = text
                except Unavailable as error:
                    log.debug("answer not told while it is made", message=self._said.id, error=str(error))
                    await asyncio.sleep(_AWAY_S)
            await asyncio.sleep(_EVERY_S)
