"""The floor for a worker: what any correct one must do for a job, in the plainest form, with batches and no care.

Consume, claim under a token, call the model, write the result under the token, say so on the signals' topic, commit.
No retries, leases, coalescing, limits, sweeper, metrics or shutdown.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import UpdateOne

from travelrec.kinds.recommendation.run import run as recommend
from travelrec.ports import Model
from travelrec.wire import SIGNALS_TOPIC


class PlainPipeline:
    """Works on `topic` while it is open."""

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
        self._ended: list[tuple[str, str, dict[str, Any]]] = []
        self._some_ended = asyncio.Event()
        self._finished = 0
        self._wanted = 0
        self._all_finished = asyncio.Event()
        self._last_end = 0.0

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, kafka: str, topic: str, mongo: str, database: str, model: Model, concurrency: int
    ) -> "AsyncIterator[PlainPipeline]":
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
        pipeline = cls(consumer, producer, client[database]["jobs"], model, concurrency)
        tasks = [asyncio.create_task(loop()) for loop in (pipeline._take, pipeline._settle, pipeline._commit)]
        try:
            yield pipeline
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

    async def _take(self) -> None:
        running = set()
        while True:
            if self._free <= 0:
                self._freed.clear()
                await self._freed.wait()
            found = await self._consumer.getmany(timeout_ms=500, max_records=self._free)
            uids = [json.loads(record.value)["uid"] for records in found.values() for record in records]
            if not uids:
                continue
            token = uuid4().hex
            lease = {"phase": "running", "token": token, "due_at": time.time() + 30}
            await self._jobs.bulk_write(
                [
                    UpdateOne({"_id": uid, "token": None}, {"$set": lease, "$inc": {"claims": 1}})
                    for uid in uids
                ],
                ordered=False,
            )
            for job in await self._jobs.find({"_id": {"$in": uids}, "token": token}).to_list(None):
                self._free -= 1
                task = asyncio.create_task(self._run(job))
                running.add(task)
                task.add_done_callback(running.discard)

    async def _run(self, job: dict[str, Any]) -> None:
        result = await recommend(job["params"], self._model, 30.0)
        self._free += 1
        self._freed.set()
        self._ended.append((job["_id"], job["token"], result))
        self._some_ended.set()

    async def _settle(self) -> None:
        while True:
            await self._some_ended.wait()
            self._some_ended.clear()
            ended, self._ended = self._ended, []
            now = time.time()
            changes = {"status": "completed", "ended_at": now, "due_at": now + 604800, "token": "-"}
            await self._jobs.bulk_write(
                [
                    UpdateOne(
                        {"_id": uid, "token": token},
                        {"$set": {**changes, "result": result}, "$unset": {"phase": ""}},
                    )
                    for uid, token, result in ended
                ],
                ordered=False,
            )
            told = json.dumps({"v": 1, "ended": [[uid, "completed"] for uid, _, _ in ended]}).encode()
            await self._producer.send_and_wait(SIGNALS_TOPIC, told)
            self._finished += len(ended)
            self._last_end = now
            if self._finished >= self._wanted:
                self._all_finished.set()

    async def _commit(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            await self._consumer.commit()
