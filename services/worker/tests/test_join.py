"""The role `join` on memory adapters that can be away: what it publishes, whatever comes in whatever order."""

import io
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import fastavro
import pytest
import pytest_asyncio

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.adapters.memory_trips import MemoryTripStore
from travelrec.connect import Parts
from travelrec.errors import BrokerUnavailable, RegistryUnavailable, StoreUnavailable
from travelrec.settings import Settings
from travelrec.trips.codec import Codec
from travelrec.trips.entities import INCOMPLETE, JOINED, SOURCES, STREAMS, Stream
from travelrec.trips.joining import Part, Waiting
from travelrec.trips.made_up import MadeUp, made_up
from travelrec.trips.offline import BundledRegistry
from travelrec.wire import Message
from travelrec_worker import join as joins
from travelrec_worker.app import running_roles
from travelrec_worker.join import DEAD_LETTERS_TOPIC, group_of

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

Record = dict[str, object]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joins, "_AGAIN_S", 0.02)
    monkeypatch.setattr(joins, "_LOOK_S", 0.02)


class Broker(MemoryBroker):
    """Keeps what was published by topic; publishing to a topic in `away` fails, in `lost` after it was done."""

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, list[Message]] = {}
        self.away: set[str] = set()
        self.lost: set[str] = set()
        self.refused = 0

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if topic in self.away:
            self.refused += 1
            raise BrokerUnavailable("away")
        self.published.setdefault(topic, []).extend(messages)
        await super().publish(topic, messages)
        if topic in self.lost:
            self.refused += 1
            raise BrokerUnavailable("no answer")


