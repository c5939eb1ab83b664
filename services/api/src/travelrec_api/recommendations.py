"""`/recommendations`: ask for three things to do, and read, follow or cancel what was asked."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal  # OpenAPI fragments are plain data
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from travelrec import metrics
from travelrec.errors import InvalidInput, SignalUnavailable, StoreUnavailable
from travelrec.job import Job, Json, Status, is_uid
from travelrec.kinds.recommendation import NAME
from travelrec.kinds.recommendation.places import find_country, find_season
from travelrec.retry import http_date
from travelrec.wire import Signal
from travelrec_api.asked import carried, idempotency_key, note
from travelrec_api.problems import Problem, answer, invalid
from travelrec_api.state import State

router = APIRouter(tags=["recommendations"])

_MAX_WAIT_S = 60.0
_PING_S = 15.0
_STORE_AWAY_S = 1.0
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FOUND: dict[str, Json] = {
    "error": "UID not found",
    "message": "The provided UID does not exist. Please check the UID and try again.",
}
_PENDING = "The recommendations are not yet available. Please try again later."


class Accepted(BaseModel):
    """The request is durable; ask for its result by this uid."""

    uid: str


class Completed(BaseModel):
    """The result."""

    uid: str
    country: str
    season: Literal["spring", "summer", "autumn", "winter"]
    recommendations: list[str]
    status: Literal["completed"]


class Pending(BaseModel):
    """Not yet."""

    uid: str
    status: Literal["pending"]
    message: str


class Failed(BaseModel):
    """There will be no result, and why."""

    uid: str
    status: Literal["failed"]
    error: str
    message: str


class Cancelled(BaseModel):
    """There will be no result, since its caller said so."""

    uid: str
    status: Literal["cancelled"]
    message: str


def _parameter(name: str, schema: Mapping[str, Any], *, required: bool, told: str) -> dict[str, Any]:
    place = "header" if name == "Idempotency-Key" else "query"
    return {"name": name, "in": place, "required": required, "schema": dict(schema), "description": told}


_UID = _parameter(
    "uid",
    {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    required=True,
    told="What `POST /recommendations` answered.",
)
_WAIT = _parameter(
    "wait",
    {"type": "number", "minimum": 0, "maximum": 60, "default": 0},
    required=False,
    told="Seconds to wait for the end of the job before answering.",
)
_ASKED = [
    _parameter(
        "country",
        {"type": "string", "minLength": 1, "maxLength": 100, "example": "Canada"},
        required=True,
        told="A country or territory by common, official or local short name, alpha-2 or alpha-3 code.",
    ),
    _parameter(
        "season",
        {"type": "string", "example": "winter"},
        required=True,
        told="`spring`, `summer`, `autumn` (or `fall`) or `winter`.",
    ),
    _parameter(
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
        required=False,
        told="The same key with the same parameters gives the same uid for 24 hours.",
    ),
]
_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "A parameter is missing or can't be used."},
    503: {
        "model": Problem,
        "description": "The store can't be reached; nothing was accepted.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
}
_BY_UID = {
    name: {"operationId": name, "parameters": {"uid": "$response.body#/uid"}}
    for name in ("readRecommendations", "followRecommendations", "cancelRecommendations")
}
_ACCEPTING: dict[int | str, dict[str, Any]] = {
    202: {"links": _BY_UID},
    **_ERRORS,
    413: {"model": Problem, "description": "The body is over 64 KiB; none is needed."},
}
_LOOKED_UP: dict[int | str, dict[str, Any]] = {
    **_ERRORS,
    404: {"model": Problem, "description": "There is no such uid."},
}
_STATES: Any = Completed | Pending | Failed | Cancelled
_ONE_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": [status.value for status in Status]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


@router.post(
    "/recommendations",
    status_code=202,
    response_model=Accepted,
    responses=_ACCEPTING,
    openapi_extra={"parameters": _ASKED},
    operation_id="askForRecommendations",
    summary="Ask for three things to do",
)
async def accept(request: Request) -> Response:
    """Answers with a uid once the request is durable; the result is there some seconds later."""
    state: State = request.app.state.parts
    query = _query(request)
    problems: list[tuple[str, str]] = []
    params = {}
    for field, find in (("country", find_country), ("season", find_season)):
        try:
            params[field] = find(_single(query, field))
        except InvalidInput as error:
            problems.append((error.field, str(error)))
    try:
        key = idempotency_key(request, NAME)
    except InvalidInput as error:
        problems.append((error.field, str(error)))
    if problems:
        return invalid(problems)
    job, replayed = await state.accepter.accept(
        NAME,
        params,
        carried(request),
        key,
        span=request.scope["state"]["span"],
    )
    request.scope["state"]["uid"] = job.uid
    if replayed and (job.kind != NAME or job.params != params):
        message = "Idempotency-Key: this key was used with other parameters; use a new key for a new request."
        return invalid([("Idempotency-Key", message)])
    headers = {"Location": f"/recommendations?uid={job.uid}", "Retry-After": "1"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return answer(202, {"uid": job.uid}, headers)


@router.head("/recommendations", include_in_schema=False)
@router.get(
    "/recommendations",
    response_model=_STATES,
    responses=_LOOKED_UP,
    openapi_extra={"parameters": [_UID, _WAIT]},
    operation_id="readRecommendations",
    summary="Read the state or the result",
)
async def read(request: Request) -> Response:
    """The job as it stands; with `wait`, as soon as it has ended or that many seconds have passed."""
    state: State = request.app.state.parts
    query = _query(request)
    uid = _single(query, "uid")
    wait_s = _wait(query)
    if not is_uid(uid):
        return answer(404, _NOT_FOUND)
    job = await state.waiters.until_ended(uid, wait_s)
    note(request, job)
    return _answer(job)


@router.head("/recommendations/events", include_in_schema=False)
@router.get(
    "/recommendations/events",
    response_class=StreamingResponse,
    responses={
        **_LOOKED_UP,
        200: {
            "description": "Events `pending`, `completed`, `failed`, `cancelled`, with the same JSON as data.",
            "content": {"text/event-stream": {"itemSchema": _ONE_EVENT}},
        },
    },
    openapi_extra={"parameters": [_UID]},
    operation_id="followRecommendations",
    summary="Follow it to its end",
)
async def events(request: Request) -> Response:
    """The present state at once, the end when it comes; then the stream closes."""
    state: State = request.app.state.parts
    uid = _single(_query(request), "uid")
    job = await state.waiters.read(uid) if is_uid(uid) else None
    if job is None or job.kind != NAME:
        return answer(404, _NOT_FOUND)
    note(request, job)
    return StreamingResponse(
        _events(state, job) if request.method == "GET" else [],
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(state: State, job: Job) -> AsyncIterator[bytes]:
    yield _event(job)
    while not job.ended and not state.waiters.stopped:
        try:
            found = await state.waiters.until_ended(job.uid, _PING_S, metrics.EVENT_STREAMS)
        except StoreUnavailable:
            yield format_sse_event(comment="the store is away")
            await asyncio.sleep(_STORE_AWAY_S)
            continue
        if found is None:
            return
        if found.ended:
            yield _event(found)
        else:
            yield format_sse_event(comment="ping")
        job = found


@router.delete(
    "/recommendations",
    response_model=_STATES,
    responses=_LOOKED_UP,
    openapi_extra={"parameters": [_UID]},
    operation_id="cancelRecommendations",
    summary="Cancel it",
)
async def cancel(request: Request) -> Response:
    """Ends a pending job; one that has ended stays as it is, and is returned."""
    state: State = request.app.state.parts
    uid = _single(_query(request), "uid")
    found = await state.waiters.read(uid) if is_uid(uid) else None
    if found is None or found.kind != NAME:
        return answer(404, _NOT_FOUND)
    note(request, found)
    now = time.time()
    message = f"Cancelled by its caller on {http_date(now)}. Nothing more will come of this request."
    job, ended_now = await state.store.cancel(uid, now, message)
    if ended_now:
        metrics.FINISHED.labels(NAME, Status.CANCELLED.value).inc()
        signal = Signal(uid, Status.CANCELLED, request.scope["state"]["trace"].get("traceparent"))
        try:
            await state.signals.announce([signal])
        except SignalUnavailable:
            state.waiters.hear([signal])
    return _answer(job)


def _answer(job: Job | None) -> Response:
    if job is None or job.kind != NAME:
        return answer(404, _NOT_FOUND)
    return answer(200, _body(job), None if job.ended else {"Retry-After": "1"})


def _body(job: Job) -> dict[str, Json]:
    match job.status:
        case Status.COMPLETED:
            found = (job.result or {}).get("recommendations", [])
            asked: dict[str, Json] = {"country": job.params["country"], "season": job.params["season"]}
            return {"uid": job.uid, **asked, "recommendations": found, "status": "completed"}
        case Status.PENDING:
            return {"uid": job.uid, "status": "pending", "message": _PENDING}
        case Status.FAILED:
            told: dict[str, Json] = {"error": job.error or "Failed", "message": job.message or ""}
            return {"uid": job.uid, "status": "failed", **told}
        case Status.CANCELLED:
            return {"uid": job.uid, "status": "cancelled", "message": job.message or ""}


def _event(job: Job) -> bytes:
    body = answer(200, _body(job)).body
    return format_sse_event(event=job.status.value, data_str=bytes(body).decode())


def _query(request: Request) -> list[tuple[str, str]]:
    return parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _single(query: list[tuple[str, str]], field: str) -> str:
    """The one value of `field`; raises `InvalidInput` when it is missing or given twice."""
    values = [value for name, value in query if name == field]
    if not values or not values[0].strip():
        raise InvalidInput(field, f"{field}: is required.")
    if len(values) > 1:
        raise InvalidInput(field, f"{field}: give it once.")
    return values[0]


def _wait(query: list[tuple[str, str]]) -> float:
    values = [value for name, value in query if name == "wait"]
    if not values:
        return 0.0
    seconds = float(values[0]) if len(values) == 1 and _NUMBER.fullmatch(values[0]) else math.nan
    if not 0 <= seconds <= _MAX_WAIT_S:
        raise InvalidInput("wait", "wait: use one number of seconds from 0 to 60.")
    return seconds
