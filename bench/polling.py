"""Polling: 10,000 tasks in progress, polled until all are done; the time and the calls of the store that a poll takes.

The third party says of all tasks that they are in progress, then that half of them are done, then of all, then the same
again. Calls are counted as the driver sends them; "plain" is the least that could be done: reading the third party's
answer, and one bulk write of what moved.
"""

import asyncio
import time
from collections import Counter

from aiohttp import web
from pymongo import UpdateOne, monitoring

from bench.report import Row, table
from support import Mongo, unique_name
from travelrec.adapters.mongo import MongoStore
from travelrec.adapters.mongo_tasks import MongoTaskStore
from travelrec.adapters.third_party import HttpThirdParty
from travelrec.tasks import task as moves
from travelrec.tasks.task import TaskStatus

COUNT = 10_000


class Calls(monitoring.CommandListener):
    """Every command that the driver sends, by name, and the documents of its writes."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.updates = 0

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.sent[event.command_name] += 1
        self.updates += len(event.command.get("updates", ()))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        pass

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


CALLS = Calls()


async def _polled(mongo: Mongo, driver: str) -> list[Row]:
    rows, said = [], dict.fromkeys(map(str, range(COUNT)), TaskStatus.IN_PROGRESS)

    async def tasks(_: web.Request) -> web.Response:
        return web.json_response([{"id": id_, "status": status} for id_, status in said.items()])

    app = web.Application()
    app.add_routes([web.get("/tasks", tasks)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with (
        MongoStore.opened(f"{mongo.url}{unique_name('polling')}", driver=driver, timeout_s=60) as opened,
        HttpThirdParty.opened(url, timeout_s=60) as third_party,
    ):
        store = MongoTaskStore(opened)
        await store.create(moves.created("0", time.time(), status=TaskStatus.IN_PROGRESS))
        rest = [moves.created(str(n), time.time(), status=TaskStatus.IN_PROGRESS) for n in range(1, COUNT)]
        for start in range(0, len(rest), 50):
            await asyncio.gather(*(store.create(task) for task in rest[start : start + 50]))
        for name, done in (
            ("nothing moved", 0),
            ("half moved", COUNT // 2),
            ("the rest moved", COUNT),
            ("again", COUNT),
        ):
            said.update(dict.fromkeys(map(str, range(done)), TaskStatus.COMPLETED))
            CALLS.sent.clear()
            CALLS.updates = 0
            began, cpu = time.perf_counter(), time.process_time()
            read = await third_party.rows()
            heard_s = time.perf_counter() - began
            reported = await store.report(read.good)
            rows.append(
                Row(
                    f"{name} ({driver})",
                    {
                        "seconds": f"{time.perf_counter() - began:.2f}",
                        "of that the third party": f"{heard_s:.2f}",
                        "CPU s": f"{time.process_time() - cpu:.2f}",
                        "moved": str(sum(reported.moved.values())),
                        "calls of the store": ", ".join(f"{n} {c}" for c, n in CALLS.sent.items()),
                        "in the bulk write": str(CALLS.updates),
                    },
                )
            )
    await runner.cleanup()
    return rows


async def _plain(mongo: Mongo) -> Row:
    """One bulk write of 5,000 changes, and nothing else."""
    async with MongoStore.opened(
        f"{mongo.url}{unique_name('plain')}", driver="pymongo", timeout_s=60
    ) as opened:
        tasks = opened.collection("tasks")
        await tasks.insert_many([{"_id": str(n), "status": "In Progress"} for n in range(COUNT)])
        began = time.perf_counter()
        await tasks.bulk_write(
            [UpdateOne({"_id": str(n)}, {"$set": {"status": "Completed"}}) for n in range(COUNT // 2)],
            ordered=False,
        )
        return Row(
            "floor: the bulk write of half (pymongo)", {"seconds": f"{time.perf_counter() - began:.2f}"}
        )


def run() -> str:
    """The table."""
    monitoring.register(CALLS)
    with Mongo(jvm=("-Xmx1g", "-Xshare:auto")) as mongo:
        rows = [row for driver in ("motor", "pymongo") for row in asyncio.run(_polled(mongo, driver))]
        rows.append(asyncio.run(_plain(mongo)))
    return table(rows)
