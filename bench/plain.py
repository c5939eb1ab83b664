"""Floors for a worker: what any correct one must do for a job, in the plainest form, with no care.

Consume, claim under a token, call the model, write the result under the token, say so on the signals' topic, commit.
No retries, leases, coalescing, limits, sweeper, metrics or shutdown. Once with a call for each job, as most would
write it, and once in batches.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ReturnDocument, UpdateOne

from travelrec.kinds.recommendation.run import run as recommend
from travelrec.ports import Model
from travelrec.wire import SIGNALS_TOPIC


def _lease() -> dict[str, Any]:
    return {"phase": "running", "token": uuid4().hex, "due_at": time.time() + 30}


def _completion(result: dict[str, Any]) -> dict[str, Any]:
    now = time.time()
    ended = {"status": "completed", "ended_at": now, "due_at": now + 604800, "token": "-", "result": result}
    return {"$set": ended, "$unset": {"phase": ""}}


def _told(uids: list[str]) -> bytes:
    return json.dumps({"v": 1, "ended": [[uid, "completed"] for uid in uids]}).encode()


class PlainLoop:
    """Works on `topic` while it is open; claims, writes and tells of each job by itself."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        producer: AIOKafkaProducer,
        jobs: Any,
        model: Model,
        concurrency: int,
    ) -> None:
        self._consumer = consumer
        self._producer = producer
        self._jobs = jobs
        self._model = model
        self._free = concurrency
        self._freed = asyncio.Event()
        self._finished = 0
        self._wanted = 0
        self._all_finished = asyncio.Event()
        self._last_end = 0.0

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, kafka: str, topic: str, mongo: str, database: str, model: Model, concurrency: int
    ) -> "AsyncIterator[Self]":
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=kafka,
            group_id=topic,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        producer = AIOKafkaProducer(bootstrap_servers=kafka, acks="all")
        client: Any = AsyncIOMotorClient(mongo)
        await producer.start()
        await consumer.start()
        worker = cls(consumer, producer, client[database]["jobs"], model, concurrency)
        tasks = [asyncio.create_task(loop()) for loop in worker._loops()]
        try:
            yield worker
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await consumer.stop()
            await producer.stop()
            client.close()

    async def done(self, count: int) -> float:
        """The time of the last end, once `count` more jobs have ended."""
        self._wanted += count
        self._all_finished.clear()
        if self._finished < self._wanted:
            await self._all_finished.wait()
        return self._last_end

    def _loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [self._take, self._commit]

    async def _take(self) -> None:
        running = set()
        while True:
            if self._free <= 0:
                self._freed.clear()
                await self._freed.wait()
            found = await self._consumer.getmany(timeout_ms=500, max_records=self._free)
            uids = [json.loads(record.value)["uid"] for records in found.values() for record in records]
            for work in await self._claimed(uids):
                self._free -= 1
                task = asyncio.create_task(work)
                running.add(task)
                task.add_done_callback(running.discard)

    async def _claimed(self, uids: list[str]) -> list[Coroutine[Any, Any, None]]:
        return [self._run(uid) for uid in uids]

    async def _run(self, uid: str) -> None:
        job = await self._jobs.find_one_and_update(
            {"_id": uid, "token": None},
            {"$set": _lease(), "$inc": {"claims": 1}},
            return_document=ReturnDocument.AFTER,
        )
        result = await recommend(job["params"], self._model, 30.0)
        await self._jobs.update_one({"_id": uid, "token": job["token"]}, _completion(result))
        await self._producer.send_and_wait(SIGNALS_TOPIC, _told([uid]))
        self._finish(1)
        self._release()

    def _release(self) -> None:
        self._free += 1
        self._freed.set()

    def _finish(self, count: int) -> None:
        self._finished += count
        self._last_end = time.time()
        if self._finished >= self._wanted:
            self._all_finished.set()

    async def _commit(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            await self._consumer.commit()


class PlainPipeline(PlainLoop):
    """The same in batches: one claim for what was taken at once, one write and one signal for what has ended since."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ended: list[tuple[str, str, dict[str, Any]]] = []
        self._some_ended = asyncio.Event()

    def _loops(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        return [self._take, self._settle, self._commit]

    async def _claimed(self, uids: list[str]) -> list[Coroutine[Any, Any, None]]:
        if not uids:
            return []
        lease = _lease()
        changes = {"$set": lease, "$inc": {"claims": 1}}
        await self._jobs.bulk_write(
            [UpdateOne({"_id": uid, "token": None}, changes) for uid in uids], ordered=False
        )
        jobs = await self._jobs.find({"_id": {"$in": uids}, "token": lease["token"]}).to_list(None)
        return [self._work(job) for job in jobs]

    async def _work(self, job: dict[str, Any]) -> None:
        result = await recommend(job["params"], self._model, 30.0)
        self._release()
        self._ended.append((job["_id"], job["token"], result))
        self._some_ended.set()

    async def _settle(self) -> None:
        while True:
            await self._some_ended.wait()
            self._some_ended.clear()
            ended, self._ended = self._ended, []
            await self._jobs.bulk_write(
                [
                    UpdateOne({"_id": uid, "token": token}, _completion(result))
                    for uid, token, result in ended
                ],
                ordered=False,
            )
            await self._producer.send_and_wait(SIGNALS_TOPIC, _told([uid for uid, _, _ in ended]))
            self._finish(len(ended))
