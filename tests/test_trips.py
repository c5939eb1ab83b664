"""Trips on real servers: Kafka, the MongoDB protocol, a schema registry, and processes that are killed."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from confluent_kafka import DeserializingConsumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer

from support import Kafka, Mongo, Registry, eventually, unique_name
from support.api import Api, Event, running_api
from support.joining import Fire, made_load
from travelrec.adapters.registry import HttpRegistry
from travelrec.connect import Parts, opened_parts
from travelrec.settings import Settings
from travelrec.trips.codec import Codec, bundled_schema
from travelrec.trips.entities import JOINED, TRIP
from travelrec_worker.app import running_roles

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180), pytest.mark.real("kafka", "mongo", "registry")]


@asynccontextmanager
async def everything(
    kafka: Kafka, mongo: Mongo, registry_url: str, **more: object
) -> AsyncIterator[tuple[Api, Parts]]:
    """An API, and beside it a worker with the role `join`."""
    given = {
        "broker_url": kafka.url,
        "store_url": f"{mongo.url}{unique_name('trips')}",
        "schema_registry_url": registry_url,
        "neighbour_timeout_s": 20.0,
        "grace_s": 5.0,
        **more,
    }
    async with (
        opened_parts(Settings(**given)) as parts,
        running_roles(["join"], Settings(**given), parts),
        running_api(parts=parts, **given) as api,
    ):
        yield api, parts


def read_by_a_stranger(kafka: Kafka, registry: Registry, count: int) -> dict[str, dict[str, object]]:
    """What Confluent's own consumer and deserialiser make of the joined topic, by key; blocks."""
    schemas = SchemaRegistryClient({"url": registry.url})
    consumer = DeserializingConsumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": unique_name("stranger"),
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "value.deserializer": AvroDeserializer(schemas),
            "key.deserializer": lambda key, _: key.decode(),
        }
    )
    found: dict[str, dict[str, object]] = {}
    try:
        consumer.subscribe([JOINED.topic])
        for _ in range(120):
            message = consumer.poll(0.5)
            if message is not None and message.error() is None:
                found[message.key()] = message.value()
            if len(found) >= count:
                break
    finally:
        consumer.close()
    return found


async def test_everything_is_joined_while_workers_are_killed(
    kafka_server: Kafka, mongo_server: Mongo, new_registry
) -> None:
    """300 trips in random order, repeats, gaps and garbage among them, of two workers one SIGKILLed every 2 seconds:
    each complete trip is joined, field by field, each incomplete one told, and the garbage is dead letters."""
    registry: Registry = new_registry()
    async with HttpRegistry.opened(registry.url, timeout_s=30.0) as client:
        load = await made_load(Codec(client), 300, repeats=0.05, missing=0.02, garbage=0.01, seed=1)
    url = f"{mongo_server.url}{unique_name('fire')}"
    fire = Fire(kafka_server.address, url, registry.url, replicas=2, window_s=8.0)
    outcome = await fire.through(load, kill_every_s=2.0, timeout_s=120.0)
    assert outcome.problems == []
    assert outcome.kills > 0


async def test_a_consumer_of_somebody_else_reads_the_joined_trips(
    new_kafka, mongo_server: Mongo, new_registry
) -> None:
    """Confluent's deserialiser, which asks the registry for the schema, gives every field of every trip."""
    kafka, registry = new_kafka(), new_registry()
    async with everything(kafka, mongo_server, registry.url) as (api, parts):
        await parts.broker.publish(JOINED.topic, [])  # makes it: the stranger does not wait for topics
        answer = await api.call("POST", "/api/generate-multiple-trips", json={"count": 20})
        assert answer.status == 201, answer.text
        found = await asyncio.to_thread(read_by_a_stranger, kafka, registry, 20)
    assert set(found) == set(answer.json["trip_ids"])
    for trip_id, record in found.items():
        assert record["trip_id"] == trip_id
        JOINED.entity.model_validate(record)


