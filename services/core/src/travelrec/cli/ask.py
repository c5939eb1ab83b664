"""`travelrec ask`: one request to a running API."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from travelrec.cli.asking import completed


def ask(
    country: Annotated[str, typer.Argument(help="A country or territory, in any common spelling.")],
    season: Annotated[str, typer.Argument(help="spring, summer, autumn (or fall), winter.")],
    url: Annotated[
        str, typer.Option(help="Where the API is.", envvar="TRAVELREC_URL")
    ] = "http://localhost:3000",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also show the request's id and trace.")
    ] = False,
) -> None:
    """Sends a request to the API, waits for its end and prints it."""
    asyncio.run(completed(url, country, season, Console(stderr=True), verbose=verbose))
