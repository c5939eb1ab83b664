"""What a deployment of two APIs of two processes and two workers says of itself, on real servers, under load."""

import asyncio
import itertools
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, Process, Prometheus, Redis, eventually, free_port, unique_name
from support.deployment import COMMAND, PLACES, Asked, Client, Deployment, Load, client_of, together, url_of
from support.scrapes import Scrape, scrape, total
from support.series import Recording, configuration, query
from travelrec.fake_openai import FakeSettings
from travelrec.kinds.recommendation.places import find_country

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real("kafka", "mongo", "redis", "prometheus"),
    pytest.mark.timeout(180),
]

MODEL_AT_EASE = {**FakeSettings().as_dict(), "faults": {}}
FINISHED = "travelrec_jobs_finished_total"
DASHBOARDS = sorted((Path(__file__).parents[1] / "observability" / "grafana" / "dashboards").glob("*.json"))
OTHER_DOORS = {"travelrec-tasks", "travelrec-trips", "travelrec-chat"}
# while a store is away callers are refused as well, which has its own alert
OUTAGES = {
    "provider": ("TravelrecBreakerOpen", ""),
    "store": ("TravelrecStoreDown", "TravelrecAcceptErrorBudget"),
    "broker": ("TravelrecBrokerDown", ""),
}
QUIET_S = 10  # what is recorded before an outage
OUTAGE_S = 40
STRETCHED_S = 15  # what a recorded second is to the rules, which think in minutes


@pytest.fixture(scope="module")
def running() -> Iterator[Deployment]:
    """One deployment for the module."""
    with (
        Kafka() as kafka,
        Mongo() as mongo,
        Deployment(
            kafka,
            mongo,
            apis=2,
            workers=2,
            WEB_CONCURRENCY="2",
            RECOMMENDATION_CACHE_TTL="0.2",
            NEIGHBOUR_TIMEOUT="10",
            SHUTDOWN_GRACE="10",
        ) as deployment,
    ):
        yield deployment


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


@pytest.fixture
def start_prometheus(
    deployment: Deployment, new_prometheus: Callable[..., Prometheus]
) -> Callable[[], Prometheus]:
    """Starts a Prometheus that scrapes the deployment every second under the committed rules."""
    targets = {
        "travelrec-api": [url_of(process).removeprefix("http://") for process in deployment.apis],
        "travelrec-worker": [url_of(process).removeprefix("http://") for process in deployment.workers],
    }
    return lambda: new_prometheus(config=configuration(targets))


def panel_queries(boards: Iterable[Path]) -> dict[str, str]:
    """Every query of committed dashboards, as Grafana would ask it of a Prometheus that scrapes every second."""
    queries = {}
    for path in boards:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", "30s").replace("$instance", ".*")
                queries[f"{path.stem}: {panel['title']}: {target['legendFormat']}"] = expr
    return queries


async def test_every_panel_shows_data(
    deployment: Deployment, client: Client, start_prometheus: Callable[[], Prometheus]
) -> None:
    """Each query of the jobs' dashboards gives numbers on a Prometheus that scrapes the services under load."""
    prometheus = await asyncio.to_thread(start_prometheus)
    faults = {"500": 0.05, "refusal": 0.05, "429": 0.02, "wrong-schema": 0.02}
    await client.model(faults=faults, latency_s=0.3, latency_jitter=0.5, retry_after_s=0.2)
    load = Load()
    loading = asyncio.create_task(client.accept_many(load, clients=4, pause_s=0.2))
    try:
        await all_shown(prometheus, [path for path in DASHBOARDS if path.stem not in OTHER_DOORS])
    finally:
        load.stopping = True
        await loading


async def all_shown(prometheus: Prometheus, boards: Sequence[Path]) -> None:
    """Returns when each query of these dashboards has given a number."""
    missing = panel_queries(boards)
    assert len(missing) > 10 * len(boards) - 10
    async with aiohttp.ClientSession() as http:

        async def shown() -> bool:
            for name, expr in list(missing.items()):
                if any(value == value for value in await query(http, prometheus, expr)):  # noqa: PLR0124 - NaN is not
                    del missing[name]
            assert not missing, f"{len(missing)} without data: {list(missing)}"
            return True

        await eventually(shown, 90, "data in every panel")


