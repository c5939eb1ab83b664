"""The contract of `/api/generate-trip` and `/api/generate-multiple-trips`."""

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from support.api import Api, running_api
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.connect import Parts
from travelrec.errors import BrokerUnavailable, RegistryUnavailable, SchemaRefused
from travelrec.trips.codec import Codec
from travelrec.trips.entities import SOURCES, Stream
from travelrec.trips.made_up import is_request_id
from travelrec.trips.offline import BundledRegistry
from travelrec.wire import Message

pytestmark = pytest.mark.asyncio

ONE, MANY = "/api/generate-trip", "/api/generate-multiple-trips"


class Broker(MemoryBroker):
    """Keeps what was published by topic; one topic may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.published: dict[str, list[Message]] = {}
        self.away = ""

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if topic == self.away:
            raise BrokerUnavailable("away")
        self.published.setdefault(topic, []).extend(messages)


class Registry(BundledRegistry):
    """Raises what it is told to."""

    trouble: Exception | None = None

    async def register(self, subject: str, schema: str) -> int:
        if self.trouble is not None:
            raise self.trouble
        return await super().register(subject, schema)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest_asyncio.fixture
async def api(broker: Broker, registry: Registry) -> AsyncIterator[Api]:
    parts = Parts(MemoryStore(), broker, MemorySignals(), registry=registry)
    async with running_api(parts=parts) as running:
        yield running


async def records(broker: Broker, stream: Stream) -> list[dict[str, object]]:
    codec = Codec(BundledRegistry())
    return [await codec.decode(stream, message.value) for message in broker.published[stream.topic]]


async def test_one_trip_is_three_records(api: Api, broker: Broker) -> None:
    """201 with exactly a request id and the trip's id; one record on each of the three topics, under that key."""
    answer = await api.call("POST", ONE)
    assert answer.status == 201
    assert list(answer.json) == ["request_id", "trip_ids"]
    assert is_request_id(answer.json["request_id"])
    (trip_id,) = answer.json["trip_ids"]
    assert set(broker.published) == {stream.topic for stream in SOURCES}
    for stream in SOURCES:
        (record,) = await records(broker, stream)
        stream.entity.model_validate(record)
        assert record["trip_id"] == trip_id
        (message,) = broker.published[stream.topic]
        assert (message.key, message.headers["travelrec-request-id"]) == (trip_id, answer.json["request_id"])


@pytest.mark.parametrize("count", [1, 2, 3.0, 1000])
async def test_many_trips(api: Api, broker: Broker, count: int) -> None:
    """As many ids as were asked for, all different; on each topic one record of each, in the same order."""
    answer = await api.call("POST", MANY, json={"count": count})
    assert answer.status == 201
    assert set(answer.json) == {"request_id", "trip_ids"}
    assert len(set(answer.json["trip_ids"])) == count
    for stream in SOURCES:
        assert [record["trip_id"] for record in await records(broker, stream)] == answer.json["trip_ids"]


@pytest.mark.parametrize("count", [0, -1, 1001, 10**30, 2.5, "3", "many", "", True, None, [], {}], ids=repr)
async def test_a_count_that_is_none_is_422(api: Api, broker: Broker, count: object) -> None:
    """The error shape names the field; nothing is published."""
    answer = await api.call("POST", MANY, json={"count": count})
    assert answer.status == 422
    assert set(answer.json) == {"error", "message", "details"}
    assert [detail["field"] for detail in answer.json["details"]] == ["count"]
    assert broker.published == {}


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {}},
        {"json": []},
        {"json": {"count": 1, "more": 1}},
        {"data": b"{", "headers": {"Content-Type": "application/json"}},
        {"data": b"count=3"},
        {},
    ],
    ids=str,
)
async def test_a_body_that_is_no_command_is_422(api: Api, broker: Broker, sent: dict[str, object]) -> None:
    """Missing, another shape, unknown fields, no JSON."""
    answer = await api.call("POST", MANY, **sent)
    assert answer.status == 422
    assert set(answer.json) == {"error", "message", "details"}
    assert broker.published == {}


@pytest.mark.parametrize("stream", SOURCES, ids=lambda stream: stream.name)
@pytest.mark.parametrize("path", [ONE, MANY])
async def test_without_all_acknowledgements_nothing_is_claimed(
    api: Api, broker: Broker, stream: Stream, path: str
) -> None:
    """One topic of three that is not acknowledged: 503 with `Retry-After`, no ids; afterwards 201."""
    broker.away = stream.topic
    answer = await api.call("POST", path, json={"count": 5})
    assert answer.status == 503
    assert set(answer.json) == {"error", "message"}
    assert "broker" in answer.json["message"]
    assert answer.headers["Retry-After"] == "2"
    broker.away = ""
    assert (await api.call("POST", path, json={"count": 5})).status == 201


async def test_a_registry_that_is_away_is_said(api: Api, broker: Broker, registry: Registry) -> None:
    """503 that names it, and nothing is published; afterwards 201."""
    registry.trouble = RegistryUnavailable("away")
    answer = await api.call("POST", ONE)
    assert answer.status == 503
    assert "schema registry" in answer.json["message"]
    assert broker.published == {}
    registry.trouble = None
    assert (await api.call("POST", ONE)).status == 201


async def test_a_refused_schema_is_said_with_the_reason(api: Api, broker: Broker, registry: Registry) -> None:
    """503 with the registry's reason, and nothing is published."""
    registry.trouble = SchemaRefused("hw.fake.tripstream-value: mileage at /fields/3")
    answer = await api.call("POST", ONE)
    assert answer.status == 503
    assert set(answer.json) == {"error", "message"}
    assert "mileage at /fields/3" in answer.json["message"]
    assert broker.published == {}


async def test_other_methods_are_405(api: Api) -> None:
    """Both take POST only."""
    for path in (ONE, MANY):
        answer = await api.get(path)
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
