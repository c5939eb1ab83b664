"""The contract of `trips.ports.TripStore`, held by every adapter."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any  # the two drivers share their calls, not a type

import pytest
import pytest_asyncio

from support import Mongo
from travelrec.adapters.memory_trips import MemoryTripStore
from travelrec.adapters.sqlite import SqliteStore
from travelrec.adapters.sqlite_trips import SqliteTripStore
from travelrec.job import new_uid
from travelrec.trips.joining import NAMES, Part, Waiting, token_of
from travelrec.trips.ports import TripStore

NOW = 1_700_000_000.0
DUE = NOW + 100.0
LEASED = NOW + 10.0
KEPT = NOW + 1000.0

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("mongo-motor", marks=pytest.mark.real("mongo")),
        pytest.param("mongo-pymongo", marks=pytest.mark.real("mongo")),
    ]
)
async def trips(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[TripStore]:
    match request.param.partition("-"):
        case "memory", _, _:
            yield MemoryTripStore()
        case "sqlite", _, _:
            async with SqliteStore.opened(tmp_path / "trips.db") as sqlite:
                yield SqliteTripStore(sqlite)
        case _, _, driver:
            from travelrec.adapters.mongo import MongoStore
            from travelrec.adapters.mongo_trips import MongoTripStore

            server = request.getfixturevalue("mongo_server")
            async with MongoStore.opened(f"{server.url.rstrip('/')}/{new_uid()}", driver=driver) as mongo:
                yield MongoTripStore(mongo)


def part(trip_id: str, stream: str, **more: str | float | None) -> Part:
    return Part(
        trip_id, stream, {"trip_id": trip_id, f"{stream}_says": 0.1, "n": None, **more}, f"00-{stream}"
    )


def whole(trip_id: str) -> list[Part]:
    return [part(trip_id, name) for name in NAMES]


async def add(trips: TripStore, *parts: Part, token: str | None = None, now: float = NOW) -> list[Waiting]:
    return await trips.add(parts, token or new_uid(), now, now + 100.0, now + 10.0)


@pytest.mark.parametrize("order", list(itertools.permutations(NAMES)))
async def test_the_last_record_makes_a_trip_ready(trips: TripStore, order: tuple[str, ...]) -> None:
    """In whatever order its records come one by one, the call with the last one is to publish it, with all of them."""
    assert await add(trips, part("a", order[0])) == []
    assert await add(trips, part("a", order[1]), part("b", order[2])) == []
    (ready,) = await add(trips, part("a", order[2]), now=NOW + 5)
    assert ready.parts == {each.stream: each.record for each in whole("a")}
    assert ready.traces == {name: f"00-{name}" for name in NAMES}
    assert (ready.trip_id, ready.seen_at, ready.joins, ready.missing) == ("a", NOW, True, [])


async def test_records_that_come_together_make_ready_trips(trips: TripStore) -> None:
    """Many trips in one call: those that are whole with it are to be published, each once."""
    first = [part(str(n), "rider") for n in range(10)]
    assert await add(trips, *first) == []
    rest = [p for n in range(30) for p in whole(str(n)) if n >= 10 or p.stream != "rider"]
    ready = await add(trips, *rest, *rest)
    assert sorted(trip.trip_id for trip in ready) == sorted(str(n) for n in range(30))
    assert all(trip.joins for trip in ready)


async def test_repeats_change_nothing(trips: TripStore) -> None:
    """A record that comes again makes no trip ready again: neither before the trip is published nor after."""
    assert await add(trips, part("a", "trip"), part("a", "trip"), part("a", "driver")) == []
    (ready,) = await add(trips, part("a", "rider"))
    assert await add(trips, *whole("a")) == []
    await trips.close([ready], NOW, KEPT)
    assert await add(trips, *whole("a"), part("a", "trip")) == []
    assert await trips.take_due("t", NOW + 500, NOW + 510, 10) == []


async def test_the_same_call_again_gives_the_same(trips: TripStore) -> None:
    """After an answer that was lost, the call with its own token gets what it was to publish; others do not."""
    parts = [*whole("a"), part("b", "trip")]
    ready = await add(trips, *parts, token="mine")
    assert await add(trips, *parts, token="mine") == ready
    assert await add(trips, *parts, token="another") == []


async def test_of_racing_calls_one_publishes(trips: TripStore) -> None:
    """Records of the same trips in calls at the same time: each trip is given to one of them."""
    ids = [f"trip-{n}" for n in range(20)]
    calls = [add(trips, *(part(id_, name) for id_ in ids)) for name in NAMES for _ in range(3)]
    ready = [trip for trips in await asyncio.gather(*calls) for trip in trips]
    assert sorted(trip.trip_id for trip in ready) == sorted(ids)


async def test_what_is_not_published_is_due_again(trips: TripStore) -> None:
    """A ready trip that its holder does not close is due when the lease has run out, for one of those that look."""
    await add(trips, *whole("a"))
    assert await trips.take_due("early", LEASED - 1, LEASED + 20, 10) == []
    looks = [trips.take_due(f"t{n}", LEASED, LEASED + 20, 10) for n in range(4)]
    (due,) = [trip for found in await asyncio.gather(*looks) for trip in found]
    assert due.joins
    await trips.close([due], LEASED, KEPT)
    assert await trips.take_due("late", LEASED + 30, LEASED + 40, 10) == []


async def test_what_a_dead_worker_holds_is_released_by_its_name(trips: TripStore) -> None:
    """It is due at once, also what it had taken as due; what another holds, what waits for records and what is
    published stays as it is."""
    taken_by = {"mine": "pod-1", "published": "pod-1", "longer": "pod-10", "other": "pod-2"}
    for trip_id, worker in taken_by.items():
        ready = await add(trips, *whole(trip_id), token=token_of(worker, new_uid()))
        if trip_id == "published":
            await trips.close(ready, NOW, KEPT)
    await add(trips, *whole("nameless"))
    await add(trips, part("open", "trip"))
    await add(trips, part("swept", "trip"), now=NOW - 100)
    await trips.take_due(token_of("pod-1", new_uid()), NOW, LEASED, 10)
    assert await trips.release("pod-1", NOW, LEASED - 1) == 0
    assert await trips.release("pod-1", NOW + 1, LEASED) == 2
    due = await trips.take_due("t", NOW + 1, LEASED + 20, 10)
    assert {trip.trip_id: trip.joins for trip in due} == {"mine": True, "swept": False}


async def test_incomplete_trips_are_due_after_their_time(trips: TripStore) -> None:
    """As many as are wanted; a closed one is not due again, and its repeats change nothing."""
    for n in range(3):
        await add(trips, part(str(n), "trip"), part(str(n), "rider"), now=NOW + n)
    assert await trips.take_due("t", DUE - 1, DUE + 10, 10) == []
    due = await trips.take_due("t", DUE + 5, DUE + 30, 2)
    due += await trips.take_due("t2", DUE + 5, DUE + 30, 2)
    assert [(trip.joins, trip.missing) for trip in due] == [(False, ["driver"])] * 3
    assert {trip.trip_id for trip in due} == {"0", "1", "2"}
    assert await trips.take_due("t3", DUE + 5, DUE + 30, 9) == []
    await trips.close(due, DUE + 5, KEPT)
    assert await trips.take_due("t4", DUE + 50, DUE + 60, 9) == []
    assert await add(trips, part("0", "trip"), part("0", "rider"), now=DUE + 6) == []


async def test_what_comes_after_its_time_is_news(trips: TripStore) -> None:
    """The missing record of a trip that was published incomplete is given to its call, once, as no joined trip."""
    await add(trips, part("a", "trip"))
    await trips.close(await trips.take_due("t", DUE, DUE + 10, 9), DUE, KEPT)
    (late,) = await add(trips, part("a", "driver"), now=DUE + 1)
    assert (late.joins, late.told, late.missing) == (False, ("trip",), ["rider"])
    await trips.close([late], DUE + 1, KEPT)
    assert await add(trips, part("a", "driver"), now=DUE + 2) == []
    (last,) = await add(trips, part("a", "rider"), now=DUE + 3)
    assert (last.joins, last.missing, set(last.parts)) == (False, [], set(NAMES))


async def test_what_comes_while_a_trip_is_published_incomplete_is_due(trips: TripStore) -> None:
    """Between the taking of a due trip and its closing nobody is told of a record; the trip is due again for it."""
    await add(trips, part("a", "trip"))
    taken = await trips.take_due("t", DUE, DUE + 10, 9)
    assert await add(trips, part("a", "driver"), now=DUE + 1) == []
    await trips.close(taken, DUE + 2, KEPT)
    (again,) = await trips.take_due("t2", DUE + 2, DUE + 10, 9)
    assert (again.joins, again.missing) == (False, ["rider"])


async def test_published_trips_are_forgotten_in_time(trips: TripStore) -> None:
    """Closed ones, in batches, when their time has passed; never one that is open."""
    ready = await add(trips, *(p for n in range(5) for p in whole(str(n))), part("open", "trip"))
    assert await trips.open(100) == 6
    assert await trips.open(4) == 4
    await trips.close(ready, NOW, KEPT)
    assert await trips.open(100) == 1
    assert await trips.purge(KEPT - 1, 10) == 0
    assert await trips.purge(KEPT, 3) == 3
    assert await trips.purge(KEPT, 3) == 2
    assert await trips.purge(KEPT + 10_000, 3) == 0
    assert [trip.trip_id for trip in await add(trips, *whole("0"))] == ["0"], (
        "nothing is known of it any more"
    )


class Interrupted:
    """A collection that says before and after each of its writes how many such moments there were."""

    def __init__(self, collection: Any, moment: Callable[[int], Awaitable[None]]) -> None:
        self._collection = collection
        self._moment = moment
        self._moments = itertools.count()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._collection, name)

    async def bulk_write(self, *arguments: Any, **options: Any) -> Any:
        return await self._within(self._collection.bulk_write, *arguments, **options)

    async def update_many(self, *arguments: Any, **options: Any) -> Any:
        return await self._within(self._collection.update_many, *arguments, **options)

    async def _within(self, write: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        await self._moment(next(self._moments))
        done = await write(*arguments, **options)
        await self._moment(next(self._moments))
        return done


class Killed(Exception):
    """What ends a process, as far as its calls of the store go."""


@pytest.mark.real("mongo")
@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_mongo_loses_no_news_when_a_worker_dies_while_it_closes(
    mongo_server: Mongo, driver: str
) -> None:
    """A record that comes at any moment of the closing of an incomplete trip, whose worker is killed at the same
    moment, at a later one or not at all, is given to its own call or is due."""
    from travelrec.adapters.mongo import MongoStore
    from travelrec.adapters.mongo_trips import MongoTripStore

    moments = range(5)  # before, between and after the writes; more than there are
    cases = [(comes, dies) for comes in moments for dies in range(comes, 6)]
    async with MongoStore.opened(f"{mongo_server.url.rstrip('/')}/{new_uid()}", driver=driver) as mongo:
        trips, dying = MongoTripStore(mongo), MongoTripStore(mongo)
        await add(trips, *(part(f"{comes}/{dies}", "trip") for comes, dies in cases))
        told: set[str] = set()
        for taken in await trips.take_due("t", DUE, DUE + 10, 100):
            comes, dies = map(int, taken.trip_id.split("/"))
            came = False

            async def moment(
                number: int, id_: str = taken.trip_id, comes: int = comes, dies: int = dies
            ) -> None:
                nonlocal came
                if number == comes:
                    told.update(trip.trip_id for trip in await add(trips, part(id_, "driver"), now=DUE + 1))
                    came = True
                if number == dies:
                    raise Killed

            dying._trips = Interrupted(mongo.collection("trips"), moment)
            with suppress(Killed):
                await dying.close([taken], DUE + 2, KEPT)
            if not came:
                await moment(comes, dies=-1)
        due = await trips.take_due("t2", DUE + 10, DUE + 20, 100)
        told |= {trip.trip_id for trip in due if "driver" in trip.parts}
        assert told == {f"{comes}/{dies}" for comes, dies in cases}
