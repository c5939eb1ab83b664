"""Predictions through processes of their own, on a real broker and store, also while things go wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, RabbitMQ, eventually
from support.deployment import Deployment, url_of
from support.predictions import Predicting, lost_and_doubled
from travelrec.wire import JOBS_TOPIC, PREDICTIONS_TOPIC

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(180)]

BROKERS = {"kafka": Kafka, "rabbitmq": RabbitMQ}
ON_EACH = [pytest.param(name, marks=pytest.mark.real(name, "mongo")) for name in BROKERS]
ASYNC = {"Async-Mode": "true"}


@pytest.fixture(scope="module", params=ON_EACH)
def running(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """One deployment of the module for each broker."""
    with (
        BROKERS[request.param]() as broker,
        Mongo() as mongo,
        Deployment(
            broker, mongo, apis=2, workers=2, JOB_LEASE="5", NEIGHBOUR_TIMEOUT="3", PREDICTION_LATENCY="0.02"
        ) as deployment,
    ):
        yield deployment


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


async def test_recommendations_go_through_the_same_broker(
    deployment: Deployment, http: aiohttp.ClientSession
) -> None:
    """And who waits for one hears of its end by a signal."""
    url = url_of(deployment.apis[0])
    async with http.post(f"{url}/recommendations?country=Peru&season=summer") as response:
        uid = (await response.json())["uid"]
    async with http.get(f"{url_of(deployment.apis[1])}/recommendations?uid={uid}&wait=30") as response:
        assert (await response.json())["status"] == "completed"


async def test_nothing_is_lost_or_done_twice_while_workers_and_broker_are_killed(
    deployment: Deployment, http: aiohttp.ClientSession
) -> None:
    """SIGKILL for a worker, then for the broker, in the midst of predictions: each ends once, with its own result."""
    if isinstance(deployment.broker, RabbitMQ):
        for queue in (JOBS_TOPIC, PREDICTIONS_TOPIC):
            await eventually(lambda queue=queue: deployment.broker.keeps(queue))
    predicting = Predicting(http, [url_of(api) for api in deployment.apis])
    asking = asyncio.create_task(predicting.ask(400, clients=20, pause_s=0.1))
    await eventually(lambda: len(predicting.asked) > 80, 30)
    await asyncio.to_thread(deployment.workers[0].kill)
    deployment.workers[0].start()
    await eventually(lambda: len(predicting.asked) > 200, 30)
    await asyncio.to_thread(deployment.broker.kill)
    await eventually(lambda: len(predicting.asked) > 300, 30)
    await asyncio.to_thread(deployment.broker.start)
    await asking
    assert predicting.refused == []
    await predicting.all_ended(90)
    assert await lost_and_doubled(deployment, predicting.asked) == (0, 0)


@pytest.mark.real("rabbitmq", "mongo")
async def test_a_broker_that_comes_up_later_finds_all_well(http: aiohttp.ClientSession) -> None:
    """API and workers start without it, and say what they wait for; what was accepted meanwhile is done then."""
    with RabbitMQ() as broker, Mongo() as mongo:
        await asyncio.to_thread(broker.kill)
        with Deployment(broker, mongo, apis=1, workers=1, PREDICTION_LATENCY="0.02") as deployment:
            for process in deployment.processes:
                process.start()
            (api,), (worker,) = deployment.apis, deployment.workers
            await api.wait_for_http(f"{url_of(api)}/readyz", timeout_s=60)
            await worker.wait_for_line("RabbitMQ does not answer while joining the group", 60)
            predicting = Predicting(http, [url_of(api)])
            await predicting.ask(20, clients=5)
            waiting = asyncio.create_task(predicting.wait_for("waited for"))
            await asyncio.to_thread(broker.start)
            await worker.wait_for_line("worker ready", 60)
            assert (await waiting)["input"] == "waited for"
            await predicting.all_ended(60)
            assert await lost_and_doubled(deployment, predicting.asked) == (0, 0)
