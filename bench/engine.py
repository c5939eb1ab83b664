"""Engine: messages a second through the consumer engine alone, 4 partitions, 100 keys in key order, 5 ms a handler.

The handler sleeps, checks that its key's messages come in order, and acknowledges. Beside it a bare consumer of the
same client that drops what it takes, and commits: what there is to be had on this machine.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from statistics import median

import uvloop
from aiokafka import AIOKafkaConsumer

from bench.report import Row, table
from support import Kafka, unique_name
from travelrec.adapters.kafka import KafkaBroker
from travelrec.ports import Delivery
from travelrec.wire import Message
from travelrec_worker.engine import Engine
from travelrec_worker.progress import Progress


async def _published(broker: KafkaBroker, topic: str, count: int, keys: int) -> None:
    for begin in range(0, count, 1000):
        numbers = range(begin, min(begin + 1000, count))
        await broker.publish(topic, [Message(b"%d" % n, key=f"key {n % keys}") for n in numbers])


async def _bare(kafka: Kafka, topic: str, count: int, concurrency: int) -> tuple[float, float]:
    """(messages a second, CPU µs a message)."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka.address,
        group_id=unique_name("bare"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        taken, committed_at = 0, 0.0
        began, cpu = time.perf_counter(), time.process_time()
        while taken < count:
            found = await consumer.getmany(timeout_ms=500, max_records=concurrency)
            taken += sum(map(len, found.values()))
            if time.perf_counter() - committed_at > 0.1:
                committed_at = time.perf_counter()
                await consumer.commit()
        return count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6
    finally:
        await consumer.stop()


async def _engine(
    broker: KafkaBroker, topic: str, count: int, concurrency: int, handler_s: float
) -> tuple[float, float]:
    """(messages a second, CPU µs a message)."""
    done, last, handled = asyncio.Event(), dict[str, int](), itertools.count(1)

    async def handle(delivery: Delivery) -> None:
        await asyncio.sleep(handler_s)
        key, number = delivery.message.key or "", int(delivery.message.value)
        assert number > last.get(key, -1), f"{key}: {number} after {last[key]}"
        last[key] = number
        delivery.acknowledge()
        if next(handled) == count:
            done.set()

    intake = asyncio.Event()
    intake.set()
    engine = Engine(
        broker,
        topic,
        unique_name("engine"),
        handle,
        concurrency=concurrency,
        intake=intake,
        progress=Progress(5.0),
        in_key_order=True,
    )
    running = asyncio.create_task(engine.run(5.0))
    await engine.joined.wait()
    began, cpu = time.perf_counter(), time.process_time()
    await done.wait()
    measured = count / (time.perf_counter() - began), (time.process_time() - cpu) / count * 1e6
    engine.stop()
    await running
    return measured


async def _all(
    kafka: Kafka, count: int, keys: int, rounds: int, handler_s: float, concurrency: int
) -> dict[str, list[tuple[float, float]]]:
    async with KafkaBroker.opened(kafka.address, partitions=4) as broker:
        topic = unique_name("ordered")
        await _published(broker, topic, count, keys)
        contenders: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {
            "bare consumer, drops what it takes": lambda: _bare(kafka, topic, count, concurrency),
            "engine, key order": lambda: _engine(broker, topic, count, concurrency, handler_s),
        }
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, measure in contenders.items():
                results[name].append(await measure())
        return results


def run(
    count: int = 60_000, keys: int = 100, rounds: int = 3, handler_s: float = 0.005, concurrency: int = 400
) -> str:
    """The table."""
    with Kafka(jvm=("-Xmx1g",)) as kafka:
        results = uvloop.run(_all(kafka, count, keys, rounds, handler_s, concurrency))
    return table(
        [
            Row(
                name,
                {
                    "messages/s": f"{median(rate for rate, _ in runs):.0f}",
                    "least": f"{min(rate for rate, _ in runs):.0f}",
                    "CPU µs/message": f"{median(cpu for _, cpu in runs):.0f}",
                },
            )
            for name, runs in results.items()
        ]
    )
