"""Poison: time from acceptance to end of 20 live jobs a second, alone and beside messages and jobs that only fail.

One worker, Kafka, the MongoDB protocol; a call takes 0.3 s. "As many" means another 20 a second. The live jobs run
alone between all of these, and once before, unmeasured, to warm everything up.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median, quantiles

import uvloop
from aiohttp import web

from bench.drain import made
from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port
from travelrec.adapters.kafka import KafkaBroker
from travelrec.adapters.mongo import MongoStore
from travelrec.job import Job, Status, new_uid
from travelrec.wire import JOBS_TOPIC, Message, encode_job

_CALL_S = 0.3
_LIVE = "live "
_REFUSED, _UNUSABLE = "refused ", "unusable "  # what a country's name begins with, and what becomes of it
_GOOD = json.dumps({"recommendations": ["Go there.", "Go here.", "Go home."]})


async def _complete(request: web.Request) -> web.Response:
    body = await request.text()
    await asyncio.sleep(_CALL_S)
    message: dict[str, object] = {"role": "assistant", "content": _GOOD}
    if _REFUSED in body:
        message = {"role": "assistant", "content": None, "refusal": "No."}
    if _UNUSABLE in body:
        message["content"] = "I would rather not say."
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return web.json_response(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
    )


@asynccontextmanager
async def _model() -> AsyncIterator[str]:
    app, port = web.Application(), free_port()
    app.router.add_post("/v1/chat/completions", _complete)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


class Load:
    """Sends jobs as an API does: into the store, then to the broker."""

    def __init__(self, store: MongoStore, broker: KafkaBroker) -> None:
        self._store = store
        self._broker = broker

    async def job(self, named: str, count: int = 1) -> list[Job]:
        now = time.time()
        places = [{"country": named + new_uid(), "season": "winter"} for _ in range(count)]
        jobs = [Job(new_uid(), "recommendation", place, now, due_at=now + 10) for place in places]
        for start in range(0, count, 200):
            await self._store.accept(jobs[start : start + 200], now)
        await self._broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
        return jobs

    async def garbage(self) -> list[Job]:
        await self._broker.publish(JOBS_TOPIC, [Message(b"garbage")])
        return []

    async def at(
        self, per_s: float, seconds: float, send: Callable[[], Coroutine[None, None, list[Job]]]
    ) -> list[Job]:
        """What `send` sent, in the rhythm of a clock and not of the answers."""
        began, sent = time.monotonic(), []
        async with asyncio.TaskGroup() as sending:
            for number in range(int(per_s * seconds)):
                await asyncio.sleep(max(0.0, began + number / per_s - time.monotonic()))
                sent.append(sending.create_task(send()))
        return [job for task in sent for job in task.result()]

    async def ended(self, jobs: list[Job], *, beside_live: bool = False) -> list[Job]:
        """The jobs as they ended; a worker whose jobs all fail alike ends no more of them, unless others succeed."""
        found = await self._found(jobs)
        while not all(job.ended for job in found):
            if beside_live:
                await self.job(_LIVE)
            await asyncio.sleep(0.25)
            found = await self._found(jobs)
        return found

    async def _found(self, jobs: list[Job]) -> list[Job]:
        batches = [[job.uid for job in jobs[start : start + 200]] for start in range(0, len(jobs), 200)]
        return [job for uids in batches for job in (await self._store.get(uids)).values()]


async def _measure(per_s: float, seconds: float, kafka: Kafka, mongo: Mongo) -> list[Row]:
    port = free_port()
    async with AsyncExitStack() as stack:
        env = {
            "BROKER_URL": kafka.url,
            "STORE_URL": mongo.url + "bench",
            "OPENAI_BASE_URL": await stack.enter_async_context(_model()),
            "LOG_LEVEL": "error",
            "METRICS_PORT": str(port),
        }
        broker = await stack.enter_async_context(KafkaBroker.opened(kafka.address))
        store = await stack.enter_async_context(MongoStore.opened(env["STORE_URL"], timeout_s=30))
        worker = stack.enter_context(Process([sys.executable, "-m", "travelrec", "worker"], env=env))
        await worker.wait_for_http(f"http://127.0.0.1:{port}/readyz")
        load = Load(store, broker)
        warm = made(200, time.time())
        await store.accept(warm, time.time())
        await broker.publish(JOBS_TOPIC, [encode_job(job) for job in warm])
        await load.ended(warm)

        async def nothing() -> list[Job]:
            return []

        beside: dict[str, Callable[[], Awaitable[list[Job]]]] = {
            "beside as many undecodable messages": lambda: load.at(per_s, seconds, load.garbage),
            "beside as many jobs that are refused": lambda: load.at(
                per_s, seconds, lambda: load.job(_REFUSED)
            ),
            "beside as many jobs without a usable answer": lambda: load.at(
                per_s, seconds, lambda: load.job(_UNUSABLE)
            ),
            "beside 1,000 jobs at once that are refused": lambda: load.job(_REFUSED, 1000),
        }

        async def measured(name: str, poison: Callable[[], Awaitable[list[Job]]]) -> Row:
            live, sent = await asyncio.gather(load.at(per_s, seconds, lambda: load.job(_LIVE)), poison())
            live = await load.ended(live)
            return _row(name, live, await load.ended(sent, beside_live=True))

        await measured("unmeasured", nothing)
        rows = [await measured("live jobs alone", nothing)]
        for name, poison in beside.items():
            rows += [await measured(name, poison), await measured("live jobs alone", nothing)]
        return rows


def _row(name: str, live: list[Job], poison: list[Job]) -> Row:
    took_s = [(job.ended_at or 0.0) - job.created_at for job in live]
    return Row(
        name,
        {
            "p50 ms": f"{median(took_s) * 1000:.0f}",
            "p95 ms": f"{quantiles(took_s, n=20)[-1] * 1000:.0f}",
            "slowest ms": f"{max(took_s) * 1000:.0f}",
            "live completed": f"{sum(job.status is Status.COMPLETED for job in live)} of {len(live)}",
            "poison failed": f"{sum(job.status is Status.FAILED for job in poison)} of {len(poison)}",
        },
    )


def run(per_s: float = 20.0, seconds: float = 15.0) -> str:
    """The table."""
    with Kafka(jvm=("-Xmx1g",)) as kafka, Mongo() as mongo:
        return table(uvloop.run(_measure(per_s, seconds, kafka, mongo)))
