"""The load test: its shapes and thresholds, and, where Locust is installed, a run of it."""

import sys
from collections.abc import Callable

import pytest

from shapes import SHAPES, users_at
from support import Process, free_port
from support.installed import LOCUST
from thresholds import Measured, Thresholds

GOOD = Measured(requests=1000, failures=0, accept_p95_ms=20.0, completed=300, completed_per_s=30.0)
LOCUSTFILE = LOCUST.parents[2] / "locustfile.py"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stays_within_its_peak_and_reaches_it(shape: str) -> None:
    """At any time of a run there is somebody, never more than the peak, and the peak comes."""
    users = [users_at(shape, 200, step / 100) for step in range(101)]
    assert min(users) >= 1
    assert max(users) == 200


def test_shapes_differ_as_their_names_say() -> None:
    """Steady does not move, ramp never falls, a spike is over before the end."""
    of = {shape: [users_at(shape, 100, step / 100) for step in range(101)] for shape in SHAPES}
    assert set(of["steady"]) == {100}
    assert of["ramp"] == sorted(of["ramp"])
    assert of["ramp"][0] < 5
    assert (of["spike"][0], of["spike"][50], of["spike"][-1]) == (20, 100, 20)


@pytest.mark.parametrize(
    ("thresholds", "measured", "words"),
    [
        (Thresholds(), GOOD, []),
        (Thresholds(), Measured(1000, 1, 20.0, 300, 30.0), ["1 of 1000 failed"]),
        (Thresholds(max_failed_share=0.01), Measured(1000, 10, 20.0, 300, 30.0), []),
        (Thresholds(max_accept_p95_ms=10.0), GOOD, ["p95 of accept is 20 ms"]),
        (Thresholds(min_completed_per_s=31.0), GOOD, ["30.0 completed a second"]),
        (Thresholds(), Measured(0, 0, 0.0, 0, 0.0), ["nothing was completed"]),
    ],
)
def test_a_broken_threshold_is_named(thresholds: Thresholds, measured: Measured, words: list[str]) -> None:
    """Each threshold that was not kept is told, and no other."""
    broken = thresholds.broken_by(measured)
    assert len(broken) == len(words)
    assert all(said.startswith(word) for said, word in zip(broken, words, strict=True))


@pytest.mark.asyncio
@pytest.mark.real("locust")
@pytest.mark.parametrize(("limit", "code"), [("60000", 0), ("0.001", 1)], ids=["kept", "broken"])
async def test_a_run_ends_with_its_verdict(
    new_process: Callable[..., Process], limit: str, code: int
) -> None:
    """All three kinds of callers get their answers; a threshold that was not kept is exit code 1, and named."""
    port = free_port()
    api = new_process([sys.executable, "-m", "travelrec", "serve", "--port", str(port)], name="serve")
    await api.wait_for_http(f"http://127.0.0.1:{port}/readyz")
    options = (
        f"--headless --users 12 --spawn-rate 12 --run-time 4s --stop-timeout 30 --max-accept-p95 {limit}"
    )
    command = [
        LOCUST,
        "-f",
        LOCUSTFILE,
        "--host",
        f"http://127.0.0.1:{port}",
        "--only-summary",
        *options.split(),
    ]
    run = new_process(command, name="locust")
    assert await run.wait(60) == code, run.output()
    verdict = (
        "FAILED: p95 of accept" if code else " 0 failures, 0 of them accepted and without an end; accept p95 "
    )
    assert verdict in run.output()
    for name in ("accept", "poll", "wait", "events", "completed"):
        assert f" {name} " in run.output()


@pytest.mark.asyncio
@pytest.mark.real("locust")
async def test_users_who_chat_are_answered(new_process: Callable[..., Process]) -> None:
    """With tokens of the deployment's secret, each on one connection; every message is answered."""
    port, secret = free_port(), "a secret of at least thirty-two characters"
    env = {"CHAT_TOKEN_SECRET": secret}
    api = new_process(
        [sys.executable, "-m", "travelrec", "serve", "--port", str(port)], env=env, name="serve"
    )
    await api.wait_for_http(f"http://127.0.0.1:{port}/readyz")
    options = "--headless --users 5 --spawn-rate 5 --run-time 4s --stop-timeout 30 --only-summary"
    command = [LOCUST, "-f", LOCUSTFILE.with_name("chat.py"), "--host", f"http://127.0.0.1:{port}"]
    run = new_process([*command, *options.split()], env=env, name="locust")
    assert await run.wait(60) == 0, run.output()
    assert "5 requests, 0 failures;" in run.output()
