"""Tasks in a deployment: an API of two processes, workers, MongoDB, a third party; no broker is needed, none there."""

import json
import subprocess
import sys

import pytest

from support import Mongo, eventually, free_port, unique_name

pytestmark = [pytest.mark.asyncio, pytest.mark.real("mongo"), pytest.mark.timeout(150)]
TRAVELREC = (sys.executable, "-m", "travelrec")


def curl(url: str, *options: str):
    """The status and the JSON of an answer."""
    done = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", url, *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body) if body else None


async def test_tasks_go_their_way_while_workers_are_killed(new_process, mongo_server: Mongo) -> None:
    """1, 2 and 3 end as the third party says, the others are done once, though the worker that polls is killed."""
    port, fake_port = free_port(), free_port()
    env = {
        "BROKER_URL": "kafka://127.0.0.1:9",
        "STORE_URL": f"{mongo_server.url}{unique_name('tasks')}",
        "TASKS_PROVIDER_URL": f"http://127.0.0.1:{fake_port}",
        "TASKS_POLL_INTERVAL": "0.5",
        "TASKS_TIMEOUT": "1",
        "WEB_CONCURRENCY": "2",
        "PORT": str(port),
    }
    fake = new_process([*TRAVELREC, "fake-tasks", "--port", str(fake_port), "--work", "1"])
    await fake.wait_for_http(f"http://127.0.0.1:{fake_port}/healthz")
    workers = []
    for name in ("first", "second"):
        worker = new_process(
            [*TRAVELREC, "worker", "submit", "poll"], env={**env, "METRICS_PORT": str(free_port())}, name=name
        )
        await worker.wait_for_http(f"http://127.0.0.1:{worker.env['METRICS_PORT']}/readyz")
        workers.append(worker)
    api = new_process([*TRAVELREC, "api"], env=env, name="api")
    url = f"http://127.0.0.1:{port}"
    await api.wait_for_http(f"{url}/readyz")

    def statuses() -> dict[str, str]:
        return {task["id"]: task["status"] for task in curl(f"{url}/api/tasks")[1]}

    def ended(*ids: str) -> bool:
        expected = {"1": "In Progress", "2": "Completed", "3": "Error"}
        assert statuses() == {id_: expected.get(id_, "Completed") for id_ in ids}
        return True

    for id_ in ("1", "2", "3", "a"):
        assert curl(f"{url}/api/tasks", "-d", json.dumps({"id": id_})) == (
            201,
            {"id": id_, "status": "Not Started", "error_message": None},
        )
    await eventually(lambda: ended("1", "2", "3", "a"), 40)
    assert curl(f"{url}/api/tasks/3")[1]["error_message"] == "Invalid IP range: 192.168.1.256"
    polling = [worker for worker in workers if worker.lines("polls the third party")]
    assert len(polling) == 1
    polling[0].kill()
    assert curl(f"{url}/api/tasks", "-d", '{"id": "b"}')[0] == 201
    await eventually(lambda: ended("1", "2", "3", "a", "b"), 60)
    stats = curl(f"http://127.0.0.1:{fake_port}/stats")[1]
    assert stats["doubles"] == 0
    assert 2 <= stats["distinct"] <= 5  # 1, 2 and 3 end without being submitted if it lists them before that
