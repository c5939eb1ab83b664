"""docker-compose.yml and the images: what the files say, and, where a Docker engine answers, what they do."""

import asyncio
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from support import eventually, unique_name
from support.compose import Compose, docker
from support.deployment import PLACES, SEASONS
from support.talking import Talker
from travelrec.settings import Settings

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
NOT_SETTINGS = re.compile(
    r"TRAVELREC_TAG|PUBLISH_\w+|LOCUST_\w+|OTEL_\w+"
)  # compose's own, and others' standards
UNTRIED = {"grafana", "tempo"}  # whether they can do without writing
SMALLER_THAN_BYTES = 200_000_000
SERVICES = ("nginx", "api", "worker", "chat", "relay", "model", "third-party", "kafka", "mongo", "redis")


def settings_names() -> set[str]:
    names: set[str] = set()
    for field in Settings.model_fields.values():
        alias = field.validation_alias
        names |= set(map(str, getattr(alias, "choices", [alias])))
    return names


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def ours(project: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {n: s for n, s in project["services"].items() if str(s["image"]).startswith("travelrec/")}


# --- what the files say ----------------------------------------------------------------------------------


@pytest.mark.real("compose")
@pytest.mark.parametrize(
    "env", [{}, {"OPENAI_API_KEY": "sk-x"}, {"OPENAI_BASE_URL": "http://llm:1/v1"}], ids=str
)
def test_compose_takes_the_file(env: dict[str, str]) -> None:
    """The file is valid for docker compose itself; without a key the workers ask `model`, with one nobody of ours."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["docker", "compose", "--env-file", os.devnull, "--profile", "*", "config", "--format", "json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = json.loads(done.stdout)["services"]["worker"]["environment"]["OPENAI_BASE_URL"]
    default = "" if "OPENAI_API_KEY" in env else "http://model:8089/v1"
    assert asked == env.get("OPENAI_BASE_URL", default)


def test_every_variable_is_a_setting(project: dict[str, Any]) -> None:
    """What compose gives our processes, and what it takes from .env, they know."""
    given = {name for service in ours(project).values() for name in service.get("environment", {})}
    for file in (ROOT / "docker").glob("*.env"):
        given |= set(re.findall(r"^([A-Z_]+)=", file.read_text(), re.MULTILINE))
    taken = set(re.findall(r"\$\{([A-Z0-9_]+)", FILE.read_text()))
    assert {"BROKER_URL", "STORE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"} <= given | taken
    assert {name for name in given | taken if not NOT_SETTINGS.fullmatch(name)} <= settings_names()


def test_images_are_pinned(project: dict[str, Any]) -> None:
    """What is pulled names a version; what is built comes from this tree."""
    for name, service in project["services"].items():
        if name in ours(project):
            assert service["build"]["target"] in ("api", "worker", "load")
        else:
            assert re.search(r":v?\d+(\.\d+)+[\w.-]*$", service["image"]), service["image"]
    stages: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if found := re.match(r"FROM (\S+) AS (\S+)", line):
            assert found[1] in {*stages, "scratch"} or re.search(r":\d+\.\d+", found[1]), line
            stages.add(found[2])
    assert {"api", "worker"} <= stages


def test_every_service_is_confined(project: dict[str, Any]) -> None:
    """Limits, no capabilities, no new privileges, a restart policy, a root file system that can't be written to."""
    for name, service in project["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert "restart" in service, name
        assert service.get("read_only") or name in UNTRIED, name


def test_only_loopback_is_published(project: dict[str, Any]) -> None:
    """Unless told otherwise, nothing is reachable from outside this machine."""
    published = [port for service in project["services"].values() for port in service.get("ports", [])]
    assert len(published) >= 2
    assert all(str(port).startswith("${PUBLISH_ON:-127.0.0.1}:") for port in published)


# --- what they do ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack() -> Iterator[Compose]:
    compose = Compose(JOB_LEASE="5", RECOMMENDATION_CACHE_TTL="0")
    try:
        compose.up("--build")
        yield compose
    finally:
        left = compose.close()
    assert left == []


@pytest.fixture
def healthy(stack: Compose) -> Compose:
    """All of it runs, two of each, whatever the test before has done."""
    stack.up("--no-build")
    return stack


on_docker = [pytest.mark.real("docker"), pytest.mark.timeout(600)]


class TestOnDocker:
    pytestmark = on_docker

    @pytest.mark.parametrize("port", ["3000", "8080"])
    def test_a_request_is_answered(self, healthy: Compose, port: str) -> None:
        """`travelrec ask` through nginx ends with three recommendations, on both ports."""
        command = [sys.executable, "-m", "travelrec", "ask", "Canada", "winter", "--url", healthy.url(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert re.findall(r"^ (\d)\. \S", done.stdout, re.MULTILINE) == ["1", "2", "3"]

    def test_containers_are_confined(self, healthy: Compose) -> None:
        """No process is root, no root file system can be written to and ours have no shell."""
        for container in healthy.containers():
            name = container["Name"]
            assert container["Config"]["User"].split(":")[0] not in ("", "0", "root"), name
            assert container["HostConfig"]["ReadonlyRootfs"], name
            assert container["HostConfig"]["CapDrop"] == ["ALL"], name
            assert "no-new-privileges:true" in container["HostConfig"]["SecurityOpt"], name
        written = "import os; print(os.getuid()); open('/tmp/x', 'w'); open('/app/x', 'w')"
        for service in ("api", "worker"):
            container_id = healthy.containers(service)[0]["Id"]
            tried = tried_in(container_id, "python", "-c", written)
            assert tried.stdout == "10001\n"
            assert "Read-only file system: '/app/x'" in tried.stderr
            shell = tried_in(container_id, "sh")
            assert shell.returncode != 0

    @pytest.mark.parametrize("target", ["api", "worker"])
    def test_images_are_small_and_labelled(self, healthy: Compose, target: str) -> None:
        """Under 200 MB, with the standard labels, a health check, and no secret in what they remember."""
        image = json.loads(docker("image", "inspect", f"travelrec/{target}:{healthy.tag}"))[0]
        assert image["Size"] < SMALLER_THAN_BYTES
        config = image["Config"]
        assert config["Labels"]["org.opencontainers.image.title"] == "Travelrec"
        assert config["Labels"]["org.opencontainers.image.version"]
        assert config["User"] == "10001:10001"
        assert config["Healthcheck"]["Test"][0] == "CMD"
        assert not re.search("KEY|SECRET|TOKEN", " ".join(config["Env"]))

    def test_events_come_as_they_happen(self, healthy: Compose) -> None:
        """Through nginx the first event is read before the job can have ended: nothing is held back."""

        async def run() -> list[str]:
            async with aiohttp.ClientSession(healthy.url()) as http:
                uid = await accepted(http, "JP", "spring")
                async with http.get("/recommendations/events", params={"uid": uid}) as stream:
                    first = await stream.content.readuntil(b"\n\n")
                    async with http.get("/recommendations", params={"uid": uid}) as read:
                        status = (await read.json())["status"]
                    rest = await stream.content.read()
                return [status, *re.findall(r"^event: (\w+)", (first + rest).decode(), re.MULTILINE)]

        assert asyncio.run(run()) == ["pending", "pending", "completed"]

    def test_errors_of_nginx_have_the_shape_of_ours(self, healthy: Compose) -> None:
        """While no API replica answers: 503 with Retry-After and a request id; a body that is too large: 413."""

        async def run() -> None:
            async with aiohttp.ClientSession(healthy.url()) as http:
                async with http.post("/predict", data=io.BytesIO(b"x" * 2_000_000)) as large:
                    assert (large.status, (await large.json())["error"]) == (413, "Body too large")
                for container in healthy.containers("api"):
                    docker("kill", container["Id"])
                asked = {"country": "CA", "season": "winter"}
                mine = {"X-Request-ID": "mine"}
                async with http.post("/recommendations", params=asked, headers=mine) as away:
                    assert (away.status, away.headers["Retry-After"]) == (503, "1")
                    assert away.headers["X-Request-ID"] == "mine"
                    assert set(await away.json()) == {"error", "message"}

        asyncio.run(run())

    @pytest.mark.parametrize("service", SERVICES)
    def test_killing_a_container_loses_nothing(self, healthy: Compose, service: str) -> None:
        """Under load a container is killed and started again: every uid that was answered completes."""

        asyncio.run(killed_under_load(healthy, service))

    def test_a_chat_is_answered_whoever_dies(self, healthy: Compose) -> None:
        """Through nginx, while the chat worker, the relay and an API die; the client repeats what has no answer."""

        async def run() -> None:
            async with aiohttp.ClientSession() as http:
                talker = Talker(http, [healthy.url(), healthy.url("3000")], unique_name("user"), "any")
                talking = asyncio.create_task(talker.talk(["x" * length for length in range(20, 40)]))
                for number, service in enumerate(("chat", "relay", "api"), 1):
                    await eventually(lambda least=5 * number: len(talker.heard) >= least, 60)
                    docker("kill", healthy.containers(service)[0]["Id"])
                    await asyncio.to_thread(healthy.up, "--no-build")
                await asyncio.wait_for(talking, 120)
                assert talker.lengths == list(range(20, 40))

        asyncio.run(run())

    def test_prometheus_finds_everybody(self, healthy: Compose) -> None:
        """The one of the profile scrapes every API and worker, and all of its rules are evaluated."""
        healthy.run("--profile", "observability", "up", "--detach", "--wait", "prometheus")

        async def seen() -> bool:
            async with aiohttp.ClientSession(healthy.url("9090")) as http:
                async with http.get("/api/v1/targets") as response:
                    targets = (await response.json())["data"]["activeTargets"]
                async with http.get("/api/v1/rules") as response:
                    groups = (await response.json())["data"]["groups"]
            up = Counter(each["labels"]["job"] for each in targets if each["health"] == "up")
            assert up == {"travelrec-api": 2, "travelrec-worker": 4}
            assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
            return True

        asyncio.run(eventually(seen, 60))

    def test_scaling_workers_and_apis(self, healthy: Compose) -> None:
        """Four workers become healthy; a third API gets requests from nginx without a restart."""
        healthy.up("--no-build", "--scale", "worker=4", "--scale", "api=3")
        workers = healthy.containers("worker")
        assert [c["State"]["Health"]["Status"] for c in workers] == ["healthy"] * 4
        third = healthy.containers("api")[2]["Id"]
        counted = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3000/metrics').read().decode())"
        )

        async def asked_the_third() -> bool:
            async with aiohttp.ClientSession(healthy.url()) as http:
                for _ in range(9):
                    async with http.get("/recommendations") as response:
                        assert response.status == 422
            said = docker("exec", third, "python", "-c", counted)
            return 'route="/recommendations",status="422"' in said

        asyncio.run(eventually(asked_the_third, 30))


@pytest.fixture(scope="module")
def rabbit() -> Iterator[Compose]:
    """The same with RabbitMQ in Kafka's stead."""
    compose = Compose(
        RABBITMQ_URL="amqp://travelrec:travelrec@rabbitmq:5672",
        COMPOSE_PROFILES="rabbitmq",
        JOB_LEASE="5",
        RECOMMENDATION_CACHE_TTL="0",
    )
    try:
        compose.up("--build")
        yield compose
    finally:
        left = compose.close()
    assert left == []


class TestOnDockerWithRabbitMQ:
    pytestmark = on_docker

    def test_nothing_goes_through_kafka(self, rabbit: Compose) -> None:
        """With the profile and RABBITMQ_URL a prediction is answered while Kafka is stopped."""
        rabbit.run("stop", "kafka")

        async def run() -> None:
            async with (
                aiohttp.ClientSession(rabbit.url()) as http,
                http.post("/predict", json={"input": "some text"}) as response,
            ):
                assert (response.status, (await response.json())["input"]) == (200, "some text")

        asyncio.run(run())

    def test_killing_rabbitmq_loses_nothing(self, rabbit: Compose) -> None:
        """Under load it is killed and started again: every uid that was answered completes."""
        asyncio.run(killed_under_load(rabbit, "rabbitmq"))


async def killed_under_load(stack: Compose, service: str) -> None:
    """Every uid that was answered before, meanwhile and after completes."""
    async with aiohttp.ClientSession(stack.url(), timeout=aiohttp.ClientTimeout(total=20)) as http:
        async with load(http) as uids:
            await eventually(lambda: len(uids) > 20, 30)
            if service == "mongo":  # a development server may forget what it acknowledged a moment ago
                await completed(http, uids[-1])
            docker("kill", stack.containers(service)[0]["Id"])
            before = len(uids)
            await asyncio.to_thread(stack.up, "--no-build")
            await eventually(lambda: len(uids) > before + 20, 60)
        await asyncio.gather(*(completed(http, uid) for uid in uids))


def tried_in(container_id: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "exec", container_id, *command], capture_output=True, text=True, check=False
    )


async def accepted(http: aiohttp.ClientSession, country: str, season: str, key: str = "") -> str:
    """The uid of a request that is repeated, as a careful caller does, until it is accepted."""
    headers = {"Idempotency-Key": key} if key else {}
    while True:
        try:
            asked = {"country": country, "season": season}
            async with http.post("/recommendations", params=asked, headers=headers) as response:
                if response.status == 202:
                    return str((await response.json())["uid"])
                assert response.status in (502, 503, 504), await response.text()
        except (aiohttp.ClientError, TimeoutError):
            pass
        await asyncio.sleep(0.1)


@asynccontextmanager
async def load(http: aiohttp.ClientSession) -> AsyncIterator[list[str]]:
    """Four callers that go on asking; the uids they were given, which grow."""
    uids: list[str] = []
    numbers = itertools.count()

    async def ask() -> None:
        for number in numbers:
            place, season = PLACES[number % len(PLACES)], SEASONS[number // len(PLACES) % len(SEASONS)]
            uids.append(await accepted(http, place, season, key=f"k{number}-{id(uids)}"))
            await asyncio.sleep(0.05)

    callers = [asyncio.create_task(ask()) for _ in range(4)]
    try:
        yield uids
    finally:
        for caller in callers:
            caller.cancel()
        ended = await asyncio.gather(*callers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


async def completed(http: aiohttp.ClientSession, uid: str) -> None:
    """Returns once the job is completed; asks again where the answer is not one."""
    async with asyncio.timeout(120):
        while True:
            try:
                async with http.get("/recommendations", params={"uid": uid, "wait": "10"}) as response:
                    assert response.status != 404, f"{uid} is lost"
                    status = (await response.json())["status"] if response.status == 200 else "pending"
            except (aiohttp.ClientError, TimeoutError):
                status = "pending"
            if status == "completed":
                return
            assert status == "pending", f"{uid} is {status}"
            await asyncio.sleep(0.1)
