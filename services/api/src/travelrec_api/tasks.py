"""`/api/tasks`: tasks that are kept here, submitted to a third party, and followed there."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal, TypeAlias  # OpenAPI fragments are plain data
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import Response

from travelrec import metrics
from travelrec.errors import InvalidInput
from travelrec.job import Json
from travelrec.tasks import task as moves
from travelrec.tasks.reading import is_text, read_id, read_json, read_status, read_text
from travelrec.tasks.task import MAX_MESSAGE, MAX_TEXT, Change, Task, TaskStatus
from travelrec_api.asked import carried
from travelrec_api.problems import Problem, answer, invalid
from travelrec_api.state import State


class _Text(Convertor[str]):
    """A part of a path that may have any character; Starlette's own ends before a line's end."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _Text())

router = APIRouter(prefix="/api/tasks", tags=["tasks"])

_LIMIT, _MOST = 100, 1000
_NUMBER = re.compile(r"[0-9]{1,9}")
_NOT_FOUND: dict[str, Json] = {
    "error": "Task not found",
    "message": "There is no task with this id. GET /api/tasks lists those that there are.",
}
_EXISTS: dict[str, Json] = {
    "error": "Task exists",
    "message": "There is a task with this id already. Choose another id, or PATCH or DELETE that one first.",
}
_STATUSES = ", ".join(f"`{status.value}`" for status in TaskStatus)
_Details: TypeAlias = list[tuple[str, str]]


class ShownTask(BaseModel):
    """A task; `error_message` is null but for `Error`. It has a `group` only if it was created with one."""

    id: str
    status: Literal["Not Started", "In Progress", "Completed", "Error"]
    error_message: str | None
    group: str | None = None


_ID: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_STATUS: dict[str, Any] = {"type": "string", "enum": [status.value for status in TaskStatus]}
_MESSAGE: dict[str, Any] = {
    "type": ["string", "null"],
    "maxLength": MAX_MESSAGE,
    "description": "Only with the status `Error`.",
}
_NEW: dict[str, Any] = {
    "type": "object",
    "required": ["id"],
    "additionalProperties": False,
    "properties": {
        "id": {"anyOf": [_ID, {"type": "number"}], "description": "A number is kept as its string."},
        "status": {**_STATUS, "default": "Not Started"},
        "error_message": _MESSAGE,
        "group": {
            "anyOf": [_ID, {"type": "null"}],
            "description": "Groups share the rate of submissions fairly.",
        },
    },
    "example": {"id": "1"},
}
_CHANGES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"status": _STATUS, "error_message": _MESSAGE},
    "example": {"status": "Not Started"},
}
_AT: dict[str, Any] = {"name": "id", "in": "path", "required": True, "schema": _ID}
_LISTED: list[dict[str, Any]] = [
    {"name": "status", "in": "query", "schema": _STATUS, "description": "Only tasks of this status."},
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": _MOST, "default": _LIMIT},
    },
    {
        "name": "after",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The id of the last task of the page before; the header `Link` has the whole address.",
    },
]
_ERRORS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "Something can't be used; `details` says what."},
    503: {
        "model": Problem,
        "description": "The store can't be reached; nothing was accepted.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}},
    },
}
_TOO_LARGE: dict[str, Any] = {"model": Problem, "description": "The body is over 64 KiB."}
_LOOKED_UP: dict[int | str, dict[str, Any]] = {
    503: _ERRORS[503],
    404: {"model": Problem, "description": "There is no such task."},
}
_BY_ID = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("readTask", "changeTask", "deleteTask")
}


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": dict(schema)}}}}


@router.post(
    "",
    status_code=201,
    response_model=ShownTask,
    responses={
        **_ERRORS,
        201: {"links": _BY_ID},
        409: {"model": Problem, "description": "There is a task with this id already."},
        413: _TOO_LARGE,
    },
    openapi_extra=_body(_NEW),
    operation_id="createTask",
    summary="Create a task",
)
async def create(request: Request) -> Response:
    """One that is `Not Started` is submitted to the third party, as soon as its rate allows."""
    state: State = request.app.state.parts
    body = await _object(request, ("id", "status", "error_message", "group"))
    details: _Details = []
    id_ = _id(body, details)
    status = _status(body, details) or TaskStatus.NOT_STARTED
    message = _message(body, details)
    group = _group(body, details)
    if message is not None and status is not TaskStatus.ERROR and not details:
        details.append(("error_message", "error_message: only a task with the status `Error` has one."))
    if id_ is None or details:
        return invalid(details)
    task = moves.created(
        id_, time.time(), status=status, error_message=message, group=group, headers=carried(request)
    )
    if not await state.creator.create(task):
        return answer(HTTPStatus.CONFLICT, _EXISTS)
    metrics.TASKS_CREATED.labels(status.value).inc()
    return answer(HTTPStatus.CREATED, _shown(task), {"Location": f"/api/tasks/{quote(id_, safe='')}"})


