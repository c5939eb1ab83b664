"""What a user says and what is answered: the values, what a connection sends of them, and the rules of both. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from travelrec.errors import InvalidInput
from travelrec.job import Json

MAX_CONTENT = 4_000  # characters
MAX_FRAME = 64 * 1024  # of a message all of whose characters are escaped
UNAVAILABLE = "Service temporarily unavailable"

_USERID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a user; `id` is its own, whatever is delivered twice on the way."""

    id: str
    userid: str
    content: str
    at: float


def notes_of(said: Said) -> tuple[str, str]:
    """The notes one of which stands if nothing is left to be done for `said`.

    A message that failed may be sent again with the same id: it is then another sending.
    """
    return said.id, _failure(said)


def _failure(said: Said) -> str:
    return f"{said.id}@{said.at!r}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered to `to`; one that `failed` has an error for the user as its content.

    `trace` is the traceparent of the span that brings it into the history.
    """

    to: Said
    content: str
    at: float
    failed: bool = False
    trace: str | None = None

    @property
    def kind(self) -> Literal["response", "error"]:
        """What it is in a history."""
        return "error" if self.failed else "response"

    @property
    def note(self) -> str:
        """What the history notes for good: that the message is answered, or that this sending of it is not."""
        return _failure(self.to) if self.failed else self.to.id


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in a user's history; `id` names the place, `message` the message that it is, or answers.

    `trace` is that of the reply, from histories that several processes share.
    """

    id: str
    kind: Literal["message", "response", "error"]
    content: str
    at: float
    message: str
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of the answer to `message` that is being made: what stands from `offset` on, in characters, so far."""

    userid: str
    message: str
    offset: int
    content: str


def is_userid(text: str) -> bool:
    """Whether `text` can be a user's id."""
    return _USERID.fullmatch(text) is not None


def read_frame(text: str, userid: str) -> tuple[str, str | None]:
    """What the user of a connection says with a text frame, and the id that the client gave it, if any.

    Raises `InvalidInput`, whose message is for the client. Control characters are left out, but for tabs and lines.
    """
    if len(text) > MAX_FRAME:
        raise InvalidInput("content", f"The content may have {MAX_CONTENT:,} characters at most.")
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidInput("frame", "The message is not JSON.") from None
    if not isinstance(frame, dict):
        raise InvalidInput("frame", "The message is not a JSON object.")
    if frame.get("type") != "message":
        raise InvalidInput("type", 'The type of the message is not known; use "message".')
    if frame.get("userid") != userid:
        raise InvalidInput("userid", "The userid is not the one of this connection.")
    return _content(frame.get("content")), _id(frame.get("id"))


def _content(content: object) -> str:
    if not isinstance(content, str):
        raise InvalidInput("content", f"The content must be a text of 1 to {MAX_CONTENT:,} characters.")
    if len(content) > MAX_CONTENT:
        raise InvalidInput("content", f"The content may have {MAX_CONTENT:,} characters at most.")
    try:
        content.encode()
    except UnicodeEncodeError:
        raise InvalidInput("content", "The content has half of a surrogate pair.") from None
    content = plain(content)
    if not content:
        raise InvalidInput("content", "The content is empty.")
    return content


def _id(given: object) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or not is_userid(given):
        raise InvalidInput(
            "id", "The id of a message has 1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen."
        )
    return given


def plain(text: str) -> str:
    """`text` without control characters, halves of surrogate pairs and surrounding blanks.

    That of a beginning of `text` is a beginning of that of `text`.
    """
    return _CONTROLS.sub("", text.replace("\r\n", "\n")).strip()


def shown(entry: Entry, userid: str, *, streamed: bool = False) -> dict[str, Json]:
    """What a connection sends of an entry, and the history of a message; `streamed` to one that asked for pieces."""
    if entry.kind == "error":
        return error_frame(entry.content, userid, entry.message if streamed else None)
    return {
        "type": entry.kind,
        "id": entry.id,
        "userid": userid,
        "content": entry.content,
        "timestamp": datetime.fromtimestamp(entry.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def delta_frame(piece: Piece) -> dict[str, Json]:
    """What a connection that asked for it sends of an answer that is being made."""
    return {
        "type": "delta",
        "to": piece.message,
        "offset": piece.offset,
        "content": piece.content,
        "userid": piece.userid,
    }


def error_frame(message: str, userid: str, to: str | None = None) -> dict[str, Json]:
    """What a connection sends when it can't do what was asked; one that asked for pieces hears `to` which message."""
    frame: dict[str, Json] = {"type": "error", "message": message, "userid": userid}
    return frame if to is None else {**frame, "to": to}
