"""`travelrec top`: the flow of a deployment, live."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import time
import tty
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Annotated

import aiohttp
import typer
from rich.console import Console
from rich.live import Live

from travelrec.cli.addresses import http_url, shown
from travelrec.cli.flow import Flow
from travelrec.cli.samples import Samples, scraped
from travelrec.errors import TravelrecError
from travelrec.settings import read_settings


def top(
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="An API or a worker; may be repeated. Default: the ports of PORT and METRICS_PORT."
        ),
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How often to look.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Shows the flow of work from accept to answer, with rates, until q or Ctrl-C."""
    settings = read_settings()
    urls = [http_url(one) for one in url or ()]
    urls = urls or [f"http://localhost:{port}" for port in (settings.port, settings.metrics_port)]
    with suppress(KeyboardInterrupt):
        asyncio.run(_once(urls, every) if once else _live(urls, every))


async def _once(urls: Sequence[str], every_s: float) -> None:
    async with aclosing(_flows(urls, every_s)) as flows:
        Console().print((await anext(flows)).shown())


async def _live(urls: Sequence[str], every_s: float) -> None:
    with (
        Live(screen=True, auto_refresh=False) as live,
        _quit_key() as quitting,
    ):
        showing = asyncio.create_task(_show(live, urls, every_s))
        waiting = asyncio.create_task(quitting.wait())
        try:
            await asyncio.wait([showing, waiting], return_when="FIRST_COMPLETED")
        finally:
            waiting.cancel()
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing


async def _show(live: Live, urls: Sequence[str], every_s: float) -> None:
    live.update("Looking …  (q ends it)", refresh=True)
    async with aclosing(_flows(urls, every_s)) as flows:
        async for flow in flows:
            live.update(flow.shown(), refresh=True)


async def _flows(urls: Sequence[str], every_s: float) -> AsyncGenerator[Flow, None]:
    """A flow every `every_s` seconds; raises `TravelrecError` when nobody answers at first."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=max(2.0, every_s))) as http:
        before, then = await _looked(http, urls), time.monotonic()
        if not any(before.values()):
            raise TravelrecError(
                f"nothing answers at {', '.join(map(shown, urls))}; give the addresses of APIs and workers with --url"
            )
        while True:
            await asyncio.sleep(every_s)
            now, at = await _looked(http, urls), time.monotonic()
            yield Flow(before, now, at - then)
            before, then = now, at


async def _looked(http: aiohttp.ClientSession, urls: Sequence[str]) -> dict[str, Samples | None]:
    async def look(url: str) -> Samples | None:
        try:
            return await scraped(http, url)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    return dict(zip(urls, await asyncio.gather(*map(look, urls)), strict=True))


@contextmanager
def _quit_key() -> Iterator[asyncio.Event]:
    """An event that q sets, where there is a keyboard."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    keyboard = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def read() -> None:
        if os.read(keyboard, 64)[:1] in (b"q", b"Q", b""):
            pressed.set()

    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)  # Ctrl-C stays a signal
    loop.add_reader(keyboard, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
