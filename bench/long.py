"""Long: 1,000 queued jobs of 10 s at 1,000 in flight on one partition, one worker; ideal 10 s.

Beside it the floor: a bare loop that makes the same calls with the same client and nothing else; the worker with its
store in memory, which takes the MongoDB-protocol development server out; and the engine alone, whose handlers sleep.
The first three have made as many short calls three times before. A worker's clock runs from the publish of the
messages to the last job's end in the store. A job claimed or tried twice would show a lease that ran out or a
time-out, another member id a rebalance. The CPU is what each process used in the two seconds from then on, in which
all calls leave: two cores have one second of it in the half second that a twentieth is.
"""

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import psutil
import uvloop
from aiokafka.admin import AIOKafkaAdminClient

from bench.drain import accepted, made
from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port, unique_name
from travelrec.adapters.kafka import KafkaBroker, KafkaSignals
from travelrec.adapters.memory import MemoryStore
from travelrec.adapters.mongo import MongoStore
from travelrec.adapters.openai import OpenAIModel
from travelrec.connect import Parts
from travelrec.job import Job, Status
from travelrec.kinds.recommendation.run import run as recommend
from travelrec.ports import Delivery
from travelrec.settings import Settings
from travelrec.telemetry import configure_logging
from travelrec.wire import JOBS_GROUP, JOBS_TOPIC, SIGNALS_TOPIC, Message, encode_job
from travelrec_worker.app import running_roles, spare_the_collector
from travelrec_worker.engine import Engine
from travelrec_worker.progress import Progress

_WARM_S = (0.5, 0.5, 0.5)  # what a call takes in the rounds before
_STARTING_S = 2.0  # in which all calls leave
_AT_ONCE = 20  # calls that are started together: with all of them the first one leaves with the last


async def _members(kafka: Kafka) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        (described,) = await admin.describe_consumer_groups([JOBS_GROUP])
        return [member[0] for member in described.groups[0][5]]
    finally:
        await admin.close()


@asynccontextmanager
async def _model() -> AsyncIterator[tuple[str, Callable[[float], Awaitable[object]], int]]:
    """The offline model's URL, what sets its latency, and its pid."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with (
        Process([sys.executable, "-m", "travelrec", "fake-openai", "--port", str(port)]) as model,
        aiohttp.ClientSession() as http,
    ):
        await model.wait_for_http(f"{url}/healthz")
        yield (
            f"{url}/v1",
            lambda latency_s: http.post(f"{url}/control", json={"latency_s": latency_s}),
            model.pid,
        )


async def _starting(**pids: int) -> str:
    """The CPU that each process uses while the calls leave, in seconds."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    await asyncio.sleep(_STARTING_S)
    used = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in processes.items()}
    return ", ".join(f"{name} {cpu_s:.2f}" for name, cpu_s in used.items())


async def _bare(count: int, latency_s: float) -> Row:
    async with AsyncExitStack() as stack:
        url, set_latency, model_pid = await stack.enter_async_context(_model())
        model = await stack.enter_async_context(
            OpenAIModel.opened(api_key="x", base_url=url, model="m", connections=count)
        )
        for each_s in (*_WARM_S, latency_s):
            await set_latency(each_s)
            began = time.time()
            async with asyncio.TaskGroup() as calls:
                cpu = calls.create_task(_starting(worker=os.getpid(), model=model_pid))
                for number, job in enumerate(made(count, 0.0), 1):
                    calls.create_task(recommend(job.params, model, 60.0))
                    if number % _AT_ONCE == 0:
                        await asyncio.sleep(0)
        return _row("bare loop: model calls only", time.time() - began, latency_s, cpu.result())


async def _worker(count: int, latency_s: float, kafka: Kafka, mongo: Mongo) -> Row:
    async with AsyncExitStack() as stack:
        url, set_latency, model_pid = await stack.enter_async_context(_model())
        port = free_port()
        env = {
            "BROKER_URL": kafka.url,
            "KAFKA_PARTITIONS": "1",
            "STORE_URL": mongo.url + "bench",
            "OPENAI_BASE_URL": url,
            "LOG_LEVEL": "warning",
            "RECOMMENDATION_CACHE_TTL": "0",
            "METRICS_PORT": str(port),
            "WORKER_CONCURRENCY": str(count),
        }
        broker = await stack.enter_async_context(KafkaBroker.opened(kafka.address, partitions=1))
        store = await stack.enter_async_context(MongoStore.opened(env["STORE_URL"], timeout_s=30))
        worker = stack.enter_context(Process([sys.executable, "-m", "travelrec", "worker"], env=env))
        await worker.wait_for_http(f"http://127.0.0.1:{port}/readyz")
        members: list[list[str]] = []
        for each_s in (*_WARM_S, latency_s):
            await set_latency(each_s)
            jobs = await accepted(store, count)
            await asyncio.sleep(1.0)  # let the servers finish writing before the clock runs
            pids = {
                "worker": worker.pid,
                "model": model_pid,
                "store": mongo.process.pid,
                "broker": kafka.process.pid,
            }
            cpu = asyncio.create_task(_starting(**pids))
            began = time.time()
            await broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
            ended = await _ended(store, [job.uid for job in jobs], each_s)
            members.append(await _members(kafka))
        seconds = max(job.ended_at or 0.0 for job in ended) - began
        row = _row("travelrec worker", seconds, latency_s, await cpu)
        row.values.update(
            {
                "claimed once": str(sum(job.claims == 1 for job in ended)),
                "failed attempts": str(sum(len(job.tries) for job in ended)),
                "rebalances": str(sum(one != other for one, other in itertools.pairwise(members))),
            }
        )
        return row


