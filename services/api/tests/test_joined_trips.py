"""`/api/trips/events`: the joined trips as they come, for everybody who watches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from support import eventually
from support.api import Api, Event, running_api
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.connect import Parts
from travelrec.errors import BrokerUnavailable
from travelrec.trips.codec import Codec
from travelrec.trips.entities import JOINED, JoinedTrip
from travelrec.trips.offline import BundledRegistry
from travelrec.wire import Message
from travelrec_api import joined
from travelrec_api.joined import Happening, JoinedTrips, Watcher

pytestmark = pytest.mark.asyncio

PATH = "/api/trips/events"
TRIP = JoinedTrip(
    trip_id="t1",
    driver_id="d",
    rider_id="r",
    duration=12.5,
    mileage=3.0,
    pickup_location="Høje Gladsaxe",
    destination_location="<b>",
    earnings_from_trip=9.0,
    duration_estimate=11.0,
    initial_fare_estimate=12.0,
    final_adjusted_fare=13.0,
    payment_status="paid",
    rating_to_driver=None,
)


class Broker(MemoryBroker):
    """Knows how many read a topic from its end."""

    def __init__(self) -> None:
        super().__init__()
        self.tails = 0
        self.lost = asyncio.Event()

    @asynccontextmanager
    async def tail(self, topic: str) -> AsyncIterator[AsyncIterator[Message]]:
        async with super().tail(topic) as messages:
            self.tails += 1
            try:
                yield self._until_lost(messages)
            finally:
                self.tails -= 1

    async def _until_lost(self, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        lost = asyncio.ensure_future(self.lost.wait())
        while True:
            coming = asyncio.ensure_future(anext(messages))
            await asyncio.wait((lost, coming), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                coming.cancel()
                self.lost.clear()
                raise BrokerUnavailable("lost")
            yield coming.result()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest_asyncio.fixture
async def api(broker: Broker) -> AsyncIterator[Api]:
    async with running_api(parts=Parts(MemoryStore(), broker, MemorySignals())) as running:
        yield running


async def publish(broker: Broker, *trips: JoinedTrip) -> None:
    codec = Codec(BundledRegistry())
    await codec.register((JOINED,))
    await broker.publish(JOINED.topic, [Message(codec.encode(JOINED, vars(trip))) for trip in trips])


async def until(events: AsyncIterator[Event], name: str) -> Event:
    """The next event of that name."""
    async with asyncio.timeout(20):
        async for event in events:
            if event.name == name:
                return event
    raise AssertionError(f"the stream ended without {name}")


async def test_everybody_who_watches_is_told_all_of_a_trip(api: Api, broker: Broker) -> None:
    """From when it says `live`, each of two watchers gets each trip, whole; what came before is not shown."""
    await publish(broker, TRIP.model_copy(update={"trip_id": "before"}))
    async with api.follow(PATH) as one, api.follow(PATH) as other:
        for events in (one, other):
            await until(events, "live")
        await publish(broker, TRIP)
        for events in (one, other):
            assert (await until(events, "joined")).json == vars(TRIP)


async def test_one_reads_for_all_and_nobody_for_none(api: Api, broker: Broker) -> None:
    """The topic has one reader however many watch, and none when the last has gone."""
    async with api.follow(PATH) as one, api.follow(PATH) as other:
        for events in (one, other):
            await until(events, "live")
        assert broker.tails == 1
    await eventually(lambda: broker.tails == 0)


async def test_a_broker_that_goes_away_is_come_back_to(api: Api, broker: Broker) -> None:
    """The stream says `away`, then `live` again, and goes on."""
    async with api.follow(PATH) as events:
        await until(events, "live")
        broker.lost.set()
        await until(events, "away")
        await until(events, "live")
        await publish(broker, TRIP)
        assert (await until(events, "joined")).json["trip_id"] == "t1"


async def test_what_nobody_can_read_is_left_out(api: Api, broker: Broker) -> None:
    """Garbage on the topic ends no stream."""
    async with api.follow(PATH) as events:
        await until(events, "live")
        await broker.publish(JOINED.topic, [Message(b"garbage"), Message(b"")])
        await publish(broker, TRIP)
        assert (await until(events, "joined")).json["trip_id"] == "t1"


async def test_too_many_are_sent_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the ceiling is told 503 in the error shape, with Retry-After; HEAD is no watcher."""
    monkeypatch.setattr(joined, "_MOST_WATCHERS", 1)
    async with api.follow(PATH) as events:
        await until(events, "live")
        answer = await api.get(PATH)
        assert (answer.status, set(answer.json)) == (503, {"error", "message"})
        assert int(answer.headers["Retry-After"]) > 0
    await eventually(lambda: _status(api, 200))


async def _status(api: Api, expected: int) -> bool:
    return (await api.call("HEAD", PATH)).status == expected


async def test_who_is_slow_misses_the_oldest_and_is_told() -> None:
    """What is kept for a watcher is bounded."""
    watcher = Watcher()
    for number in range(250):
        watcher.tell(Happening("joined", number))
    assert await watcher.told(5.0) == [
        Happening("missed", 50),
        *(Happening("joined", number) for number in range(50, 250)),
    ]
    assert await watcher.told(0.01) == []


async def test_the_end_of_the_api_ends_the_streams(broker: Broker) -> None:
    """Who waits is told nothing more, at once."""
    trips = JoinedTrips(broker, Codec(BundledRegistry()))
    async with trips.watched() as watcher, asyncio.timeout(20):
        while Happening("live", None) not in await watcher.told(20.0):
            pass
        waiting = asyncio.create_task(watcher.told(3600.0))
        await asyncio.sleep(0)
        trips.stop()
        assert (await waiting, trips.stopped) == ([], True)


async def test_a_reader_that_ended_is_followed_by_another(broker: Broker) -> None:
    """Whatever ended it: who watches from now on is told of trips."""
    trips = JoinedTrips(broker, Codec(BundledRegistry()))
    async with trips.watched():
        await eventually(lambda: broker.tails)
        trips._reading.cancel()
        await asyncio.wait([trips._reading])
        async with trips.watched():
            await eventually(lambda: broker.tails == 1)
