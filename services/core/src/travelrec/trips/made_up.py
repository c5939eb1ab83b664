"""Plausible trips that never were: the same request id gives the same trips."""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass
from uuid import UUID, uuid4

from travelrec.trips.entities import Driver, Rider, Trip

_REQUEST_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-[0-9a-f]{8}")
_PLACES = {  # miles from the middle of the town, east and north
    "Airport": (9.1, -7.4),
    "Art Museum": (0.6, 1.2),
    "Botanical Garden": (-3.0, 2.1),
    "Central Station": (0.0, 0.0),
    "City Hall": (0.4, 0.3),
    "Convention Center": (1.1, -0.6),
    "Ferry Terminal": (2.4, 1.9),
    "General Hospital": (-1.7, -1.0),
    "Harbor View": (3.2, 1.1),
    "Lakeside Park": (-4.4, 3.6),
    "Market Square": (0.2, -0.4),
    "North Hills": (-1.2, 6.8),
    "Old Town": (-0.8, 0.5),
    "Opera House": (0.9, 0.8),
    "Stadium": (4.0, -2.7),
    "Tech Campus": (-6.3, -3.9),
    "University": (-2.2, 1.6),
    "West End": (-4.9, -0.3),
}
_MILES_PER_MILE = 1.3  # by road
_PAYMENTS = ("paid", "pending", "failed")
_PAYMENT_WEIGHTS = (95, 4, 1)
_STARS = (5.0, 4.0, 3.0, 2.0, 1.0)
_STAR_WEIGHTS = (70, 18, 7, 3, 2)


@dataclass(frozen=True, slots=True)
class MadeUp:
    """One trip, as its three streams tell of it."""

    trip: Trip
    driver: Driver
    rider: Rider


def new_request_id() -> str:
    """A random UUID, and behind it the CRC-32 of its text in eight hex digits: one that was mistyped is recognised."""
    uuid = str(uuid4())
    return f"{uuid}-{zlib.crc32(uuid.encode()):08x}"


def is_request_id(text: str) -> bool:
    """Whether it is one of ours, as it was given."""
    uuid, _, check = text.rpartition("-")
    return bool(_REQUEST_ID.fullmatch(text)) and zlib.crc32(uuid.encode()) == int(check, 16)


def made_up(seed: str, count: int) -> list[MadeUp]:
    """`count` trips that follow from `seed`; each is in none of another seed's."""
    chance = random.Random(seed)
    return [_made_up(chance) for _ in range(count)]


def _made_up(chance: random.Random) -> MadeUp:
    trip_id = _uuid(chance)
    driver_id, rider_id = _uuid(chance), _uuid(chance)
    pickup, destination = chance.sample(list(_PLACES), 2)
    (x, y), (to_x, to_y) = _PLACES[pickup], _PLACES[destination]
    miles = _MILES_PER_MILE * ((x - to_x) ** 2 + (y - to_y) ** 2) ** 0.5 * chance.uniform(0.95, 1.2)
    expected_min = 3.0 + 60.0 * miles / 24.0
    minutes = expected_min * chance.lognormvariate(0.0, 0.15)
    estimate = 2.5 + 1.6 * miles + 0.3 * expected_min
    fare = 2.5 + 1.6 * miles + 0.3 * minutes
    trip = Trip(
        trip_id=trip_id,
        driver_id=driver_id,
        duration=round(minutes, 1),
        mileage=round(miles, 2),
        pickup_location=pickup,
        destination_location=destination,
    )
    driver = Driver(driver_id=driver_id, trip_id=trip_id, earnings_from_trip=round(fare * 0.75, 2))
    rider = Rider(
        rider_id=rider_id,
        trip_id=trip_id,
        duration_estimate=round(expected_min, 1),
        initial_fare_estimate=round(estimate, 2),
        final_adjusted_fare=round(fare, 2),
        payment_status=chance.choices(_PAYMENTS, _PAYMENT_WEIGHTS)[0],
        rating_to_driver=chance.choices(_STARS, _STAR_WEIGHTS)[0] if chance.random() < 0.8 else None,  # noqa: PLR2004
    )
    return MadeUp(trip, driver, rider)


def _uuid(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))
