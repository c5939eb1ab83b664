"""`/predict`: what the model function makes of a text, waited for or fetched later."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated, Any, Literal  # OpenAPI fragments are plain data

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from starlette.responses import Response

from travelrec.errors import InvalidInput, StoreUnavailable
from travelrec.job import Job, Json, Status, is_uid
from travelrec.kinds.prediction import MAX_CHARACTERS, NAME
from travelrec.kinds.prediction.examples import INPUT
from travelrec_api.asked import carried, idempotency_key, note
from travelrec_api.problems import Problem, answer, invalid, problem
from travelrec_api.state import State

router = APIRouter(tags=["predictions"])

_WAIT_S = 60.0
_STORE_AWAY_S = 1.0
_RECEIVED = "Request received. Processing asynchronously."
_PROCESSING: dict[str, Json] = {"error": "Prediction is still being processed."}
_NOT_FOUND: dict[str, Json] = {"error": "Prediction ID not found."}
_FAILED = 502
_MODES = {"true": True, "false": False}


class Asked(BaseModel):
    """What is to be predicted from."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"example": {"input": INPUT}})
    input: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


class Predicted(BaseModel):
    """The input as it was sent, and what the model made of it."""

    input: str
    result: JsonValue


class Received(BaseModel):
    """The request is durable; ask for its result by this id."""

    message: Literal["Request received. Processing asynchronously."]
    prediction_id: str


class Found(BaseModel):
    """The result of an earlier request."""

    prediction_id: str
    output: Predicted


class Told(BaseModel):
    """Why there is no result to show."""

    error: str


_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
_LOCATION = {"Location": {"schema": {"type": "string"}, "description": "Where its result will be."}}
_AWAY: dict[str, Any] = {
    "model": Problem,
    "description": "The store can't be reached; nothing was accepted.",
    "headers": _RETRY_AFTER,
}
_FAILED_TOLD = "The model gave no result, after all attempts: the body says why. It will not be tried again."
_HEADERS = [
    {
        "name": "Async-Mode",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "enum": ["true", "false"], "default": "false"},
        "description": "`true`: answer at once with an id. Else the answer is the result, waited for 60 s at most.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[\x21-\x7e]+$"},
        "description": "The same key with the same input is the same prediction for 24 hours.",
    },
]
_ID = {
    "name": "prediction_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "What `POST /predict` answered.",
}
_ASKING: dict[int | str, dict[str, Any]] = {
    200: {"description": "The result.", "headers": _LOCATION},
    202: {
        "model": Received,
        "description": "Accepted, with `Async-Mode: true`.",
        "headers": {**_LOCATION, **_RETRY_AFTER},
        "links": {
            "readPrediction": {
                "operationId": "readPrediction",
                "parameters": {"prediction_id": "$response.body#/prediction_id"},
            }
        },
    },
    413: {"model": Problem, "description": "The body is over 64 KiB."},
    422: {"model": Problem, "description": "The body or a header can't be used."},
    _FAILED: {"model": Problem, "description": _FAILED_TOLD, "headers": _LOCATION},
    503: _AWAY,
    504: {
        "model": Problem,
        "description": "No result within 60 s. It is still worked on: `Location` says where its result will be.",
        "headers": _LOCATION,
    },
}
_READING: dict[int | str, dict[str, Any]] = {
    400: {"model": Told, "description": "It is still being processed.", "headers": _RETRY_AFTER},
    404: {"model": Told, "description": "There is no such prediction."},
    _FAILED: {"model": Problem, "description": _FAILED_TOLD},
    503: _AWAY,
}


