"""Accept: requests a second, p50/p99 and CPU per request of `POST /recommendations` against a bare handler.

Both run under the same gunicorn settings with one process; the rounds alternate, so that the ratios hold when the
machine's speed drifts. The load is wrk with distinct countries and seasons. CPU is that of the API's process alone.
"""

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port

_SCRIPT = """
local places = {"Canada","Japan","Kenya","Peru","Norway","India","Chile","Spain","Fiji","Ghana"}
local seasons = {"spring","summer","autumn","winter"}
local n = 0
request = function()
  n = n + 1
  return wrk.format("POST", "/recommendations?country=" .. places[n % 10 + 1] .. "&season=" .. seasons[n % 4 + 1])
end
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), summary.errors.status + summary.errors.connect
    + summary.errors.read + summary.errors.timeout))
end
"""


@dataclass(frozen=True)
class Round:
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    errors: int


def _load(port: int, seconds: int, connections: int, script: Path, server: psutil.Process) -> Round:
    before = sum(server.cpu_times()[:2])
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cpu = sum(server.cpu_times()[:2]) - before
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out)
    assert found, out
    requests, duration_us, p50, p99, errors = map(int, found.groups())
    return Round(requests / duration_us * 1e6, p50 / 1000, p99 / 1000, cpu / max(1, requests) * 1e6, errors)


def _worker_of(process: Process) -> psutil.Process:
    (child,) = psutil.Process(process.pid).children()
    return child


@contextmanager
def _served(command: list[str], env: dict[str, str], port: int) -> Iterator[psutil.Process]:
    with Process(command, env={**env, "PORT": str(port), "WEB_CONCURRENCY": "1"}) as process:
        path = "/healthz" if "travelrec" in command else "/openapi.json"
        asyncio.run(process.wait_for_http(f"http://127.0.0.1:{port}{path}"))
        yield _worker_of(process)


def run(rounds: int = 5, seconds: int = 4, connections: int = 64) -> str:
    """The table."""
    assert shutil.which("wrk"), "wrk is needed: apt-get install wrk"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "load.lua"
        script.write_text(_SCRIPT)
        kafka = stack.enter_context(Kafka(jvm=("-Xmx1g",)))
        mongo = stack.enter_context(Mongo())
        root = str(Path(__file__).parent.parent)
        bare_port, api_port = free_port(), free_port()
        bare = stack.enter_context(
            _served([sys.executable, "-m", "bench.bare"], {"PYTHONPATH": root}, bare_port)
        )
        api = stack.enter_context(
            _served(
                [sys.executable, "-m", "travelrec", "api"],
                {"BROKER_URL": kafka.url, "STORE_URL": mongo.url + "bench"},
                api_port,
            )
        )
        _load(bare_port, 2, connections, script, bare)
        _load(api_port, 2 * seconds, connections, script, api)
        pairs = [
            (
                _load(bare_port, seconds, connections, script, bare),
                _load(api_port, seconds, connections, script, api),
            )
            for _ in range(rounds)
        ]
        lone = (_load(bare_port, 2, 1, script, bare), _load(api_port, 2, 1, script, api))
    rows = []
    for name, index in (("bare handler", 0), ("travelrec, Kafka + MongoDB protocol", 1)):
        of = [pair[index] for pair in pairs]
        rows.append(
            Row(
                name,
                {
                    "requests/s": f"{median(r.per_s for r in of):.0f}",
                    "p50 ms": f"{median(r.p50_ms for r in of):.1f}",
                    "p99 ms": f"{median(r.p99_ms for r in of):.1f}",
                    "lone p50 ms": f"{lone[index].p50_ms:.2f}",
                    "CPU µs/request": f"{median(r.cpu_us for r in of):.0f}",
                    "errors": str(sum(r.errors for r in of)),
                },
            )
        )
    ratio = Row(
        "ratio (median of pairs)",
        {
            "requests/s": f"{median(a.per_s / b.per_s for b, a in pairs):.2f}",
            "CPU µs/request": f"{median(a.cpu_us / b.cpu_us for b, a in pairs):.2f}",
        },
    )
    return table([*rows, ratio])
