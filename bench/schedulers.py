"""The two schedulers of `travelrec trips schedule`, each with runs of 5 ms that do nothing, 50 of which may overlap."""

import asyncio
import os
import time

from bench.report import Row, table
from travelrec.trips.schedulers import SCHEDULERS

SECONDS = float(os.environ.get("SECONDS", "10"))
RATES = (1.0, 10.0, 100.0, 1000.0)


async def _tick() -> None:
    await asyncio.sleep(0.005)


async def _measured(name: str, rate: float) -> Row:
    began = time.process_time()
    ticks = await SCHEDULERS[name](_tick, rate, SECONDS, 50)
    cpu_s = time.process_time() - began
    return Row(
        f"{name}, {rate:g} a second",
        {
            "achieved": f"{ticks.achieved:.2f}",
            "jitter p50 ms": f"{1000 * ticks.jitter_s(0.5):.2f}",
            "p99 ms": f"{1000 * ticks.jitter_s(0.99):.2f}",
            "drift ms": f"{1000 * ticks.drift_s:.1f}",
            "missed": f"{ticks.missed} of {ticks.planned}",
            "CPU": f"{100 * cpu_s / SECONDS:.1f} %",
        },
    )


def run() -> str:
    return table([asyncio.run(_measured(name, rate)) for rate in RATES for name in SCHEDULERS])
