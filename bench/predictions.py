"""Predictions on a real RabbitMQ while workers and the broker are killed: `python -m bench.predictions`."""

from __future__ import annotations

import asyncio
import time

import aiohttp

from support import Mongo, RabbitMQ, eventually
from support.deployment import Deployment, url_of
from support.predictions import Predicting, lost_and_doubled
from travelrec.wire import JOBS_TOPIC, PREDICTIONS_TOPIC

TOTAL = 5_000
ENV = {"JOB_LEASE": "5", "NEIGHBOUR_TIMEOUT": "3", "PREDICTION_LATENCY": "0.05", "LOG_LEVEL": "info"}


async def killed() -> None:
    """5,000 predictions; a worker is killed three times and the broker twice in between."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=90)
    with RabbitMQ() as broker, Mongo() as mongo:
        deployment = Deployment(broker, mongo, apis=2, workers=2, **ENV)
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
                await deployment.healthy()
                for queue in (JOBS_TOPIC, PREDICTIONS_TOPIC):
                    await eventually(lambda queue=queue: broker.keeps(queue))
                predicting = Predicting(http, [url_of(api) for api in deployment.apis])
                began = time.monotonic()
                asking = asyncio.create_task(predicting.ask(TOTAL, clients=50, pause_s=0.3))
                for share in range(1, 6):
                    await eventually(lambda at=share: len(predicting.asked) > TOTAL * at / 7, 120)
                    victim = broker if share in (2, 4) else deployment.workers[share % 2]
                    await asyncio.to_thread(victim.kill)
                    await asyncio.to_thread(victim.start)
                    print(f"{time.monotonic() - began:5.1f} s: killed {victim.name}", flush=True)
                await asking
                print(f"{time.monotonic() - began:5.1f} s: {len(predicting.asked)} accepted")
                print(f"refused: {predicting.refused[:3]} ({len(predicting.refused)})")
                await predicting.all_ended(180)
                lost, doubled = await lost_and_doubled(deployment, predicting.asked)
                took_s = time.monotonic() - began
                print(f"{took_s:5.1f} s: all ended; {lost} lost, {doubled} with two results")
        finally:
            deployment.close()


if __name__ == "__main__":
    asyncio.run(killed())
