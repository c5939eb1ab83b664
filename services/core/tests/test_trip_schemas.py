"""The schemas in `schemas/` are what the entities are, and what is packaged."""

import json
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest

from travelrec.trips.codec import bundled_schema
from travelrec.trips.entities import SOURCES, STREAMS, Stream
from travelrec.trips.joining import Waiting, incomplete_record, joined_record
from travelrec.trips.made_up import is_request_id, made_up, new_request_id
from travelrec.wire import TOPICS

ROOT = Path(__file__).parents[3]
PYTHON = {"string": str, "double": float, "null": NoneType}
CONTRACT = {
    "hw.fake.tripstream": {
        "trip_id",
        "driver_id",
        "duration",
        "mileage",
        "pickup_location",
        "destination_location",
    },
    "hw.fake.driverstream": {"driver_id", "trip_id", "earnings_from_trip"},
    "hw.fake.riderstream": {
        "rider_id",
        "trip_id",
        "duration_estimate",
        "initial_fare_estimate",
        "final_adjusted_fare",
        "payment_status",
        "rating_to_driver",
    },
}


def schema(stream: Stream) -> dict[str, object]:
    return json.loads(bundled_schema(stream))


def python_type(avro: object) -> object:
    """What a field of an entity is annotated with."""
    if isinstance(avro, dict):
        assert avro["type"] == "array"
        return list[python_type(avro["items"])]  # type: ignore[misc]  # computed
    if isinstance(avro, list):
        return frozenset(PYTHON[each] for each in avro)
    return PYTHON[str(avro)]


def annotated(annotation: object) -> object:
    """A union as the set of what it is of."""
    return frozenset(get_args(annotation)) if NoneType in get_args(annotation) else annotation


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.topic)
def test_entity_and_schema_have_the_same_fields(stream: Stream) -> None:
    """Field by field, in the same order: name, type, whether it is required, and its default."""
    fields = schema(stream)["fields"]
    assert [field["name"] for field in fields] == list(stream.entity.model_fields)
    for field in fields:
        ours = stream.entity.model_fields[field["name"]]
        assert annotated(ours.annotation) == python_type(field["type"]), field["name"]
        assert ours.is_required() == ("default" not in field), field["name"]
        if not ours.is_required():
            assert ours.default == field["default"], field["name"]
        assert field["doc"], field["name"]


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.topic)
def test_the_schemas_of_the_root_are_those_that_are_packaged(stream: Stream) -> None:
    """One source: `schemas/` at the root has the file that an installed core reads; it is named after its topic."""
    assert (ROOT / "schemas" / f"{stream.topic}.avsc").read_text() == bundled_schema(stream)
    assert schema(stream)["name"] == stream.entity.__name__
    assert stream.topic in {topic.name for topic in TOPICS}


def test_the_fields_are_those_of_the_contract() -> None:
    """The three streams have the fields that the contract names; the joined record has all of them once."""
    found = {stream.topic: set(stream.entity.model_fields) for stream in SOURCES}
    assert found == CONTRACT
    joined = STREAMS[3].entity.model_fields
    assert set(joined) == set().union(*CONTRACT.values())
    assert set(STREAMS[4].entity.model_fields) == {*joined, "missing"}


def test_joined_records_are_entities() -> None:
    """What the join makes of a made-up trip has each field as its source has it; so has what is incomplete."""
    (made,) = made_up("seed", 1)
    parts = {stream.name: vars(getattr(made, stream.name)) for stream in SOURCES}
    record = joined_record(Waiting(made.trip.trip_id, 0.0, 1.0, parts=parts))
    STREAMS[3].entity.model_validate(record)
    assert record == {**parts["rider"], **parts["driver"], **parts["trip"]}
    del parts["driver"]
    known = incomplete_record(Waiting(made.trip.trip_id, 0.0, 1.0, parts=parts))
    STREAMS[4].entity.model_validate(known)
    assert known == {**parts["rider"], **parts["trip"], "earnings_from_trip": None, "missing": ["driver"]}


def test_a_seed_gives_the_same_trips() -> None:
    """The same seed gives the same trips, another gives none of them."""
    assert made_up("a", 50) == made_up("a", 50)
    ids = {each.trip.trip_id for seed in ("a", "b") for each in made_up(seed, 500)}
    assert len(ids) == 1000


def test_made_up_trips_are_plausible() -> None:
    """Places differ, the estimate is near, the driver earns most of the fare, ratings are stars or none."""
    for made in made_up("plausible", 1000):
        assert made.trip.trip_id == made.driver.trip_id == made.rider.trip_id
        assert made.trip.driver_id == made.driver.driver_id
        assert made.trip.pickup_location != made.trip.destination_location
        assert 0.3 < made.trip.mileage < 40
        assert 0.4 < made.rider.duration_estimate / made.trip.duration < 2.5
        assert 0.5 < made.driver.earnings_from_trip / made.rider.final_adjusted_fare < 1
        assert made.rider.payment_status in {"paid", "pending", "failed"}
        assert made.rider.rating_to_driver in {None, 1.0, 2.0, 3.0, 4.0, 5.0}


def test_a_request_id_checks_itself() -> None:
    """It is a random UUID with the CRC-32 of its text behind it; one wrong digit is seen."""
    one = new_request_id()
    assert len(one) == 36 + 1 + 8
    assert is_request_id(one)
    for place in (0, 20, 40):
        wrong = one[:place] + ("0" if one[place] != "0" else "1") + one[place + 1 :]
        assert not is_request_id(wrong)
    assert not is_request_id("nothing")
