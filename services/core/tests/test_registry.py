"""The client of a schema registry, on a real one."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from support import Registry, free_port, unique_name
from travelrec.adapters.registry import HttpRegistry
from travelrec.errors import RegistryUnavailable, SchemaRefused, UnknownSchema

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def registry(registry_server: Registry) -> AsyncIterator[HttpRegistry]:
    async with HttpRegistry.opened(registry_server.url, timeout_s=20.0) as opened:
        yield opened


@pytest.fixture
def subject() -> str:
    return f"{unique_name('subject')}-value"


def schema(name: str, **fields: object) -> str:
    return json.dumps(
        {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}
    )


def record_name() -> str:
    return unique_name("R").replace("-", "_")


def with_default(text: str, name: str, type_: str, default: object) -> str:
    whole = json.loads(text)
    return json.dumps(
        {**whole, "fields": [*whole["fields"], {"name": name, "type": type_, "default": default}]}
    )


async def test_a_schema_is_found_by_its_number(registry: HttpRegistry, subject: str) -> None:
    """Registered once it has a number for good, also where several do so at once."""
    text = schema(record_name(), a="string")
    numbers = await asyncio.gather(*(registry.register(subject, text) for _ in range(4)))
    assert len(set(numbers)) == 1
    assert await registry.register(subject, text) == numbers[0]
    assert json.loads(await registry.schema(numbers[0])) == json.loads(text)


async def test_a_compatible_schema_is_a_new_version(registry: HttpRegistry, subject: str) -> None:
    """A field with a default may come; both versions keep their numbers."""
    old = schema(record_name(), a="string")
    new = with_default(old, "b", "int", 7)
    first, second = await registry.register(subject, old), await registry.register(subject, new)
    assert first != second
    assert (await registry.register(subject, old), await registry.register(subject, new)) == (first, second)


async def test_an_incompatible_schema_is_refused_with_the_reason(
    registry: HttpRegistry, subject: str
) -> None:
    """A field without a default: refused, the reason names it, and the newest version is the old one."""
    name = record_name()
    old, bad = schema(name, a="string"), schema(name, a="string", cost="int")
    number = await registry.register(subject, old)
    with pytest.raises(SchemaRefused, match=rf"{subject}.*cost"):
        await registry.register(subject, bad)
    assert await registry.register(subject, old) == number
    with pytest.raises(SchemaRefused):
        await registry.register(subject, bad)


async def test_what_is_no_schema_is_refused(registry: HttpRegistry, subject: str) -> None:
    """The registry can't read it: asking again will not help."""
    with pytest.raises(SchemaRefused, match=subject):
        await registry.register(subject, '{"type": "nothing"}')


async def test_a_number_that_nobody_knows(registry: HttpRegistry) -> None:
    """Is said to be unknown, which is not the same as a registry that is away."""
    with pytest.raises(UnknownSchema, match="987654"):
        await registry.schema(987_654)


async def test_it_answers(registry: HttpRegistry) -> None:
    """A registry that is there lets a probe pass."""
    await registry.ping()


async def test_a_registry_that_is_away_is_said_in_time() -> None:
    """Nobody listens: every call says so after its tries."""
    async with HttpRegistry.opened(f"http://127.0.0.1:{free_port()}", timeout_s=2.0) as registry:
        for call in (registry.ping(), registry.schema(1), registry.register("s", '"string"')):
            with pytest.raises(RegistryUnavailable, match="reached"):
                await call


async def test_a_registry_that_hangs_is_said_in_time(registry_server: Registry) -> None:
    """It takes the connection and answers nothing: the call ends, and the next one after that works."""
    async with (
        registry_server.proxy() as proxy,
        HttpRegistry.opened(
            registry_server.url.replace(str(registry_server.port), str(proxy.port)), timeout_s=0.5
        ) as registry,
    ):
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            await registry.schema(1)
        assert time.monotonic() - began < 20


async def test_what_is_no_registry_is_said(registry_server: Registry) -> None:
    """Another server's answers are told as they are: a 404 of it says nothing about a schema."""
    async with HttpRegistry.opened(f"http://{registry_server.address}/nowhere", timeout_s=20.0) as registry:
        for call in (registry.ping(), registry.schema(1), registry.register("s", '"string"')):
            with pytest.raises(RegistryUnavailable, match="404"):
                await call


@pytest.mark.parametrize(
    "body",
    [
        "default backend - 404",
        '{"error_code": 404, "message": "HTTP 404 Not Found"}',
        '{"message": "no route"}',
        "[40403]",
    ],
)
async def test_a_404_of_whoever_stands_before_the_registry_is_no_answer_of_it(body: str) -> None:
    """An ingress, a proxy, a path that is not the API's: only `error_code` 404xx says that a schema is unknown."""

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(status=404, text=body)

    async with (
        RawTestServer(answer) as ingress,
        HttpRegistry.opened(str(ingress.make_url("")), timeout_s=20.0) as registry,
    ):
        with pytest.raises(RegistryUnavailable, match="404"):
            await registry.schema(1)
