"""`travelrec trips`: makes trips up on a schedule, and shows what the join makes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter
from contextlib import suppress
from enum import StrEnum
from typing import Annotated

import aiohttp
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from travelrec.cli.addresses import http_url
from travelrec.errors import BadSetting, Undecodable
from travelrec.settings import Settings, read_settings

# ruff: noqa: PLC0415 - APScheduler is imported when a schedule is run

app = typer.Typer(help="Made-up trips: make them on a schedule, watch them joined.", no_args_is_help=True)

_CREATED = 201
_LONGEST_S = 365 * 86400.0

Url = Annotated[str, typer.Option(help="Where the API is.", envvar="TRAVELREC_URL")]


class Scheduler(StrEnum):
    """What calls the API."""

    APSCHEDULER = "apscheduler"
    ASYNCIO = "asyncio"


@app.command()
def schedule(
    scheduler: Annotated[Scheduler, typer.Option("--with", help="What keeps the time.")],
    rate: Annotated[float, typer.Option(min=0.001, max=10_000, help="Trips a second.")] = 1.0,
    for_s: Annotated[
        float, typer.Option("--for", min=0.1, max=_LONGEST_S, metavar="SECONDS", help="How long.")
    ] = 60.0,
    overlap: Annotated[int, typer.Option(min=1, max=1000, help="Requests under way at once, at most.")] = 50,
    url: Url = "http://localhost:3000",
) -> int:
    """Has the API generate a trip so many times a second, and tells how well that went."""
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # what is missed is told at the end
    with suppress(KeyboardInterrupt):
        return asyncio.run(_scheduled(scheduler.value, rate, for_s, overlap, http_url(url)))
    return 130


async def _scheduled(scheduler: str, rate: float, for_s: float, overlap: int, url: str) -> int:
    from travelrec.trips.schedulers import SCHEDULERS

    answers: Counter[str] = Counter()
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=30.0), connector=aiohttp.TCPConnector(limit=overlap)
    ) as http:

        async def tick() -> None:
            try:
                async with http.post(f"{url}/api/generate-trip") as response:
                    await response.read()
                    answers[str(response.status)] += 1
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                answers[f"{type(error).__name__}: {error}"] += 1

        ticks = await SCHEDULERS[scheduler](tick, rate, for_s, overlap)
    made = answers[str(_CREATED)]
    table = Table(show_header=False, box=None)
    for name, value in (
        ("trips made", f"{made} of {ticks.planned} planned, {ticks.missed} ticks missed"),
        ("achieved", f"{ticks.achieved:.2f} a second, {rate:g} wanted"),
        ("jitter", f"p50 {1000 * ticks.jitter_s(0.5):.2f} ms, p99 {1000 * ticks.jitter_s(0.99):.2f} ms"),
        ("drift", f"{1000 * ticks.drift_s:.1f} ms at the end"),
        *(
            (escape(f"not made: {answer}"), str(count))
            for answer, count in answers.items()
            if answer != str(_CREATED)
        ),
    ):
        table.add_row(name, value)
    Console().print(table)
    return 0 if made else 1


@app.command()
def tail(
    count: Annotated[int, typer.Option(min=0, help="End after so many; 0: with Ctrl-C.")] = 0,
) -> None:
    """Prints the joined trips of the broker as they come, decoded, a line of JSON each."""
    settings = read_settings()
    if settings.broker_url.startswith("memory:"):
        raise BadSetting(
            "BROKER_URL: memory:// is inside one process; this reads from a broker, as kafka://…"
        )
    with suppress(KeyboardInterrupt):
        asyncio.run(_tailed(settings, count))


async def _tailed(settings: Settings, count: int) -> None:
    from travelrec.connect import opened_parts
    from travelrec.trips.codec import Codec
    from travelrec.trips.entities import JOINED

    seen = 0
    async with opened_parts(settings) as parts, parts.broker.tail(JOINED.topic) as joined:
        codec = Codec(parts.registry)
        async for message in joined:
            try:
                print(json.dumps(await codec.decode(JOINED, message.value), ensure_ascii=False), flush=True)  # noqa: T201 - this is the command line
            except Undecodable as error:
                print(f"travelrec: not shown: {error}", file=sys.stderr)  # noqa: T201 - as above
            seen += 1
            if seen == count:
                return
