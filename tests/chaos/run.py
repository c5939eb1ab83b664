"""A run from its start to its report: deployment, load, faults, calm, check."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp

from chaos.arena import Arena, arena
from chaos.clients import Clients
from chaos.faults import Faults
from chaos.history import Call, History, Violation, check, lost_calls, repeated_calls
from chaos.schedule import Due, Item, once, repeated
from travelrec.settings import Settings

MORE_S = 60.0  # for the last job to end, beyond what leases and the model take


@dataclass(frozen=True)
class Plan:
    """What is to be run; see `travelrec chaos --help`."""

    broker: str
    jobs: int
    clients: int
    workers: int
    apis: int
    latency_s: float
    faults: tuple[Item, ...]
    every_s: float
    seconds: float
    seed: int
    zipf: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    keep: Path | None = None

    @property
    def env(self) -> dict[str, str]:
        """The settings of the deployment: without popular keys, no answer serves twice."""
        return {**({} if self.zipf else {"RECOMMENDATION_CACHE_TTL": "0"}), **self.settings}

    @property
    def is_shared(self) -> bool:
        """Whether an answer serves its key for the whole run."""
        ttl = self.env.get("RECOMMENDATION_CACHE_TTL")
        return ttl is None or float(ttl) >= Settings.model_fields["recommendation_cache_ttl_s"].default

    @property
    def lease_s(self) -> float:
        """The workers' JOB_LEASE."""
        return float(self.settings.get("JOB_LEASE", Settings.model_fields["lease_s"].default))


@dataclass(frozen=True)
class Report:
    """What came of a run."""

    seed: int
    load_s: float
    calm_s: float
    """From the end of the load, or of the last fault if that was later, to the last end of a job."""
    jobs: dict[str, int]
    clients: dict[str, int]
    faults: dict[str, int]
    keys: int
    calls: int
    repeated: int
    lost_in_flight: int
    claimed_again: int
    violations: list[Violation]


async def run(plan: Plan, say: Callable[[str], None], show: Callable[[Counter[str]], None]) -> Report:
    """Runs `plan`; `say` is told each fault, `show` twice a second how far the clients are."""
    networks = sorted({item.fault.target for item in plan.faults if item.fault.is_of_the_network})
    history = History(plan.lease_s, shared=plan.is_shared)
    async with (
        arena(
            plan.broker, networks, apis=plan.apis, workers=plan.workers, latency_s=plan.latency_s, **plan.env
        ) as deployed,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30.0)
        ) as http,
    ):
        clients = Clients(
            history,
            http,
            deployed.apis,
            jobs=plan.jobs,
            clients=plan.clients,
            seconds=plan.seconds,
            seed=plan.seed,
            zipf=plan.zipf,
        )
        faults = Faults(deployed, history, say)
        async with asyncio.TaskGroup() as group:
            watching = (faults.supervise(), faults.watch_store(), _shown(clients, show))
            helpers = [group.create_task(one) for one in watching]
            began = time.time()
            async with _causing(faults, plan):
                await clients.ask(group)
                load_s = time.time() - began
            calm = max([began + load_s, *(one.over for one in history.incidents)])
            await clients.all_ended(2 * plan.lease_s + plan.latency_s + MORE_S)
            calm_s = time.time() - calm
            await clients.look_at_all()
            for helper in helpers:
                helper.cancel()
        history.records += await deployed.records()
        history.calls += await _calls(http, deployed)
        if plan.keep is not None:
            _keep(plan.keep, history, deployed)
    return Report(
        seed=plan.seed,
        load_s=load_s,
        calm_s=calm_s,
        jobs=dict(Counter(record.status for record in history.records)),
        clients=dict(clients.counts),
        faults=dict(Counter(one.fault for one in history.incidents)),
        keys=len({record.key for record in history.records}),
        calls=len(history.calls),
        repeated=repeated_calls(history),
        lost_in_flight=len(lost_calls(history)),
        claimed_again=sum(record.claims > 1 for record in history.records),
        violations=check(history),
    )


@asynccontextmanager
async def _causing(faults: Faults, plan: Plan) -> AsyncIterator[None]:
    """Faults come until this is left, which waits for those that have a moment, and for all to be over."""
    began = time.time()
    async with asyncio.TaskGroup() as group:

        async def cause(schedule: Iterator[Due]) -> None:
            for due in schedule:
                await asyncio.sleep(began + due.at - time.time())
                group.create_task(faults.cause(due))

        group.create_task(cause(once(plan.faults, plan.seed)))
        repeating = group.create_task(cause(repeated(plan.faults, plan.every_s, plan.seed)))
        yield
        repeating.cancel()


async def _shown(clients: Clients, show: Callable[[Counter[str]], None]) -> None:
    while True:
        show(clients.counts)
        await asyncio.sleep(0.5)


def _keep(folder: Path, history: History, deployed: Arena) -> None:
    """What is needed to look into a violation."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(asdict(history), indent=1))
    for process in deployed.processes:
        (folder / f"{process.name}.log").write_text(process.output())


async def _calls(http: aiohttp.ClientSession, deployed: Arena) -> list[Call]:
    async with http.get(f"http://127.0.0.1:{deployed.model_port}/calls") as response:
        return [Call(*found) for found in await response.json()]
