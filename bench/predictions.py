"""Predictions on a real RabbitMQ: 5,000 while a worker is killed three times and the broker twice; 1,000 that are
accepted before there is a broker, which comes 30 s after API and worker.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from bench.report import Row, table
from support import Mongo, RabbitMQ, eventually
from support.deployment import Deployment, url_of
from support.predictions import Predicting, lost_and_doubled
from travelrec.wire import JOBS_TOPIC, PREDICTIONS_TOPIC

TOTAL = 5_000
BEFORE = 1_000  # in the quarter of a minute after the API's start
LATE_S = 30.0
ENV = {"JOB_LEASE": "5", "NEIGHBOUR_TIMEOUT": "3", "PREDICTION_LATENCY": "0.05", "LOG_LEVEL": "info"}


@asynccontextmanager
async def _deployed(
    broker: RabbitMQ, mongo: Mongo, replicas: int
) -> AsyncIterator[tuple[Deployment, Predicting]]:
    deployment = Deployment(broker, mongo, apis=replicas, workers=replicas, **ENV)
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=90)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            yield deployment, Predicting(http, [url_of(api) for api in deployment.apis])
    finally:
        deployment.close()


async def _row(name: str, deployment: Deployment, predicting: Predicting, began: float) -> Row:
    await predicting.all_ended(180)
    lost, doubled = await lost_and_doubled(deployment, predicting.asked)
    told = {
        "accepted": str(len(predicting.asked)),
        "refused": str(len(predicting.refused)),
        "lost": str(lost),
        "with two results": str(doubled),
        "seconds to the last end": f"{time.monotonic() - began:.1f}",
    }
    return Row(name, told)


async def _killed(broker: RabbitMQ, mongo: Mongo) -> Row:
    async with _deployed(broker, mongo, 2) as (deployment, predicting):
        await deployment.healthy()
        for queue in (JOBS_TOPIC, PREDICTIONS_TOPIC):
            await eventually(lambda queue=queue: broker.keeps(queue))
        began = time.monotonic()
        asking = asyncio.create_task(predicting.ask(TOTAL, clients=50, pause_s=0.3))
        for share in range(1, 6):
            await eventually(lambda at=share: len(predicting.asked) > TOTAL * at / 7, 120)
            victim = broker if share in (2, 4) else deployment.workers[share % 2]
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)
        await asking
        return await _row("workers killed 3 times, broker twice", deployment, predicting, began)


async def _late(broker: RabbitMQ, mongo: Mongo) -> Row:
    await asyncio.to_thread(broker.kill)
    async with _deployed(broker, mongo, 1) as (deployment, predicting):
        began = time.monotonic()
        for process in deployment.processes:
            process.start()
        await deployment.apis[0].wait_for_http(f"{url_of(deployment.apis[0])}/readyz", timeout_s=60)
        await predicting.ask(BEFORE, clients=20, pause_s=0.3)
        await asyncio.sleep(began + LATE_S - time.monotonic())
        await asyncio.to_thread(broker.start)
        return await _row(f"broker {LATE_S:g} s late", deployment, predicting, began)


def run() -> str:
    """The table."""
    rows = []
    for case in (_killed, _late):
        with RabbitMQ() as broker, Mongo() as mongo:
            rows.append(asyncio.run(case(broker, mongo)))
    return table(rows)
