"""`travelrec api` and `travelrec worker`: the processes of a deployment."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from travelrec.cli.listening import free_or_exit
from travelrec.errors import BadSetting
from travelrec.settings import Settings, read_settings
from travelrec.telemetry import configure_logging

# ruff: noqa: PLC0415 - the other packages are imported when a command needs them, and may be missing


def api(
    host: Annotated[str | None, typer.Option(help="The address to listen on (HOST, 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on (PORT, 3000).")] = None,
) -> None:
    """Serves the HTTP API with gunicorn (WEB_CONCURRENCY processes), on the broker and store of the settings."""
    settings = read_settings(host=host, port=port)
    configure_logging(settings.log_level)
    if settings.broker_url.startswith("memory:") or settings.store_url.startswith(("memory:", "sqlite:")):
        raise BadSetting(
            "BROKER_URL, STORE_URL: memory:// and sqlite:// serve one process only; set kafka://… and mongodb://…,"
            " or use `travelrec serve`"
        )
    free_or_exit(settings.host, settings.port).close()
    with _shared_metrics(settings.web_concurrency):
        try:
            from travelrec_api.server import serve_with_gunicorn
        except ModuleNotFoundError as error:
            raise BadSetting(
                f"`travelrec api` needs the package travelrec-api ({error.name} is missing)"
            ) from error
        asyncio.run(_try_to_open(settings))
        serve_with_gunicorn(settings)


@contextmanager
def _shared_metrics(processes: int) -> Iterator[None]:
    """A folder for the metrics of several processes; prometheus_client looks for it when it is imported."""
    if processes == 1:
        yield
        return
    owner = os.getpid()
    folder = tempfile.mkdtemp(prefix="travelrec-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        if os.getpid() == owner:  # the forked processes leave by here too
            shutil.rmtree(folder, ignore_errors=True)


async def _try_to_open(settings: Settings) -> None:
    """Raises `BadSetting` here, for one line, rather than in every process that is forked; connects to nobody."""
    from travelrec.connect import opened_parts

    async with opened_parts(settings):
        pass


def worker(
    roles: Annotated[
        list[str] | None,
        typer.Argument(help="What to work on (default: all): jobs, submit, poll, join, chat, relay."),
    ] = None,
) -> None:
    """Takes jobs from the broker and works on them; health and metrics on METRICS_PORT."""
    settings = read_settings()
    configure_logging(settings.log_level)
    try:
        import uvloop

        from travelrec_worker.app import work
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"`travelrec worker` needs the package travelrec-worker ({error.name} is missing)"
        ) from error
    free_or_exit(settings.host, settings.metrics_port, "METRICS_PORT", "HOST").close()
    uvloop.run(work(settings, roles or []))
