"""Confluent's wire format: what is written and read, and what is refused and why."""

import io
import json
import struct
from collections import Counter
from contextlib import suppress

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from travelrec.errors import RegistryUnavailable, SchemaRefused, Undecodable, UnknownSchema
from travelrec.trips.codec import Codec, bundled_schema
from travelrec.trips.entities import JOINED, RIDER, SOURCES, STREAMS, TRIP
from travelrec.trips.offline import BundledRegistry

TRIP_RECORD = {
    "trip_id": "t",
    "driver_id": "d",
    "duration": 12.5,
    "mileage": 0.1,
    "pickup_location": "Zürich HB",
    "destination_location": "",
}
RECORDS = st.fixed_dictionaries(
    {
        "rider_id": st.text(),
        "trip_id": st.text(min_size=1),
        "duration_estimate": st.floats(allow_nan=False),
        "initial_fare_estimate": st.floats(allow_nan=False),
        "final_adjusted_fare": st.floats(allow_nan=False),
        "payment_status": st.text(),
        "rating_to_driver": st.none() | st.floats(allow_nan=False),
    }
)


class Registry(BundledRegistry):
    """The bundled schemas, what tests add, and how often each was asked for; it can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[object] = Counter()
        self.away = False

    def knows(self, number: int, schema: object) -> None:
        self._schemas[number] = schema if isinstance(schema, str) else json.dumps(schema)

    async def register(self, subject: str, schema: str) -> int:
        self.asked[subject] += 1
        if self.away:
            raise RegistryUnavailable("away")
        return await super().register(subject, schema)

    async def schema(self, number: int) -> str:
        self.asked[number] += 1
        if self.away:
            raise RegistryUnavailable("away")
        return await super().schema(number)


def written(number: int, schema: object, record: object) -> bytes:
    out = io.BytesIO()
    out.write(struct.pack(">bI", 0, number))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def changed(**changes: object) -> dict[str, object]:
    """Our schema of trips with fields changed, added (a whole field) or left out (None)."""
    schema = json.loads(bundled_schema(TRIP))
    fields = {field["name"]: field for field in schema["fields"]}
    for name, type_ in changes.items():
        fields[name] = {"name": name, "type": type_}
    return {**schema, "fields": [field for field in fields.values() if field["type"] is not None]}


@pytest.mark.asyncio
async def test_a_record_is_a_zero_byte_the_number_and_its_body() -> None:
    """The bytes are those that any Avro library writes with our schema, behind the five of the wire format."""
    codec = Codec(BundledRegistry())
    await codec.register(STREAMS)
    assert codec.encode(TRIP, TRIP_RECORD) == written(1, json.loads(bundled_schema(TRIP)), TRIP_RECORD)
    assert codec.encode(TRIP, TRIP_RECORD)[:5] == b"\x00\x00\x00\x00\x01"


@pytest.mark.asyncio
@given(record=RECORDS)
async def test_a_record_is_read_as_it_was_written(record: dict[str, object]) -> None:
    """Every value survives, to the last bit."""
    codec = Codec(BundledRegistry())
    await codec.register((RIDER,))
    assert await codec.decode(RIDER, codec.encode(RIDER, record)) == record


@pytest.mark.asyncio
async def test_numbers_are_asked_for_once() -> None:
    """Each schema is registered and each number looked up once; also a number that nobody knows."""
    registry = Registry()
    codec = Codec(registry)
    for _ in range(3):
        await codec.register(SOURCES)
        assert await codec.decode(TRIP, codec.encode(TRIP, TRIP_RECORD)) == TRIP_RECORD
        with pytest.raises(UnknownSchema, match="99"):
            await codec.decode(TRIP, b"\0\0\0\0\x63abc")
    assert set(registry.asked.values()) == {1}


@pytest.mark.asyncio
@given(value=st.binary(max_size=200))
async def test_whatever_comes_is_a_record_or_undecodable(value: bytes) -> None:
    """No bytes raise anything else, also behind a good header."""
    codec = Codec(BundledRegistry())
    for bytes_ in (value, b"\0\0\0\0\x01" + value):
        with suppress(Undecodable):
            assert set(await codec.decode(TRIP, bytes_)) == set(TRIP_RECORD)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "wire format"),
        (b"\0\0\0\0", "wire format"),
        (b'{"trip_id": "t"}', "wire format"),
        (b"\0\0\0\x03\xe7xyz", "schema 999"),
        (b"\0\0\0\0\x01", "schema 1"),
        (written(1, json.loads(bundled_schema(TRIP)), TRIP_RECORD) + b"!", "not one record"),
        (
            written(
                2,
                json.loads(bundled_schema(SOURCES[1])),
                {"driver_id": "d", "trip_id": "t", "earnings_from_trip": 1.0},
            ),
            "ours can read",
        ),
    ],
)
async def test_the_reason_is_told(value: bytes, reason: str) -> None:
    """What can't be read says why: no wire format, an unknown schema, cut off, too long, another stream's record."""
    with pytest.raises(Undecodable, match=reason):
        await Codec(BundledRegistry()).decode(TRIP, value)


@pytest.mark.asyncio
@pytest.mark.parametrize("text", ["nothing", "{}", '{"type": "record"}', '"no such type"'])
async def test_a_schema_that_is_none_makes_its_records_undecodable(text: str) -> None:
    """The registry may have anything under a number."""
    registry = Registry()
    registry.knows(50, text)
    with pytest.raises(Undecodable, match="50"):
        await Codec(registry).decode(TRIP, b"\0\0\0\0\x32abc")


@pytest.mark.asyncio
async def test_records_of_other_versions_are_read() -> None:
    """A field that we don't know is dropped; a number of another type is read as ours."""
    registry = Registry()
    schema = changed(weather="string", duration="int", mileage="float")
    registry.knows(50, schema)
    value = written(50, schema, {**TRIP_RECORD, "duration": 12, "mileage": 0.5, "weather": "fine"})
    assert await Codec(registry).decode(TRIP, value) == {**TRIP_RECORD, "duration": 12.0, "mileage": 0.5}


@pytest.mark.asyncio
async def test_records_without_one_of_our_fields_are_undecodable() -> None:
    """The reason names what is missing."""
    registry = Registry()
    schema = changed(mileage=None)
    registry.knows(50, schema)
    record = {name: value for name, value in TRIP_RECORD.items() if name != "mileage"}
    with pytest.raises(Undecodable, match="mileage"):
        await Codec(registry).decode(TRIP, written(50, schema, record))


@pytest.mark.asyncio
async def test_a_registry_that_is_away_is_asked_again() -> None:
    """While it is away both directions say so; afterwards both work."""
    registry = Registry()
    registry.away = True
    codec = Codec(registry)
    for _ in range(2):
        with pytest.raises(RegistryUnavailable):
            await codec.register(SOURCES)
        with pytest.raises(RegistryUnavailable):
            await codec.decode(TRIP, b"\0\0\0\0\x01abc")
    registry.away = False
    await codec.register((*SOURCES, JOINED))
    assert await codec.decode(TRIP, codec.encode(TRIP, TRIP_RECORD)) == TRIP_RECORD


@pytest.mark.asyncio
async def test_without_a_server_there_are_only_the_bundled_schemas() -> None:
    """Another schema of ours or of anybody is refused, with what to do."""
    registry = BundledRegistry()
    for subject in ("hw.fake.tripstream-value", "something-value"):
        with pytest.raises(SchemaRefused, match="SCHEMA_REGISTRY_URL"):
            await registry.register(subject, '"string"')
    await registry.ping()
