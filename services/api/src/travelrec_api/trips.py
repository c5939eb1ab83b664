"""`/api/generate-trip` and `/api/generate-multiple-trips`: made-up trips, published as three Avro records each.

`/api/trips/events` shows what the join makes of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any  # OpenAPI fragments are plain data

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event
from pydantic import BaseModel, ValidationError
from starlette.responses import Response, StreamingResponse

from travelrec import metrics
from travelrec.trips.entities import GenerateTrips
from travelrec_api.joined import JoinedTrips
from travelrec_api.problems import Problem, answer, invalid
from travelrec_api.state import State

router = APIRouter(prefix="/api", tags=["trips"])

_PING_S = 15.0
_AWAY = "The broker or the schema registry can't be reached, or refuses our schema; nothing is claimed."
_ERRORS: dict[int | str, dict[str, Any]] = {
    503: {
        "model": Problem,
        "description": _AWAY,
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
    413: {"model": Problem, "description": "The body is over 64 KiB."},
}
_INVALID = {"model": Problem, "description": "`count` is missing or no whole number of 1 to 1,000."}


_COMMAND = GenerateTrips.model_json_schema()


class Generated(BaseModel):
    """The broker has acknowledged every record of these trips."""

    request_id: str
    trip_ids: list[str]


@router.post(
    "/generate-trip",
    status_code=201,
    response_model=Generated,
    responses=_ERRORS,
    operation_id="generateTrip",
    summary="Make up a trip and publish it",
)
async def generate_trip(request: Request) -> Response:
    """Publishes one record each to the streams of trips, drivers and riders; no body is needed."""
    return await _generated(request, 1)


@router.post(
    "/generate-multiple-trips",
    status_code=201,
    response_model=Generated,
    responses={**_ERRORS, 422: _INVALID},
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _COMMAND}}}},
    operation_id="generateMultipleTrips",
    summary="Make up trips and publish them",
)
async def generate_multiple_trips(request: Request) -> Response:
    """As for one trip; all of them in one go."""
    try:
        command = GenerateTrips.model_validate_json(await request.body())
    except ValidationError as error:
        found = [(str(each["loc"][0]) if each["loc"] else "body", each["msg"]) for each in error.errors()]
        return invalid([(field, f"{field}: {message}.") for field, message in found])
    return await _generated(request, command.count)


async def _generated(request: Request, count: int) -> Response:
    state: State = request.app.state.parts
    request_id, trip_ids = await state.trips.publish(count, request.scope["state"]["span"])
    return answer(201, {"request_id": request_id, "trip_ids": [*trip_ids]})


@router.head("/trips/events", include_in_schema=False)
@router.get("/trips/events", include_in_schema=False)  # for the page: it has no end
async def joined_trips(request: Request) -> Response:
    """The joined trips as they come: events `live`, `away`, `joined` and `missed`."""
    state: State = request.app.state.parts
    if state.joined.is_full:
        return answer(
            503,
            {"error": "Service unavailable", "message": "Too many watch the trips here. Try again later."},
            {"Retry-After": "10"},
        )
    return StreamingResponse(
        _watched(state.joined) if request.method == "GET" else [],
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _watched(joined: JoinedTrips) -> AsyncIterator[bytes]:
    with metrics.EVENT_STREAMS.track_inprogress():
        async with joined.watched() as watcher:
            while not joined.stopped:
                happened = await watcher.told(_PING_S)
                for what, data in happened:
                    yield format_sse_event(event=what, data_str=json.dumps(data, ensure_ascii=False))
                if not happened:
                    yield format_sse_event(comment="ping")
