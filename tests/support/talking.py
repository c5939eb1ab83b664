"""A client of the chat that does what a good one does: it reconnects elsewhere, says what it heard last, repeats."""

import asyncio
import itertools
import json
import re
from collections.abc import Sequence
from contextlib import suppress

import aiohttp

from travelrec.chat.tokens import signed_token

UNAVAILABLE = "Service temporarily unavailable"
_AGAIN_S = 0.2
_SILENCE_S = 20.0


class Talker:
    """A user who says one thing after the other, over any of `urls`; each message has the id of its number."""

    def __init__(self, http: aiohttp.ClientSession, urls: Sequence[str], userid: str, secret: str) -> None:
        self.userid = userid
        self.heard: list[dict] = []
        "Every response, in the order heard."
        self.waited_s: list[float] = []
        "From a message's first sending to its response."
        self.reconnected = 0
        self._http = http
        self._urls = itertools.cycle(urls)
        self._token = signed_token(secret, userid, 3600)

    async def talk(self, contents: Sequence[str]) -> None:
        """Says all of `contents`, each when the one before is answered; returns when all are."""
        left = list(enumerate(contents, len(self.heard)))
        while left:
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await self._connected(left)
            if left:
                self.reconnected += 1
                await asyncio.sleep(_AGAIN_S)

    async def _connected(self, left: list[tuple[int, str]]) -> None:
        query = {"token": self._token, "userid": self.userid}
        if self.heard:
            query["since"] = self.heard[-1]["id"]
        loop = asyncio.get_running_loop()
        async with self._http.ws_connect(f"{next(self._urls)}/ws", params=query) as socket:
            while left:
                number, content = left[0]
                began = loop.time()
                said = {"type": "message", "content": content, "userid": self.userid, "id": str(number)}
                await socket.send_str(json.dumps(said))
                answer = await self._answer(socket)
                if answer is None:
                    return
                if answer["type"] == "error":
                    assert answer["message"] == UNAVAILABLE, answer
                    await asyncio.sleep(_AGAIN_S)
                    continue
                self.waited_s.append(loop.time() - began)
                self.heard.append(answer)
                left.pop(0)

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse) -> dict | None:
        message = await socket.receive(timeout=_SILENCE_S)
        return json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else None

    @property
    def lengths(self) -> list[int]:
        """How long each message was, as the offline model says in its answers."""
        return [length_in(answer) for answer in self.heard]


def length_in(answer: dict) -> int:
    """The length of the message that a response of the offline model is for."""
    found = re.search(r"(\d+) characters", answer["content"])
    assert found, answer
    return int(found[1])