@router.post(
    "/predict",
    response_model=Predicted,
    responses=_ASKING,
    openapi_extra={
        "parameters": _HEADERS,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": Asked.model_json_schema()}},
        },
    },
    operation_id="predict",
    summary="Ask for a prediction",
)
async def predict(request: Request) -> Response:
    """The result, or with `Async-Mode: true` an id once the request is durable. Both go through the same queue."""
    state: State = request.app.state.parts
    problems: list[tuple[str, str]] = []
    asynchronous, key, text = False, None, ""
    try:
        asynchronous = _asynchronous(request)
    except InvalidInput as error:
        problems.append((error.field, str(error)))
    try:
        key = idempotency_key(request, NAME)
    except InvalidInput as error:
        problems.append((error.field, str(error)))
    try:
        text = Asked.model_validate_json(await request.body()).input
    except ValidationError as error:
        problems += _complaints(error)
    if problems:
        return invalid(problems)
    params = {"input": text}
    job, replayed = await state.accepter.accept(
        NAME, params, carried(request), key, span=request.scope["state"]["span"]
    )
    request.scope["state"]["uid"] = job.uid
    if replayed and job.params != params:
        message = "Idempotency-Key: this key was used with another input; use a new key for a new request."
        return invalid([("Idempotency-Key", message)])
    headers = {"Location": f"/predict/{job.uid}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    if asynchronous:
        return answer(202, {"message": _RECEIVED, "prediction_id": job.uid}, {**headers, "Retry-After": "1"})
    found = await _ended(state, job)
    match found.status:
        case Status.COMPLETED:
            return answer(200, _output(found), headers)
        case Status.PENDING if state.waiters.stopped:
            return problem(503, {**headers, "Retry-After": "1"})
        case Status.PENDING:
            return answer(504, _late(found), headers)
        case _:
            return answer(_FAILED, _failure(found), headers)


@router.head("/predict/{prediction_id}", include_in_schema=False)
@router.get(
    "/predict/{prediction_id}",
    response_model=Found,
    responses=_READING,
    openapi_extra={"parameters": [_ID]},
    operation_id="readPrediction",
    summary="Read a prediction",
)
async def read(request: Request) -> Response:
    """The result of a request that was not waited for, or for which the wait was too short."""
    state: State = request.app.state.parts
    uid: str = request.path_params["prediction_id"]
    job = await state.waiters.read(uid) if is_uid(uid) else None
    if job is None or job.kind != NAME:
        return answer(404, _NOT_FOUND)
    note(request, job)
    match job.status:
        case Status.COMPLETED:
            return answer(200, {"prediction_id": job.uid, "output": _output(job)})
        case Status.PENDING:
            return answer(400, _PROCESSING, {"Retry-After": "1"})
        case Status.FAILED:
            return answer(_FAILED, _failure(job))
        case Status.CANCELLED:  # its caller was told that nothing was accepted
            return answer(404, _NOT_FOUND)


async def _ended(state: State, job: Job) -> Job:
    """The job once it has ended, or as it stands when the wait is over; it is accepted, whatever the store does."""
    deadline = time.monotonic() + _WAIT_S
    while not job.ended and not state.waiters.stopped and (left_s := deadline - time.monotonic()) > 0:
        try:
            job = await state.waiters.until_ended(job.uid, left_s) or job
        except StoreUnavailable:
            await asyncio.sleep(min(left_s, _STORE_AWAY_S))
    return job


def _asynchronous(request: Request) -> bool:
    modes = request.headers.getlist("async-mode")
    mode = _MODES.get(modes[0].strip().lower()) if len(modes) == 1 else None
    if modes and mode is None:
        raise InvalidInput("Async-Mode", "Async-Mode: use true or false.")
    return bool(mode)


def _complaints(error: ValidationError) -> list[tuple[str, str]]:
    found = []
    for each in error.errors(include_url=False, include_input=False):
        field = str(each["loc"][0])[:40] if each["loc"] else "body"
        match each["type"]:
            case "json_invalid" | "model_type":
                found.append(("body", 'body: send JSON like {"input": "…"}.'))
            case "missing":
                found.append((field, f"{field}: is required."))
            case "extra_forbidden":
                found.append((field, f"{field}: is not known here; send input alone."))
            case "string_too_short" | "string_too_long":
                found.append((field, f"{field}: use 1 to {MAX_CHARACTERS:,} characters."))
            case _:
                found.append((field, f"{field}: {each['msg']}."))
    return found


def _output(job: Job) -> dict[str, Json]:
    result = (job.result or {}).get("json")
    return {"input": job.params["input"], "result": json.loads(str(result))}


def _failure(job: Job) -> dict[str, Json]:
    return {"error": job.error or "Prediction failed", "message": job.message or "Please try again later."}


def _late(job: Job) -> dict[str, Json]:
    told = (
        f"There was no result within 60 seconds. It is still worked on: GET /predict/{job.uid} will have it."
    )
    return {"error": "Prediction timeout", "message": told}
