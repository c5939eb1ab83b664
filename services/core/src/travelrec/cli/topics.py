"""`travelrec topics`: the broker's topics, made before anybody needs them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer

from travelrec.connect import make_topics
from travelrec.errors import BrokerUnavailable
from travelrec.settings import Settings, read_settings

_AGAIN_S = 1.0


def topics(
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for a broker that is away.")
    ] = 60.0,
) -> None:
    """Makes the topics that are missing (KAFKA_PARTITIONS, retention) and adds partitions where there are too few."""
    for name, done in asyncio.run(_made(read_settings(), time.monotonic() + wait)):
        print(f"{name}: {done}")  # noqa: T201 - this is the command line


async def _made(settings: Settings, deadline: float) -> list[tuple[str, str]]:
    while True:
        try:
            return await make_topics(settings)
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_AGAIN_S)
