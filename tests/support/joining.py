"""Trips under fire: their records in random order, with repeats, gaps and garbage, while join workers are killed."""

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition

from support.deployment import COMMAND
from support.ports import free_port
from support.processes import Process
from support.waiting import eventually
from travelrec.adapters.kafka import KafkaBroker
from travelrec.adapters.registry import HttpRegistry
from travelrec.trips.codec import Codec
from travelrec.trips.entities import INCOMPLETE, JOINED, SOURCES, STREAMS, Stream
from travelrec.trips.made_up import MadeUp, made_up
from travelrec.wire import Message, dead_letter_topic

DEAD_LETTERS = dead_letter_topic(JOINED.topic)
SENT_AT_ONCE = 3000

Record = dict[str, object]


@dataclass(frozen=True)
class Load:
    """What is published, and what must come of it."""

    messages: list[tuple[str, Message]]
    whole: dict[str, Record]
    lacking: dict[str, tuple[str, Record]]  # the stream whose record is missing, and what there is
    garbage: Counter[bytes]


async def made_load(
    codec: Codec, count: int, *, repeats: float, missing: float, garbage: float, seed: int
) -> Load:
    """`count` trips: of a share of them one record is missing; shares of the records come again, or are garbage."""
    chance = random.Random(seed)
    await codec.register(STREAMS)
    trips = made_up(f"load-{seed}", count)
    lacking = {
        each.trip.trip_id: chance.choice(SOURCES) for each in chance.sample(trips, round(count * missing))
    }
    messages = [
        _message(codec, stream, each)
        for each in trips
        for stream in SOURCES
        if lacking.get(each.trip.trip_id) is not stream
    ]
    messages += chance.sample(messages, round(len(messages) * repeats))
    rubbish = [
        (chance.choice(SOURCES).topic, _garbage(chance)) for _ in range(round(len(messages) * garbage))
    ]
    messages += rubbish
    chance.shuffle(messages)
    whole = {each.trip.trip_id: _fields(each) for each in trips if each.trip.trip_id not in lacking}
    rest = {
        each.trip.trip_id: (lacking[each.trip.trip_id].name, _fields(each, lacking[each.trip.trip_id]))
        for each in trips
        if each.trip.trip_id in lacking
    }
    return Load(messages, whole, rest, Counter(message.value for _, message in rubbish))


def _message(codec: Codec, stream: Stream, made: MadeUp) -> tuple[str, Message]:
    record = getattr(made, stream.name)
    return stream.topic, Message(codec.encode(stream, vars(record)), key=record.trip_id)


def _garbage(chance: random.Random) -> Message:
    kinds = (b"", b"\0\0\0\xff\xff", b"\0\0\0\0\1", b"{")
    return Message(chance.choice(kinds) + chance.randbytes(chance.randrange(8, 40)), key=str(chance.random()))


def _fields(made: MadeUp, without: Stream | None = None) -> Record:
    """Of the streams' records, those of the first winning where they share a field."""
    fields: Record = {}
    for stream in SOURCES:
        if stream is not without:
            fields = {**vars(getattr(made, stream.name)), **fields}
    return fields


@dataclass
class Seen:
    """What a reader of a topic saw: each record under its key, as often as it came."""

    by_key: dict[str, list[bytes]] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)  # of the first
    values: Counter[bytes] = field(default_factory=Counter)

    @property
    def repeats(self) -> int:
        return sum(len(values) - 1 for values in self.by_key.values())


@dataclass
class Outcome:
    """What became of a load; `problems` is empty if all is as it must be."""

    problems: list[str]
    kills: int
    published_s: float
    joined_s: float
    latencies_s: Sequence[float]
    repeated: int
    trips: int

    @property
    def trips_a_second(self) -> float:
        return self.trips / self.joined_s

    def latency_s(self, share: float) -> float:
        return statistics.quantiles(self.latencies_s, n=100)[round(share * 100) - 1]


