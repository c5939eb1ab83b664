"""Dispatch: time from `POST /recommendations`, sent and accepted, to the model's call, one request at a time, idle.

API, worker, Kafka and the MongoDB protocol are processes of their own; the model is a bare server in this one, so
that both moments are read from one clock.
"""

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from statistics import median, quantiles

import aiohttp
from aiohttp import web

from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port

_ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 0,
    "model": "bare",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": json.dumps({"recommendations": ["Go there.", "Go here.", "Go home."]}),
            },
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


_MEASURED = (
    "from the 202 to the model's call",
    "from the request to the model's call",
    "from the request to the completed answer",
)


async def measure(count: int) -> dict[str, list[float]]:
    """Seconds by what was measured."""
    arrived: list[float] = []

    async def complete(_: web.Request) -> web.Response:
        arrived.append(time.perf_counter())
        return web.json_response(_ANSWER)

    async with AsyncExitStack() as stack:
        kafka = stack.enter_context(Kafka(jvm=("-Xmx1g",)))
        mongo = stack.enter_context(Mongo())
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        model_port, api_port, worker_port = free_port(), free_port(), free_port()
        await web.TCPSite(runner, "127.0.0.1", model_port).start()
        env = {
            "BROKER_URL": kafka.url,
            "STORE_URL": mongo.url + "bench",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{model_port}/v1",
            "LOG_LEVEL": "warning",
            "RECOMMENDATION_CACHE_TTL": "0",
            "PORT": str(api_port),
            "METRICS_PORT": str(worker_port),
        }
        for command, port in (("api", api_port), ("worker", worker_port)):
            process = Process([sys.executable, "-m", "travelrec", command], env=env)
            stack.enter_context(process)
            await process.wait_for_http(f"http://127.0.0.1:{port}/readyz")
        http = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{api_port}"))
        seconds: dict[str, list[float]] = {name: [] for name in _MEASURED}
        for number in range(2 * count):  # the first half warms the servers up
            began = time.perf_counter()
            asked = {"country": "Peru", "season": "winter"}
            async with http.post("/recommendations", params=asked) as response:
                uid = (await response.json())["uid"]
            accepted = time.perf_counter()
            async with http.get("/recommendations", params={"uid": uid, "wait": "30"}) as response:
                assert (await response.json())["status"] == "completed"
            done = time.perf_counter()
            if number >= count:
                for name, value in zip(
                    _MEASURED, (arrived[-1] - accepted, arrived[-1] - began, done - began), strict=True
                ):
                    seconds[name].append(value)
        return seconds


def run(count: int = 400) -> str:
    """The table."""
    return table([_row(name, seconds) for name, seconds in asyncio.run(measure(count)).items()])


def _row(name: str, seconds: list[float]) -> Row:
    return Row(
        name,
        {
            "p50 ms": f"{median(seconds) * 1000:.1f}",
            "p95 ms": f"{quantiles(seconds, n=20)[-1] * 1000:.1f}",
            "p99 ms": f"{quantiles(seconds, n=100)[-1] * 1000:.1f}",
        },
    )
