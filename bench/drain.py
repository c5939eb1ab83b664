"""Drain: N queued jobs at a model of L seconds and C in flight, against the ideal N·L/C; CPU per job, peak memory.

One worker beside three floors, in turn, with the same clients against the same servers: a bare asyncio loop that
makes the model calls and nothing else, one that makes all of a job's calls, and the same in batches (see
`bench.plain`). The clock runs from the publish of the messages to the last job's end in the store.
"""

import asyncio
import re
import resource
import sys
import time
from contextlib import AsyncExitStack
from statistics import median

import aiohttp
import psutil
import uvloop

from bench.plain import PlainLoop, PlainPipeline
from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port, unique_name
from travelrec.adapters.kafka import KafkaBroker
from travelrec.adapters.mongo import MongoStore
from travelrec.adapters.openai import OpenAIModel
from travelrec.job import Job, Status, new_uid
from travelrec.kinds.recommendation.run import run as recommend
from travelrec.wire import JOBS_TOPIC, SIGNALS_TOPIC, encode_job


def made(count: int, now: float) -> list[Job]:
    """Jobs of as many different keys."""
    return [
        Job(new_uid(), "recommendation", {"country": new_uid(), "season": "winter"}, now, due_at=now + 3600)
        for _ in range(count)
    ]


async def accepted(store: MongoStore, count: int) -> list[Job]:
    jobs = made(count, time.time())
    for start in range(0, count, 200):
        await store.accept(jobs[start : start + 200], time.time())
    return jobs


async def _all_completed(store: MongoStore, uids: list[str]) -> float:
    """The time of the last end."""
    ends = []
    for start in range(0, len(uids), 200):
        jobs = await store.get(uids[start : start + 200])
        assert all(job.status is Status.COMPLETED for job in jobs.values())
        ends += [job.ended_at or 0.0 for job in jobs.values()]
    return max(ends)


async def _drained(store: MongoStore, uids: list[str], port: int, finished: int) -> float:
    """The time of the last end, once the worker at `port` says it has `finished` so many since its start."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        while True:
            async with http.get("/metrics") as response:
                found = re.search(r'jobs_finished_total{.*outcome="completed"} (\S+)', await response.text())
            if found and float(found[1]) >= finished:
                break
            await asyncio.sleep(1.0)
    return await _all_completed(store, uids)


async def _worker(
    count: int, concurrency: int, model_url: str, kafka: Kafka, mongo: Mongo
) -> tuple[float, float, float]:
    port = free_port()
    env = {
        "BROKER_URL": kafka.url,
        "STORE_URL": mongo.url + "bench",
        "OPENAI_BASE_URL": model_url,
        "LOG_LEVEL": "warning",
        "RECOMMENDATION_CACHE_TTL": "0",
        "METRICS_PORT": str(port),
        "WORKER_CONCURRENCY": str(concurrency),
    }
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(KafkaBroker.opened(kafka.address))
        store = await stack.enter_async_context(MongoStore.opened(env["STORE_URL"], timeout_s=30))
        worker = stack.enter_context(Process([sys.executable, "-m", "travelrec", "worker"], env=env))
        await worker.wait_for_http(f"http://127.0.0.1:{port}/readyz")
        process = psutil.Process(worker.pid)
        finished = 0
        for size in (2 * concurrency, count):  # the first round warms everything up
            jobs = await accepted(store, size)
            await asyncio.sleep(1.0)  # let the servers finish writing before the clock runs
            finished += size
            cpu, began = sum(process.cpu_times()[:2]), time.time()
            await broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
            seconds = await _drained(store, [job.uid for job in jobs], port, finished) - began
        cpu = sum(process.cpu_times()[:2]) - cpu
        return seconds, cpu / count * 1000, process.memory_info().rss / 1e6


async def _plain(
    kind: type[PlainLoop], count: int, concurrency: int, model_url: str, kafka: Kafka, mongo: Mongo
) -> tuple[float, float, float]:
    topic = unique_name("plain")
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(KafkaBroker.opened(kafka.address))
        store = await stack.enter_async_context(MongoStore.opened(mongo.url + "bench", timeout_s=30))
        model = await stack.enter_async_context(
            OpenAIModel.opened(api_key="x", base_url=model_url, model="m", connections=concurrency)
        )
        for name in (topic, SIGNALS_TOPIC):
            await broker.publish(name, [])  # makes it
        pipeline = await stack.enter_async_context(
            kind.opened(kafka.address, topic, mongo.url, "bench", model, concurrency)
        )
        for size in (2 * concurrency, count):
            jobs = await accepted(store, size)
            await asyncio.sleep(1.0)
            messages = [encode_job(job) for job in jobs]
            cpu, began = time.process_time(), time.time()
            await broker.publish(topic, messages)
            ends = await pipeline.done(size)
        cpu = time.process_time() - cpu
        await _all_completed(store, [job.uid for job in jobs])
    return ends - began, cpu / count * 1000, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


async def _bare(count: int, concurrency: int, model_url: str) -> tuple[float, float, float]:
    async with OpenAIModel.opened(
        api_key="x", base_url=model_url, model="m", connections=concurrency
    ) as model:
        for size in (2 * concurrency, count):
            places = iter(made(size, 0.0))

            async def one(places: "object" = places) -> None:
                for job in places:  # type: ignore[attr-defined]
                    await recommend(job.params, model, 30.0)

            cpu, began = time.process_time(), time.time()
            await asyncio.gather(*(one() for _ in range(concurrency)))
        seconds = time.time() - began
        cpu = time.process_time() - cpu
    return seconds, cpu / count * 1000, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run(count: int = 2000, latency_s: float = 0.5, concurrency: int = 200, rounds: int = 3) -> str:
    """The table."""
    ideal = count * latency_s / concurrency
    bare, worker = "bare loop: model calls only", "travelrec worker"
    plain = {"bare loop: all calls of a job": PlainLoop, "the same in batches": PlainPipeline}
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (bare, *plain, worker)}
    with Kafka(jvm=("-Xmx1g",)) as kafka, Mongo() as mongo:
        model_port = free_port()
        command = ["fake-openai", "--port", str(model_port), "--latency", str(latency_s)]
        with Process([sys.executable, "-m", "travelrec", *command]) as model:
            asyncio.run(model.wait_for_http(f"http://127.0.0.1:{model_port}/healthz"))
            url = f"http://127.0.0.1:{model_port}/v1"
            for _ in range(rounds):
                results[bare].append(uvloop.run(_bare(count, concurrency, url)))
                for name, kind in plain.items():
                    results[name].append(uvloop.run(_plain(kind, count, concurrency, url, kafka, mongo)))
                results[worker].append(uvloop.run(_worker(count, concurrency, url, kafka, mongo)))
    rows = [
        Row(
            name,
            {
                "seconds": f"{min(run[0] for run in runs):.2f}",
                "of the ideal": f"{min(run[0] for run in runs) / ideal:.2f}",
                "CPU ms/job": f"{median(run[1] for run in runs):.2f}",
                "memory MB": f"{median(run[2] for run in runs):.0f}",
            },
        )
        for name, runs in results.items()
    ]
    for floor in (bare, *plain):
        ratios = [ours[1] / theirs[1] for ours, theirs in zip(results[worker], results[floor], strict=True)]
        rows.append(Row(f"worker / {floor} (median of rounds)", {"CPU ms/job": f"{median(ratios):.2f}"}))
    return table(rows)
