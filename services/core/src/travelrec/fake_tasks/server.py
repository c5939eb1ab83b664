"""`POST /tasks` takes a task, `GET /tasks` lists all of them; what came when is counted, what goes wrong can be set."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace

from aiohttp import web

from travelrec.stopping import told_to_stop

WELL_KNOWN: tuple[dict[str, str], ...] = (
    {"id": "1", "status": "In Progress"},
    {"id": "2", "status": "Completed"},
    {"id": "3", "status": "Error", "error_message": "Invalid IP range: 192.168.1.256"},
)
_KEYS_KEPT = 1_000_000


@dataclass(frozen=True, slots=True)
class FakeTasksSettings:
    """How the third party behaves; with the defaults it takes everything at once."""

    work_s: float = 5.0
    """From a task's submission to its end."""
    fail_share: float = 0.0
    """Share of the tasks that end with `Error`."""
    latency_s: float = 0.0
    error_rate: float = 0.0
    """Share of the submissions that get `error_status`."""
    error_status: int = 500
    lose_rate: float = 0.0
    """Share of the submissions that are taken, and whose answer is lost."""
    rate_limit_per_s: float | None = None
    """Submissions in any second; more get 429 with Retry-After."""
    well_known: bool = True
    """Whether the tasks 1, 2 and 3 are there from the start."""

    def changed(self, changes: dict[str, object]) -> FakeTasksSettings:
        """A copy with these fields changed; ValueError names one that there is not."""
        unknown = set(changes) - {each.name for each in fields(self)}
        if unknown:
            raise ValueError(f"unknown setting {', '.join(sorted(unknown))}")
        return replace(self, **changes)  # type: ignore[arg-type]  # for tests and the command line


@dataclass(slots=True)
class _Work:
    """A task that was taken: its ends, as time goes by."""

    ends_at: float
    failed: bool

    def row(self, id_: str, now: float) -> dict[str, str]:
        if now < self.ends_at:
            return {"id": id_, "status": "In Progress"}
        if self.failed:
            return {"id": id_, "status": "Error", "error_message": "The work failed, as it was told to."}
        return {"id": id_, "status": "Completed"}


