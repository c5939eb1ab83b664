"""Tries on a kind cluster made by up.sh what the chart promises: `python k8s/kind/e2e.py [STEP…]`, all by default.

Needs docker, kubectl and helm. A step that fails says what it saw and ends the run with exit code 1.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pycountry

ROOT = Path(__file__).parents[2]
API = "http://127.0.0.1:30080"
MODEL_PORT = 18089
MODEL = f"http://127.0.0.1:{MODEL_PORT}"
NAMESPACE = "travelrec"
WORKER = "deployment/travelrec-worker-jobs"
COMPONENT = "app.kubernetes.io/component"
SEASONS = ("spring", "summer", "autumn", "winter")
_STORE_AWAY_S = 30.0
KEYS = list(itertools.product(sorted(c.alpha_2 for c in pycountry.countries), SEASONS))


# --- the cluster, as its administrator sees it -----------------------------------------------------------


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def kubectl(*arguments: str, check: bool = True) -> str:
    return run("kubectl", "--context", "kind-travelrec", "--namespace", NAMESPACE, *arguments, check=check)


def helm(command: str, *arguments: str) -> str:
    where = ("--kube-context", "kind-travelrec", "--namespace", NAMESPACE)
    return run("helm", command, "travelrec", *arguments, *where, "--wait")


def connects(pod: str, server: str, port: int) -> bool:
    """Whether a pod with Python reaches a server of the release."""
    attempt = f"import socket; socket.create_connection(('travelrec-{server}', {port}), 3)"
    said = kubectl("exec", pod, "--", "python", "-c", attempt, check=False)
    assert not said or "Error" in said, said
    return not said


async def upgrade(*values: str) -> None:
    sets = [part for value in values for part in ("--set", value)]
    await asyncio.to_thread(helm, "upgrade", "charts/travelrec", "--reuse-values", *sets, "--timeout", "5m")


async def pods(component: str) -> list[str]:
    """The names of the running pods of a component that nobody has told to stop."""
    found = json.loads(
        await asyncio.to_thread(kubectl, "get", "pods", "-l", f"{COMPONENT}={component}", "-o", "json")
    )
    return [
        pod["metadata"]["name"]
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in ("Pending", "Running")
    ]


async def ready(component: str) -> int:
    said = await asyncio.to_thread(
        kubectl, "get", f"deployment/travelrec-{component}", "-o", "jsonpath={.status.readyReplicas}"
    )
    return int(said or 0)


async def until(condition: Callable[[], Awaitable[object]], timeout_s: float, what: str) -> float:
    """Seconds until the condition held."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"waited {timeout_s:g} s for {what}")
        await asyncio.sleep(0.5)
    return time.monotonic() - began


@asynccontextmanager
async def model_at_hand() -> AsyncIterator[None]:
    """The offline model's own counts and controls, on a port of this machine."""
    forward = await asyncio.create_subprocess_exec(
        "kubectl", "--context", "kind-travelrec", "--namespace", NAMESPACE, "port-forward",
        "service/travelrec-model", f"{MODEL_PORT}:8089", stdout=subprocess.PIPE,
    )  # fmt: skip
    assert forward.stdout is not None
    await forward.stdout.readline()
    try:
        yield
    finally:
        forward.terminate()
        await forward.wait()


# --- the API, as its callers see it ----------------------------------------------------------------------


@dataclass
class Asked:
    """What callers were answered."""

    uids: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)


