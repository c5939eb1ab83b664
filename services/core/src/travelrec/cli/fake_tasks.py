"""`travelrec fake-tasks`: the offline third party as a server of its own."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from travelrec.cli.listening import not_listening


def fake_tasks(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8090,
    work: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a task takes after its submission.")
    ] = 5.0,
    fail: Annotated[float, typer.Option(min=0, max=1, help="Share of the tasks that end with Error.")] = 0.0,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a submission takes.")
    ] = 0.0,
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the submissions that get a 500.")
    ] = 0.0,
    rate_limit: Annotated[
        float | None,
        typer.Option(
            min=0.01, metavar="PER_SECOND", help="Submissions a second; more get 429 with Retry-After."
        ),
    ] = None,
) -> None:
    """Serve an offline third party that takes tasks and moves them on, for trying out and for tests."""
    from travelrec.fake_tasks import (  # noqa: PLC0415 - aiohttp is slow to import, and --help does without it
        FakeTasksSettings,
        serve_until_stopped,
    )

    settings = FakeTasksSettings(
        work_s=work, fail_share=fail, latency_s=latency, error_rate=error_rate, rate_limit_per_s=rate_limit
    )

    def say_ready(url: str) -> None:
        typer.echo(f"The offline third party listens: export TASKS_PROVIDER_URL={url} (Ctrl-C ends it)")

    try:
        asyncio.run(serve_until_stopped(settings, host, port, say_ready))
    except (OSError, UnicodeError) as problem:
        raise not_listening(problem, host, port, "--port", "--host") from problem
