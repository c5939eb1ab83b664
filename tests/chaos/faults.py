"""What each fault of the schedule does to the deployment."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError

from chaos.arena import Arena
from chaos.history import History, Incident
from chaos.schedule import Deed, Due, Item, Target
from support import Process, Proxy, Server
from travelrec.connect import opened_parts
from travelrec.errors import BrokerUnavailable
from travelrec.settings import Settings
from travelrec.wire import JOBS_GROUP, JOBS_TOPIC

WRITTEN_S = 0.2  # by then the MongoDB of the tests has on disk what it has acknowledged
SLOW_S = 0.2
ENDS_WITHIN_S = 60.0
LOOK_S = 0.1
LATE_S = 1.0


class Faults:
    """Does what is due to what is not suffering already, and starts again what ends; all of it is in the history."""

    def __init__(self, arena: Arena, history: History, say: Callable[[str], None]) -> None:
        self._arena = arena
        self._history = history
        self._say = say
        self._began = time.time()
        self._suffering: set[str] = set()
        self._begun = Counter[str]()  # target → how many faults

    async def cause(self, due: Due) -> None:
        """One fault from its beginning to its end; nothing when each of its targets suffers another."""
        item = due.item
        free = [target for target in self._targets(item.fault.target) if target not in self._suffering]
        if not free:
            return
        target = free[int(due.pick * len(free))]
        self._suffering.add(target)
        self._begun[target] += 1
        self._tell(f"{item.name} {target}" + (f" for {item.seconds:g} s" if item.seconds else ""))
        began = time.time()
        try:
            over = await self._do(item, target)
        except BrokerUnavailable as error:  # of the member that was to join
            self._tell(f"{item.name} did not come to pass: {error}")
        else:
            self._history.incidents.append(Incident(item.name, target, began, over))
        finally:
            self._suffering.discard(target)

    async def supervise(self) -> None:
        """Starts again what has ended by itself, until cancelled; that is in the history too."""
        while True:
            for process in self._processes.values():
                if not process.alive and process.name not in self._suffering:
                    now = time.time()
                    self._tell(f"{process.name} has ended by itself with {process.returncode}")
                    self._history.incidents.append(Incident("died", process.name, now - LOOK_S, now))
                    process.start()
            await asyncio.sleep(LOOK_S)

    async def watch_store(self) -> None:
        """Until cancelled: notes when MongoDB is late by itself, as on a machine that has too much to do."""
        async with AsyncMongoClient[dict[str, Any]](self._arena.mongo.url) as client:
            while True:
                await asyncio.sleep(LOOK_S)
                if "store" in self._suffering:
                    continue
                began, faults = time.time(), self._begun["store"]
                with suppress(PyMongoError):
                    await client.admin.command("ping")
                    now = time.time()
                    if now - began > LATE_S and self._begun["store"] == faults:
                        self._tell(f"MongoDB was late by {now - began:.1f} s")
                        self._history.incidents.append(Incident("store-late", "store", began, now))

    async def _do(self, item: Item, target: str) -> float:
        """Returns, once what was away is back, when the fault was over: of a killed process, when it was gone."""
        deed = item.fault.deed
        if process := self._processes.get(target):
            match deed:
                case "kill":
                    return await self._kill(process)
                case "term":
                    return await self._term(process)
                case _:
                    await _frozen(process, item.seconds)
        elif deed == "join":
            await self._join(item.seconds)
        elif deed in ("cut", "slow", "hang"):
            await _troubled(self._arena.proxies[target], deed, item.seconds)
        else:
            server = self._servers[target]
            match deed:
                case "kill":
                    await self._kill_server(server, self._arena.proxies.get(target), item.seconds)
                case "restart":
                    await asyncio.to_thread(server.restart)
                case _:
                    await _frozen(server.process, item.seconds)
        return time.time()

    async def _kill(self, process: Process) -> float:
        await asyncio.to_thread(process.kill)
        gone = time.time()
        process.start()
        return gone

    async def _term(self, process: Process) -> float:
        process.terminate()
        try:
            await process.wait(ENDS_WITHIN_S)
        except AssertionError:
            self._history.odd.append(f"{process.name} did not end within {ENDS_WITHIN_S:g} s of SIGTERM")
        return await self._kill(process)

    async def _kill_server(self, server: Server, proxy: Proxy | None, seconds: float) -> None:
        """With a proxy, no answer gets out before it is killed, so that nobody knows of what was not on disk yet."""
        if proxy is not None:
            proxy.freeze()
            await asyncio.sleep(WRITTEN_S)
        await asyncio.to_thread(server.kill)
        if proxy is not None:
            proxy.drop()
            proxy.thaw()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)

    async def _join(self, seconds: float) -> None:
        """Takes part in the workers' group, without a look at what it is given."""
        settings = Settings(_env_file=None, broker_url=self._arena.broker.url, store_url="memory://")
        try:
            async with (
                asyncio.timeout(ENDS_WITHIN_S),
                opened_parts(settings) as parts,
                parts.broker.subscribe(JOBS_TOPIC, JOBS_GROUP),
            ):
                await asyncio.sleep(seconds)
        except TimeoutError as error:
            raise BrokerUnavailable(f"not within {ENDS_WITHIN_S:g} s") from error

    @property
    def _servers(self) -> dict[str, Server]:
        return {"broker": self._arena.broker, "store": self._arena.mongo}

    @property
    def _processes(self) -> dict[str, Process]:
        return {each.name: each for each in (*self._arena.workers, *self._arena.apis)}

    def _targets(self, kind: Target) -> list[str]:
        match kind:
            case "api":
                return [each.name for each in self._arena.apis]
            case "worker":
                return [each.name for each in self._arena.workers]
            case "process":
                return list(self._processes)
            case _:
                return [kind]

    def _tell(self, text: str) -> None:
        self._say(f"{time.time() - self._began:6.1f} s  {text}")


async def _frozen(process: Process, seconds: float) -> None:
    await asyncio.to_thread(process.freeze)
    await asyncio.sleep(seconds)
    process.thaw()


async def _troubled(proxy: Proxy, deed: Deed, seconds: float) -> None:
    match deed:
        case "cut":
            proxy.cut()
        case "slow":
            proxy.delay(SLOW_S)
        case _:
            proxy.freeze()
    await asyncio.sleep(seconds)
    proxy.restore()
