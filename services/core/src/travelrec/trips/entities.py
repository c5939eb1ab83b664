"""What a record of each stream is, field by field as in its schema (`schemas/*.avsc`), and the command for more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from travelrec.wire import DRIVER_TOPIC, INCOMPLETE_TOPIC, JOINED_TOPIC, RIDER_TOPIC, TRIP_TOPIC

MOST_TRIPS = 1000


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Trip(_Strict):
    """What a trip was."""

    trip_id: str
    driver_id: str
    duration: float
    mileage: float
    pickup_location: str
    destination_location: str


class Driver(_Strict):
    """What a trip brought its driver."""

    driver_id: str
    trip_id: str
    earnings_from_trip: float


class Rider(_Strict):
    """What a trip was to its rider."""

    rider_id: str
    trip_id: str
    duration_estimate: float
    initial_fare_estimate: float
    final_adjusted_fare: float
    payment_status: str
    rating_to_driver: float | None = None


class JoinedTrip(_Strict):
    """All of a trip: its records of the three streams in one."""

    trip_id: str
    driver_id: str
    rider_id: str
    duration: float
    mileage: float
    pickup_location: str
    destination_location: str
    earnings_from_trip: float
    duration_estimate: float
    initial_fare_estimate: float
    final_adjusted_fare: float
    payment_status: str
    rating_to_driver: float | None = None


class IncompleteTrip(_Strict):
    """What was known of a trip when its time was over, or came later."""

    trip_id: str
    driver_id: str | None = None
    rider_id: str | None = None
    duration: float | None = None
    mileage: float | None = None
    pickup_location: str | None = None
    destination_location: str | None = None
    earnings_from_trip: float | None = None
    duration_estimate: float | None = None
    initial_fare_estimate: float | None = None
    final_adjusted_fare: float | None = None
    payment_status: str | None = None
    rating_to_driver: float | None = None
    missing: list[str] = []


def _whole(value: object) -> object:
    """To JSON 3.0 is a whole number as well."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class GenerateTrips(_Strict):
    """The command to make up so many trips."""

    count: Annotated[int, BeforeValidator(_whole)] = Field(
        ge=1, le=MOST_TRIPS, description="How many trips, 1 to 1,000."
    )


@dataclass(frozen=True, slots=True)
class Stream:
    """A topic of Avro records, keyed by `trip_id`; `name` is what the join calls a record of it."""

    name: str
    topic: str
    entity: type[BaseModel]

    @property
    def subject(self) -> str:
        """What the schema registry calls its schema."""
        return f"{self.topic}-value"


TRIP = Stream("trip", TRIP_TOPIC, Trip)
DRIVER = Stream("driver", DRIVER_TOPIC, Driver)
RIDER = Stream("rider", RIDER_TOPIC, Rider)
JOINED = Stream("joined", JOINED_TOPIC, JoinedTrip)
INCOMPLETE = Stream("incomplete", INCOMPLETE_TOPIC, IncompleteTrip)
SOURCES = (TRIP, DRIVER, RIDER)
STREAMS = (*SOURCES, JOINED, INCOMPLETE)
