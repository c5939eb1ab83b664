"""Callers of Travelrec for Locust: they send a request and poll, wait or follow its events until it is completed."""

from __future__ import annotations

import itertools
import random
import time
from argparse import ArgumentParser
from typing import Any  # Locust's own objects

import gevent
from locust import FastHttpUser, LoadTestShape, between, events, task
from locust.runners import WorkerRunner

from shapes import SHAPES, users_at
from thresholds import Measured, Thresholds

# by number of travellers, roughly; how often each is asked for follows Zipf's law
COUNTRIES = (
    "FR ES US IT TR MX GB DE GR AT CN JP TH PT CA SA AE PL NL IN HR HU AU CZ CH ID VN MA KR DK SE IE BE EG ZA NO SG BR"
    " FI AR BG RO TN CL PE CO NZ IS KE PH JO IL CU CR DO LK NP KH TZ GE AM AL ME RS BA SI SK EE LV LT LU MT CY UY EC BO"
    " PA GT NA BW ZM MZ MG SN GH NG ET UG RW MU SC MV FJ WS TO MN UZ KZ KG"
).split()
SEASONS = ("spring", "summer", "autumn", "winter")
_WEIGHTS = list(itertools.accumulate(1 / rank**1.1 for rank in range(1, len(COUNTRIES) + 1)))
_JOB_S = 120.0  # after which a caller gives up and counts a failure


@events.init_command_line_parser.add_listener
def add_arguments(parser: ArgumentParser) -> None:
    """Called by Locust; each is also an environment variable and a field of the web page."""
    kept = Thresholds()
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default="steady",
        env_var="LOCUST_SHAPE",
        help="How the number of users goes",
    )
    parser.add_argument(
        "--max-failed-share", type=float, default=kept.max_failed_share, env_var="LOCUST_MAX_FAILED_SHARE",
        help="More failures than this share of the requests fail the run",
    )  # fmt: skip
    parser.add_argument(
        "--max-accept-p95", type=float, default=kept.max_accept_p95_ms, env_var="LOCUST_MAX_ACCEPT_P95",
        help="A p95 of accept above so many milliseconds fails the run",
    )  # fmt: skip
    parser.add_argument(
        "--min-completed", type=float, default=kept.min_completed_per_s, env_var="LOCUST_MIN_COMPLETED",
        help="Fewer completed jobs a second fail the run",
    )  # fmt: skip


class Shape(LoadTestShape):
    """The chosen shape up to `--users`, for `--run-time`."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Called by Locust every second; None ends the run."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        share = self.get_run_time() / (options.run_time or 120.0)
        if share >= 1.0 and options.run_time:
            return None
        return users_at(options.shape, options.num_users or 1, share), options.spawn_rate or 50.0


class Caller(FastHttpUser):
    """One who asks for one country after another and, in the meantime, for nothing."""

    abstract = True
    wait_time = between(1.0, 3.0)
    network_timeout = 90.0
    connection_timeout = 10.0

    @task
    def ask(self) -> None:
        """Asks, and counts the job as completed, from its acceptance on."""
        place = random.choices(COUNTRIES, cum_weights=_WEIGHTS)[0]
        asked = f"/recommendations?country={place}&season={random.choice(SEASONS)}"
        with self.client.post(asked, name="accept", catch_response=True) as response:
            if response.status_code != 202:
                response.failure(f"HTTP {response.status_code}")
                return
            uid = response.json()["uid"]
        began = time.perf_counter()
        problem = self._until_it_ends(uid, began + _JOB_S)
        self.environment.events.request.fire(
            request_type="JOB",
            name="completed",
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=RuntimeError(problem) if problem else None,
            context={},
        )

    def _until_it_ends(self, uid: str, deadline: float) -> str | None:
        """None once the job is completed, else what is wrong."""
        raise NotImplementedError

    def _read(self, path: str, name: str) -> tuple[str, dict[str, Any]]:
        with self.client.get(path, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"HTTP {response.status_code}")
                return f"HTTP {response.status_code}", {}
            body: dict[str, Any] = response.json()
        return body["status"], body


def _problem(status: str, body: dict[str, Any]) -> str | None:
    if status == "completed" and len(body.get("recommendations", ())) == 3:
        return None
    return f"{status}: {body.get('error', '')}"


class Poller(Caller):
    """Looks every second, as `Retry-After` says."""

    weight = 1

    def _until_it_ends(self, uid: str, deadline: float) -> str | None:
        status, body = self._read(f"/recommendations?uid={uid}", "poll")
        while status == "pending" and time.perf_counter() < deadline:
            gevent.sleep(1.0)
            status, body = self._read(f"/recommendations?uid={uid}", "poll")
        return _problem(status, body)


class Waiter(Caller):
    """Has the API hold its request until the job ends."""

    weight = 2

    def _until_it_ends(self, uid: str, deadline: float) -> str | None:
        status, body = "pending", {}
        while status == "pending" and time.perf_counter() < deadline:
            status, body = self._read(f"/recommendations?uid={uid}&wait=30", "wait")
        return _problem(status, body)


class Follower(Caller):
    """Follows the job's event stream to its end."""

    weight = 1

    def _until_it_ends(self, uid: str, deadline: float) -> str | None:
        path = f"/recommendations/events?uid={uid}"
        try:
            # the stream speaks as long as the job has no end
            with (
                gevent.Timeout(deadline - time.perf_counter()),
                self.client.get(path, name="events", catch_response=True) as response,
            ):
                said = response.text or ""
                if response.status_code != 200 or "event: completed" not in said:
                    response.failure(f"HTTP {response.status_code}, the stream ended without the job's end")
                    return "the stream broke"
        except gevent.Timeout:
            return "no end in time"
        return None


@events.quitting.add_listener
def judge(environment: Any, **_: object) -> None:
    """Called by Locust at the end: says what came of the run; a threshold that was not kept is exit code 1."""
    if isinstance(environment.runner, WorkerRunner):
        return  # its master has all of it
    total, stats = environment.stats.total, environment.stats
    accept, jobs = stats.get("accept", "POST"), stats.get("completed", "JOB")
    completed = jobs.num_requests - jobs.num_failures
    endless = max(
        0, accept.num_requests - accept.num_failures - jobs.num_requests
    )  # and their callers were stopped
    seconds = max(1.0, (stats.last_request_timestamp or 0) - (stats.start_time or 0))
    measured = Measured(
        requests=total.num_requests - jobs.num_requests,
        failures=total.num_failures + endless,
        accept_p95_ms=accept.get_response_time_percentile(0.95) or 0.0,
        completed=completed,
        completed_per_s=completed / seconds,
    )
    options = environment.parsed_options
    thresholds = Thresholds(options.max_failed_share, options.max_accept_p95, options.min_completed)
    print(
        f"{measured.requests} requests, {measured.failures} failures, {endless} of them accepted and without an end;"
        f" accept p95 {measured.accept_p95_ms:.0f} ms;"
        f" {measured.completed} completed, {measured.completed_per_s:.1f} a second,"
        f" p50 {jobs.get_response_time_percentile(0.5) or 0:.0f} ms,"
        f" p95 {jobs.get_response_time_percentile(0.95) or 0:.0f} ms"
    )
    broken = thresholds.broken_by(measured)
    broken += [f"a caller failed: {each['msg']}" for each in environment.runner.exceptions.values()]
    for words in broken:
        print(f"FAILED: {words}")
    environment.process_exit_code = 1 if broken else 0