class Trips(MemoryTripStore):
    """A call whose name is in `away` fails, one in `lost` after it was done."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[str] = set()
        self.lost: set[str] = set()
        self.refused = 0

    def _enter(self, name: str, names: set[str]) -> None:
        if name in names:
            self.refused += 1
            raise StoreUnavailable("away")

    async def add(
        self, parts: Sequence[Part], token: str, now: float, due_at: float, until: float
    ) -> list[Waiting]:
        self._enter("add", self.away)
        ready = await super().add(parts, token, now, due_at, until)
        self._enter("add", self.lost)
        return ready

    async def close(self, trips: Sequence[Waiting], now: float, keep_until: float) -> None:
        self._enter("close", self.away)
        await super().close(trips, now, keep_until)


class Registry(BundledRegistry):
    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.refused = 0

    def _enter(self) -> None:
        if self.away:
            self.refused += 1
            raise RegistryUnavailable("away")

    async def register(self, subject: str, schema: str) -> int:
        self._enter()
        return await super().register(subject, schema)

    async def schema(self, number: int) -> str:
        self._enter()
        return await super().schema(number)


class World:
    """What the join works on, and what it has published."""

    def __init__(self, window_s: float = 1000.0) -> None:
        self.broker, self.trips, self.registry = Broker(), Trips(), Registry()
        self.codec = Codec(BundledRegistry())
        self.settings = Settings(
            broker_url="memory://", store_url="memory://", grace_s=0.0, trips_join_window_s=window_s
        )

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[None]:
        parts = Parts(MemoryStore(), self.broker, MemorySignals(), trips=self.trips, registry=self.registry)
        async with running_roles(["join"], self.settings, parts):
            yield

    def message(self, stream: Stream, made: MadeUp) -> tuple[str, Message]:
        record = getattr(made, stream.name)
        return stream.topic, Message(self.codec.encode(stream, vars(record)), key=record.trip_id)

    async def send(self, *messages: tuple[str, Message]) -> None:
        for topic, message in messages:
            await MemoryBroker.publish(self.broker, topic, [message])

    async def records(self, stream: Stream) -> list[Record]:
        return [await self.codec.decode(stream, m.value) for m in self.broker.published.get(stream.topic, ())]

    async def acknowledged(self) -> None:
        """Waits until no record is left."""

        async def nothing_waits() -> bool:
            return not [s for s in SOURCES if await self.broker.oldest_waiting(s.topic, group_of(s))]

        await eventually(nothing_waits, 30)


@pytest_asyncio.fixture
async def world() -> World:
    made = World()
    await made.codec.register(STREAMS)
    return made


def joined(made: MadeUp) -> Record:
    return {**vars(made.rider), **vars(made.driver), **vars(made.trip)}


def by_id(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: str(record["trip_id"]))


async def test_every_trip_is_joined_once(world: World) -> None:
    """500 trips in random order, a third of the records again: one record each, every field that of its source."""
    chance = random.Random(7)
    made = made_up("order", 500)
    messages = [world.message(stream, each) for each in made for stream in SOURCES]
    messages += chance.sample(messages, 500)
    chance.shuffle(messages)
    async with world.joining():
        await world.send(*messages)
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])
    assert [m.key for m in world.broker.published[JOINED.topic]] == [
        record["trip_id"] for record in await world.records(JOINED)
    ]
    assert INCOMPLETE.topic not in world.broker.published


async def test_a_restart_between_the_records_changes_nothing(world: World) -> None:
    """Each stream is taken by another worker, whose repeats come later."""
    made = made_up("restart", 20)
    for stream in SOURCES:
        async with world.joining():
            await world.send(*(world.message(stream, each) for each in made))
            await world.acknowledged()
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])


async def test_several_workers_join_together(world: World) -> None:
    """Three that share the groups and the state: each trip is joined once."""
    made = made_up("replicas", 200)
    async with world.joining(), world.joining(), world.joining():
        for stream in SOURCES:
            await world.send(*(world.message(stream, each) for each in made))
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])


async def test_what_can_not_be_decoded_is_a_dead_letter(world: World) -> None:
    """As it came, with the reason and its topic in its headers; the records around it are joined."""
    (made,) = made_up("garbage", 1)
    garbage = [b"", b"garbage", b"\0\0\0\3\xe7?", b"\0\0\0\0\1", b"\0\0\0\0\1" + b"\xff" * 20]
    async with world.joining():
        for stream in SOURCES:
            await world.send(*((stream.topic, Message(each, {"h": "1"}, "k")) for each in garbage))
            await world.send(world.message(stream, made))
        await world.acknowledged()
    letters = world.broker.published[DEAD_LETTERS_TOPIC]
    assert DEAD_LETTERS_TOPIC == "hw.fake.joinedstreams.dead-letter"
    assert Counter((m.value, m.headers["travelrec-topic"]) for m in letters) == {
        (value, stream.topic): 1 for value in garbage for stream in SOURCES
    }
    assert all(m.key == "k" and m.headers["h"] == "1" and m.headers["travelrec-error"] for m in letters)
    assert await world.records(JOINED) == [joined(made)]


async def test_a_record_with_logical_types_is_a_dead_letter(world: World) -> None:
    """What no store takes harms no other record."""
    (made,) = made_up("logical", 1)
    stream = SOURCES[0]
    schema = json.loads(await world.registry.schema(1 + STREAMS.index(stream)))
    for each in schema["fields"]:
        if each["name"] != "trip_id" and each["type"] == "string":
            each["type"] = {"type": "string", "logicalType": "uuid"}
    world.registry._schemas[99] = json.dumps(schema)
    out = io.BytesIO(b"\0" + (99).to_bytes(4, "big"))
    out.seek(0, io.SEEK_END)
    record = {
        each["name"]: uuid.uuid4()
        if isinstance(each["type"], dict)
        else vars(getattr(made, stream.name))[each["name"]]
        for each in schema["fields"]
    }
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    async with world.joining():
        await world.send((stream.topic, Message(out.getvalue(), key="k")))
        for source in SOURCES:
            await world.send(world.message(source, made))
        await world.acknowledged()
    (letter,) = world.broker.published[DEAD_LETTERS_TOPIC]
    assert "logical types" in letter.headers["travelrec-error"]
    assert await world.records(JOINED) == [joined(made)]


async def test_a_record_that_is_too_large_is_a_dead_letter(world: World) -> None:
    """Three of them would not fit into one; there is the beginning of it."""
    (made,) = made_up("large", 1)
    async with world.joining():
        await world.send((SOURCES[0].topic, Message(b"\0" * 600_000, {"h": "1", "long": "x" * 10_000}, "k")))
        for stream in SOURCES:
            topic, message = world.message(stream, made)
            await world.send((topic, replace(message, headers={"traceparent": "x" * 700_000})))
        await world.acknowledged()
    (letter,) = world.broker.published[DEAD_LETTERS_TOPIC]
    assert len(letter.value) == 512 * 1024
    assert letter.headers["travelrec-bytes"] == "600000"
    assert "600,000 bytes" in letter.headers["travelrec-error"]
    assert ("h" in letter.headers, "long" in letter.headers) == (True, False)
    assert "traceparent" not in world.broker.published[JOINED.topic][0].headers
    assert await world.records(JOINED) == [joined(made)]


async def test_incomplete_trips_are_told_after_their_time(world: World) -> None:
    """Each missing one stream: what there is, and what is missing; complete ones beside them are joined only."""
    made = made_up("incomplete", 4)
    world.settings = world.settings.model_copy(update={"trips_join_window_s": 0.3})
    async with world.joining():
        for stream, lacks in zip(SOURCES, made, strict=False):
            await world.send(*(world.message(stream, each) for each in made if each is not lacks))
        await eventually(lambda: len(world.broker.published.get(INCOMPLETE.topic, ())) == 3, 20)
        await world.acknowledged()
    found = {record["trip_id"]: record for record in await world.records(INCOMPLETE)}
    for stream, each in zip(SOURCES, made, strict=False):
        record = found[each.trip.trip_id]
        assert record["missing"] == [stream.name]
        known = {
            k: v
            for other in SOURCES
            if other is not stream
            for k, v in vars(getattr(each, other.name)).items()
        }
        assert {k: v for k, v in record.items() if k in known} == known
        assert all(v is None for k, v in record.items() if k not in {*known, "missing"})
    assert await world.records(JOINED) == [joined(made[3])]


async def test_what_comes_too_late_is_told_as_incomplete(world: World) -> None:
    """A record after its trip was told as incomplete: told again under the same key, with all there is; not joined."""
    (made,) = made_up("late", 1)
    world.settings = world.settings.model_copy(update={"trips_join_window_s": 0.1})
    first, second, third = (world.message(stream, made) for stream in SOURCES)
    async with world.joining():
        for number, message in enumerate((first, second, third), 1):
            await world.send(message, message)
            await eventually(lambda n=number: len(world.broker.published.get(INCOMPLETE.topic, ())) == n, 20)
        await world.send(first, second, third)
        await world.acknowledged()
    told = await world.records(INCOMPLETE)
    assert [record["missing"] for record in told] == [["driver", "rider"], ["rider"], []]
    assert told[-1] == {**joined(made), "missing": []}
    assert {m.key for m in world.broker.published[INCOMPLETE.topic]} == {made.trip.trip_id}
    assert JOINED.topic not in world.broker.published


@pytest.mark.parametrize("away", ["add", "close"])
async def test_a_store_that_is_away_holds_records_up(world: World, away: str) -> None:
    """Nothing is acknowledged while it is away, nor lost; what was published meanwhile is the same again."""
    made = made_up(away, 30)
    world.trips.away = {away}
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await eventually(lambda: world.trips.refused > 3, 20)
        assert await world.broker.oldest_waiting(SOURCES[0].topic, group_of(SOURCES[0])) is not None
        world.trips.away = set()
        await world.acknowledged()
    records = {str(record): record for record in await world.records(JOINED)}
    assert by_id(list(records.values())) == by_id([joined(each) for each in made])


async def test_a_lost_answer_of_the_store_loses_no_trip(world: World) -> None:
    """What was written before the answer was lost is published by who wrote it."""
    made = made_up("lost", 30)
    world.trips.lost = {"add"}
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await eventually(lambda: world.trips.refused > 3, 20)
        world.trips.lost = set()
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])


@pytest.mark.parametrize("topic", [JOINED.topic, DEAD_LETTERS_TOPIC])
async def test_a_broker_that_is_away_holds_records_up(world: World, topic: str) -> None:
    """What can't be published is not acknowledged; afterwards all of it is."""
    made = made_up("broker", 10)
    world.broker.away = {topic}
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await world.send(*((stream.topic, Message(b"garbage")) for stream in SOURCES))
        await eventually(lambda: world.broker.refused > 3, 20)
        assert topic not in world.broker.published
        world.broker.away = set()
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])
    assert len(world.broker.published[DEAD_LETTERS_TOPIC]) == 3


