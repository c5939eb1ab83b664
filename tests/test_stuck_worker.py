"""A worker that is stuck says so and where, leaves its messages to others, and comes back; on real servers."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, Process, eventually
from support.deployment import COMMAND, PLACES, Client, Deployment, client_of, ready, url_of
from travelrec.kinds.recommendation.places import find_country

pytestmark = [pytest.mark.asyncio, pytest.mark.real("kafka", "mongo"), pytest.mark.timeout(180)]

TESTS = Path(__file__).parent


@pytest_asyncio.fixture
async def deployment(kafka_server: Kafka, mongo_server: Mongo) -> AsyncIterator[Deployment]:
    """An API and two workers that are not started: one that can get stuck, and a good one."""
    with Deployment(
        kafka_server,
        mongo_server,
        apis=1,
        workers=1,
        MODEL_TIMEOUT="1",
        JOB_LEASE="5",
        RECOMMENDATION_CACHE_TTL="0",
        SHUTDOWN_GRACE="1",
    ) as deployment:
        yield deployment


@pytest_asyncio.fixture
async def stuck(deployment: Deployment) -> AsyncIterator[Process]:
    made = deployment.worker("stuck", PYTHONPATH=str(TESTS))
    command = [sys.executable, "-m", "support.stuck_worker", *made.command[len(COMMAND) :]]
    async with Process(command, env=made.env, name="stuck") as process:
        yield process
        process.signal(signal.SIGUSR1)
        print(process.story("last said"))


@pytest_asyncio.fixture
async def client(deployment: Deployment, stuck: Process) -> AsyncIterator[Client]:
    deployment.model.start()
    (api,) = deployment.apis
    api.start()
    await asyncio.gather(ready(api), ready(stuck))
    async with client_of(deployment, {place: find_country(place) for place in PLACES}) as client:
        yield client


async def asked(process: Process, path: str) -> tuple[int, dict[str, Any]]:
    """(status, body) of one of a worker's probes; (0, {}) when it does not answer in a second."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as http,
            http.get(f"{url_of(process)}{path}") as response,
        ):
            return response.status, await response.json()
    except TimeoutError:
        return 0, {}


async def answers(process: Process, path: str, status: int) -> dict[str, Any]:
    """The body, once it comes with this status."""

    async def answered() -> dict[str, Any]:
        seen, body = await asked(process, path)
        assert seen == status, (seen, body)
        return body or {"": ""}

    return await eventually(answered, 40, f"{path} to answer {status}")


async def test_a_run_that_hangs_is_named_and_its_worker_makes_way(
    client: Client, deployment: Deployment, stuck: Process
) -> None:
    """The job that hangs is tried elsewhere, the messages go to another worker; in the end the stuck one is back."""
    hung = await client.accept(place="PE")
    body = await answers(stuck, "/healthz", 503)
    assert [(work["what"], work["uid"]) for work in body["hanging"]] == [("run", hung.uid)]
    assert (await asked(stuck, "/readyz"))[0] == 503
    (line,) = stuck.lines('"event": "hangs"')
    said = json.loads(line)
    assert said["uid"] == hung.uid
    assert "in deaf" in said["stack"]

    await stuck.wait_for_line("left the group")
    late = await client.accept(place="CA")
    (good,) = deployment.workers
    good.start()
    for one in (hung, late):
        assert (await client.ended(one, timeout_s=60))["status"] == "completed"
    (record,) = await client.records([hung])
    assert [one["error"] for one in record["tries"]] == ["Model timeout"]

    stuck.signal(signal.SIGUSR1)
    await answers(stuck, "/healthz", 200)
    good.end()
    again = await client.accept(place="JP")
    assert (await client.ended(again, timeout_s=60))["status"] == "completed"


async def test_a_blocked_loop_is_told_with_its_stack(client: Client, stuck: Process) -> None:
    """While the loop is blocked no probe is answered, and the log says where; then the worker goes on."""
    blocking = await client.accept(place="KE")
    line = (await stuck.wait_for_line('.*"event": "event loop blocked".*')).group()
    assert "in blocking" in json.loads(line)["stack"]
    assert await asked(stuck, "/healthz") == (0, {})
    stuck.signal(signal.SIGUSR1)
    await answers(stuck, "/healthz", 200)
    assert (await client.ended(blocking))["status"] == "completed"
    await stuck.wait_for_line("event loop turns again")
    assert len(stuck.lines("event loop blocked")) == 1
