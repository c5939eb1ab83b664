"""`travelrec api` with several gunicorn processes on a real Kafka and a real MongoDB."""

import asyncio
import json
import re
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from support import Process, eventually, free_port, unique_name

pytestmark = [pytest.mark.real, pytest.mark.asyncio]
TRAVELREC = Path(sys.executable).with_name("travelrec")
ASK = "/recommendations?country=Canada&season=winter"


@dataclass
class Api:
    """A running `travelrec api`, a client that makes a connection per request, and its folder for metrics."""

    process: Process
    http: aiohttp.ClientSession
    folder: Path

    @property
    def children(self):
        """The processes that answer."""
        return psutil.Process(self.process.pid).children()

    async def get(self, path):
        """The text of an answer of 200."""
        async with self.http.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    async def ask(self):
        """The uid of an accepted request."""
        async with self.http.post(ASK) as response:
            assert response.status == 202
            return (await response.json())["uid"]

    async def metric(self, name, **labels):
        """The sum of a metric's samples with these labels."""
        families = text_string_to_metric_families(await self.get("/metrics"))
        samples = [s for family in families for s in family.samples if s.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def environment(kafka, mongo, folder, **env):
    """The settings of an API on these servers."""
    servers = {"BROKER_URL": kafka.url, "STORE_URL": f"{mongo.url}{unique_name('gunicorn')}"}
    return {**servers, "WEB_CONCURRENCY": "2", "TMPDIR": str(folder), **env}


@pytest.fixture
def start(new_process, kafka_server, mongo_server, tmp_path):
    """Start an API of two processes; returns when both are up."""

    @asynccontextmanager
    async def started(**env):
        given = environment(kafka_server, mongo_server, tmp_path, PORT=str(port := free_port()), **env)
        process = new_process([TRAVELREC, "api"], env=given, name="api")
        await eventually(
            lambda: process.alive and len(process.lines("api started")) == 2, 60, "two processes"
        )
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=30.0)
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", connector=connector, timeout=timeout
        ) as http:
            yield Api(process, http, tmp_path)

    return started


def connections(child, port):
    """How many connections of callers a process holds."""
    held = child.net_connections(kind="tcp4")
    return sum(1 for c in held if c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port)


@asynccontextmanager
async def streams_on_both(api, uid):
    """Event streams of a job, at least one on each of the processes."""
    port = api.http._base_url.port
    async with AsyncExitStack() as stack:
        opened = []
        while len(opened) < 4 or not all(connections(child, port) for child in api.children):
            assert len(opened) < 200, "one process takes all connections"
            path = f"/recommendations/events?uid={uid}"
            stream = await stack.enter_async_context(api.http.get(path))
            assert await stream.content.readline() == b"event: pending\n"
            opened.append(stream)
        yield opened


async def test_what_one_process_accepts_another_knows_and_hears_the_end_of(start):
    """Jobs are read by either process, and a cancellation by one wakes the streams and polls of both."""
    async with start() as api:
        uid = await api.ask()
        reads = [json.loads(await api.get(f"/recommendations?uid={uid}")) for _ in range(10)]
        assert {body["status"] for body in reads} == {"pending"}
        async with streams_on_both(api, uid) as streams:
            polls = [asyncio.create_task(api.get(f"/recommendations?uid={uid}&wait=30")) for _ in range(4)]
            waiting = len(streams) + len(polls)
            await eventually(lambda: is_metric(api, waiting, "travelrec_waiters"))
            async with api.http.delete(f"/recommendations?uid={uid}") as response:
                assert (await response.json())["status"] == "cancelled"
            ends = [(await stream.content.read()).decode() for stream in streams]
            assert all("event: cancelled\n" in end for end in ends)
            assert {json.loads(await poll)["status"] for poll in polls} == {"cancelled"}
        assert await is_metric(api, 0, "travelrec_waiters")


async def is_metric(api, value, name, **labels):
    """Whether the sum is this."""
    assert await api.metric(name, **labels) == value
    return True


async def test_metrics_are_summed_over_the_processes(start):
    """Whichever process is asked: every request is counted once, and none is forgotten."""
    async with start() as api:
        await asyncio.gather(*(api.get("/healthz") for _ in range(200)))
        uids = await asyncio.gather(*(api.ask() for _ in range(40)))
        assert len(set(uids)) == 40
        health = {"method": "GET", "route": "/healthz", "status": "200"}
        for _ in range(10):
            assert await api.metric("travelrec_http_requests_total", **health) == 200
            assert await api.metric("travelrec_jobs_accepted_total", kind="recommendation") == 40
            assert await api.metric("travelrec_http_request_seconds_count", route="/healthz") == 200