async def test_a_registry_that_is_away_holds_records_up(world: World) -> None:
    """The join waits for schemas that it does not know yet, and loses nothing."""
    made = made_up("registry", 10)
    world.registry.away = True
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await eventually(lambda: world.registry.refused > 3, 20)
        assert JOINED.topic not in world.broker.published
        assert DEAD_LETTERS_TOPIC not in world.broker.published
        world.registry.away = False
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])


async def test_a_worker_that_ends_in_the_middle_leaves_the_rest_to_the_next(world: World) -> None:
    """What is ready and not published when a worker ends is published by another, once its lease has run out."""
    made = made_up("ends", 10)
    world.broker.away = {JOINED.topic}
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await eventually(lambda: world.broker.refused > 1, 20)
    world.broker.away = set()
    for trip_id, trip in world.trips.trips.items():
        world.trips.trips[trip_id] = Waiting(
            **{**{n: getattr(trip, n) for n in Waiting.__slots__}, "due_at": 0.0}
        )
    async with world.joining():
        await eventually(lambda: len(world.broker.published.get(JOINED.topic, ())) == 10, 20)
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])


async def test_a_worker_publishes_at_once_what_its_dead_namesake_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for a lease, here of an hour, to run out."""
    monkeypatch.setattr(joins, "_LEASE_S", 3600.0)
    world.settings = world.settings.model_copy(update={"metrics_port": 9})
    made = made_up("namesake", 10)
    world.broker.away = {JOINED.topic}
    async with world.joining():
        await world.send(*(world.message(stream, each) for each in made for stream in SOURCES))
        await eventually(lambda: world.broker.refused > 1, 20)
    world.broker.away = set()
    async with world.joining():
        await eventually(lambda: len(world.broker.published.get(JOINED.topic, ())) == 10, 20)
        await world.acknowledged()
    assert by_id(await world.records(JOINED)) == by_id([joined(each) for each in made])
