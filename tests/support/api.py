"""The real application on a real socket in this process: its parts, its worker and a model to control."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from travelrec.connect import Parts, opened_models, opened_parts
from travelrec.fake_openai import FakeOpenAI, FakeSettings, running
from travelrec.settings import Settings
from travelrec_api.app import create_app
from travelrec_api.edge import Edge
from travelrec_api.server import served_in_process
from travelrec_worker.app import running_roles

MEMORY = {"broker_url": "memory://", "store_url": "memory://", "signal_url": "memory://"}
ASK = "/recommendations?country=Canada&season=winter"


@dataclass(frozen=True)
class Answered:
    """One response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    @property
    def json(self):
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Event:
    """One event of a stream; a comment has the name ":" and its text as data."""

    name: str
    data: str

    @property
    def json(self):
        """The data as JSON."""
        return json.loads(self.data)


@dataclass(frozen=True)
class Api:
    """A running API; `model` is what its worker asks, when it has one."""

    url: str
    parts: Parts
    edge: Edge
    http: aiohttp.ClientSession = field(repr=False)
    model: FakeOpenAI | None = None

    async def call(self, method: str, path: str, **options) -> Answered:
        """One request; `path` goes out as it is written, percent signs and all."""
        url = URL(self.url + path, encoded=True)
        async with self.http.request(method, url, allow_redirects=False, **options) as response:
            return Answered(response.status, response.headers, await response.read())

    async def get(self, path: str, **options) -> Answered:
        """GET."""
        return await self.call("GET", path, **options)

    async def ask(self, path: str = ASK, **options) -> str:
        """POST a request that is accepted; its uid."""
        answer = await self.call("POST", path, **options)
        assert answer.status == 202, answer.text
        return answer.json["uid"]

    async def ended(self, uid: str) -> dict[str, object]:
        """The body once the job has ended."""
        body = (await self.get(f"/recommendations?uid={uid}&wait=30")).json
        assert body["status"] != "pending", body
        return body

    @asynccontextmanager
    async def stream(self, uid: str) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of a job as they come; leaving breaks the connection."""
        async with self.follow(f"/recommendations/events?uid={uid}") as events:
            yield events

    @asynccontextmanager
    async def follow(self, path: str) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of a stream as they come; leaving breaks the connection."""
        async with self.http.get(f"{self.url}{path}") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            yield _events(response)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    name, data = "", ""
    async for raw in response.content:
        line = raw.decode().rstrip("\r\n")
        if line.startswith(":"):
            yield Event(":", line.removeprefix(":").strip())
        elif line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data += line.removeprefix("data:").strip()
        elif not line and name:
            yield Event(name, data)
            name, data = "", ""


@asynccontextmanager
async def running_api(
    *, parts: Parts | None = None, model: FakeSettings | None = None, roles=("jobs",), **settings
) -> AsyncIterator[Api]:
    """The API on a free port, in memory unless `settings` say otherwise; with `model` also a worker that asks it."""
    async with AsyncExitStack() as stack:
        read = Settings(**{**MEMORY, "grace_s": 0.0, "openai_base_url": "http://127.0.0.1:9/v1", **settings})
        opened = parts or await stack.enter_async_context(opened_parts(read))
        fake = None
        if model is not None:
            fake = await stack.enter_async_context(running(model))
            asked = read.model_copy(update={"openai_base_url": fake.base_url})
            await stack.enter_async_context(
                running_roles(roles, asked, opened, *await stack.enter_async_context(opened_models(asked)))
            )
        edge = create_app(read, opened)[1]
        listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle's delay on
        listening.bind(("127.0.0.1", 0))
        await stack.enter_async_context(served_in_process(edge, listening))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        http = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=30.0), cookie_jar=aiohttp.DummyCookieJar()
            )
        )
        yield Api(url, opened, edge, http, fake)


async def raw_exchange(url: str, sent: bytes) -> bytes:
    """What a server answers to these very bytes, until it closes or has nothing more to say."""
    address = URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length")
            ),
            0,
        )
        return head + await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()
