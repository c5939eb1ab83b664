"""`travelrec fake-openai`: the offline model as a server of its own."""

import asyncio
from collections.abc import Callable
from typing import Annotated

import typer

from travelrec.cli.listening import not_listening


def fake_openai(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8089,
    seed: Annotated[int, typer.Option(help="Another seed gives other answers and other faults.")] = 0,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long a call takes on average.")
    ] = 0.0,
    jitter: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the latency by which a call is faster or slower.")
    ] = 0.0,
    piece: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long each piece of a streamed answer takes.")
    ] = 0.0,
    error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the calls that get a 500, 503 or 429.")
    ] = 0.0,
    rate_limit: Annotated[
        float | None,
        typer.Option(metavar="PER_SECOND", help="Requests a second; more get 429 with Retry-After."),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SHARE]",
            help="Something that goes wrong, for all calls or a share of them (429:0.1); may be repeated. Names: "
            "429, 429-no-retry-after, quota, 401, 403, 500, 503, reset, hang, slow-drip, half-body, "
            "broken-json, wrong-schema, refusal, length, content-filter, wrong-model, wrong-count, "
            "duplicates, empty-strings, markup, no-json-schema.",
        ),
    ] = None,
    require_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Answer 401 to any other API key; default: any key will do."),
    ] = None,
) -> None:
    """Serve an OpenAI-compatible offline model that answers with samples, for trying out and for tests."""
    from travelrec.fake_openai import FakeSettings, parse_fault, serve_until_stopped  # noqa: PLC0415 - aiohttp is slow to import, and --help does without it

    try:
        settings = FakeSettings(
            seed=seed,
            latency_s=latency,
            latency_jitter=jitter,
            piece_s=piece,
            error_rate=error_rate,
            rate_limit_per_s=rate_limit,
            faults=dict(parse_fault(text) for text in fault or ()),
            require_key=require_key,
        )
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem

    def say_ready(base_url: str) -> None:
        typer.echo(
            f"The offline model listens: export OPENAI_BASE_URL={base_url} OPENAI_API_KEY=any (Ctrl-C ends it)"
        )

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve_until_stopped(settings, host, port, say_ready))
    except (OSError, UnicodeError) as problem:
        raise not_listening(problem, host, port, "--port", "--host") from problem


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's when it is installed, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
