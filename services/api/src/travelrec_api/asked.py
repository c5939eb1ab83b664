"""What routes that take or read jobs and tasks have of a request: the caller's key, what travels on, and a note."""

from __future__ import annotations

import re

from starlette.requests import Request

from travelrec import tracing
from travelrec.errors import InvalidInput
from travelrec.job import Job

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TRACE = ("traceparent", "tracestate")


def idempotency_key(request: Request, kind: str) -> str | None:
    """The caller's `Idempotency-Key`, which is one of its kind; None if there is none. Raises `InvalidInput`."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise InvalidInput(
            "Idempotency-Key", "Idempotency-Key: give one, of 1 to 255 visible ASCII characters."
        )
    return f"{kind}:{keys[0]}"


def carried(request: Request) -> dict[str, str]:
    """What travels with the job or task: the request's id and its span, or the caller's where no spans are made."""
    headers = {"request-id": request.scope["state"]["request_id"]}
    if tracing.on():
        trace: dict[str, str] = request.scope["state"]["trace"]
        return headers | trace
    for name in _TRACE:
        value = request.headers.get(name)
        if value is not None and len(value) <= 512:  # noqa: PLR2004 - W3C Trace Context's own limit
            headers[name] = value
    return headers


def note(request: Request, job: Job | None) -> None:
    """Names the job in the request's log line and span, and links the span to the job's own trace."""
    state = request.scope["state"]
    if job is not None:
        state["uid"] = job.uid
        state["span"].set_attribute("travelrec.uid", job.uid)
        tracing.linked(state["span"], job.headers.get("traceparent"))