async def test_who_watches_goes_on_watching_when_the_broker_was_away(
    new_kafka, mongo_server: Mongo, new_registry
) -> None:
    """The stream of events stays open while Kafka is killed and started, and goes on with the trips that come then."""
    kafka, registry = new_kafka(), new_registry()
    async with (
        everything(kafka, mongo_server, registry.url, neighbour_timeout_s=3.0) as (api, _),
        api.follow("/api/trips/events") as events,
        asyncio.timeout(120),
    ):
        await _until(events, "live")
        await asyncio.to_thread(kafka.kill)
        await asyncio.to_thread(kafka.start)

        async def made() -> bool:
            return (await api.call("POST", "/api/generate-trip")).status == 201

        await eventually(made, 60)
        joined = await _until(events, "joined")
    JOINED.entity.model_validate(joined.json)


async def _until(events: AsyncIterator[Event], name: str) -> Event:
    async for event in events:
        if event.name == name:
            return event
    raise AssertionError(f"the stream ended without {name}")


async def test_an_incompatible_change_is_refused_and_a_compatible_one_goes_through(
    new_kafka, mongo_server: Mongo, new_registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a field more that has no default nothing is published, and the reason names it; with a default, trips of
    the new schema are joined by a worker of the old one."""
    kafka, registry = new_kafka(), new_registry()
    async with everything(kafka, mongo_server, registry.url) as (api, parts):
        assert (await api.call("POST", "/api/generate-trip")).status == 201
        await eventually(lambda: _known_by_registry(parts), 30)
        with monkeypatch.context() as newer:
            newer.setattr("travelrec.trips.codec.bundled_schema", _with_a_field)
            async with running_api(parts=parts, broker_url=kafka.url) as refused:
                answer = await refused.call("POST", "/api/generate-trip")
                assert answer.status == 503
                assert "weather" in answer.json["message"]
            newer.setattr(
                "travelrec.trips.codec.bundled_schema", lambda stream: _with_a_field(stream, default="fine")
            )
            async with (
                parts.broker.tail(JOINED.topic) as joined,
                running_api(parts=parts, broker_url=kafka.url) as new,
            ):
                answer = await new.call("POST", "/api/generate-trip")
                assert answer.status == 201, answer.text
                async with asyncio.timeout(60):
                    async for message in joined:
                        if message.key in answer.json["trip_ids"]:
                            break
        schemas = SchemaRegistryClient({"url": registry.url})
        assert await asyncio.to_thread(schemas.get_versions, TRIP.subject) == [1, 2]


async def _known_by_registry(parts: Parts) -> bool:
    return await parts.registry.register(JOINED.subject, bundled_schema(JOINED)) > 0


def _with_a_field(stream, **default: str) -> str:
    schema = json.loads(bundled_schema(stream))
    if stream is TRIP:
        schema["fields"].append({"name": "weather", "type": "string", **default})
    return json.dumps(schema)


async def test_a_registry_that_is_away_is_said_and_nothing_is_lost(
    new_kafka, mongo_server: Mongo, new_registry
) -> None:
    """Without it the API says 503 and so does its readiness by name; records that a join can't read yet wait, and are
    joined once it is back."""
    kafka, registry = new_kafka(), new_registry()
    async with registry.proxy() as proxy:
        url = registry.url.replace(str(registry.port), str(proxy.port))
        proxy.cut()
        async with everything(kafka, mongo_server, url) as (api, parts):
            answer = await api.call("POST", "/api/generate-trip")
            assert answer.status == 503
            assert "schema registry" in answer.json["message"]
            ready = await api.get("/readyz")
            assert (ready.status, ready.json["dependencies"]["schema registry"]) == (200, "unavailable")
            async with HttpRegistry.opened(registry.url) as around, parts.broker.tail(JOINED.topic) as joined:
                load = await made_load(Codec(around), 10, repeats=0, missing=0, garbage=0, seed=2)
                for topic, message in load.messages:
                    await parts.broker.publish(topic, [message])
                proxy.restore()
                keys = set()
                async with asyncio.timeout(60):
                    while keys != load.whole.keys():
                        keys.add((await anext(joined)).key)
            assert (await api.call("POST", "/api/generate-trip")).status == 201
