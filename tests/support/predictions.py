"""Predictions as their callers ask for them, and whether each ended once."""

import asyncio
import itertools
from collections import Counter
from typing import Any

import aiohttp
from pymongo import AsyncMongoClient

from support.deployment import Deployment, together


class Predicting:
    """Asks APIs in turn; `asked` are the inputs by id, `results` what came of them."""

    def __init__(self, http: aiohttp.ClientSession, urls: list[str]) -> None:
        self._http = http
        self._urls = urls
        self.asked: dict[str, str] = {}
        self.results: dict[str, Any] = {}
        self.refused: list[tuple[int, str]] = []

    async def ask(self, total: int, *, clients: int, pause_s: float = 0.0) -> None:
        """`total` predictions that are not waited for, by `clients` at once."""
        numbers = iter(range(total))

        async def client() -> None:
            for number in numbers:
                text = f"input {number}"
                url = self._urls[number % len(self._urls)]
                headers = {"Async-Mode": "true"}
                async with self._http.post(
                    f"{url}/predict", json={"input": text}, headers=headers
                ) as response:
                    if response.status == 202:
                        self.asked[(await response.json())["prediction_id"]] = text
                    else:
                        self.refused.append((response.status, await response.text()))
                await asyncio.sleep(pause_s)

        await together(client() for _ in range(clients))

    async def wait_for(self, text: str) -> dict[str, Any]:
        """The body of one that is waited for."""
        async with self._http.post(f"{self._urls[0]}/predict", json={"input": text}) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def all_ended(self, timeout_s: float, clients: int = 50) -> None:
        """Returns when each that was accepted has a result of its own input."""
        uids = iter(list(self.asked))
        turns = itertools.count()

        async def client() -> None:
            for uid in uids:
                while True:
                    url = self._urls[next(turns) % len(self._urls)]
                    async with self._http.get(f"{url}/predict/{uid}") as response:
                        body = await response.json()
                    if response.status == 200:
                        break
                    assert response.status == 400, (uid, response.status, body)
                    await asyncio.sleep(0.2)
                assert body["prediction_id"] == uid
                assert body["output"]["input"] == self.asked[uid]
                self.results[uid] = body["output"]["result"]

        async with asyncio.timeout(timeout_s):
            await together(client() for _ in range(clients))


async def lost_and_doubled(deployment: Deployment, uids: dict[str, str]) -> tuple[int, int]:
    """How many of `uids` have not ended in the store, and how many ends the workers have told beyond one for each."""
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(deployment.mongo.url)
    try:
        records = client[deployment.database].jobs.find({"_id": {"$in": list(uids)}, "status": "completed"})
        ended = {record["_id"] async for record in records}
    finally:
        await client.close()
    told = Counter(
        uid
        for worker in deployment.workers
        for line in worker.output().splitlines()
        if '"job finished"' in line and (uid := line.partition('"uid": "')[2][:32]) in uids
    )
    return len(uids.keys() - ended), sum(count - 1 for count in told.values() if count > 1)
