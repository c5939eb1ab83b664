"""Predictions through processes of their own, on a real broker and store."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, eventually
from support.deployment import Deployment, url_of

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

ASYNC = {"Async-Mode": "true"}


@pytest.fixture(scope="module", params=[pytest.param("kafka", marks=pytest.mark.real("kafka", "mongo"))])
def running(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """One deployment of the module for each broker."""
    with {"kafka": Kafka}[request.param]() as broker, Mongo() as mongo:
        deployment = Deployment(
            broker, mongo, apis=2, workers=2, JOB_LEASE="5", NEIGHBOUR_TIMEOUT="3", PREDICTION_LATENCY="0.02"
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
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def test_many_predictions_are_waited_for_and_fetched(
    deployment: Deployment, http: aiohttp.ClientSession
) -> None:
    """Each has the result of its own input, wherever it is asked for, and both ways give the same."""
    urls = [url_of(api) for api in deployment.apis]

    async def both_ways(number: int) -> None:
        asked = {"input": f"number {number}"}
        url, other = urls[number % 2], urls[(number + 1) % 2]
        async with http.post(f"{url}/predict", json=asked, headers=ASYNC) as response:
            assert response.status == 202
            uid = (await response.json())["prediction_id"]
        async with http.post(f"{url}/predict", json=asked) as response:
            assert response.status == 200, await response.text()
            output = await response.json()
        assert output["input"] == asked["input"]

        async def ended() -> bool:
            async with http.get(f"{other}/predict/{uid}") as response:
                body = await response.json()
                assert response.status == 200, body
                assert body == {"prediction_id": uid, "output": output}
                return True

        await eventually(ended, 30)

    await asyncio.gather(*(both_ways(number) for number in range(60)))
