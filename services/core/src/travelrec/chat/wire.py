"""The messages of the topics `incoming_messages` and `responses`: JSON with a version, keyed by userid."""

from __future__ import annotations

import json
from collections.abc import Mapping

from travelrec.chat.message import MAX_CONTENT, Reply, Said, is_userid
from travelrec.errors import Undecodable
from travelrec.wire import VERSION, Message, decoded

_STREAMED = {"stream": "true"}


def encode_said(said: Said, headers: Mapping[str, str], *, streamed: bool = False) -> Message:
    """The message that asks for an answer, whose user may want to hear it while it is made."""
    if streamed:
        headers = {**headers, **_STREAMED}
    return _message({"v": VERSION, **_said_to_record(said)}, said.userid, headers)


def is_streamed(message: Message) -> bool:
    """Whether the user wants to hear the answer while it is made."""
    return message.headers.items() >= _STREAMED.items()


def decode_said(message: Message) -> Said:
    """What was said; raises `Undecodable`."""
    return _said(decoded(message.value))


def encode_reply(reply: Reply, headers: Mapping[str, str]) -> Message:
    """The message that brings an answer."""
    body = {
        "v": VERSION,
        "to": _said_to_record(reply.to),
        "content": reply.content,
        "at": reply.at,
        "failed": reply.failed,
    }
    return _message(body, reply.to.userid, headers)


def decode_reply(message: Message) -> Reply:
    """The answer, with what it answers; raises `Undecodable`."""
    body = decoded(message.value)
    to = body.get("to")
    if not isinstance(to, dict):
        raise Undecodable("a response to nothing")
    return Reply(_said(to), _text(body, "content"), _time(body), body.get("failed") is True)


def _message(body: Mapping[str, object], userid: str, headers: Mapping[str, str]) -> Message:
    return Message(json.dumps(body, ensure_ascii=False).encode(), headers, userid)


def _said_to_record(said: Said) -> dict[str, object]:
    return {"id": said.id, "userid": said.userid, "content": said.content, "at": said.at}


def _said(body: Mapping[str, object]) -> Said:
    userid = _text(body, "userid")
    if not is_userid(userid):
        raise Undecodable("a chat message without a userid")
    content = _text(body, "content")
    if len(content) > MAX_CONTENT:
        raise Undecodable(f"a chat message of {len(content):,} characters")
    return Said(_text(body, "id"), userid, content, _time(body))


def _text(body: Mapping[str, object], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Undecodable(f"a chat message without {name}")
    return value


def _time(body: Mapping[str, object]) -> float:
    at = body.get("at")
    if not isinstance(at, int | float) or not 0 <= at < 2**35:  # what a timestamp can show
        raise Undecodable("a chat message without a time")
    return float(at)
