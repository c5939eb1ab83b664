"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from travelrec.metrics import exposition
from travelrec_api.problems import answer
from travelrec_api.state import State

router = APIRouter(tags=["system"])


class Alive(BaseModel):
    """The process turns."""

    status: str


class Readiness(BaseModel):
    """Whether requests can be accepted, and each dependency's state by name: `ok` or `unavailable`."""

    status: str
    dependencies: dict[str, str]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=Alive, summary="The process turns")
async def healthz() -> Response:
    """Asks no dependency."""
    return answer(200, {"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Not ready."}},
    summary="Requests can be accepted",
)
async def readyz(request: Request) -> Response:
    """The store is needed. Without the broker or signals requests are still accepted: `degraded`."""
    state: State = request.app.state.parts
    ready, body = await state.probes.readiness()
    return answer(200 if ready else 503, body)  # type: ignore[arg-type]  # a dict of strings and a dict of them


@router.head("/metrics", include_in_schema=False)
@router.get(
    "/metrics",
    response_class=Response,
    summary="Prometheus metrics",
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """Of this process, or of all processes of this gunicorn."""
    body, content_type = exposition(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})
