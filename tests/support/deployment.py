"""A whole deployment as real processes: APIs, workers and the offline model on one Kafka and one MongoDB."""

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from pymongo import AsyncMongoClient

from support.ports import free_port, release_port, unique_name
from support.processes import Process
from support.servers import Kafka, Mongo
from support.waiting import eventually

COMMAND = (sys.executable, "-m", "travelrec")
PLACES = (
    *("AR", "AU", "AT", "BR", "CA", "CL", "CN", "CO", "CZ", "DK", "EG", "FI", "FR", "DE", "GR", "IS"),
    *("IN", "ID", "IE", "IT", "JP", "KE", "MX", "MA", "NL", "NZ", "NO", "PE", "PL", "PT", "ZA", "ES"),
)
SEASONS = ("spring", "summer", "fall", "WINTER")


class Deployment:
    """`start` begins it; `healthy` repairs what a test broke and returns when everything is ready."""

    def __init__(self, kafka: Kafka, mongo: Mongo, *, apis: int, workers: int, **env: str) -> None:
        self.kafka, self.mongo = kafka, mongo
        self.database = unique_name("pipeline")
        self._ports: list[int] = []
        self.model_port = self._port()
        self._env = {
            "BROKER_URL": kafka.url,
            "STORE_URL": f"{mongo.url}{self.database}",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.model_port}/v1",
            "OPENAI_API_KEY": "test",
            "LOG_LEVEL": "info",
            **env,
        }
        model = [*COMMAND, "fake-openai", "--port", str(self.model_port)]
        self.model = Process(model, name="fake-openai")
        self.apis = [self.api(f"api-{n}") for n in range(apis)]
        self.workers = [self.worker(f"worker-{n}") for n in range(workers)]

    def api(self, name: str, **env: str) -> Process:
        """One more API, not started."""
        return Process([*COMMAND, "api"], env={**self._env, "PORT": str(self._port()), **env}, name=name)

    def worker(self, name: str, **env: str) -> Process:
        """One more worker, not started."""
        return Process(
            [*COMMAND, "worker"], env={**self._env, "METRICS_PORT": str(self._port()), **env}, name=name
        )

    @property
    def broker(self) -> Kafka:
        """The broker's server."""
        return self.kafka

    @property
    def processes(self) -> list[Process]:
        """All of it but the servers."""
        return [self.model, *self.apis, *self.workers]

    async def healthy(self) -> None:
        """Starts what is down, ends every fault, and returns when all processes are ready."""
        for server in (self.kafka, self.mongo):
            if server.process.alive:
                server.thaw()
            else:
                await asyncio.to_thread(server.start)
        for process in self.processes:
            if process.alive:
                process.thaw()
            else:
                process.start()
        await self.model.wait_for_http(f"http://127.0.0.1:{self.model_port}/healthz")
        await asyncio.gather(*(ready(process) for process in (*self.apis, *self.workers)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        print(self.story())
        self.close()

    def close(self) -> None:
        """Ends everything that it started."""
        for process in self.processes:
            process.kill()
            process.close()
        for port in self._ports:
            release_port(port)

    def story(self) -> str:
        """What every process said last; for a failed test."""
        return "\n".join(process.story("last said") for process in self.processes)

    def _port(self) -> int:
        self._ports.append(free_port())
        return self._ports[-1]


def url_of(process: Process) -> str:
    """Where an API listens, or a worker's probes."""
    return f"http://127.0.0.1:{process.env.get('PORT') or process.env['METRICS_PORT']}"


async def ready(process: Process) -> None:
    """Returns when a process of a deployment is ready; a worker also has to be in its group."""
    await process.wait_for_http(f"{url_of(process)}/readyz", timeout_s=60)
    if "METRICS_PORT" in process.env:
        await process.wait_for_line("worker ready", 60)


@dataclass(frozen=True)
class Asked:
    """A request that was answered with a uid, and by which API."""

    uid: str
    country: str
    season: str
    api: Process

    @property
    def key(self) -> str:
        """What the model is asked for it, as the offline model counts it."""
        season = {"fall": "autumn"}.get(self.season.lower(), self.season.lower())
        return f"Country: {self.country}\nSeason: {season}"


@dataclass
class Load:
    """What came of many requests; looked at while they run."""

    asked: list[Asked] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    lost: int = 0
    "Connections that broke before an answer."
    slowest_s: float = 0.0
    stopping: bool = False


class Client:
    """Talks to a deployment as its callers, its operators and its database see it."""

    def __init__(self, deployment: Deployment, http: aiohttp.ClientSession, names: Mapping[str, str]) -> None:
        self._deployment = deployment
        self._http = http
        self._names = names
        self._mongo: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(deployment.mongo.url, timeoutMS=5000)
        self.jobs = self._mongo[deployment.database]["jobs"]

    async def close(self) -> None:
        await self._mongo.close()

    # --- as a caller ---------------------------------------------------------------------------------

    async def call(self, method: str, api: Process, path: str, **params: object) -> tuple[int, Any, Any]:
        """(status, body, headers) of one request."""
        given = {name: str(value) for name, value in params.items()}
        async with self._http.request(method, f"{url_of(api)}{path}", params=given) as response:
            return response.status, await response.json(content_type=None), response.headers

    async def accept(self, api: Process | None = None, place: str = "CA", season: str = "winter") -> Asked:
        """One accepted request."""
        api = api or self._deployment.apis[0]
        status, body, _ = await self.call("POST", api, "/recommendations", country=place, season=season)
        assert status == 202, body
        return Asked(body["uid"], self._names[place], season, api)

    async def read(self, uid: str, api: Process | None = None, wait_s: float = 0.0) -> dict[str, Any]:
        """The body of a read that finds the uid."""
        api = api or self._deployment.apis[0]
        status, body, _ = await self.call("GET", api, "/recommendations", uid=uid, wait=wait_s)
        assert status == 200, (uid, status, body)
        return body

    async def ended(
        self, asked: Asked, api: Process | None = None, timeout_s: float = 40.0
    ) -> dict[str, Any]:
        """The body once the job has ended; asks again as it is told when the store is away or slow."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = deadline - time.monotonic()
            wait_s = min(20.0, max(0.0, left_s))
            status, body, headers = await self.call(
                "GET", api or asked.api, "/recommendations", uid=asked.uid, wait=wait_s
            )
            if status == 200 and body["status"] != "pending":
                return body
            assert status in (200, 503), (asked.uid, status, body)
            assert left_s > 0, f"{asked.uid} is pending after {timeout_s:g} s; {status} {body}"
            if status == 503:
                await asyncio.sleep(float(headers["Retry-After"]))

    async def events(self, uid: str, api: Process) -> list[tuple[str, dict[str, Any]]]:
        """Every (event, data) of the stream until it closes."""
        found, event = [], ""
        async with self._http.get(f"{url_of(api)}/recommendations/events", params={"uid": uid}) as response:
            assert response.status == 200
            async for line in response.content:
                name, _, value = line.decode().strip().partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    found.append((event, json.loads(value)))
        return found

    async def accept_many(
        self, load: Load, *, clients: int, total: int | None = None, pause_s: float = 0.0
    ) -> Load:
        """`clients` at once ask, all APIs in turn, `total` times or until `load.stopping`."""
        numbers = iter(range(total)) if total is not None else itertools.count()

        async def client(seed: int) -> None:
            mine = random.Random(seed)
            for number in numbers:
                if load.stopping:
                    return
                place, season = mine.choice(PLACES), mine.choice(SEASONS)
                api = self._deployment.apis[number % len(self._deployment.apis)]
                began = time.monotonic()
                try:
                    status, body, _ = await self.call(
                        "POST", api, "/recommendations", country=place, season=season
                    )
                except aiohttp.ClientError:
                    load.lost += 1
                    await asyncio.sleep(0.02)
                    continue
                load.slowest_s = max(load.slowest_s, time.monotonic() - began)
                if status == 202:
                    load.asked.append(Asked(body["uid"], self._names[place], season, api))
                else:
                    load.refused.append((status, body["error"]))
                await asyncio.sleep(pause_s)

        await together(client(seed) for seed in range(clients))
        return load

    async def all_completed(
        self, asked: Iterable[Asked], *, elsewhere: bool = True, timeout_s: float = 60.0, clients: int = 100
    ) -> None:
        """Every job completes with three recommendations for what was asked, as another API than its own tells."""
        waiting = iter(list(asked))
        apis = self._deployment.apis

        async def client() -> None:
            for one in waiting:
                others = [api for api in apis if api is not one.api] if elsewhere else apis
                body = await self.ended(one, others[0], timeout_s)
                assert body["status"] == "completed", body
                assert body["uid"] == one.uid
                assert f"Country: {body['country']}\nSeason: {body['season']}" == one.key
                assert len(set(body["recommendations"])) == 3

        await together(client() for _ in range(clients))

    # --- as an operator ------------------------------------------------------------------------------

    async def model(self, **settings: object) -> None:
        """Changes how the offline model behaves."""
        url = f"http://127.0.0.1:{self._deployment.model_port}/control"
        async with self._http.post(url, json=settings) as response:
            assert response.status == 200, await response.text()

    async def forget_calls(self) -> None:
        """The offline model's counts begin again."""
        async with self._http.post(f"http://127.0.0.1:{self._deployment.model_port}/stats/reset") as response:
            assert response.status == 200

    async def calls(self) -> dict[str, Any]:
        """What the offline model has counted."""
        async with self._http.get(f"http://127.0.0.1:{self._deployment.model_port}/stats") as response:
            return await response.json()

    async def metric(self, process: Process, line: str) -> float:
        """The value of one line of a process's metrics, named with its labels; 0 when there is none."""
        async with self._http.get(f"{url_of(process)}/metrics") as response:
            for found in (await response.text()).splitlines():
                if found.startswith(f"{line} "):
                    return float(found.split()[-1])
        return 0.0

    async def forget_jobs(self) -> None:
        """Empties the store, whose development server reads every job for every sweep."""
        await self.jobs.delete_many({})

    async def records(self, asked: Iterable[Asked]) -> list[dict[str, Any]]:
        """What the store has of these."""
        return await self.jobs.find({"_id": {"$in": [one.uid for one in asked]}}).to_list(None)

    async def all_finished_once(self, asked: list[Asked], *, claims: int = 1) -> None:
        """In the store each is completed, was claimed `claims` times at most, and no attempt was counted."""
        records = await self.records(asked)
        assert len(records) == len(asked)
        assert Counter(r["status"] for r in records) == {"completed": len(asked)}
        others = [r for r in records if not 1 <= r["claims"] <= claims or r["tries"]]
        assert not others, f"{len(others)} of {len(records)} took more, first {others[0]}"

    async def extra_calls(self, asked: Iterable[Asked]) -> int:
        """How many more model calls there were than one for each job."""
        wanted = Counter(one.key for one in asked)
        by_key = (await self.calls())["by_key"]
        return sum(max(0, by_key.get(key, 0) - count) for key, count in wanted.items())

    async def in_flight(self, count: int, timeout_s: float = 10.0) -> None:
        """Returns when exactly `count` model calls run."""

        async def reached() -> bool:
            seen = (await self.calls())["in_flight"]
            assert seen == count, f"{seen} in flight"
            return True

        await eventually(reached, timeout_s, f"{count} model calls in flight")


async def together(clients: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs them all; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


@asynccontextmanager
async def client_of(deployment: Deployment, names: Mapping[str, str]) -> AsyncIterator[Client]:
    """A client for one test; `names` are the countries' names by alpha-2 code."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        client = Client(deployment, http, names)
        try:
            yield client
        finally:
            await client.close()
