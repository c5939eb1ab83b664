"""JSON about tasks, from callers and from the third party, read with care: pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from travelrec.tasks.task import MAX_MESSAGE, MAX_TEXT, Row, TaskStatus


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as it was written: an id that is a number is kept as its string."""

    text: str


def read_json(body: bytes) -> object:
    """What `body` says, its numbers as they are written; raises `ValueError` for what is no JSON."""
    try:
        return json.loads(body.decode(), parse_int=Number, parse_float=Number, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def read_text(value: object, *, most: int = MAX_TEXT) -> str | None:
    """A text of 1 to `most` characters; None for anything else, half a surrogate pair too."""
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        return None
    return value if is_text(value) else None


def is_text(value: str) -> bool:
    """Whether it can be stored: JSON can write half a surrogate pair, which no other text can."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_id(value: object) -> str | None:
    """The id that `value` is, or None: a text, or a number, which is kept as its string."""
    return read_text(value.text if isinstance(value, Number) else value)


def read_status(value: object) -> TaskStatus | None:
    """The status of that name, or None."""
    return next((status for status in TaskStatus if status.value == value), None)


def read_rows(listed: list[object]) -> tuple[list[Row], int]:
    """What a third party says of its tasks, the last word on each, and how many rows can't be used."""
    good: dict[str, Row] = {}
    bad = 0
    for one in listed:
        row = _read_row(one)
        if row is None:
            bad += 1
        else:
            good[row.id] = row
    return list(good.values()), bad


def _read_row(one: object) -> Row | None:
    if not isinstance(one, dict):
        return None
    id_, status = read_id(one.get("id")), read_status(one.get("status"))
    message = one.get("error_message")
    if id_ is None or status is None:
        return None
    if status is not TaskStatus.ERROR or message is None:
        return Row(id_, status)
    if not isinstance(message, str) or not is_text(message):
        return None
    return Row(id_, status, message[:MAX_MESSAGE])
