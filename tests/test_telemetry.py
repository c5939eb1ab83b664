"""What a deployment of two APIs of two processes and two workers says of itself, on real servers, under load."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, eventually
from support.deployment import PLACES, Asked, Client, Deployment, Load, client_of, together, url_of
from support.scrapes import Scrape, scrape, total
from travelrec.fake_openai import FakeSettings
from travelrec.kinds.recommendation.places import find_country

pytestmark = [pytest.mark.asyncio, pytest.mark.real("kafka", "mongo"), pytest.mark.timeout(180)]

MODEL_AT_EASE = {**FakeSettings().as_dict(), "faults": {}}
FINISHED = "travelrec_jobs_finished_total"


@pytest.fixture(scope="module")
def running() -> Iterator[Deployment]:
    """One deployment for the module."""
    with Kafka() as kafka, Mongo() as mongo:
        deployment = Deployment(
            kafka,
            mongo,
            apis=2,
            workers=2,
            WEB_CONCURRENCY="2",
            RECOMMENDATION_CACHE_TTL="0",
            NEIGHBOUR_TIMEOUT="10",
            SHUTDOWN_GRACE="10",
        )
        try:
            yield deployment
        finally:
            deployment.close()


@pytest_asyncio.fixture
async def deployment(running: Deployment) -> AsyncIterator[Deployment]:
    await running.healthy()
    yield running
    print(running.story())


@pytest_asyncio.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    names = {place: find_country(place) for place in PLACES}
    async with client_of(deployment, names) as client:
        await client.model(**MODEL_AT_EASE)
        await client.forget_jobs()
        yield client
        await client.model(**MODEL_AT_EASE)


class Watched:
    """Scrapes of every process of a deployment, one after the other; what may only grow is watched."""

    def __init__(self, http: aiohttp.ClientSession, deployment: Deployment) -> None:
        self._http = http
        self.apis = [url_of(process) for process in deployment.apis]
        self.workers = [url_of(process) for process in deployment.workers]
        self._last: dict[str, Scrape] = {}
        self.rounds = 0

    async def look(self) -> dict[str, Scrape]:
        """One scrape of each."""
        urls = [*self.apis, *self.workers]
        found = dict(zip(urls, await asyncio.gather(*(scrape(self._http, url) for url in urls)), strict=True))
        for url in urls:
            if url in self._last:
                assert found[url].shrunk(self._last[url]) == []
        self._last = found
        self.rounds += 1
        return found

    async def keep_looking(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(0.05)

    async def balance(self) -> tuple[float, dict[str, float], set[float]]:
        """How many were accepted, how many ended by outcome, and how many wait, by what each worker says."""
        seen = await self.look()
        ended = {
            outcome: total(seen.values(), FINISHED, outcome=outcome)
            for outcome in ("completed", "failed", "cancelled")
        }
        waiting = {seen[url].total("travelrec_jobs_waiting") for url in self.workers}
        return total(seen.values(), "travelrec_jobs_accepted_total"), ended, waiting


async def ended(client: Client, asked: list[Asked]) -> None:
    """Returns when all of these have ended, in whatever way."""
    for one in asked:
        await client.ended(one)


async def test_every_accepted_job_is_accounted_for(deployment: Deployment, client: Client) -> None:
    """Of 2,000 jobs, some refused by the model and some cancelled, every one is finished, failed, cancelled or waiting.

    So it stands at every scrape once the load is over, whichever process answers, and no counter ever goes back.
    """
    async with aiohttp.ClientSession() as http:
        watched = Watched(http, deployment)
        accepted_before, before, _ = await watched.balance()
        await client.model(faults={"refusal": 0.05}, latency_s=0.1, latency_jitter=0.5)
        looking = asyncio.create_task(watched.keep_looking())
        load = await client.accept_many(Load(), clients=50, total=1960)
        assert (load.refused, load.lost) == ([], 0)
        await together(ended(client, load.asked[n::50]) for n in range(50))
        await client.model(latency_s=120)
        held = [await client.accept(place=place) for place in [*PLACES, *PLACES][:40]]
        for one in held[:10]:
            await client.call("DELETE", deployment.apis[1], "/recommendations", uid=one.uid)
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        assert watched.rounds > 20

        async def quiet() -> bool:
            return (await watched.balance())[2] == {30.0}

        await eventually(quiet, 30, "30 to be waiting as every worker sees it")
        for _ in range(20):
            accepted, now, waiting = await watched.balance()
            new = {outcome: now[outcome] - before[outcome] for outcome in now}
            assert accepted - accepted_before == 2000
            assert waiting == {30.0}
            assert new["failed"] > 0
            assert new == {"completed": 1960 - new["failed"], "failed": new["failed"], "cancelled": 10}
        for one in held:
            await client.call("DELETE", deployment.apis[0], "/recommendations", uid=one.uid)
