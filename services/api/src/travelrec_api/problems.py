"""Every error a client can see: one shape, one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from travelrec.errors import InvalidInput, SchemaRefused, Unavailable
from travelrec.job import Json

RETRY_AFTER_S = 2
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Detail(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """The body of every error; `details` comes with a 422."""

    error: str
    message: str
    details: list[Detail] | None = None


_BY_STATUS: Mapping[int, tuple[str, str]] = {
    400: ("Bad request", "The request could not be read. Please check its syntax."),
    403: ("Forbidden", "The token is not valid for this userid."),
    404: ("Not found", "There is nothing at this address. GET /docs lists what there is."),
    405: ("Method not allowed", "This address does not take this method. GET /docs lists what it takes."),
    408: ("Request timeout", "The body did not come in time."),
    413: ("Body too large", "The body may have 64 KiB at most."),
    500: (
        "Internal error",
        "Something went wrong on our side. Please try again, and report it with the request id.",
    ),
    503: ("Service unavailable", "This process is about to end. Please try again."),
}


def answer(
    status: int, body: Mapping[str, Json] | Sequence[Json], headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response."""
    return Response(
        json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(),
        status,
        headers,
        media_type="application/json",
    )


def problem(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """The error for `status` where nothing more is known."""
    error, message = _BY_STATUS.get(status, (HTTPStatus(status).phrase, "Please check the request."))
    return answer(status, {"error": error, "message": message}, headers)


def invalid(details: list[tuple[str, str]]) -> Response:
    """422 with the (field, message) pairs."""
    told: list[Json] = [{"field": field, "message": message} for field, message in details]
    message = " ".join(message for _, message in details)
    return answer(422, {"error": "Invalid request", "message": message, "details": told})


async def on_http_exception(request: Request, error: Exception) -> Response:
    """404, 405 and what else the framework raises."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return problem(error.status_code, {"Allow": ", ".join(_allowed(request))})
    return problem(error.status_code, error.headers)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes at this path; the framework names those of the first one only."""
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    routes = request.app.router.routes
    return [method for method in _METHODS if any(r.matches(scopes[method])[0] is Match.FULL for r in routes)]


async def on_invalid_input(_: Request, error: Exception) -> Response:
    """What a rule of this project refuses."""
    assert isinstance(error, InvalidInput)  # noqa: S101 - registered for this class only
    return invalid([(error.field, str(error))])


async def on_validation_error(_: Request, error: Exception) -> Response:
    """What pydantic refuses."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class only
    return invalid([(str(e["loc"][-1]), f"{e['loc'][-1]}: {e['msg']}.") for e in error.errors()])


async def on_unavailable(_: Request, error: Exception) -> Response:
    """A neighbour is away: nothing was accepted, and the caller may try again."""
    assert isinstance(error, Unavailable)  # noqa: S101 - registered for this class only
    body: dict[str, Json] = {
        "error": "Service unavailable",
        "message": f"The {error.name} can't be reached. Nothing was accepted; please try again.",
    }
    return answer(503, body, {"Retry-After": str(RETRY_AFTER_S)})


async def on_schema_refused(_: Request, error: Exception) -> Response:
    """The operator's to put right: the registry says that readers could not read what would be published."""
    assert isinstance(error, SchemaRefused)  # noqa: S101 - registered for this class only
    body: dict[str, Json] = {
        "error": "Schema refused",
        "message": f"The schema registry refuses our schema; nothing was published. {error}",
    }
    return answer(503, body, {"Retry-After": str(RETRY_AFTER_S)})


async def on_defect(_: Request, __: Exception) -> Response:
    """A defect of ours, without a word about its insides."""
    return problem(500)
