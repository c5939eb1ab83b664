"""20,000 trips in random order through the join on a real Kafka and registry and a MongoDB stand-in: 5 % of the records
come twice, of 1 % of the trips one is missing, 0.1 % are garbage. Two replicas; in the second run one is killed every
5 s.
"""

import asyncio
import os

from bench.report import Row, table
from support import Kafka, Mongo, Registry
from support.joining import Fire, made_load
from travelrec.adapters.registry import HttpRegistry
from travelrec.trips.codec import Codec

TRIPS = int(os.environ.get("TRIPS", "20000"))
WINDOW_S = float(os.environ.get("WINDOW", "120"))  # longer than all of it takes


async def _through(kill_every_s: float, seed: int, replicas: int = 2) -> Row:
    with Kafka() as kafka, Mongo() as mongo, Registry() as registry:
        async with HttpRegistry.opened(registry.url, timeout_s=30.0) as client:
            load = await made_load(Codec(client), TRIPS, repeats=0.05, missing=0.01, garbage=0.001, seed=seed)
        fire = Fire(kafka.address, f"{mongo.url}trips", registry.url, replicas=replicas, window_s=WINDOW_S)
        done = await fire.through(load, kill_every_s=kill_every_s, timeout_s=450.0)
    name = (
        f"one of {replicas} killed every {kill_every_s:g} s"
        if kill_every_s < 1000
        else f"{replicas} undisturbed"
    )
    return Row(
        name,
        {
            "joined": str(done.trips),
            "repeated": str(done.repeated),
            "kills": str(done.kills),
            "published in s": f"{done.published_s:.1f}",
            "joined in s": f"{done.joined_s:.1f}",
            "trips/s": f"{done.trips_a_second:.0f}",
            "latency p50 s": f"{done.latency_s(0.5):.2f}",
            "p99 s": f"{done.latency_s(0.99):.2f}",
            "wrong": "; ".join(done.problems) or "nothing",
        },
    )


def run() -> str:
    every = [float(x) for x in os.environ.get("KILL_EVERY", "1e9,5").split(",")]
    return table([asyncio.run(_through(kill_every_s, n)) for n, kill_every_s in enumerate(every)])