async def _in_memory(count: int, latency_s: float, kafka: Kafka) -> Row:
    async with AsyncExitStack() as stack:
        url, set_latency, model_pid = await stack.enter_async_context(_model())
        broker = await stack.enter_async_context(KafkaBroker.opened(kafka.address, partitions=1))
        model = await stack.enter_async_context(
            OpenAIModel.opened(api_key="x", base_url=url, model="m", connections=count)
        )
        store = MemoryStore()
        settings = Settings(
            broker_url=kafka.url, worker_concurrency=count, recommendation_cache_ttl_s=0, _env_file=None
        )
        parts = Parts(store, broker, KafkaSignals(broker, SIGNALS_TOPIC))
        engines = await stack.enter_async_context(running_roles(["jobs"], settings, parts, model))
        for engine in engines:
            await engine.joined.wait()
        for each_s in (*_WARM_S, latency_s):
            await set_latency(each_s)
            jobs = made(count, time.time())
            await store.accept(jobs, time.time())
            pids = {"worker": os.getpid(), "model": model_pid, "broker": kafka.process.pid}
            cpu = asyncio.create_task(_starting(**pids))
            began = time.time()
            await broker.publish(JOBS_TOPIC, [encode_job(job) for job in jobs])
            await asyncio.sleep(each_s)
            while not all(store.jobs[job.uid].ended for job in jobs):  # noqa: ASYNC110 - a benchmark may look
                await asyncio.sleep(0.1)
        last = max(store.jobs[job.uid].ended_at or 0.0 for job in jobs)
        return _row("travelrec worker, store in memory", last - began, latency_s, await cpu)


async def _engine_alone(count: int, latency_s: float, kafka: Kafka) -> Row:
    async with KafkaBroker.opened(kafka.address, partitions=1) as broker:
        topic, intake, left = unique_name("long"), asyncio.Event(), itertools.count(count - 1, -1)
        intake.set()
        done = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            delivery.acknowledge()
            await asyncio.sleep(latency_s)
            if next(left) == 0:
                done.set()

        engine = Engine(
            broker, topic, topic, handle, concurrency=count, intake=intake, progress=Progress(5.0), early=True
        )
        running = asyncio.create_task(engine.run(0.0))
        await engine.joined.wait()
        began = time.time()
        await broker.publish(topic, [Message(b"") for _ in range(count)])
        await done.wait()
        row = _row("engine alone", time.time() - began, latency_s, "")
        engine.stop()
        await running
        return row


async def _ended(store: MongoStore, uids: list[str], latency_s: float) -> list[Job]:
    """The jobs once all have ended; asks only when they may have."""
    await asyncio.sleep(latency_s)
    ended: list[Job] = []
    while len(ended) < len(uids):
        await asyncio.sleep(1.0)
        ended = []
        for start in range(0, len(uids), 200):
            found = await store.get(uids[start : start + 200])
            ended += [job for job in found.values() if job.status is Status.COMPLETED]
    return ended


def _row(name: str, seconds: float, ideal_s: float, cpu: str) -> Row:
    ideal = f"{seconds / ideal_s:.3f}"
    return Row(name, {"seconds": f"{seconds:.2f}", "of the ideal": ideal, "CPU s while calls leave": cpu})


def run(count: int = 1000, latency_s: float = 10.0, rounds: int = 2) -> str:
    """The table."""
    rows = []
    configure_logging("warning")  # as the worker's process
    spare_the_collector()
    with Kafka(jvm=("-Xmx1g",)) as kafka, Mongo() as mongo:
        for _ in range(rounds):
            rows += [
                uvloop.run(_bare(count, latency_s)),
                uvloop.run(_worker(count, latency_s, kafka, mongo)),
                uvloop.run(_in_memory(count, latency_s, kafka)),
                uvloop.run(_engine_alone(count, latency_s, kafka)),
            ]
    return table(rows)