class Callers:
    """Callers of the API; each request has a connection of its own, as behind a load balancer."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def accept(self, asked: Asked, country: str, season: str) -> None:
        try:
            async with self._http.post(
                f"{API}/recommendations", params={"country": country, "season": season}
            ) as response:
                body = await response.json()
                if response.status == 202:
                    asked.uids.append(body["uid"])
                else:
                    asked.failures.append(f"{response.status} {body}")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            asked.failures.append(f"{time.strftime('%X')} {type(error).__name__} {error}")

    async def complete(self, asked: Asked, timeout_s: float = 180.0) -> None:
        """Returns once every job has completed; a read that fails is a failure too, but asked again."""

        async def one(uid: str) -> None:
            async with asyncio.timeout(timeout_s):
                while uid not in asked.ended:
                    try:
                        async with self._http.get(
                            f"{API}/recommendations", params={"uid": uid, "wait": "20"}
                        ) as response:
                            body = await response.json()
                    except (aiohttp.ClientError, TimeoutError, ValueError):
                        await asyncio.sleep(0.5)
                        continue
                    assert response.status in (200, 503), f"{uid}: {response.status} {body}"
                    if response.status == 200 and body["status"] != "pending":
                        assert body["status"] == "completed", body
                        asked.ended[uid] = body

        limit = asyncio.Semaphore(100)

        async def limited(uid: str) -> None:
            async with limit:
                await one(uid)

        await asyncio.gather(*(limited(uid) for uid in asked.uids))

    @asynccontextmanager
    async def load(self, callers: int = 6, pause_s: float = 0.1) -> AsyncIterator[Asked]:
        """Callers that go on asking; in the end each hears the answer to its last request."""
        asked, leaving = Asked(), asyncio.Event()
        keys = itertools.cycle(KEYS)

        async def ask() -> None:
            while not leaving.is_set():
                await self.accept(asked, *next(keys))
                await asyncio.sleep(pause_s)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(ask())
            yield asked
            leaving.set()

    async def model(self, path: str, **settings: object) -> dict[str, Any]:
        async with self._http.request(
            "POST" if settings or path != "/stats" else "GET", MODEL + path, json=settings or None
        ) as response:
            assert response.status == 200, await response.text()
            found: dict[str, Any] = await response.json()
            return found

    async def extra_calls(self, asked: Asked) -> int:
        """How many more model calls there were than one for each job."""
        wanted = Counter(f"Country: {b['country']}\nSeason: {b['season']}" for b in asked.ended.values())
        by_key = (await self.model("/stats"))["by_key"]
        return sum(max(0, count - wanted[key]) for key, count in by_key.items())


# --- the steps -------------------------------------------------------------------------------------------


async def policies(_: Callers) -> str:
    """Network policies hold, and a pod that is less than restricted is refused."""
    api = "deployment/travelrec-api"
    spec = json.loads(kubectl("get", api, "-o", "json"))["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    spec["containers"] = [
        {name: container[name] for name in ("name", "image", "securityContext", "resources")}
    ]
    spec["containers"][0]["command"] = ["python", "-c", "import time; time.sleep(600)"]
    stranger = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"}, "spec": spec}
    apply(stranger)
    kubectl("wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s")
    sets = kubectl("get", "statefulsets", "-o", "name")
    broker = ("rabbitmq", 5672) if "travelrec-rabbitmq" in sets else ("kafka", 9092)
    ways = {
        (api, "mongo", 27017): True,
        (api, *broker): True,
        (api, "model", 8089): False,
        ("stranger", "api", 3000): True,
        ("stranger", "mongo", 27017): False,
        ("stranger", *broker): False,
        ("stranger", "model", 8089): False,
    }
    found = {way: connects(*way) for way in ways}
    assert found == ways, found
    kubectl("delete", "pod", "stranger", "--grace-period=0", "--force")
    spec["containers"][0]["securityContext"] = {"runAsUser": 0, "runAsNonRoot": False}
    refused = apply(stranger, check=False)
    assert "violates PodSecurity" in refused, refused
    return f"{sum(ways.values())} ways are open, {len(ways) - sum(ways.values())} closed; a pod as root is refused"


def apply(manifest: dict[str, Any], check: bool = True) -> str:
    command = ["kubectl", "--context", "kind-travelrec", "--namespace", NAMESPACE, "apply", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


async def scaling(callers: Callers) -> str:
    """500 queued jobs take the workers from zero to their ceiling and back; none is lost, none is called twice."""
    await upgrade("workers.jobs.scaling.minReplicas=0", "settings.RECOMMENDATION_CACHE_TTL=0")
    to_zero = await until(nobody_works, 240, "no worker")
    await callers.model("/control", latency_s=1.0)
    await callers.model("/stats/reset")
    asked, began, seen = Asked(), time.monotonic(), 0
    await asyncio.gather(*(callers.accept(asked, *key) for key in KEYS[:500]))
    assert (len(asked.uids), asked.failures) == (500, [])
    accepted_s = time.monotonic() - began
    completing = asyncio.create_task(callers.complete(asked, 300))
    first_s = await until(lambda: ready("worker-jobs"), 120, "the first worker")
    started = time.monotonic()
    while not completing.done():
        seen = max(seen, await ready("worker-jobs"))
        await asyncio.sleep(0.5)
    await completing
    drained_s, extra = time.monotonic() - started, await callers.extra_calls(asked)
    back_s = await until(nobody_works, 300, "no worker again")
    assert extra == 0, f"{extra} jobs were called twice"
    assert seen > 1, f"only {seen} workers"
    await callers.model("/control", latency_s=0.3)
    return (
        f"zero after {to_zero:.0f} s; 500 accepted in {accepted_s:.1f} s; first worker ready {first_s:.0f} s later;"
        f" {seen} workers; drained {drained_s:.0f} s after it; zero again {back_s:.0f} s after that;"
        " 0 lost, 0 called twice"
    )


async def nobody_works() -> bool:
    return not await pods("worker-jobs")


async def rolling(callers: Callers) -> str:
    """An upgrade and a rollback of API and workers under load: nothing fails, nothing is lost or called twice."""
    await upgrade("workers.jobs.scaling.minReplicas=2", "settings.RECOMMENDATION_CACHE_TTL=0")
    await until(lambda: at_least(2), 120, "two workers")
    await callers.model("/stats/reset")
    began = time.monotonic()
    async with callers.load() as asked:
        await until(lambda: more_than(asked, 30), 30, "the load")
        await upgrade("settings.LOG_LEVEL=warning")
        after_upgrade = len(asked.uids)
        await asyncio.to_thread(helm, "rollback", "--timeout", "5m")
        await until(lambda: more_than(asked, after_upgrade + 30), 60, "the load")
    await callers.complete(asked)
    extra = await callers.extra_calls(asked)
    assert not asked.failures, f"{len(asked.failures)} of {len(asked.uids)} failed: {asked.failures[:3]}"
    assert extra == 0, f"{extra} were called twice"
    return f"{len(asked.uids)} requests in {time.monotonic() - began:.0f} s: 0 failed, 0 lost, 0 called twice"


async def at_least(count: int) -> bool:
    return await ready("worker-jobs") >= count


async def more_than(asked: Asked, count: int) -> bool:
    return len(asked.uids) > count


async def stopping(callers: Callers) -> str:
    """A worker that is told to stop with 10 s jobs in flight finishes them."""
    await upgrade("workers.jobs.scaling.minReplicas=1", "settings.RECOMMENDATION_CACHE_TTL=0")
    await until(lambda: exactly(1), 180, "one worker")
    await callers.model("/control", latency_s=10.0)
    await callers.model("/stats/reset")
    asked = Asked()
    await asyncio.gather(*(callers.accept(asked, *key) for key in KEYS[:15]))

    async def all_in_flight() -> bool:
        return bool((await callers.model("/stats"))["in_flight"] == 15)

    await until(all_in_flight, 30, "15 calls in flight")
    (pod,) = await pods("worker-jobs")
    began = time.monotonic()
    await asyncio.to_thread(kubectl, "delete", "pod", pod)
    gone_s = time.monotonic() - began
    await callers.complete(asked)
    calls = (await callers.model("/stats"))["by_key"]
    assert set(calls.values()) == {1}, calls
    await callers.model("/control", latency_s=0.3)
    return f"15 jobs of 10 s: completed, each called once; the pod was gone after {gone_s:.0f} s"


async def exactly(count: int) -> bool:
    return len(await pods("worker-jobs")) == count == await ready("worker-jobs")


async def deleting(callers: Callers) -> str:
    """All API and worker pods deleted at once under load: what was answered completes."""
    await upgrade("workers.jobs.scaling.minReplicas=2")
    await until(lambda: at_least(2), 120, "two workers")
    async with callers.load() as asked:
        await until(lambda: more_than(asked, 50), 30, "the load")
        names = [*await pods("api"), *await pods("worker-jobs")]
        before = len(asked.uids)
        await asyncio.to_thread(kubectl, "delete", "pod", "--grace-period=0", "--force", *names)
        await until(lambda: more_than(asked, before + 50), 120, "the API to answer again")
    await callers.complete(asked)
    return (
        f"{len(names)} pods killed; {len(asked.uids)} accepted, all completed; {len(asked.failures)} refused"
    )


async def without_store(callers: Callers) -> str:
    """While the store answers nobody the API does: 503, with when to come again; nothing is half-accepted."""
    (store,) = await pods("mongo")
    pod = json.loads(kubectl("get", "pod", store, "-o", "json"))
    node = pod["spec"]["nodeName"]
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    asked, began = Asked(), time.monotonic()
    run("docker", "exec", node, "ctr", "--namespace", "k8s.io", "tasks", "pause", container)
    try:
        while (
            time.monotonic() - began < _STORE_AWAY_S
        ):  # long enough for a probe that asks the store to give up
            await asyncio.gather(*(callers.accept(asked, *key) for key in KEYS[:3]))
    finally:
        run("docker", "exec", node, "ctr", "--namespace", "k8s.io", "tasks", "resume", container)
    assert not asked.uids, asked.uids
    others = [failure for failure in asked.failures if not failure.startswith("503 {'error': ")]
    assert not others, others
    again = Asked()

    async def accepted() -> bool:
        await callers.accept(again, *KEYS[0])
        return bool(again.uids)

    back_s = await until(accepted, 30, "the first request that is accepted again")
    await callers.complete(again)
    return (
        f"{len(asked.failures)} requests in {_STORE_AWAY_S:.0f} s without a store: 503 each;"
        f" accepted again after {back_s:.0f} s"
    )


async def uninstalling(_: Callers) -> str:
    """Nothing of the release stays."""
    await asyncio.to_thread(helm, "uninstall")
    kinds = "all,configmap,secret,serviceaccount,networkpolicy,pdb,scaledobject,ingress"
    selector = "app.kubernetes.io/instance=travelrec"

    async def nothing() -> bool:
        said = await asyncio.to_thread(kubectl, "get", kinds, "-l", selector, "-o", "name")
        return not said.replace("No resources found", "").replace(f"in {NAMESPACE} namespace.", "").strip()

    gone_s = await until(nothing, 120, "nothing left")
    return f"nothing left after {gone_s:.0f} s"


STEPS = {
    step.__name__: step
    for step in (policies, scaling, rolling, stopping, deleting, without_store, uninstalling)
}


async def main(names: list[str]) -> None:
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as http:
        for name in names or STEPS:
            began = time.monotonic()
            async with model_at_hand():
                said = await STEPS[name](Callers(http))
            print(f"[{time.monotonic() - began:4.0f} s] {name}: {said}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
