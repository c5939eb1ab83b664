"""Memory: resident megabytes of one API and one worker while 100,000 jobs go through both; must be flat.

Requests for 996 keys come over HTTP, 2,000 jobs at most are under way, the model answers at once, no answer is
reused. What has ended is deleted meanwhile, for the MongoDB-protocol development server looks through all jobs where
MongoDB has an index, and from 40,000 on takes seconds for it. Takes some three minutes.
"""

import asyncio
import itertools
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import aiohttp
import psutil
import pycountry
import uvloop

from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port
from travelrec.adapters.mongo import MongoStore

_UNDER_WAY = 2000
_BATCH = 500
_RETENTION_S = 7 * 86400.0
_CLIENTS = 48
_SEASONS = ("spring", "summer", "autumn", "winter")
_KEYS = list(itertools.product([country.alpha_2 for country in pycountry.countries], _SEASONS))
_FINISHED = re.compile(r'jobs_finished_total{.*outcome="completed"} (\S+)')


async def _finished(http: aiohttp.ClientSession, port: int) -> int:
    async with http.get(f"http://127.0.0.1:{port}/metrics") as response:
        return int(sum(float(count) for count in _FINISHED.findall(await response.text())))


async def _measure(marks: tuple[int, ...], kafka: Kafka, mongo: Mongo) -> list[Row]:
    ports = {name: free_port() for name in ("model", "api", "worker")}
    env = {
        "BROKER_URL": kafka.url,
        "STORE_URL": mongo.url + "bench",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{ports['model']}/v1",
        "LOG_LEVEL": "info",
        "NEIGHBOUR_TIMEOUT": "30",
        "RECOMMENDATION_CACHE_TTL": "0",
        "METRICS_PORT": str(ports["worker"]),
        "PORT": str(ports["api"]),
        "WEB_CONCURRENCY": "1",
    }
    commands = {
        "model": ["fake-openai", "--port", str(ports["model"])],
        "api": ["api"],
        "worker": ["worker"],
    }
    async with AsyncExitStack() as stack:
        processes = {
            name: stack.enter_context(Process([sys.executable, "-m", "travelrec", *command], env=env))
            for name, command in commands.items()
        }
        for name, process in processes.items():
            path = "healthz" if name == "model" else "readyz"
            await process.wait_for_http(f"http://127.0.0.1:{ports[name]}/{path}")
        http = await stack.enter_async_context(aiohttp.ClientSession())
        store = await stack.enter_async_context(MongoStore.opened(env["STORE_URL"], timeout_s=30))
        deleting = asyncio.create_task(_delete_ended(store))
        stack.callback(deleting.cancel)
        flow = _Flow(http, f"http://127.0.0.1:{ports['api']}/recommendations", ports["worker"])
        rows = []
        for before, mark in itertools.pairwise((0, *marks)):
            began = time.monotonic()
            await flow.until(before, mark)
            per_s = (mark - before) / (time.monotonic() - began)
            resident = {f"{name} MB": f"{_rss_mb(processes[name]):.1f}" for name in ("api", "worker")}
            rows.append(Row(f"{mark:,} jobs", {**resident, "jobs/s": f"{per_s:.0f}"}))
            print(rows[-1], flush=True)
        return rows


async def _delete_ended(store: MongoStore) -> None:
    """Deletes what has ended as if its retention were over; the leads of keys stay."""
    while True:
        await asyncio.sleep(1.0)
        while await store.purge(time.time() + _RETENTION_S, _BATCH) == _BATCH:
            pass


class _Flow:
    """Clients that share the numbers of the requests, and how many of these have ended."""

    def __init__(self, http: aiohttp.ClientSession, url: str, worker_port: int) -> None:
        self._http = http
        self._url = url
        self._worker_port = worker_port
        self._finished = 0

    async def until(self, before: int, mark: int) -> None:
        """Sends the requests from `before` to `mark`; returns when all have ended."""
        numbers = iter(range(before, mark))
        clients = [asyncio.create_task(self._send(numbers)) for _ in range(_CLIENTS)]
        while self._finished < mark:
            await asyncio.sleep(0.25)
            self._finished = await _finished(self._http, self._worker_port)
        await asyncio.gather(*clients)

    async def _send(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            while number - self._finished > _UNDER_WAY:  # noqa: ASYNC110 - a benchmark may look
                await asyncio.sleep(0.05)
            country, season = _KEYS[number % len(_KEYS)]
            url = f"{self._url}?country={country}&season={season}"
            async with self._http.post(url) as response:
                assert response.status == 202, await response.text()


def _rss_mb(process: Process) -> float:
    """Of all its processes: gunicorn has a child."""
    found = psutil.Process(process.pid)
    return float(sum(each.memory_info().rss for each in (found, *found.children(recursive=True)))) / 1e6


def run(marks: tuple[int, ...] = (1_000, 10_000, 25_000, 50_000, 75_000, 100_000)) -> str:
    """The table."""
    with Kafka(jvm=("-Xmx1g",)) as kafka, Mongo() as mongo:
        return table(uvloop.run(_measure(marks, kafka, mongo)))
