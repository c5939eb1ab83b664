"""Telemetry: what metrics, log lines and traces cost `POST /recommendations`, against an API with none of them.

As in `accept`: one gunicorn process each, rounds in turn, shares of neighbouring rounds without any. Without metrics
every counter is one that counts nothing (`bench/mute.py`). One request in ten is traced, by the standard variables, to
a receiver that drops what it gets.
"""

import asyncio
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import psutil

from bench.accept import _SCRIPT, Round, _load, _served
from bench.report import Row, table
from support import Kafka, Mongo, Process, free_port

_API = [sys.executable, "-m", "travelrec", "api"]
_MUTE = [sys.executable, "-m", "bench.mute"]
_QUIET = {"LOG_LEVEL": "warning"}
_TRACED = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}


def run(rounds: int = 6, seconds: int = 3, connections: int = 64) -> str:
    """The table."""
    assert shutil.which("wrk"), "wrk is needed: apt-get install wrk"
    root = str(Path(__file__).parent.parent)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "load.lua"
        script.write_text(_SCRIPT)
        kafka = stack.enter_context(Kafka(jvm=("-Xmx1g",)))
        mongo = stack.enter_context(Mongo())
        sink_port = free_port()
        sink = Process([sys.executable, "-m", "bench.sink"], env={"PORT": str(sink_port), "PYTHONPATH": root})
        stack.enter_context(sink)
        asyncio.run(sink.wait_for_http(f"http://127.0.0.1:{sink_port}/"))
        shared = folder / "shared"
        shared.mkdir()
        traced = {**_TRACED, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink_port}"}
        variants: dict[str, tuple[list[str], dict[str, str]]] = {
            "nothing": (_MUTE, {**_QUIET, "PYTHONPATH": root}),
            "metrics": (_API, _QUIET),
            "metrics, as several processes share them": (
                _API,
                {**_QUIET, "PROMETHEUS_MULTIPROC_DIR": str(shared)},
            ),
            "metrics, traces of 10 %": (_API, {**_QUIET, **traced}),
            "metrics, a log line a request": (_API, {}),
            "metrics, log lines, traces of 10 %": (_API, traced),
        }
        apis: dict[str, tuple[int, psutil.Process]] = {}
        for name, (command, env) in variants.items():
            port = free_port()
            servers = {"BROKER_URL": kafka.url, "STORE_URL": mongo.url + "bench"}
            apis[name] = port, stack.enter_context(_served(command, {**servers, **env}, port))
        for port, process in apis.values():
            _load(port, seconds, connections, script, process)
        measured: dict[str, list[Round]] = {name: [] for name in apis}
        for _ in range(rounds):
            for name, (port, process) in apis.items():
                measured[name].append(_load(port, seconds, connections, script, process))
    return table([_row(name, measured[name], measured["nothing"]) for name in measured])


def _row(name: str, of: list[Round], against: list[Round]) -> Row:
    pairs = list(zip(of, against, strict=True))
    return Row(
        name,
        {
            "requests/s": f"{median(r.per_s for r in of):.0f}",
            "of its rate": f"{median(a.per_s / b.per_s for a, b in pairs):.2f}",
            "p50 ms": f"{median(r.p50_ms for r in of):.1f}",
            "p99 ms": f"{median(r.p99_ms for r in of):.1f}",
            "CPU µs/request": f"{median(r.cpu_us for r in of):.0f}",
            "of its CPU": f"{median(a.cpu_us / b.cpu_us for a, b in pairs):.2f}",
            "errors": str(sum(r.errors for r in of)),
        },
    )
