"""Chat: 1,000 connections over two APIs, 300 messages a second for a minute, a model that takes 200 ms.

Kafka, Redis, the MongoDB protocol, two APIs behind nginx (or without it, where it is not installed), two workers with
the role `chat` and one with `relay`, the offline model and all clients share this machine. A user says the next thing
when the last is answered, so time is counted from when a message was due: what is not the model's 200 ms is overhead.
CPU is printed for each process, in milliseconds a message.
"""

import asyncio
import itertools
import json
import resource
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import psutil
import uvloop

from bench.report import Row, table
from support import Kafka, Mongo, Process, Redis, eventually, free_port
from support.deployment import Deployment, url_of
from support.talking import UNAVAILABLE, length_in
from travelrec.chat.tokens import signed_token

_SECRET = "a secret of at least thirty-two characters"
_MODEL_S = 0.2
_AGAIN_S = 0.2
_SILENCE_S = 20.0
_LATE_S = 120.0  # after the last message
_AT_ONCE = 50  # connections that are made
_NGINX = Path(__file__).parents[1] / "docker" / "nginx.conf"


class User:
    """Says what is due, each thing once the last is answered; reconnects, with `since`, and repeats with its id."""

    def __init__(self, http: aiohttp.ClientSession, urls: Sequence[str], number: int) -> None:
        self.userid = f"user-{number}"
        self.heard: list[dict] = []
        self.waited_s: list[float] = []
        self.expected: list[int] = []
        self.reconnected = 0
        self.query = {"token": signed_token(_SECRET, self.userid, 3600), "userid": self.userid}
        self.connected = asyncio.Event()
        self._first = 10 + number % 97 * 30  # what others say has other lengths
        self._http = http
        self._urls = itertools.cycle(urls[number % len(urls) :] + urls[: number % len(urls)])
        self._due: deque[tuple[int, float]] = deque()
        self._more = asyncio.Event()

    def say(self, due_at: float) -> None:
        """One more thing is due."""
        self.expected.append(self._first + len(self.expected))
        self._due.append((self.expected[-1], due_at))
        self._more.set()

    @property
    def done(self) -> bool:
        """Whether all that was due is answered."""
        return not self._due

    async def talk(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await self._connect()
            self.reconnected += 1
            await asyncio.sleep(_AGAIN_S)

    async def _connect(self) -> None:
        since = {"since": self.heard[-1]["id"]} if self.heard else {}
        async with self._http.ws_connect(f"{next(self._urls)}/ws", params={**self.query, **since}) as socket:
            self.connected.set()
            while True:
                while not self._due:  # idle, but for what nobody asked for
                    self._more.clear()
                    listening = asyncio.ensure_future(socket.receive())
                    waiting = asyncio.ensure_future(self._more.wait())
                    await asyncio.wait((listening, waiting), return_when="FIRST_COMPLETED")
                    waiting.cancel()
                    if listening.done():
                        if listening.result().type is not aiohttp.WSMsgType.TEXT:
                            return
                        self.heard.append(listening.result().json())
                    else:
                        listening.cancel()
                        await asyncio.wait((listening,))
                if not await self._ask(socket):
                    return

    async def _ask(self, socket: aiohttp.ClientWebSocketResponse) -> bool:
        length, due_at = self._due[0]
        said = {"type": "message", "content": "x" * length, "userid": self.userid, "id": f"m-{length}"}
        await socket.send_str(json.dumps(said))
        message = await socket.receive(timeout=_SILENCE_S)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return False
        answer = message.json()
        if answer["type"] == "error":
            assert answer["message"] == UNAVAILABLE, answer
            await asyncio.sleep(_AGAIN_S)
            return True
        self.heard.append(answer)
        if length_in(answer) == length:
            self.waited_s.append(asyncio.get_running_loop().time() - due_at)
            self._due.popleft()
        return True


class Load:
    """All users, and what they saw."""

    def __init__(self, http: aiohttp.ClientSession, urls: Sequence[str], count: int) -> None:
        self.users = [User(http, urls, number) for number in range(count)]

    async def connect(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Every user has a connection; some at a time, as a backlog of connections has its end."""
        tasks = []
        for at in range(0, len(self.users), _AT_ONCE):
            some = self.users[at : at + _AT_ONCE]
            tasks += [group.create_task(user.talk()) for user in some]
            await asyncio.gather(*(user.connected.wait() for user in some))
        return tasks

    async def run(self, rate: float, seconds: float) -> None:
        """Messages at an even pace, each of the next user; returns when all are answered, or it is too late."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        users = itertools.cycle(self.users)
        for number in range(int(rate * seconds)):
            due_at = began + number / rate
            await asyncio.sleep(due_at - loop.time())
            next(users).say(due_at)
        with suppress(AssertionError):
            await eventually(lambda: all(user.done for user in self.users), _LATE_S)
        await asyncio.sleep(2.0)  # for what comes twice

    def report(self) -> dict[str, str]:
        """What was asked for and what was heard."""
        waited = sorted(each for user in self.users for each in user.waited_s)
        asked = sum(len(user.expected) for user in self.users)
        lost = twice = 0
        for user in self.users:
            heard = Counter(length_in(answer) for answer in user.heard if answer["type"] == "response")
            lost += sum(1 for length in user.expected if length not in heard)
            twice += sum(count - 1 for count in heard.values())
        wrong = sum(1 for user in self.users for answer in user.heard if answer["userid"] != user.userid)
        ordered = sum([length_in(answer) for answer in user.heard] == user.expected for user in self.users)

        def overhead(share: float) -> str:
            return f"{(waited[min(len(waited) - 1, int(share * len(waited)))] - _MODEL_S) * 1000:.0f}"

        return {
            "answered": f"{asked - lost:,} of {asked:,}",
            "lost": str(lost),
            "twice": str(twice),
            "other users'": str(wrong),
            "users in order": f"{ordered:,} of {len(self.users):,}",
            "reconnected": str(sum(user.reconnected for user in self.users)),
            "overhead p50 ms": overhead(0.5),
            "p95 ms": overhead(0.95),
            "p99 ms": overhead(0.99),
            "slowest s": f"{waited[-1]:.1f}",
        }


@contextmanager
def _nginx(apis: Sequence[Process]) -> Iterator[str | None]:
    """The address of an nginx before `apis`, with the configuration of compose; None where there is no nginx."""
    if shutil.which("nginx") is None:
        yield None
        return
    port = free_port()
    replicas = "".join(
        f"server {url_of(api).removeprefix('http://')} max_fails=1 fail_timeout=2s;" for api in apis
    )
    text = _NGINX.read_text().replace("server api:3000 max_fails=1 fail_timeout=2s;", replicas)
    text = text.replace("listen 3000 default_server", f"listen 127.0.0.1:{port} default_server")
    text = text.replace("  listen 8080 default_server backlog=4096;\n", "")
    with TemporaryDirectory() as folder:
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(text.replace("/tmp/", f"{folder}/"))
        with Process(["nginx", "-p", folder, "-c", configuration, "-g", "daemon off;"], name="nginx"):
            yield f"http://127.0.0.1:{port}"


def _tree(process: Process) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def _rss_kb(processes: Sequence[Process]) -> float:
    return sum(each.memory_info().rss for process in processes for each in _tree(process)) / 1024


def _cpu_s(process: Process) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in _tree(process))


async def _faults(deployment: Deployment, redis: Redis) -> None:
    chat, relay = deployment.workers[0], deployment.workers[-1]
    for process in (deployment.apis[0], chat, relay):
        await asyncio.sleep(7.0)
        await asyncio.to_thread(process.kill)
        await asyncio.sleep(2.0)
        process.start()
    await asyncio.sleep(7.0)
    await asyncio.to_thread(redis.restart)
    await asyncio.sleep(7.0)
    await asyncio.to_thread(deployment.kafka.stop)
    await asyncio.sleep(10.0)
    await asyncio.to_thread(deployment.kafka.start)


async def _measured(
    kafka: Kafka, mongo: Mongo, redis: Redis, *, users: int, rate: float, seconds: float, faults: bool
) -> Row:
    deployment = Deployment(
        kafka,
        mongo,
        apis=2,
        workers=3,
        REDIS_URL=redis.url,
        CHAT_TOKEN_SECRET=_SECRET,
        CHAT_RATE_LIMIT="100000",
        WEB_CONCURRENCY="1",
    )
    for worker, role in zip(deployment.workers, ("chat", "chat", "relay"), strict=True):
        worker.command.append(role)
    try:
        await deployment.healthy()
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            control = f"http://127.0.0.1:{deployment.model_port}/control"
            async with http.post(control, json={"latency_s": _MODEL_S}):
                pass
            nginx = stack.enter_context(_nginx(deployment.apis))
            load = Load(http, [nginx] if nginx else [url_of(api) for api in deployment.apis], users)
            before_kb = _rss_kb(deployment.apis)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            talking = await load.connect(group)
            await asyncio.sleep(2.0)
            each_kb = (_rss_kb(deployment.apis) - before_kb) / users
            parts = {process.name: process for process in deployment.processes}
            parts |= {"kafka": kafka.process, "redis": redis.process}
            cpu = {name: -_cpu_s(process) for name, process in parts.items()}
            own = -time.process_time()
            breaking = group.create_task(_faults(deployment, redis)) if faults else None
            await load.run(rate, seconds)
            if breaking is not None:
                await breaking
            else:
                count = rate * seconds / 1000
                used = {name: (cpu[name] + _cpu_s(process)) / count for name, process in parts.items()}
                used["clients"] = (own + time.process_time()) / count
                print("CPU ms a message:", {name: round(ms, 2) for name, ms in used.items()}, flush=True)
            for task in talking:
                task.cancel()
        way = "nginx" if nginx else "no nginx"
        memory = {} if faults else {"KB a connection": f"{each_kb:.0f}"}
        return Row(f"{users:,} connections, {rate:g} a second, {way}", {**load.report(), **memory})
    finally:
        deployment.close()


def run(users: int = 1_000, rate: float = 300.0, seconds: float = 60.0, *, faults: bool = False) -> str:
    """The table."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Kafka() as kafka, Mongo(durable=False) as mongo, Redis() as redis:
        measuring = _measured(kafka, mongo, redis, users=users, rate=rate, seconds=seconds, faults=faults)
        return table([uvloop.run(measuring)])