async def test_metrics_outlive_a_process_that_ends(start):
    """What a process counted stays when another takes its place; what it held does not."""
    async with start() as api:
        await asyncio.gather(*(api.get("/healthz") for _ in range(100)))
        uid = await api.ask()
        async with streams_on_both(api, uid) as streams:
            await eventually(lambda: is_metric(api, len(streams), "travelrec_waiters"))
            port = api.http._base_url.port
            ending, staying = api.children
            kept = connections(staying, port)
            ending.terminate()
            await eventually(lambda: len(api.process.lines("api started")) == 3, 20)
            await eventually(lambda: ending.pid not in {child.pid for child in api.children}, 20)
            await eventually(lambda: is_metric(api, kept, "travelrec_waiters"))
        for _ in range(5):
            assert await api.metric("travelrec_http_requests_total", route="/healthz") == 100
        assert len(list(api.folder.glob("travelrec-metrics-*"))) == 1


async def test_sigterm_ends_streams_and_polls_and_each_process_in_order(start):
    """Within seconds and with exit code 0: polls are answered, streams closed, both lifespans shut down."""
    async with start() as api:
        uid = await api.ask()
        async with streams_on_both(api, uid) as streams:
            polls = [asyncio.create_task(api.get(f"/recommendations?uid={uid}&wait=60")) for _ in range(4)]
            waiting = len(streams) + len(polls)
            await eventually(lambda: is_metric(api, waiting, "travelrec_waiters"))
            api.process.terminate()
            for stream in streams:
                assert b"event:" not in await stream.content.read(), "the stream ends, the job does not"
            assert {json.loads(await poll)["status"] for poll in polls} == {"pending"}
            assert await api.process.wait(10) == 0
        assert len(api.process.lines("api stopped")) == 2
        assert not api.process.lines(r"Traceback|Cancel \d+ running|WORKER TIMEOUT")
        assert not list(api.folder.glob("travelrec-metrics-*"))


async def test_what_sigterm_cuts_off_is_told_to_try_again(start, new_mongo):
    """Requests that wait for a frozen store when the process must end get 503 in the error shape, never 500."""
    mongo = new_mongo()
    async with start(STORE_URL=f"{mongo.url}cut", NEIGHBOUR_TIMEOUT="60", WEB_CONCURRENCY="2") as api:
        uid = await api.ask()
        mongo.freeze()
        cut = [
            asyncio.create_task(answer_of(api, method, path))
            for method, path in (
                ("POST", ASK),
                ("GET", f"/recommendations?uid={uid}"),
                ("GET", f"/recommendations/events?uid={uid}"),
                ("DELETE", f"/recommendations?uid={uid}"),
            )
        ]
        port = api.http._base_url.port
        await eventually(lambda: sum(connections(child, port) for child in api.children) == len(cut))
        api.process.terminate()
        for status, body, headers in await asyncio.gather(*cut):
            assert (status, sorted(body), body["error"]) == (503, ["error", "message"], "Service unavailable")
            assert int(headers["Retry-After"]) > 0
            assert headers["X-Request-ID"]
        mongo.thaw()
        assert await api.process.wait(20) == 0
        assert not api.process.lines("Traceback")


async def answer_of(api, method, path):
    async with api.http.request(method, path) as response:
        return response.status, json.loads(await response.text()), response.headers


async def test_every_line_of_its_log_is_json(start):
    """gunicorn, uvicorn and the application speak one format, so a collector needs one parser."""
    async with start() as api:
        await api.get("/healthz")
        api.process.terminate()
        assert await api.process.wait(10) == 0
        lines = [json.loads(line) for line in api.process.output().splitlines()]
        assert {line["logger"] for line in lines} >= {"gunicorn.error", "travelrec_api.app"}
        assert all(line["event"] and line["level"] for line in lines)


async def test_a_taken_port_is_one_line(start, new_process):
    """The second API says so at once, with exit code 1; the first goes on."""
    async with start() as api:
        second = new_process([TRAVELREC, "api"], env=api.process.env, name="second api")
        assert await second.wait(20) == 1
        (line,) = second.output().splitlines()
        assert re.match(rf"travelrec: can't listen on 127\.0\.0\.1:{api.http._base_url.port} ", line)
        await api.get("/healthz")


BROKEN = """
import sys, travelrec_api.app as app
{defect}
sys.argv = ["travelrec", "api"]
from travelrec.cli import main
main()
"""
DEFECTS = {
    "create_app fails": "def create_app(settings): raise RuntimeError('defect')\napp.create_app = create_app",
    "the lifespan fails": "def _state(*_): raise RuntimeError('defect')\napp._state = _state",
}


@pytest.mark.parametrize("defect", DEFECTS)
async def test_a_process_that_cannot_boot_ends_them_all(
    defect, new_process, kafka_server, mongo_server, tmp_path
):
    """A defect at start is said and ends the command, for the orchestrator to see; it does not fork for ever."""
    env = environment(kafka_server, mongo_server, tmp_path, PORT=str(free_port()))
    process = new_process([sys.executable, "-c", BROKEN.format(defect=DEFECTS[defect])], env=env)
    assert await process.wait(20) not in (0, None)
    assert process.lines("RuntimeError: defect")
    assert process.lines("Worker failed to boot")
    assert len(process.lines("Booting worker")) <= 3
    assert not list(tmp_path.glob("travelrec-metrics-*"))
