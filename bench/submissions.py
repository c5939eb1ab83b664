"""Submissions: three replicas of `submit` share a limit of 20 a second for a minute; one is killed after 20 s.

Counted where they arrive, at the third party: the most within any second, the share of the limit that was used within
the minute, and in the end, when there is nothing left to do, tasks that never came and tasks that came twice.
"""

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from bench.report import Row, table
from support import Mongo, Process, eventually, free_port, unique_name
from travelrec.adapters.mongo import MongoStore
from travelrec.adapters.mongo_tasks import MongoTaskStore
from travelrec.tasks import task as moves
from travelrec.tasks.task import TaskStatus

TRAVELREC = [sys.executable, "-m", "travelrec"]
TIMEOUT_S = 5  # TASKS_TIMEOUT: a dead replica's tasks come back 10 s after that


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


def run(rate: float = 20.0, seconds: float = 60.0, rounds: int = 1) -> str:
    """The table."""
    rows = []
    with Mongo() as mongo:
        for number in range(rounds):
            seen = asyncio.run(measured(mongo, rate=rate, seconds=seconds, kill_after_s=seconds / 3))
            rows.append(
                Row(
                    f"{rate:g} a second for {seconds:g} s, run {number + 1}",
                    {
                        "most in any second": str(seen.most_in_a_second),
                        "used": f"{seen.used:.1%}",
                        "lost": str(seen.lost),
                        "double": str(seen.doubles),
                        "sent again, answered once": str(seen.repeats),
                        "not In Progress": str(seen.not_in_progress),
                    },
                )
            )
    return table(rows)
