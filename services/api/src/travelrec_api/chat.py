"""Chat: `/ws`, where any replica serves any user, and `/chat/{userid}/messages`."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any  # ASGI's events

import structlog
from fastapi import APIRouter, Request, WebSocket
from opentelemetry.trace import SpanKind
from pydantic import BaseModel
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from travelrec import metrics, tracing
from travelrec.chat.message import UNAVAILABLE, Said, delta_frame, error_frame, is_userid, read_frame, shown
from travelrec.chat.ports import ChatHistory
from travelrec.chat.wire import encode_said
from travelrec.errors import BrokerUnavailable, InvalidInput, Unavailable
from travelrec.job import Json, new_uid
from travelrec.wire import INCOMING_TOPIC
from travelrec_api.chats import Chats, Ear
from travelrec_api.edge import caller_of, request_id_of
from travelrec_api.problems import RETRY_AFTER_S, Problem, answer, problem

log = structlog.get_logger(__name__)

router = APIRouter(tags=["chat"])

_LONGEST_QUERY = 8_000  # no token is as long
_PAGE = 100
_MOST = 500
_NUMBER = re.compile(r"[0-9]{1,9}")
_SEND_S = 10.0  # in which a reader must take a frame
_LOOK_AGAIN_S = 15.0  # a bell may be lost
_AWAY_S = 1.0
_LAST_S = 3.0  # for the broker, when the process ends
_ANSWERED_KEPT = 10  # messages of which no piece is sent any more
_AHEAD = 1_000  # messages that wait for the broker, before no more are read
_RESTARTING = 1012
_SLOW = 1008


class _TooSlow(Exception):
    """The reader of a connection does not read."""


class _Connection:
    """One socket of `userid`, from which `position` in the history on, and whether with pieces of answers."""

    def __init__(
        self,
        socket: WebSocket,
        chats: Chats,
        userid: str,
        position: str,
        request_id: str,
        *,
        streamed: bool,
    ) -> None:
        self._socket = socket
        self._chats = chats
        self._userid = userid
        self._position = position
        self._request_id = request_id
        self._caller = caller_of(socket.scope)
        self._ear = Ear(streamed=streamed)
        self._said: asyncio.Queue[Said] = asyncio.Queue(_AHEAD)
        self._in_hand: list[Said] = []  # of these, what the broker is being given
        self._answered: deque[str] = deque(maxlen=_ANSWERED_KEPT)
        self._is_gone = False

    async def run(self) -> int | None:
        """Until the client goes (None), or is to be sent away with a code."""
        self._chats.enter(self._userid, self._ear)
        reading, publishing = asyncio.create_task(self._read()), asyncio.create_task(self._publish())
        tasks = [
            reading,
            publishing,
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._chats.stopping.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            if reading in done and reading.exception() is None:
                return None
            is_slow = any(isinstance(task.exception(), _TooSlow) for task in done)
            if is_slow:
                self._is_gone = True
            else:
                for task in done:
                    task.result()
            await self._give_up(reading, publishing)
            return _SLOW if is_slow else _RESTARTING
        finally:
            self._chats.leave(self._userid, self._ear)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        """Takes frame after frame, whatever the broker does: a pong may be behind them. Ends when all is published."""
        while True:
            event = await self._socket.receive()
            if event["type"] != "websocket.receive":
                await self._said.join()
                return
            await self._take(event)

    async def _give_up(self, reading: asyncio.Task[None], publishing: asyncio.Task[None]) -> None:
        """What was read, and the broker has not taken in time, is refused: who said it may say it again elsewhere."""
        reading.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_S):
                await self._said.join()
        publishing.cancel()
        await asyncio.wait([publishing])
        while not self._said.empty():
            self._in_hand.append(self._said.get_nowait())
        with suppress(_TooSlow):
            for each in self._in_hand:
                await self._refuse(UNAVAILABLE, each)

    async def _take(self, event: Mapping[str, Any]) -> None:
        """Puts what one frame says in line for the broker, or refuses it."""
        text = event.get("text")
        if text is None:
            await self._refuse("The message is not a text frame.")
            return
        try:
            content, id_ = read_frame(text, self._userid)
        except InvalidInput as error:
            await self._refuse(str(error))
            return
        said = Said(id_ or new_uid(), self._userid, content, time.time())
        wait_s = await self._chats.limit.take(self._userid)
        if wait_s > 0:
            metrics.CHAT_LIMITED.inc()
            await self._refuse(f"Rate limit exceeded. Try again in {math.ceil(wait_s)} seconds.", said)
        else:
            await self._said.put(said)

    async def _publish(self) -> None:
        """Hands what was said over to the broker, in order; if it is away, it is so for all that waits."""
        while True:
            said = self._in_hand = [await self._said.get()]
            if not await self._hand_over(said[0]):
                while not self._said.empty():
                    said.append(self._said.get_nowait())
                for each in said:
                    await self._refuse(UNAVAILABLE, each)
            self._in_hand = []
            for _ in said:
                self._said.task_done()

    async def _hand_over(self, said: Said) -> bool:
        """Whether the broker has taken a message over."""
        attributes = {"travelrec.message": said.id, "travelrec.request_id": self._request_id}
        span = tracing.served("chat message", self._caller, attributes)
        headers = {"request-id": self._request_id, **tracing.carried(span)}
        try:
            with tracing.span(f"publish {INCOMING_TOPIC}", span, SpanKind.PRODUCER):
                message = encode_said(said, headers, streamed=self._ear.streamed)
                await self._chats.broker.publish(INCOMING_TOPIC, [message])
        except BrokerUnavailable as error:
            log.warning("message not taken over", error=str(error), request_id=self._request_id)
            tracing.failed(span, "BrokerUnavailable")
            return False
        finally:
            span.end()
        metrics.CHAT_MESSAGES.labels("accepted").inc()
        return True

    async def _refuse(self, error: str, said: Said | None = None) -> None:
        metrics.CHAT_MESSAGES.labels("refused").inc()
        to = said.id if said is not None and self._ear.streamed else None
        await self._send(error_frame(error, self._userid, to))

    async def _follow(self) -> None:
        """Sends what the history has behind the position, and goes on when the bell rings or a piece is there."""
        ear = self._ear
        while True:
            ear.news.clear()
            while ear.pieces:
                piece = ear.pieces.popleft()
                if piece.message not in self._answered:
                    await self._send(delta_frame(piece))
            if ear.grown:
                ear.grown = False
                try:
                    await self._send_entries()
                except Unavailable as error:
                    log.warning("chat waits for its history", error=str(error))
                    ear.grown = True
                    await asyncio.sleep(_AWAY_S)
                    continue
            try:
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await ear.news.wait()
            except TimeoutError:
                ear.grown = True

    async def _send_entries(self) -> None:
        while True:
            entries = await self._chats.history.after(self._userid, self._position, _PAGE)
            for entry in entries:
                if entry.kind != "message":
                    parent = {"traceparent": entry.trace} if entry.trace else {}
                    with tracing.span(
                        "send", parent, SpanKind.PRODUCER, {"travelrec.message": entry.message}
                    ):
                        await self._send(shown(entry, self._userid, streamed=self._ear.streamed))
                if entry.kind == "response":
                    self._answered.append(entry.message)
                self._position = entry.id
            if len(entries) < _PAGE:
                return

    async def _send(self, frame: Mapping[str, Json]) -> None:
        if self._is_gone:
            return
        try:
            async with asyncio.timeout(_SEND_S):
                await self._socket.send_text(json.dumps(frame, ensure_ascii=False))
        except TimeoutError:
            raise _TooSlow from None
        except WebSocketDisconnect:
            self._is_gone = True  # which `_read` hears too, and ends once all is published


@router.websocket("/ws")
async def talk(socket: WebSocket) -> None:
    """See the contract: `?token=…&userid=…`, `&since=…` for what was missed, `&stream=true` for pieces of answers."""
    request_id = request_id_of(socket.scope)
    named = {"X-Request-ID": request_id}
    chats: Chats | None = socket.app.state.parts.chats
    query = socket.query_params
    userid = query.get("userid", "")
    if chats is not None:
        admitted = chats.admits(query.get("token", ""), userid)
        if not admitted or not chats.admits_origin(socket.headers.get("origin")):
            metrics.CHAT_REFUSED.inc()
            await _deny(socket, _forbidden(named), request_id)
            return
    if chats is None or chats.full or chats.stopping.is_set():
        await _deny(socket, _unavailable(named), request_id)
        return
    with chats.place():
        try:
            position = query.get("since") or await _end(chats.history, userid)
        except Unavailable:
            await _deny(socket, _unavailable(named), request_id)
            return
        await socket.accept(headers=[(b"x-request-id", request_id.encode())])
        log.info("chat opened", request_id=request_id)
        streamed = query.get("stream") == "true"
        code = await _Connection(socket, chats, userid, position, request_id, streamed=streamed).run()
    if code is not None:
        try:
            async with asyncio.timeout(_AWAY_S):
                await socket.close(code)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            pass  # it has gone, or does not read: the transport is closed behind this
    log.info("chat closed", request_id=request_id, code=code)


async def _deny(socket: WebSocket, refusal: Response, request_id: str) -> None:
    log.info("chat refused", request_id=request_id, status=refusal.status_code)
    await socket.send_denial_response(refusal)


@router.get("/ws", include_in_schema=False)
async def no_handshake(request: Request) -> Response:
    """What is no handshake; one whose token makes it too long to be read is refused for that."""
    if "upgrade" not in request.headers:
        return problem(404)
    return _forbidden({}) if len(request.scope["query_string"]) > _LONGEST_QUERY else problem(400)


async def _end(history: ChatHistory, userid: str) -> str:
    """The last place in the history: what is behind it is new. Of an empty one, a place before all."""
    newest = await history.recent(userid, 1)
    return newest[-1].id if newest else ""


class ShownMessage(BaseModel):
    """A message of the user, or a response."""

    type: str
    id: str
    userid: str
    content: str
    timestamp: str


@router.head("/chat/{userid}/messages", include_in_schema=False)
@router.get(
    "/chat/{userid}/messages",
    response_model=list[ShownMessage],
    responses={
        403: {"model": Problem, "description": "The token is not this user's."},
        422: {"model": Problem, "description": "Something can't be used; `details` says what."},
        503: {"model": Problem, "description": "The history can't be reached."},
    },
    openapi_extra={
        "parameters": [
            {"name": "userid", "in": "path", "required": True, "schema": {"type": "string"}},
            {"name": "token", "in": "query", "required": True, "schema": {"type": "string"}},
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": _MOST, "default": 50},
            },
        ]
    },
    operation_id="readChat",
    summary="Read a conversation",
)
async def messages(request: Request) -> Response:
    """The newest messages and responses, oldest first."""
    chats: Chats | None = request.app.state.parts.chats
    userid = str(request.path_params["userid"])
    if chats is None:
        return _unavailable({})
    if not is_userid(userid) or not chats.admits(request.query_params.get("token", ""), userid):
        return _forbidden({})
    limit = request.query_params.get("limit", "50")
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= _MOST:
        raise InvalidInput("limit", f"limit: use a whole number from 1 to {_MOST}.")
    entries = await chats.history.recent(userid, 2 * int(limit))  # each error stands behind its message
    read = [shown(entry, userid) for entry in entries if entry.kind != "error"]
    return answer(200, read[-int(limit) :])


def _forbidden(headers: Mapping[str, str]) -> Response:
    return problem(403, headers)


def _unavailable(headers: Mapping[str, str]) -> Response:
    body: dict[str, Json] = {
        "error": "Service unavailable",
        "message": "There is no chat here just now. Please try again.",
    }
    return answer(503, body, {"Retry-After": str(RETRY_AFTER_S), **headers})
