"""`python -m support.stuck_worker`: a worker whose kind hangs for some countries until SIGUSR1 comes.

For Peru its coroutine waits and takes no cancellation; for Kenya it blocks the event loop. All others are run as ever.
"""

import asyncio
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from travelrec import cli
from travelrec.job import Json, Params
from travelrec.kinds import Kind, kinds
from travelrec.kinds.recommendation import NAME
from travelrec.ports import Model
from travelrec.settings import Settings
from travelrec_worker import app

go = threading.Event()


async def deaf() -> None:
    """Hangs, whoever cancels it."""
    while not go.is_set():
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


def blocking() -> None:
    """Lets nobody else run."""
    while not go.wait(0.05):
        pass


def hanging_kinds(settings: Settings) -> Mapping[str, Kind]:
    """The real kinds, but for the countries named above."""
    real = kinds(settings)[NAME]

    async def run(params: Params, model: Model, timeout_s: float) -> Mapping[str, Json]:
        if params["country"] == "Peru":
            await deaf()
        if params["country"] == "Kenya":
            blocking()
        return await real.run(params, model, timeout_s)

    return {NAME: replace(real, run=run)}


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: go.set())
    app.kinds = hanging_kinds
    cli.main()