class FakeTasks:
    """One third party: its tasks and its counts. `arrivals` are the times of all submissions, refused ones too."""

    def __init__(self, settings: FakeTasksSettings) -> None:
        self.settings = settings
        self.url = ""
        self.arrivals: list[float] = []
        self.order: list[str] = []
        "Ids in the order in which they were taken."
        self.repeats = 0
        "Submissions with a key that was there before: answered, and not done again."
        self.polls = 0
        self.by_status: Counter[int] = Counter()
        self._keys: dict[str, str] = {}
        self._works: dict[str, _Work] = {}
        self._recent: deque[float] = deque()

    def configure(self, **changes: object) -> None:
        """Changes settings from the next call on; raises ValueError."""
        self.settings = self.settings.changed(changes)

    def stats(self) -> dict[str, object]:
        """What `GET /stats` shows."""
        times = Counter(self.order)
        return {
            "submissions": len(self.arrivals),
            "taken": len(self.order),
            "distinct": len(times),
            "doubles": sum(count - 1 for count in times.values()),
            "repeats": self.repeats,
            "polls": self.polls,
            "most_in_a_second": most_in_a_second(self.arrivals),
            "by_status": {str(status): count for status, count in self.by_status.items()},
        }

    def rows(self) -> list[dict[str, str]]:
        """What `GET /tasks` lists: the well-known ones first, whatever was submitted."""
        known = WELL_KNOWN if self.settings.well_known else ()
        names, now = {row["id"] for row in known}, time.monotonic()
        return [*known, *(work.row(id_, now) for id_, work in self._works.items() if id_ not in names)]

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """Takes a task; the same Idempotency-Key again is answered as before."""
        now = time.monotonic()
        self.arrivals.append(now)
        settings = self.settings
        try:
            id_ = str(json.loads(await request.read())["id"])
        except (ValueError, KeyError, TypeError):
            return self._answer(400, {"error": "Bad request", "message": 'The body is {"id": "…"}.'})
        if wait_s := self._too_many(now):
            headers = {"Retry-After": str(math.ceil(wait_s))}
            return self._answer(429, {"error": "Too many requests", "message": "Slow down."}, headers)
        if settings.latency_s:
            await asyncio.sleep(settings.latency_s)
        if random.random() < settings.error_rate:
            return self._answer(settings.error_status, {"error": "Trouble", "message": "As it was told to."})
        key = request.headers.get("Idempotency-Key", "")
        if key and self._keys.get(key) == id_:
            self.repeats += 1
        else:
            self._take(id_, key)
        if random.random() < settings.lose_rate and request.transport is not None:
            request.transport.abort()
        return self._answer(201, {"id": id_, "status": "In Progress"})

    async def listed(self, _request: web.Request) -> web.StreamResponse:
        """All tasks."""
        self.polls += 1
        return web.json_response(self.rows())

    async def shown(self, _request: web.Request) -> web.StreamResponse:
        """The counts."""
        return web.json_response(self.stats())

    async def listed_arrivals(self, _request: web.Request) -> web.StreamResponse:
        """When submissions came, in seconds since the first."""
        return web.json_response([at - self.arrivals[0] for at in self.arrivals])

    async def control(self, request: web.Request) -> web.StreamResponse:
        """Changes settings."""
        try:
            self.configure(**json.loads(await request.read()))
        except (ValueError, TypeError) as problem:
            return self._answer(400, {"error": "Bad request", "message": str(problem)})
        return web.json_response({"status": "ok"})

    async def healthz(self, _request: web.Request) -> web.StreamResponse:
        """The process turns."""
        return web.json_response({"status": "ok"})

    def _take(self, id_: str, key: str) -> None:
        if key and len(self._keys) < _KEYS_KEPT:
            self._keys[key] = id_
        self.order.append(id_)
        failed = random.random() < self.settings.fail_share
        self._works[id_] = _Work(time.monotonic() + self.settings.work_s, failed)

    def _too_many(self, now: float) -> float:
        """How long to wait, if there were too many in the last second."""
        limit = self.settings.rate_limit_per_s
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if limit is not None and len(self._recent) >= limit:
            return self._recent[0] + 1 - now
        self._recent.append(now)
        return 0.0

    def _answer(
        self, status: int, body: dict[str, str], headers: dict[str, str] | None = None
    ) -> web.StreamResponse:
        self.by_status[status] += 1
        return web.json_response(body, status=status, headers=headers)


def most_in_a_second(arrivals: list[float]) -> int:
    """The most of these times, in order, that lie within one second."""
    most = first = 0
    for last, at in enumerate(arrivals):
        while arrivals[first] <= at - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


@asynccontextmanager
async def running(
    settings: FakeTasksSettings | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[FakeTasks]:
    """Serves until left; OSError when the port is taken."""
    fake = FakeTasks(settings or FakeTasksSettings())
    app = web.Application()
    app.add_routes(
        [
            web.post("/tasks", fake.submit),
            web.get("/tasks", fake.listed),
            web.get("/stats", fake.shown),
            web.get("/arrivals", fake.listed_arrivals),
            web.post("/control", fake.control),
            web.get("/healthz", fake.healthz),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        bound = runner.addresses[0][1]
        fake.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{bound}"  # noqa: S104 - only shown
        yield fake
    finally:
        await runner.cleanup()


async def serve_until_stopped(
    settings: FakeTasksSettings, host: str, port: int, on_ready: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or SIGINT; `on_ready` gets the URL. OSError when the port is taken."""
    with told_to_stop() as stopped:
        async with running(settings, host, port) as fake:
            on_ready(fake.url)
            await stopped.wait()
