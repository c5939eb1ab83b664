"""`travelrec api` and `travelrec worker`: the processes of a deployment."""

from __future__ import annotations

from typing import Annotated

import typer

from travelrec.cli.listening import free_or_exit
from travelrec.errors import BadSetting
from travelrec.settings import read_settings
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
    try:
        from travelrec_api.server import serve_with_gunicorn
    except ModuleNotFoundError as error:
        raise BadSetting(
            f"`travelrec api` needs the package travelrec-api ({error.name} is missing)"
        ) from error
    serve_with_gunicorn(settings)


def worker(
    roles: Annotated[list[str] | None, typer.Argument(help="What to work on (default: all): jobs.")] = None,
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
    free_or_exit(settings.host, settings.metrics_port).close()
    uvloop.run(work(settings, roles or []))