@router.head("", include_in_schema=False)
@router.get(
    "",
    response_model=list[ShownTask],
    responses={
        **_ERRORS,
        200: {
            "headers": {
                "Link": {"schema": {"type": "string"}, "description": 'The next page, with rel="next".'}
            }
        },
    },
    openapi_extra={"parameters": _LISTED},
    operation_id="listTasks",
    summary="List tasks",
)
async def listed(request: Request) -> Response:
    """In order of creation, a page at a time."""
    state: State = request.app.state.parts
    query = _query(request)
    details: _Details = []
    status = _status(query, details) if "status" in query else None
    limit = _limit(query, details)
    after = None
    if "after" in query and not details:
        last = await state.tasks.get(query["after"]) if is_text(query["after"]) else None
        if last is None:
            details.append(("after", "after: there is no task with this id."))
        else:
            after = last.uid
    if details:
        return invalid(details)
    page = await state.tasks.page(status, after, limit)
    headers = {}
    if len(page) == limit:
        following = {**query, "limit": str(limit), "after": page[-1].id}
        headers["Link"] = f'</api/tasks?{urlencode(following, quote_via=quote)}>; rel="next"'
    return answer(HTTPStatus.OK, [_shown(task) for task in page], headers)


@router.head("/{id:text}", include_in_schema=False)
@router.get(
    "/{id:text}",
    response_model=ShownTask,
    responses=_LOOKED_UP,
    openapi_extra={"parameters": [_AT]},
    operation_id="readTask",
    summary="Read a task",
)
async def read(request: Request) -> Response:
    """The task as it stands."""
    state: State = request.app.state.parts
    return _answer(await state.tasks.get(_named(request)))


@router.patch(
    "/{id:text}",
    response_model=ShownTask,
    responses={**_ERRORS, **_LOOKED_UP, 413: _TOO_LARGE},
    openapi_extra={"parameters": [_AT], **_body(_CHANGES)},
    operation_id="changeTask",
    summary="Change a task",
)
async def change(request: Request) -> Response:
    """What is not named stays. One that is set back to `Not Started` is submitted again."""
    state: State = request.app.state.parts
    id_ = _named(request)
    body = await _object(request, ("id", "status", "error_message"))
    details: _Details = []
    if "id" in body and read_id(body["id"]) != id_:
        details.append(("id", "id: can't be changed."))
    status = _status(body, details)
    message = _message(body, details)
    if details:
        return invalid(details)
    wanted = Change(status, message, says_message="error_message" in body)
    return _answer(await state.tasks.change(id_, wanted, time.time()))


@router.delete(
    "/{id:text}",
    status_code=204,
    response_class=Response,
    responses=_LOOKED_UP,
    openapi_extra={"parameters": [_AT]},
    operation_id="deleteTask",
    summary="Delete a task",
)
async def delete(request: Request) -> Response:
    """The third party is not told."""
    state: State = request.app.state.parts
    if not await state.tasks.delete(_named(request)):
        return answer(HTTPStatus.NOT_FOUND, _NOT_FOUND)
    return Response(status_code=HTTPStatus.NO_CONTENT)


def _answer(task: Task | None) -> Response:
    if task is None:
        return answer(HTTPStatus.NOT_FOUND, _NOT_FOUND)
    return answer(HTTPStatus.OK, _shown(task))


def _shown(task: Task) -> dict[str, Json]:
    shown: dict[str, Json] = {
        "id": task.id,
        "status": task.status.value,
        "error_message": task.error_message,
    }
    return {**shown, "group": task.group} if task.group else shown


def _named(request: Request) -> str:
    return str(request.path_params["id"])


async def _object(request: Request, fields: tuple[str, ...]) -> dict[str, object]:
    """The JSON object that was sent, with no fields but these; raises `InvalidInput`."""
    try:
        body = read_json(await request.body())
    except ValueError:
        raise InvalidInput("body", "body: send one JSON object, in UTF-8.") from None
    if not isinstance(body, dict):
        raise InvalidInput("body", "body: send one JSON object.")
    unknown = next((name for name in body if name not in fields), None)
    if unknown is not None:
        shown = unknown[:MAX_TEXT].encode(errors="replace").decode()
        raise InvalidInput(shown, f"{shown}: is not known here; there is {', '.join(fields)}.")
    return body


def _id(body: Mapping[str, object], details: _Details) -> str | None:
    if "id" not in body:
        details.append(("id", "id: is required."))
        return None
    id_ = read_id(body["id"])
    if id_ is None:
        details.append(("id", f"id: use a text of 1 to {MAX_TEXT} characters, or a number."))
    return id_


def _status(given: Mapping[str, object], details: _Details) -> TaskStatus | None:
    if "status" not in given:
        return None
    status = read_status(given["status"])
    if status is None:
        details.append(("status", f"status: use one of {_STATUSES}."))
    return status


def _message(body: Mapping[str, object], details: _Details) -> str | None:
    message = body.get("error_message")
    if message is None:
        return None
    if message == "":
        return ""
    text = read_text(message, most=MAX_MESSAGE)
    if text is None:
        details.append(
            ("error_message", f"error_message: use null, or a text of up to {MAX_MESSAGE} characters.")
        )
    return text


def _group(body: Mapping[str, object], details: _Details) -> str:
    if body.get("group") is None:
        return ""
    group = read_text(body["group"])
    if group is None:
        details.append(("group", f"group: use null, or a text of 1 to {MAX_TEXT} characters."))
    return group or ""


def _query(request: Request) -> dict[str, str]:
    """The parameters that have a value; raises `InvalidInput` for one that has two."""
    query: dict[str, str] = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1")):
        if name in ("status", "limit", "after"):
            if name in query:
                raise InvalidInput(name, f"{name}: give it once.")
            query[name] = value
    return query


def _limit(query: Mapping[str, str], details: _Details) -> int:
    text = query.get("limit", str(_LIMIT))
    limit = int(text) if _NUMBER.fullmatch(text) else 0
    if not 1 <= limit <= _MOST:
        details.append(("limit", f"limit: use a whole number from 1 to {_MOST}."))
    return limit
