"""`travelrec serve` and `travelrec demo`: everything in one process."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from travelrec.cli.asking import completed
from travelrec.cli.listening import free_or_exit
from travelrec.errors import BadSetting
from travelrec.settings import Settings, read_settings
from travelrec.telemetry import configure_logging

# ruff: noqa: PLC0415 - the other packages are imported when a command needs them, and may be missing

_OFFLINE = "No OPENAI_API_KEY is set: answers come from the built-in offline model, not from a real one."
_NO_THIRD_PARTY = (
    "No TASKS_PROVIDER_URL is set: tasks stay Not Started (`travelrec fake-tasks` starts a third party)."
)

_OPEN_CHAT = "No CHAT_TOKEN_SECRET is set: any token opens a chat."

Host = Annotated[str | None, typer.Option(help="The address to listen on (HOST, 127.0.0.1).")]
Port = Annotated[int | None, typer.Option(help="The port to listen on (PORT, 3000); 0 takes a free one.")]
Data = Annotated[
    Path | None, typer.Option(help="The folder that keeps the data (.travelrec).", file_okay=False)
]
Kept = Annotated[
    Path | None,
    typer.Option(help="A folder that keeps the data; else it goes with the demo.", file_okay=False),
]


def serve(host: Host = None, port: Port = None, data: Data = None) -> None:
    """Serves the API and works on its jobs in one process, until Ctrl-C."""
    settings = _settings(host, port, data)
    listening = free_or_exit(settings.host, settings.port)
    _run(_serve(settings, listening))


def demo(
    host: Host = None,
    port: Port = None,
    data: Kept = None,
    country: Annotated[str, typer.Option(help="Where to.")] = "Canada",
    season: Annotated[str, typer.Option(help="When.")] = "winter",
    once: Annotated[bool, typer.Option("--once", help="Exit after the answer.")] = False,
) -> None:
    """Starts everything, makes one real request, shows its answer, then serves until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="travelrec-demo-") as folder:
        settings = _settings(host, 0 if once and port is None else port, data or Path(folder), quiet=True)
        listening = free_or_exit(settings.host, settings.port)
        _run(_demo(settings, listening, country, season, once))


def _settings(host: str | None, port: int | None, data: Path | None, *, quiet: bool = False) -> Settings:
    store_url = None if data is None else f"sqlite:///{data.absolute() / 'travelrec.db'}"
    settings = read_settings(host=host, port=port, store_url=store_url)
    level_is_set = "log_level" in settings.model_fields_set
    configure_logging("warning" if quiet and not level_is_set else settings.log_level)
    return settings


def _run(main: object) -> None:
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(main)  # type: ignore[arg-type]  # a coroutine of this module
    else:
        uvloop.run(main)  # type: ignore[arg-type]  # a coroutine of this module


async def _serve(settings: Settings, listening: socket.socket) -> None:
    async with _started(settings, listening) as (url, serving):
        _say(escape(f"Serving {url} (API, page; docs at {url}/docs). Ctrl-C ends it."))
        await serving


async def _demo(settings: Settings, listening: socket.socket, country: str, season: str, once: bool) -> None:
    console = Console(stderr=True)
    async with _started(settings, listening) as (url, serving):
        await completed(url, country, season, console)
        if once:
            return
        _say(escape(f"\nServing {url} (API, page; docs at {url}/docs). Ctrl-C ends it."))
        await serving


@asynccontextmanager
async def _started(
    settings: Settings, listening: socket.socket
) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """The API answers at the URL while the task runs; leaving ends it and everything behind it, in reverse."""
    try:
        from travelrec import tracing
        from travelrec.connect import opened_models, opened_parts
        from travelrec_api.app import create_app
        from travelrec_api.server import served_in_process
        from travelrec_worker.app import possible_roles, running_roles
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"this needs travelrec-api and travelrec-worker ({error.name} is missing)"
        ) from error
    async with AsyncExitStack() as stack:
        stack.enter_context(tracing.exported("travelrec"))
        parts = await stack.enter_async_context(opened_parts(settings))
        edge = create_app(settings, parts)[1]
        if settings.store_url.startswith("sqlite:"):
            _say(escape(f"Jobs are kept in {settings.sqlite_path.absolute()}, for this process alone."))
        if settings.offline_model:
            _say(f"[yellow]{_OFFLINE}[/yellow]")
            settings = await stack.enter_async_context(_with_offline_model(settings))
        if not settings.has_third_party:
            _say(_NO_THIRD_PARTY)
        if settings.chat_token_secret is None:
            _say(f"[yellow]{_OPEN_CHAT}[/yellow]")
        models = await stack.enter_async_context(opened_models(settings))
        await stack.enter_async_context(running_roles(possible_roles(settings), settings, parts, *models))
        serving = await stack.enter_async_context(served_in_process(edge, listening))
        host, port = listening.getsockname()[:2]
        if host in ("127.0.0.1", "0.0.0.0", "::"):  # noqa: S104 - only shown
            host = "localhost"
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{port}", serving


def _say(text: str) -> None:
    Console(stderr=True).print(text, soft_wrap=True)


@asynccontextmanager
async def _with_offline_model(settings: Settings) -> AsyncIterator[Settings]:
    from travelrec.fake_openai import FakeSettings, running

    async with running(FakeSettings(latency_s=0.3)) as fake:
        yield settings.model_copy(update={"openai_base_url": fake.base_url, "openai_model": "offline-sample"})
