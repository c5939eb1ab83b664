"""`travelrec chat talk`: a chat in the terminal, which goes on over lost connections."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any  # what a connection brings, or a line

import aiohttp
from rich.console import Console

from travelrec.cli.addresses import http_url, shown
from travelrec.errors import TravelrecError
from travelrec.job import new_uid

_FORBIDDEN = 403
_FIRST_WAIT_S = 0.3
_LONGEST_WAIT_S = 5.0
_PATIENCE_S = 20.0
_SILENCE_S = 45.0  # after which a connection that owes an answer is made anew
_BEFORE_ALL = "0"


class Talk:
    """Says a line at a time and shows what is answered; ends with the last answer after the input's end."""

    def __init__(self, url: str, userid: str, token: str) -> None:
        self._url = http_url(url)
        self._userid = userid
        self._token = token
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._line: asyncio.Future[str | None] | None = None  # the next, over all connections
        self._said: dict[str, str] | None = None  # what is not answered yet
        self._position: str | None = None
        self._ended = False
        self._answers = Console(highlight=False, markup=False, soft_wrap=True)
        self._coming = ""  # what there is of an answer that is being made, as it stands on the screen
        self._states = Console(stderr=True, style="dim", highlight=False, markup=False)

    async def run(self) -> None:
        """Raises `TravelrecError` if the token is not the user's."""
        trouble = ""
        _read_lines(asyncio.get_running_loop(), self._lines)
        wait_s = _FIRST_WAIT_S
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while not self._ended:
                try:
                    if self._position is None:
                        await self._show_history(http)
                    query = {
                        "token": self._token,
                        "userid": self._userid,
                        "since": self._position or "",
                        "stream": "true",
                    }
                    async with http.ws_connect(f"{self._url}/ws", params=query, heartbeat=15.0) as socket:
                        self._states.print("connected")
                        wait_s = _FIRST_WAIT_S
                        await self._connected(socket)
                    trouble = "it was closed"
                except aiohttp.ClientResponseError as error:
                    if error.status == _FORBIDDEN:
                        raise TravelrecError("the token is not one of this user, or it has expired") from None
                    trouble = f"it answered {error.status}"
                except (aiohttp.ClientError, OSError) as error:
                    trouble = str(error) or type(error).__name__  # what is not answered is sent again below
                self._leave_off()
                if not self._ended:
                    self._states.print(
                        f"no connection to {shown(self._url)} ({trouble}), trying again in {wait_s:.1f} s"
                    )
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _show_history(self, http: aiohttp.ClientSession) -> None:
        query = {"token": self._token, "limit": "10"}
        async with http.get(f"{self._url}/chat/{self._userid}/messages", params=query) as response:
            response.raise_for_status()
            entries = await response.json()
        for entry in entries:
            self._answers.print(("> " if entry["type"] == "message" else "") + entry["content"])
        self._position = entries[-1]["id"] if entries else _BEFORE_ALL

    async def _connected(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Until the connection or the talk ends; what had no answer on the last one is sent again."""
        if self._said is not None:
            await self._send(socket)
        hearing = asyncio.ensure_future(socket.receive())
        try:
            while True:
                if self._line is None:
                    self._line = asyncio.ensure_future(self._lines.get())
                waited: set[asyncio.Future[Any]] = {hearing}
                if self._said is None:
                    waited.add(self._line)
                patience_s = _SILENCE_S if self._said is not None else None
                done, _ = await asyncio.wait(waited, timeout=patience_s, return_when="FIRST_COMPLETED")
                if hearing in done:
                    if hearing.result().type is not aiohttp.WSMsgType.TEXT:
                        return
                    self._hear(json.loads(hearing.result().data))
                    hearing = asyncio.ensure_future(socket.receive())
                elif done:
                    content, self._line = self._line.result(), None
                    if content is None:
                        self._ended = True
                        return
                    self._said = {
                        "type": "message",
                        "id": new_uid(),
                        "content": content,
                        "userid": self._userid,
                    }
                    await self._send(socket)
                else:
                    return
        finally:
            hearing.cancel()

    async def _send(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_str(json.dumps(self._said))
        self._states.print("sent, waiting for the answer")

    def _hear(self, frame: Mapping[str, Any]) -> None:
        if frame["type"] == "delta":
            if self._answers.is_terminal:  # elsewhere an answer that begins anew would stand there twice
                self._hear_piece(frame["offset"], frame["content"])
            return
        mine = self._said["id"] if self._said is not None else None
        if frame["type"] == "error" and frame.get("to", mine) != mine:
            return  # of an earlier message, heard again after `since`, or of another connection's
        self._said = None
        if frame["type"] == "response":
            self._position = frame["id"]
            if not frame["content"].startswith(self._coming):
                self._leave_off()
            self._answers.print(frame["content"].removeprefix(self._coming))
            self._coming = ""
        else:
            self._leave_off()
            self._states.print(f"not answered: {frame['message']}", style="red")

    def _hear_piece(self, offset: int, content: str) -> None:
        """Shows a piece that goes on where the last one ended, or begins anew; others have something missing."""
        if offset == 0:
            self._leave_off()
        if offset == len(self._coming):
            self._coming += content
            self._answers.print(content, end="")

    def _leave_off(self) -> None:
        """What has come of an answer is no answer."""
        if self._coming:
            self._answers.print(" …")
        self._coming = ""


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    """Puts each line of the input that is not blank into `lines`, and None at its end."""

    def read() -> None:
        with suppress(RuntimeError):  # the loop has ended
            for line in sys.stdin:
                if line.strip():
                    loop.call_soon_threadsafe(lines.put_nowait, line.strip())
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
