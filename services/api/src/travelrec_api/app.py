"""The composition root of the API: routes, error table, and the lifespan that opens the neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from travelrec import tracing
from travelrec.connect import Parts, opened_parts
from travelrec.errors import InvalidInput, SchemaRefused, Unavailable
from travelrec.health import Probes
from travelrec.kinds import shared
from travelrec.settings import Settings
from travelrec.trips.codec import Codec
from travelrec.trips.publishing import TripPublisher
from travelrec_api import chat, predictions, problems, recommendations, system, tasks, trips
from travelrec_api.accept import Accepter
from travelrec_api.chats import Chats
from travelrec_api.edge import Edge
from travelrec_api.joined import JoinedTrips
from travelrec_api.page import add_page
from travelrec_api.state import State
from travelrec_api.waiting import Waiters
from travelrec_api.withdraw import Creator

log = structlog.get_logger(__name__)

_DRAIN_S = 5.0  # with a broker away there may be more on the way than could ever be waited for
_DESCRIPTION = (
    "Three things to do in a country in a season, from a model behind an API that answers at once: "
    "`POST /recommendations` gives a uid, `GET /recommendations?uid=…` the result. "
    "`POST /predict` asks a model function of yours, and waits for it or not."
)


def create_app(settings: Settings, parts: Parts | None = None) -> tuple[FastAPI, Edge]:
    """The application and the ASGI callable around it; `parts` are given when another in this process opened them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if parts is None:  # else the one who opened them sees to that too
                stack.enter_context(tracing.exported("travelrec-api"))
            opened = parts if parts is not None else await stack.enter_async_context(opened_parts(settings))
            app.state.parts = state = _state(opened, settings)
            stack.push_async_callback(_drained, state.accepter)
            background = await stack.enter_async_context(asyncio.TaskGroup())
            await stack.enter_async_context(opened.signals.listen(state.waiters.hear))
            if state.chats is not None:
                await stack.enter_async_context(
                    state.chats.history.listen(state.chats.ring, state.chats.hear)
                )
                if parts is None and settings.chat_token_secret is None:
                    log.warning("any token opens a chat: CHAT_TOKEN_SECRET is not set")
            helpers = [
                background.create_task(state.waiters.look_again()),
                background.create_task(state.accepter.withdraw()),
                background.create_task(state.creator.withdraw()),
            ]
            log.info("api started")
            try:
                yield
            finally:
                stop()
                for helper in helpers:
                    helper.cancel()
        log.info("api stopped")

    def stop() -> None:
        state: State | None = getattr(app.state, "parts", None)
        if state is not None:
            state.probes.stopping = True
            state.waiters.stop()
            state.joined.stop()
            if state.chats is not None:
                state.chats.stopping.set()

    app = FastAPI(
        title="Travelrec",
        version=version("travelrec-api"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(recommendations.router)
    app.include_router(tasks.router)
    app.include_router(predictions.router)
    app.include_router(trips.router)
    app.include_router(chat.router)
    app.include_router(system.router)
    add_page(app, offline_model=settings.offline_model)
    app.add_exception_handler(HTTPException, problems.on_http_exception)
    app.add_exception_handler(InvalidInput, problems.on_invalid_input)
    app.add_exception_handler(RequestValidationError, problems.on_validation_error)
    app.add_exception_handler(Unavailable, problems.on_unavailable)
    app.add_exception_handler(SchemaRefused, problems.on_schema_refused)
    app.add_exception_handler(Exception, problems.on_defect)
    return app, Edge(app, stop, hot={("POST", "/recommendations"): _directly(app, recommendations.accept)})


async def _drained(accepter: Accepter) -> None:
    try:
        async with asyncio.timeout(_DRAIN_S):
            await accepter.drain()
    except TimeoutError:
        log.warning("messages are left to the sweeper")


def _directly(app: FastAPI, endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """A route without the framework's layers, which cost more than all of accept; the error table is the same.

    `endpoint` stays a route of `app` for the documentation, and for HEAD, OPTIONS and the like.
    """
    route = next(
        route for route in recommendations.router.routes if getattr(route, "endpoint", None) is endpoint
    )

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"], scope["route"] = app, route
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except InvalidInput as error:
            response = await problems.on_invalid_input(request, error)
        except Unavailable as error:
            response = await problems.on_unavailable(request, error)
        except Exception as error:  # as the framework's outermost layer does: logged, answered, nothing told
            log.exception("request failed")
            response = await problems.on_defect(request, error)
        await response(scope, receive, send)

    return answered


def _state(parts: Parts, settings: Settings) -> State:
    optional = {"broker": parts.broker.ping, "signals": parts.signals.ping}
    if settings.schema_registry_url:
        optional["schema registry"] = parts.registry.ping
    if parts.chat is not None:
        optional["chat"] = parts.chat.history.ping
    codec = Codec(parts.registry)
    probes = Probes({"store": parts.store.ping}, optional)
    return State(
        store=parts.store,
        signals=parts.signals,
        accepter=Accepter(parts.store, parts.broker, shared(settings), settings.job_retention_s),
        waiters=Waiters(parts.store),
        probes=probes,
        tasks=parts.tasks,
        creator=Creator(parts.tasks),
        trips=TripPublisher(parts.broker, codec),
        joined=JoinedTrips(parts.broker, codec),
        chats=Chats(settings, parts.broker, parts.chat.history, parts.chat.limit) if parts.chat else None,
    )
