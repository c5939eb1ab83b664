"""Limit: 600 jobs at a provider that allows 20 requests a second, one worker with its defaults; ideal 29 s.

A second's worth may come at once, so 600 requests are allowed in 29 s; more get 429 with Retry-After. The share is that
of the answers among what was allowed between the first call and the last end. "Told nothing" means without the
`x-ratelimit-*` headers, so that only the 429s tell.
"""

import asyncio
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack

import aiohttp
import uvloop
from aiohttp import web

from bench.drain import accepted
from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port
from travelrec.adapters.kafka import KafkaBroker
from travelrec.adapters.mongo import MongoStore
from travelrec.job import Job, Status
from travelrec.wire import JOBS_TOPIC, encode_job

_PER_S = 20


class _Front:
    """Before the offline model: counts its statuses, and may keep its headers to itself."""

    def __init__(self, model: str, *, tells: bool) -> None:
        self._model = model
        self._tells = tells
        self.statuses = Counter[int]()
        self.began_at = 0.0

    async def opened(self, stack: AsyncExitStack) -> str:
        self._http = await stack.enter_async_context(aiohttp.ClientSession())
        app, port = web.Application(), free_port()
        app.router.add_post("/v1/chat/completions", self._pass_on)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return f"http://127.0.0.1:{port}/v1"

    async def _pass_on(self, request: web.Request) -> web.Response:
        self.began_at = self.began_at or time.time()
        asked = {"data": await request.read(), "headers": {"content-type": "application/json"}}
        async with self._http.post(f"{self._model}/v1/chat/completions", **asked) as response:  # type: ignore[arg-type]
            self.statuses[response.status] += 1
            told = {
                name: value
                for name, value in response.headers.items()
                if name.lower() == "retry-after" or (self._tells and name.lower().startswith("x-ratelimit"))
            }
            return web.Response(
                body=await response.read(),
                status=response.status,
                headers=told,
                content_type="application/json",
            )


async def _measure(name: str, count: int, kafka: Kafka, mongo: Mongo, *, tells: bool) -> Row:
    port, model_port = free_port(), free_port()
    async with AsyncExitStack() as stack:
        command = ["fake-openai", "--port", str(model_port), "--latency", "0.3"]
        model = stack.enter_context(Process([sys.executable, "-m", "travelrec", *command]))
        url = f"http://127.0.0.1:{model_port}"
        await model.wait_for_http(f"{url}/healthz")
        async with aiohttp.ClientSession() as http:
            await http.post(f"{url}/control", json={"rate_limit_per_s": _PER_S})
        front = _Front(url, tells=tells)
        env = {
            "BROKER_URL": kafka.url,
            "STORE_URL": mongo.url + "bench",
            "OPENAI_BASE_URL": await front.opened(stack),
            "LOG_LEVEL": "error",
            "METRICS_PORT": str(port),
        }
        broker = await stack.enter_async_context(KafkaBroker.opened(kafka.address))
        store = await stack.enter_async_context(MongoStore.opened(env["STORE_URL"], timeout_s=30))
        worker = stack.enter_context(Process([sys.executable, "-m", "travelrec", "worker"], env=env))
        await worker.wait_for_http(f"http://127.0.0.1:{port}/readyz")
        jobs = await accepted(store, count)
        await broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
        ended = await _ended(store, [job.uid for job in jobs])
    took_s = max(job.ended_at or 0.0 for job in ended) - front.began_at
    return Row(
        name,
        {
            "seconds": f"{took_s:.1f}",
            "of the allowed rate": f"{count / (_PER_S * (took_s + 1)):.3f}",
            "429s": str(front.statuses[429]),
            "failed jobs": str(sum(job.status is Status.FAILED for job in ended)),
            "failed attempts": str(sum(len(job.tries) for job in ended)),
        },
    )


async def _ended(store: MongoStore, uids: list[str]) -> list[Job]:
    while True:
        found: list[Job] = []
        for start in range(0, len(uids), 200):
            found += (await store.get(uids[start : start + 200])).values()
        if all(job.ended for job in found):
            return found
        await asyncio.sleep(0.5)


def run(count: int = 600) -> str:
    """The table."""
    with Kafka(jvm=("-Xmx1g",)) as kafka, Mongo() as mongo:
        return table(
            [
                uvloop.run(_measure(name, count, kafka, mongo, tells=tells))
                for name, tells in (("20 requests/s", True), ("20 requests/s, told nothing", False))
            ]
        )
