"""The load: clients that ask all APIs, repeat what broke, and note what they were told."""

import asyncio
import itertools
import json
import random
import time
from collections import Counter

import aiohttp

from chaos.history import Asked, History, Told
from support import Process
from support.deployment import url_of
from travelrec.kinds.recommendation.places import COUNTRIES

SEASONS = ("spring", "summer", "autumn", "winter")
KEYED = 0.25  # the share of requests that carry an Idempotency-Key, and are repeated until they are answered
TWICE = 0.25  # the share of those that are sent again after their answer
AGAIN = 0.25  # the share of ends that are looked at again at once
WAIT_S = 20
LOOKS = 300
PAUSE_S = 0.1
REST_S = 60.0  # for a key of which there may be a job that nobody knows of

BROKEN = (aiohttp.ClientError, OSError, TimeoutError)


class Clients:
    """Asks `jobs` times, `clients` at once, over at least `seconds`; every job is followed to its end.

    Without `zipf` no two unfinished jobs are of one key: a key is taken again when its job has ended. With it, the
    keys are `zipf` many, the n-th as popular as 1/n.
    """

    def __init__(
        self,
        history: History,
        http: aiohttp.ClientSession,
        apis: list[Process],
        *,
        jobs: int,
        clients: int,
        seconds: float,
        seed: int,
        zipf: int | None,
    ) -> None:
        self.counts = Counter[str]()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._history = history
        self._http = http
        self._apis = apis
        self._jobs, self._clients, self._seconds = jobs, clients, seconds
        self._chance = random.Random(f"{seed} clients")
        self._seed = seed
        self._numbers = itertools.count()
        keys = list(itertools.product(COUNTRIES, SEASONS))
        self._chance.shuffle(keys)
        self._zipf = keys[:zipf] if zipf else []
        self._free: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        for key in keys:
            self._free.put_nowait(key)
        self._ended: dict[str, Told] = {}

    async def ask(self, group: asyncio.TaskGroup) -> None:
        """Returns when every request was answered; the jobs are followed in `group`."""
        began = time.monotonic()

        async def client() -> None:
            while (number := next(self._numbers)) < self._jobs:
                await asyncio.sleep(began + number * self._seconds / self._jobs - time.monotonic())
                key = self._chance.choices(self._zipf, _weights(len(self._zipf)))[0] if self._zipf else None
                country, season = key or await self._free.get()
                asked = await self._answered(number, country, season)
                self.counts["answered"] += 1
                self._following[asked.uid] = group.create_task(self._follow(asked))

        async with asyncio.TaskGroup() as asking:
            for _ in range(self._clients):
                asking.create_task(client())

    async def all_ended(self, patience_s: float) -> bool:
        """Whether all that was asked for has ended in time; nothing is followed any more then."""
        following = list(self._following.values())
        if not following:
            return True
        _, late = await asyncio.wait(following, timeout=patience_s)
        for task in late:
            task.cancel()
        return not late

    async def look_at_all(self) -> None:
        """Every uid is read once more."""
        uids = iter(dict.fromkeys(asked.uid for asked in self._history.asked))

        async def client() -> None:
            for uid in uids:
                self._note(await self._told(uid))

        async with asyncio.TaskGroup() as looking:
            for _ in range(50):
                looking.create_task(client())

    async def _answered(self, number: int, country: str, season: str) -> Asked:
        """Asks until there is a uid."""
        keyed = self._chance.random() < KEYED
        idempotency_key = f"chaos-{self._seed}-{number}" if keyed else None
        asked = await self._posted(country, season, idempotency_key)
        if keyed and self._chance.random() < TWICE:
            await self._posted(country, season, idempotency_key)
        return asked

    async def _posted(self, country: str, season: str, idempotency_key: str | None) -> Asked:
        """Asks until there is a uid; for another key when there may be a job now that nobody will ever know of."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        while True:
            url = f"{url_of(self._chance.choice(self._apis))}/recommendations"
            params = {"country": country, "season": season}
            at = time.time()
            try:
                async with self._http.post(url, params=params, headers=headers) as response:
                    status, body = response.status, await _body(response)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(PAUSE_S)
                continue
            except BROKEN:
                self.counts["broken off"] += 1
                if idempotency_key is None and not self._zipf:
                    asyncio.get_running_loop().call_later(REST_S, self._free.put_nowait, (country, season))
                    country, season = await self._free.get()
                continue
            if status == 202:
                asked = Asked(str(body["uid"]), country, season, at, idempotency_key)
                self._history.asked.append(asked)
                return asked
            self.counts["refused"] += 1
            if status != 503 or "said" in body:
                self._history.odd.append(f"POST {params}: {status} {body}")
            await asyncio.sleep(float(response.headers.get("Retry-After", PAUSE_S)))

    async def _follow(self, asked: Asked) -> None:
        """Waits for the end in one of three ways, and may look at it again."""
        way = self._chance.choice((self._stream, self._poll, self._long_poll, self._long_poll))
        while asked.uid not in self._ended:
            told = await way(asked.uid)
            if told is None:
                await asyncio.sleep(PAUSE_S)
                continue
            self._note(told)
            if told.status == 404:
                return
            if not told.ended and (told.status != 200 or way == self._poll):
                await asyncio.sleep(1.0)
        self.counts["ended"] += 1
        self._free.put_nowait((asked.country, asked.season))
        if self._chance.random() < AGAIN and (again := await self._get(asked.uid, wait_s=0)) is not None:
            self._note(again)

    async def _told(self, uid: str) -> Told:
        """What the next API tells that answers."""
        for _ in range(LOOKS):
            if told := await self._get(uid, wait_s=0):
                return told
            await asyncio.sleep(PAUSE_S)
        raise AssertionError(f"no API answers, {LOOKS} times")

    async def _long_poll(self, uid: str) -> Told | None:
        return await self._get(uid, wait_s=WAIT_S)

    async def _poll(self, uid: str) -> Told | None:
        return await self._get(uid, wait_s=0)

    async def _get(self, uid: str, wait_s: int) -> Told | None:
        """What an API tells; None when the connection breaks."""
        api, asked_at = self._chance.choice(self._apis), time.time()
        try:
            async with self._http.get(
                f"{url_of(api)}/recommendations", params={"uid": uid, "wait": wait_s}
            ) as response:
                body = await _body(response)
                return Told(uid, asked_at, time.time(), api.name, response.status, body)
        except BROKEN:
            return None

    async def _stream(self, uid: str) -> Told | None:
        """The last event of a stream; None when it breaks before there is one."""
        api, asked_at = self._chance.choice(self._apis), time.time()
        last: Told | None = None
        try:
            async with self._http.get(
                f"{url_of(api)}/recommendations/events", params={"uid": uid}
            ) as response:
                if response.status != 200:
                    body = await _body(response)
                    return Told(uid, asked_at, time.time(), f"{api.name} stream", response.status, body)
                async for line in response.content:
                    if line.startswith(b"data: "):
                        body = json.loads(line.removeprefix(b"data: "))
                        last = Told(uid, asked_at, time.time(), f"{api.name} stream", 200, body)
        except BROKEN:
            pass
        return last

    def _note(self, told: Told) -> None:
        """Keeps an end, whatever comes after one, and what should not be."""
        if told.status not in (200, 404, 503) or "said" in told.body:
            self._history.odd.append(f"GET {told.uid} at {told.by}: {told.status} {told.body}")
        if told.ended:
            self._ended.setdefault(told.uid, told)
        if told.uid in self._ended or told.status == 404:
            self._history.told.append(told)


async def _body(response: aiohttp.ClientResponse) -> dict[str, object]:
    """Its JSON, or whatever else it says, which it should not."""
    said = await response.text()
    try:
        body = json.loads(said)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"said": said}


def _weights(count: int) -> list[float]:
    return [1 / (rank + 1) for rank in range(count)]