class Fire:
    """Join workers on these servers, killed again and again, while a load goes through."""

    def __init__(
        self, servers: str, mongo_url: str, registry_url: str, *, replicas: int, window_s: float, **env: str
    ) -> None:
        self._servers = servers
        self._registry_url = registry_url
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "STORE_URL": mongo_url,
            "SCHEMA_REGISTRY_URL": registry_url,
            "TRIPS_JOIN_WINDOW": str(window_s),
            "LOG_LEVEL": "warning",
            **env,
        }
        self.workers = [
            Process(
                [*COMMAND, "worker", "join"],
                env={**settings, "METRICS_PORT": str(free_port())},
                name=f"join-{n}",
            )
            for n in range(replicas)
        ]
        self.sent_at: dict[str, float] = {}
        self.kills = 0

    async def through(
        self, load: Load, *, kill_every_s: float, timeout_s: float, backlog: bool = False
    ) -> Outcome:
        """Publishes the load while the workers run (or before they start: `backlog`), and reads what comes of it."""
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(KafkaBroker.opened(self._servers, timeout_s=60.0))
            registry = await stack.enter_async_context(
                HttpRegistry.opened(self._registry_url, timeout_s=30.0)
            )
            codec = Codec(registry)
            seen = {topic: Seen() for topic in (JOINED.topic, INCOMPLETE.topic, DEAD_LETTERS)}
            for topic in (*seen, *(stream.topic for stream in SOURCES)):
                await broker.publish(topic, [])  # makes it
            reading = [asyncio.create_task(self._read(topic, into)) for topic, into in seen.items()]
            stack.push_async_callback(_cancelled, reading)
            if backlog:
                published_s = await self._publish(broker, load)
            began = time.time()
            for worker in self.workers:
                stack.enter_context(worker)
            killing = asyncio.create_task(self._kill(kill_every_s))
            stack.push_async_callback(_cancelled, [killing])
            if not backlog:
                published_s = await self._publish(broker, load)
            wanted = (
                (seen[JOINED.topic].by_key, len(load.whole)),
                (seen[INCOMPLETE.topic].by_key, len(load.lacking)),
                (seen[DEAD_LETTERS].values, len(load.garbage)),
            )
            with suppress(AssertionError):  # what is missing is told below
                await eventually(lambda: all(len(found) >= n for found, n in wanted), timeout_s)
            last = max(seen[JOINED.topic].at.values(), default=time.time())
            first = min(seen[JOINED.topic].at.values(), default=began)
            return Outcome(
                await _problems(codec, load, seen),
                self.kills,
                published_s,
                last - first if backlog else last - began,
                sorted(
                    at - self.sent_at[key] for key, at in seen[JOINED.topic].at.items() if key in self.sent_at
                ),
                seen[JOINED.topic].repeats,
                len(seen[JOINED.topic].by_key),
            )

    async def _publish(self, broker: KafkaBroker, load: Load) -> float:
        began = time.time()
        for start in range(0, len(load.messages), SENT_AT_ONCE):
            chunk = load.messages[start : start + SENT_AT_ONCE]
            by_topic: dict[str, list[Message]] = {}
            for topic, message in chunk:
                by_topic.setdefault(topic, []).append(message)
            await asyncio.gather(*(broker.publish(topic, messages) for topic, messages in by_topic.items()))
            self.sent_at.update((message.key or "", time.time()) for _, message in chunk)
        return time.time() - began

    async def _kill(self, every_s: float) -> None:
        for worker in itertools.cycle(self.workers):
            await asyncio.sleep(every_s)
            await asyncio.to_thread(worker.kill)
            worker.start()
            self.kills += 1

    async def _read(self, topic: str, seen: Seen) -> None:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        await consumer.start()
        try:
            await consumer._client._wait_on_metadata(topic)
            consumer.assign([TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()])
            async for record in consumer:
                key = record.key.decode()
                seen.by_key.setdefault(key, []).append(record.value)
                seen.at.setdefault(key, record.timestamp / 1000)
                seen.values[record.value] += 1
        finally:
            await consumer.stop()


async def _problems(codec: Codec, load: Load, seen: Mapping[str, Seen]) -> list[str]:
    problems = []
    joined = await _decoded(codec, JOINED, seen[JOINED.topic], problems)
    incomplete = await _decoded(codec, INCOMPLETE, seen[INCOMPLETE.topic], problems)
    if lost := load.whole.keys() - joined.keys():
        problems.append(f"{len(lost)} trips were not joined: {sorted(lost)[:3]}")
    if wrong := [key for key, record in joined.items() if load.whole.get(key) != record]:
        problems.append(f"{len(wrong)} joined records are not what their sources say: {wrong[:3]}")
    expected = {
        key: {**dict.fromkeys(INCOMPLETE.entity.model_fields), **record, "missing": [name]}
        for key, (name, record) in load.lacking.items()
    }
    if incomplete != expected:
        odd = {k for k in incomplete.keys() | expected.keys() if incomplete.get(k) != expected.get(k)}
        problems.append(f"{len(odd)} incomplete trips are not what they should be: {sorted(odd)[:3]}")
    if seen[DEAD_LETTERS].values.keys() != load.garbage.keys():
        odd_letters = len(seen[DEAD_LETTERS].values.keys() ^ load.garbage.keys())
        problems.append(f"{odd_letters} dead letters too many or too few")
    return problems


async def _decoded(codec: Codec, stream: Stream, seen: Seen, problems: list[str]) -> dict[str, Record]:
    if differing := [key for key, values in seen.by_key.items() if len(set(values)) > 1]:
        problems.append(f"{len(differing)} keys of {stream.topic} have records that differ: {differing[:3]}")
    return {key: await codec.decode(stream, values[-1]) for key, values in seen.by_key.items()}


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
