"""One request from a terminal: send it, show that it waits, print what came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import aiohttp
from rich.console import Console
from rich.markup import escape

from travelrec.cli.addresses import http_url, shown
from travelrec.errors import TravelrecError

_TOTAL_S = 300.0


async def completed(
    url: str, country: str, season: str, console: Console, *, verbose: bool = False
) -> dict[str, object]:
    """Asks the API at `url`, shows progress and prints the result; raises `TravelrecError` when there is none.

    `verbose` also shows the ids by which the request is found in logs and traces.
    """
    url = http_url(url)
    began = time.monotonic()
    try:
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=90.0)) as http:
            with console.status(escape(f"Asking about {country} in {season} …")) as status:
                asked = {"country": country, "season": season}
                async with http.post("/recommendations", params=asked) as response:
                    body, headers = await response.json(), response.headers
                if response.status != 202:  # noqa: PLR2004 - accepted
                    raise TravelrecError(f"{body.get('error')}: {body.get('message')}")
                uid = body["uid"]
                accepted = escape(f"accepted as {uid} after {time.monotonic() - began:.3f} s")
                console.print(f"[dim]{accepted}[/dim]")
                if verbose:
                    ids = escape(f"request id {headers['X-Request-ID']}, {_trace(headers)}")
                    console.print(f"[dim]{ids}[/dim]", soft_wrap=True)
                status.update("The model is thinking …")
                body = await _ended(http, uid, began)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise TravelrecError(
            f"no API answers at {shown(url)} ({error or 'time-out'}); start one with `travelrec serve`, or give --url"
        ) from error
    if body["status"] != "completed":
        raise TravelrecError(f"{body.get('error', body['status'])}: {body['message']}")
    console.print(f"[dim]completed after {time.monotonic() - began:.2f} s[/dim]")
    out = Console()
    heading = escape(f"{body['country']} in {body['season']}")
    out.print(f"[bold]{heading}[/bold]", highlight=False, soft_wrap=True)
    for number, text in enumerate(body["recommendations"], 1):
        out.print(f" {number}. {text}", highlight=False, markup=False, soft_wrap=True)
    return dict(body)


def _trace(headers: Mapping[str, str]) -> str:
    fields = headers.get("traceresponse", "").split("-")
    return f"trace {fields[1]}" if len(fields) > 1 else "not traced (see OTEL_EXPORTER_OTLP_ENDPOINT)"


async def _ended(http: aiohttp.ClientSession, uid: str, began: float) -> dict[str, str]:
    while True:
        async with http.get("/recommendations", params={"uid": uid, "wait": "30"}) as response:
            body: dict[str, str] = await response.json()
        if response.status == 200 and body["status"] != "pending":  # noqa: PLR2004 - found
            return body
        if response.status in range(400, 500):
            raise TravelrecError(f"{body.get('error')}: {body.get('message')}")
        if time.monotonic() - began > _TOTAL_S:
            raise TravelrecError(f"{uid} is still pending; ask again later: GET /recommendations?uid={uid}")
        if response.status != 200:  # noqa: PLR2004 - found
            await asyncio.sleep(1.0)
