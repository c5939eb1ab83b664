"""Replicas of the role `submit` as real processes on a real store and third party, one of them killed."""

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from support.ports import free_port, unique_name
from support.processes import Process
from support.servers import Mongo
from support.waiting import eventually
from travelrec.adapters.mongo import MongoStore
from travelrec.adapters.mongo_tasks import MongoTaskStore
from travelrec.tasks import task as moves
from travelrec.tasks.task import TaskStatus

TRAVELREC = [sys.executable, "-m", "travelrec"]
TIMEOUT_S = 2  # TASKS_TIMEOUT: a dead replica's tasks come back 10 s after that


@dataclass(frozen=True)
class Seen:
    """What came to the third party, and what the store says in the end."""

    most_in_a_second: int
    used: float
    lost: int
    doubles: int
    repeats: int
    not_in_progress: int


async def measured(
    mongo: Mongo, *, rate: float, seconds: float, replicas: int = 3, kill_after_s: float
) -> Seen:
    """Starts all of it, with a tenth more to do than there is time for, kills one replica, and counts."""
    count = int(1.1 * rate * seconds)
    url = f"{mongo.url}{unique_name('submissions')}"
    port = free_port()
    third_party = f"http://127.0.0.1:{port}"
    env = {
        "BROKER_URL": "kafka://127.0.0.1:9",  # which these roles don't need
        "STORE_URL": url,
        "TASKS_PROVIDER_URL": third_party,
        "TASKS_RATE_LIMIT": f"{rate:g}",
        "TASKS_TIMEOUT": str(TIMEOUT_S),
        "LOG_LEVEL": "info",
    }
    fake = Process([*TRAVELREC, "fake-tasks", "--port", str(port), "--work", "3600"], name="fake-tasks")
    workers = [
        Process(
            [*TRAVELREC, "worker", "submit"],
            env={**env, "METRICS_PORT": str(free_port())},
            name=f"submit-{n}",
        )
        for n in range(replicas)
    ]
    try:
        await fake.start().wait_for_http(f"{third_party}/healthz")
        with suppress(
            OSError, PermissionError
        ):  # it stands for a machine of its own, and counts what comes when it comes
            os.setpriority(os.PRIO_PROCESS, fake.pid, -15)
        for worker in workers:
            worker.start()
        for worker in workers:
            await worker.wait_for_line("worker ready", 60)
        async with (
            MongoStore.opened(url, timeout_s=30) as store,
            aiohttp.ClientSession(third_party) as http,
        ):
            tasks = MongoTaskStore(store)
            for number in range(count):
                assert await tasks.create(moves.created(str(number), time.time()))

            async def stats() -> dict[str, int]:
                async with http.get("/stats") as response:
                    return await response.json()

            async def half_way() -> bool:
                return (await stats())["submissions"] >= kill_after_s * rate

            async def all_came() -> bool:
                return (await stats())["distinct"] >= count

            async def all_in_progress() -> bool:
                return (await tasks.counts()).get(TaskStatus.IN_PROGRESS) == count

            await eventually(half_way, seconds + 60)
            workers[0].kill()
            with suppress(AssertionError):  # what did not come is in the table
                await eventually(all_came, seconds + TIMEOUT_S + 60)
                await eventually(all_in_progress, 30)
            in_progress = (await tasks.counts()).get(TaskStatus.IN_PROGRESS, 0)
            seen = await stats()
            async with http.get("/arrivals") as response:
                arrivals = await response.json()
    except BaseException as error:
        for process in (fake, *workers):
            error.add_note(process.story("last said"))
        raise
    finally:
        for process in (fake, *workers):
            process.kill()
            process.close()
    return Seen(
        seen["most_in_a_second"],
        sum(at < seconds for at in arrivals) / (rate * seconds),
        count - seen["distinct"],
        seen["doubles"],
        seen["repeats"],
        count - in_progress,
    )