async def test_every_panel_of_the_other_doors_shows_data(
    running: Deployment,
    redis_server: Redis,
    new_process: Callable[..., Process],
    new_prometheus: Callable[..., Prometheus],
) -> None:
    """So does each of the dashboards of tasks, trips and chats, while there are some."""
    await running.healthy()
    port = free_port()
    third_party = new_process([*COMMAND, "fake-tasks", "--port", str(port), "--work", "1"])
    await third_party.wait_for_http(f"http://127.0.0.1:{port}/healthz")
    with Deployment(
        running.kafka,
        running.mongo,
        apis=1,
        workers=1,
        REDIS_URL=redis_server.url,
        TASKS_PROVIDER_URL=f"http://127.0.0.1:{port}",
        TASKS_POLL_INTERVAL="1",
    ) as deployment:
        api, worker = deployment.apis[0], deployment.workers[0]
        worker.command.extend(["submit", "poll", "join", "chat", "relay"])  # the jobs belong to the others
        using: list[asyncio.Task[None]] = []
        await deployment.healthy()
        targets = {
            "travelrec-api": [url_of(api).removeprefix("http://")],
            "travelrec-worker": [url_of(worker).removeprefix("http://")],
        }
        prometheus = await asyncio.to_thread(lambda: new_prometheus(config=configuration(targets)))
        async with aiohttp.ClientSession() as http:
            using = [
                asyncio.create_task(use(http, url_of(api))),
                asyncio.create_task(chat(http, url_of(api))),
            ]
            try:
                await all_shown(prometheus, [path for path in DASHBOARDS if path.stem in OTHER_DOORS])
            finally:
                for task in using:
                    task.cancel()
                await asyncio.gather(*using, return_exceptions=True)


async def use(http: aiohttp.ClientSession, url: str) -> None:
    """Creates tasks and makes trips, until cancelled."""
    for number in itertools.count():
        async with http.post(f"{url}/api/tasks", json={"id": f"shown-{number}"}) as answer:
            assert answer.status == 201
        async with http.post(f"{url}/api/generate-trip") as answer:
            assert answer.status == 201
        await asyncio.sleep(0.3)


async def chat(http: aiohttp.ClientSession, url: str) -> None:
    """Says something again and again, until cancelled; what comes back is read."""
    query = {"token": "any", "userid": unique_name("talker")}
    async with http.ws_connect(f"{url}/ws", params=query) as socket:
        while True:
            await socket.send_json({"type": "message", "content": "Where to?", "userid": query["userid"]})
            await socket.receive(timeout=30)
            await asyncio.sleep(0.3)


@pytest_asyncio.fixture
async def forgetful(deployment: Deployment) -> AsyncIterator[None]:
    """What is killed is started again, and what the workers have learned of the provider is forgotten."""
    yield
    await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in deployment.workers))
    await deployment.healthy()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("part", OUTAGES)
async def test_an_outage_fires_its_own_alert_and_doctor_names_it(
    part: str,
    deployment: Deployment,
    client: Client,
    start_prometheus: Callable[[], Prometheus],
    tmp_path: Path,
) -> None:
    """What a Prometheus records before and during a kill is played to promtool: no alert before, the right one then.

    Meanwhile `travelrec doctor` names what was killed, and nothing else.
    """
    alert, besides = OUTAGES[part]
    killed = {"provider": deployment.model, "store": deployment.mongo, "broker": deployment.kafka}[part]
    prometheus = await asyncio.to_thread(start_prometheus)
    load = Load()
    loading = asyncio.create_task(client.accept_many(load, clients=3, pause_s=0.3))
    async with aiohttp.ClientSession() as http:

        async def flows() -> bool:
            done = await query(http, prometheus, f"sum(rate({FINISHED}[10s]))")
            up = await query(http, prometheus, "min(travelrec_dependency_up)")
            return up == [1.0] and bool(done) and done[0] > 1

        await eventually(flows, 60, "jobs to flow, as Prometheus sees it")
        assert await asyncio.to_thread(doctor, deployment, tmp_path) == (0, "All is fine.")
        began = float(int(time.time()))
        await asyncio.sleep(QUIET_S)
        await asyncio.to_thread(killed.kill)
        assert await asyncio.to_thread(doctor, deployment, tmp_path) == (1, f"Trouble with: {part}.")
        await asyncio.sleep(began + QUIET_S + OUTAGE_S - time.time())
        recording = await Recording.of(http, prometheus, began, QUIET_S + OUTAGE_S)
        load.stopping = True
        await deployment.healthy()
        await loading
    assert len(recording.series) > 100
    recording.firing(tmp_path, QUIET_S, STRETCHED_S, set())
    recording.firing(tmp_path, QUIET_S + OUTAGE_S, STRETCHED_S, {alert}, but=besides)


def doctor(deployment: Deployment, folder: Path) -> tuple[int, str]:
    """Its exit code and last line, with a worker's settings."""
    env = deployment.workers[0].env
    done = subprocess.run(
        [*COMMAND, "doctor"],
        env={**env, "NEIGHBOUR_TIMEOUT": "5"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    print(done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines()[-1]
