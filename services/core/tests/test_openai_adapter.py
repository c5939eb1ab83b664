"""The model over the OpenAI SDK, on real sockets: what each trouble of a provider becomes, and what is sent."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any  # JSON

import pytest
from aiohttp import web

from support import eventually, free_port
from travelrec.adapters.openai import OpenAIModel
from travelrec.errors import (
    BadKey,
    BadModelRequest,
    BrokenOutput,
    Filtered,
    Forbidden,
    ModelBusy,
    ModelError,
    ModelTimeout,
    NoQuota,
    ProviderDown,
    RateLimited,
    Refused,
    Truncated,
)
from travelrec.fake_openai import FAULTS, FakeSettings, running
from travelrec.kinds.recommendation.prompt import question
from travelrec.ports import Answer, Conversation, Question, Turn

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

KEY = "sk-not-to-be-told"
QUESTION = question("Côte d'Ivoire", "winter")
SOON_S = 0.4  # for a call that is to time out
LONG_S = 30.0


@asynccontextmanager
async def model(base_url: str, connections: int = 10) -> AsyncIterator[OpenAIModel]:
    async with OpenAIModel.opened(
        api_key=KEY, base_url=base_url, model="gpt-4o-mini", connections=connections
    ) as opened:
        yield opened


async def error_of(base_url: str, timeout_s: float = LONG_S) -> ModelError:
    async with model(base_url) as asked:
        with pytest.raises(ModelError) as raised:
            await asked.ask(QUESTION, timeout_s)
    return raised.value


@dataclass
class Server:
    """Answers what it is told to and keeps what it was asked."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.asked.append((request.path, dict(request.headers), json.loads(await request.read())))
        headers = {"Content-Type": "application/json", **self.headers}
        return web.Response(status=self.status, body=self.body, headers=headers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        server = web.Server(self.handle)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            listener.close()
            await server.shutdown(timeout=1)


def completion(**message: object) -> bytes:
    return json.dumps(
        {
            "model": "m-1",
            "choices": [{"finish_reason": "stop", "message": {"role": "assistant", **message}}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7},
        }
    ).encode()


OF_FAULT: dict[str, type[ModelError] | None] = {
    "429": RateLimited,
    "429-no-retry-after": RateLimited,
    "quota": NoQuota,
    "401": BadKey,
    "403": Forbidden,
    "500": ModelBusy,
    "503": ModelBusy,
    "reset": ModelBusy,
    "hang": ModelTimeout,
    "slow-drip": ModelTimeout,
    "half-body": ModelBusy,
    "refusal": Refused,
    "length": Truncated,
    "content-filter": Filtered,
    "wrong-model": BadModelRequest,
    "no-json-schema": None,  # then it is asked for JSON alone
    # the answer as such is fine; the kind looks at its text
    "broken-json": None,
    "wrong-schema": None,
    "wrong-count": None,
    "duplicates": None,
    "empty-strings": None,
    "markup": None,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_one_error_of_ours(fault: str) -> None:
    """Every trouble the offline model can make is told apart, costs one request, and gives nothing away."""
    expected = OF_FAULT[fault]
    async with running(FakeSettings(faults={fault: 1.0})) as fake:
        timeout_s = SOON_S if expected is ModelTimeout else LONG_S
        if expected is None:
            async with model(fake.base_url) as asked:
                assert isinstance(await asked.ask(QUESTION, timeout_s), Answer)
        else:
            error = await error_of(fake.base_url, timeout_s)
            assert type(error) is expected
            assert_fit_for_a_user(error)
        assert fake.stats()["calls"] == (2 if fault == "no-json-schema" else 1)


@dataclass
class Picky(Server):
    """Rejects every `response_format`."""

    async def handle(self, request: web.BaseRequest) -> web.Response:
        self.body, self.status = completion(content="{}"), 200
        if "response_format" in json.loads(await request.read()):
            self.body, self.status = b'{"error": {"message": "Unknown field response_format."}}', 400
        return await super().handle(request)


async def test_a_server_that_knows_no_answer_format_is_asked_in_words() -> None:
    """From schema to JSON mode to words, once; every form below the first has the schema in its prompt."""
    async with Picky().running() as server, model(server.url) as asked:
        for _ in range(2):
            assert (await asked.ask(QUESTION, LONG_S)).text == "{}"
    bodies = [body for _, _, body in server.asked]
    forms = [body.get("response_format", {}).get("type") for body in bodies]
    assert forms == ["json_schema", "json_object", None, None]
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert [json.dumps(QUESTION.schema) in prompt for prompt in prompts] == [False, True, True, True]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": 1}}',
        'Sure!\n```json\n{"a": {"b": 1}}\n```\nEnjoy {it}.',
        'First {this}, then {"a": {"b": 1}}.',
        '{"a": {"b": 1}}\n\nEnjoy your trip!',
        ' {this}: {"a": {"b": 1}}',
    ],
)
async def test_the_object_in_the_text_is_the_answer(text: str) -> None:
    """Code fences and pleasantries around the first JSON object are no reason to pay a second time."""
    async with Server(completion(content=text)).running() as server, model(server.url) as asked:
        assert (await asked.ask(QUESTION, LONG_S)).text == '{"a": {"b": 1}}'


def assert_fit_for_a_user(error: ModelError) -> None:
    told = f"{error} {error.title} {error!r}"
    for secret in (KEY, "Ivoire", "winter", QUESTION.system[:30], "http://", "127.0.0.1"):
        assert secret not in told
    assert str(error).endswith(".")
    assert len(str(error)) < 120


async def test_an_answer_is_read_whole() -> None:
    """Text, the model's name as the provider gives it, and the tokens."""
    async with Server(completion(content="Hé.")).running() as server, model(server.url) as asked:
        answer = await asked.ask(QUESTION, LONG_S)
    assert (answer.text, answer.model, answer.input_tokens, answer.output_tokens) == ("Hé.", "m-1", 11, 7)


async def test_what_is_asked_arrives() -> None:
    """Both messages, the schema, the limit, the model's name and the key are in the one request."""
    asked_for = Question("Be brief.", 'Où? "là"\n', "places", {"type": "object", "a": [1, None]}, 321)
    async with Server(completion(content="x")).running() as server, model(server.url) as asked:
        await asked.ask(asked_for, LONG_S)
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": 'Où? "là"\n'},
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "places",
                "strict": True,
                "schema": {"type": "object", "a": [1, None]},
            },
        },
        "max_completion_tokens": 321,
    }


async def test_a_model_that_thinks_gets_tokens_for_it() -> None:
    """Besides those of the answer, whatever is asked."""
    async with Server(completion(content="x")).running() as server:
        opened = OpenAIModel.opened(
            api_key=KEY, base_url=server.url, model="m", connections=1, reasoning_tokens=2_000
        )
        async with opened as asked:
            await asked.ask(Question("Be brief.", "Où?", "places", {"type": "object"}, 321), LONG_S)
            await asked.ask(Conversation("Be brief.", (), 100), LONG_S)
    assert [body["max_completion_tokens"] for _, _, body in server.asked] == [2_321, 2_100]


async def test_the_products_own_question_is_valid() -> None:
    """The offline model, which refuses what OpenAI's strict mode refuses, answers the real question."""
    async with running() as fake, model(fake.base_url) as asked:
        answer = await asked.ask(QUESTION, LONG_S)
        assert list(fake.stats()["by_key"]) == [QUESTION.user]
    assert len(json.loads(answer.text)["recommendations"]) == 3


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, BadModelRequest),
        (401, BadKey),
        (402, NoQuota),
        (403, Forbidden),
        (404, BadModelRequest),
        (408, ModelBusy),
        (409, ModelBusy),
        (413, BadModelRequest),
        (422, BadModelRequest),
        (425, ModelBusy),
        (429, RateLimited),
        (500, ModelBusy),
        (502, ModelBusy),
        (503, ModelBusy),
        (504, ModelBusy),
        (529, ModelBusy),
    ],
)
async def test_each_status_is_told_apart(status: int, expected: type[ModelError]) -> None:
    """By the status alone, whatever a proxy in between writes into the body."""
    bodies = [b"", b"<html>Bad gateway</html>", b'{"error": null}', b'{"error": {"code": 7}}']
    async with Server(status=status).running() as server, model(server.url) as asked:
        for server.body in bodies:
            with pytest.raises(expected) as raised:
                await asked.ask(QUESTION, LONG_S)
            assert type(raised.value) is expected
            assert_fit_for_a_user(raised.value)
    assert len(server.asked) == len(bodies)


@pytest.mark.parametrize("status", [429, 503, 500, 408])
async def test_the_wish_of_the_provider_is_read(status: int) -> None:
    """What a provider asks to wait is passed on, for a limit and for an overload."""
    wishes: list[tuple[dict[str, str], float | None]] = [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        ({"RETRY-AFTER": "1.5"}, 1.5),
        ({"Retry-After": "-7"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ]
    async with Server(b"{}", status).running() as server, model(server.url) as asked:
        for server.headers, expected in wishes:
            with pytest.raises(RateLimited if status == 429 else ModelBusy) as raised:
                await asked.ask(QUESTION, LONG_S)
            assert raised.value.retry_after_s == expected


async def test_a_date_to_come_back_at_is_read() -> None:
    """A `Retry-After` with a date counts from now."""
    at = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 120))
    async with Server(b"{}", 429, {"Retry-After": at}).running() as server:
        error = await error_of(server.url)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s is not None
    assert 60 < error.retry_after_s <= 120


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"<html>Welcome</html>",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": {"0": 1}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {}}]}',
        b'{"choices": [{"message": "Hello"}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"message": {"content": [{"text": "a"}]}}]}',
        b'{"choices": [{"message": {"content": "a"}}], "usage": []}'.replace(b"[]", b"[1]"),
        b"[" * 100_000,
        b"\xff\xfe\x00",
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_something_else_than_a_completion(body: bytes) -> None:
    """A 200 with anything else in it is broken output, and never another error."""
    async with Server(body).running() as server:
        error = await error_of(server.url)
    assert type(error) is BrokenOutput
    assert_fit_for_a_user(error)


@pytest.mark.parametrize(
    "usage",
    [
        *(b"", b', "usage": null', b', "usage": {}', b', "usage": {"prompt_tokens": null}'),
        *(b', "usage": {"prompt_tokens": "many"}', b', "usage": {"completion_tokens": -35}'),
        b', "usage": {"completion_tokens": 1' + b"0" * 400 + b"}",
    ],
)
async def test_an_answer_without_usage_counts(usage: bytes) -> None:
    """A compatible server that counts no tokens and names no model is understood."""
    body = b'{"choices": [{"message": {"content": null}}]' + usage + b"}"
    async with Server(body).running() as server, model(server.url) as asked:
        answer = await asked.ask(QUESTION, LONG_S)
    assert (answer.text, answer.model, answer.input_tokens, answer.output_tokens) == ("", "", 0, 0)


@pytest.mark.parametrize("fault", ["hang", "slow-drip"])
async def test_the_time_is_kept(fault: str) -> None:
    """A call ends in its time, also when bytes keep coming, and the server sees it go."""
    async with running(FakeSettings(faults={fault: 1.0})) as fake:
        began = time.monotonic()
        assert type(await error_of(fake.base_url, SOON_S)) is ModelTimeout
        assert SOON_S * 0.9 <= time.monotonic() - began < SOON_S + 3
        await eventually(lambda: fake.stats()["in_flight"] == 0)


async def test_nobody_listens() -> None:
    """A refused connection is the provider's trouble, not the job's."""
    error = await error_of(f"http://127.0.0.1:{free_port()}/v1")
    assert type(error) is ProviderDown
    assert_fit_for_a_user(error)


async def test_a_host_that_does_not_exist() -> None:
    """A name without an address is the provider's trouble as well."""
    error = await error_of("http://nowhere.invalid/v1")
    assert type(error) is ProviderDown
    assert "nowhere" not in str(error)


async def test_a_server_that_does_not_speak_tls() -> None:
    """A wrong scheme in the base URL is found out without costing jobs their attempts."""
    async with running() as fake:
        assert type(await error_of(fake.base_url.replace("http://", "https://"))) is ProviderDown


async def test_a_cancelled_call_is_aborted() -> None:
    """Who stops waiting closes the connection, so that the provider can stop too."""
    async with running(FakeSettings(faults={"hang": 1.0})) as fake, model(fake.base_url) as asked:
        asking = asyncio.create_task(asked.ask(QUESTION, LONG_S))
        await eventually(lambda: fake.stats()["in_flight"] == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await eventually(lambda: fake.stats()["in_flight"] == 0)


async def test_many_calls_at_once() -> None:
    """As many calls are in flight as connections were asked for, each is one request, and none waits to no end."""
    async with running(FakeSettings(latency_s=0.5)) as fake, model(fake.base_url, connections=50) as asked:
        answers = await asyncio.gather(*(asked.ask(QUESTION, LONG_S) for _ in range(120)))
        assert len(answers) == 120
        stats = fake.stats()
    assert (stats["calls"], stats["max_in_flight"]) == (120, 50)


async def test_an_error_leaves_the_model_usable() -> None:
    """After any trouble the next call is answered, on the same client."""
    async with running() as fake, model(fake.base_url) as asked:
        for fault in ("reset", "half-body", "hang", "500", "401"):
            fake.configure(faults={fault: 1.0})
            with pytest.raises(ModelError):
                await asked.ask(QUESTION, SOON_S)
            fake.configure(faults={})
            assert (await asked.ask(QUESTION, LONG_S)).text


async def test_every_fault_is_expected() -> None:
    """A new fault of the offline model gets its error here."""
    assert set(OF_FAULT) == set(FAULTS)


async def test_what_a_server_offers_is_asked_without_a_completion() -> None:
    """Its list of models, or none where it has no list; a key that it rejects is said."""
    async with running(FakeSettings(require_key=KEY)) as fake:
        async with OpenAIModel.opened(api_key=KEY, base_url=fake.base_url, model="m", connections=1) as model:
            assert "gpt-4o-mini" in await model.offered(LONG_S)
        async with OpenAIModel.opened(
            api_key="other", base_url=fake.base_url, model="m", connections=1
        ) as stranger:
            with pytest.raises(BadKey):
                await stranger.offered(LONG_S)
        elsewhere = fake.base_url.replace("/v1", "/nowhere")
        async with OpenAIModel.opened(api_key=KEY, base_url=elsewhere, model="m", connections=1) as lost:
            assert await lost.offered(LONG_S) == frozenset()
        assert fake.stats()["calls"] == 0


async def test_a_server_that_is_not_there_offers_nothing() -> None:
    """It is said as for a call."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    async with OpenAIModel.opened(api_key=KEY, base_url=url, model="m", connections=1) as model:
        with pytest.raises(ProviderDown):
            await model.offered(LONG_S)


# --- an answer in pieces -----------------------------------------------------------------------------


def streamed(heard: list[str]) -> Conversation:
    return Conversation("You are short.", [Turn("user", "Where to?")], 100, heard.append)


def events(*chunks: object) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def chunk(finish: str | None = None, **delta: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "model": "m"}


async def test_an_answer_that_is_heard_comes_in_pieces() -> None:
    """Each time there is more, all that there is is heard; the answer is the same as of a call that is not heard."""
    heard: list[str] = []
    async with running() as fake, model(fake.base_url) as asked:
        answer = await asked.ask(streamed(heard), LONG_S)
        whole = await asked.ask(Conversation("You are short.", [Turn("user", "Where to?")], 100), LONG_S)
    assert answer == whole
    assert heard[-1] == answer.text
    assert len(heard) > 3
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(heard))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("half-body", ModelBusy),
        ("reset", ModelBusy),
        ("slow-drip", ModelTimeout),
        ("hang", ModelTimeout),
        ("refusal", Refused),
        ("content-filter", Filtered),
        ("429", RateLimited),
        ("401", BadKey),
    ],
)
async def test_a_fault_of_a_stream_is_the_same_error(fault: str, expected: type[ModelError]) -> None:
    """However much of the answer was heard before."""
    timeout_s = SOON_S if expected is ModelTimeout else LONG_S
    async with running(FakeSettings(faults={fault: 1.0})) as fake, model(fake.base_url) as asked:
        with pytest.raises(expected) as raised:
            await asked.ask(streamed([]), timeout_s)
    assert_fit_for_a_user(raised.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (events(chunk(content="Go")), ModelBusy),
        (b"", ModelBusy),
        (b"data: {\n\n", BrokenOutput),
        (events({"choices": [{}]}), BrokenOutput),
        (events(chunk(content=["Go"])), BrokenOutput),
        (events(chunk(), chunk("stop")), BrokenOutput),
        (events({"error": {"message": "The engine is overloaded."}}), ModelBusy),
    ],
)
async def test_something_else_than_a_stream(body: bytes, expected: type[ModelError]) -> None:
    """What ends before its end, or can't be read, is no answer."""
    server = Server(body, headers={"Content-Type": "text/event-stream"})
    async with server.running(), model(server.url) as asked:
        with pytest.raises(expected):
            await asked.ask(streamed([]), LONG_S)


async def test_a_stream_that_is_cut_at_the_limit_says_so() -> None:
    """As a whole answer does; what the usage is missing of counts as nothing."""
    heard: list[str] = []
    server = Server(events(chunk(content="Go no"), chunk("length")))
    server.headers["Content-Type"] = "text/event-stream; charset=utf-8"
    async with server.running(), model(server.url) as asked:
        assert await asked.ask(streamed(heard), LONG_S) == Answer("Go no…", "m", 0, 0)
    assert heard == ["Go no"]
    assert server.asked[0][2]["stream"] is True


async def test_a_server_that_streams_not_is_asked_for_whole_answers() -> None:
    """One that says so is asked once; one that answers whole all the same has answered."""
    refuses = Server(b'{"error": {"message": "stream is not supported", "param": "stream"}}', status=400)
    async with refuses.running(), model(refuses.url) as asked:
        for _ in range(2):
            with pytest.raises(BadModelRequest):
                await asked.ask(streamed([]), LONG_S)
    assert [body.get("stream") for _, _, body in refuses.asked] == [True, None, None]
    ignores = Server(completion(content="Go north."))
    async with ignores.running(), model(ignores.url) as asked:
        assert (await asked.ask(streamed([]), LONG_S)).text == "Go north."


async def test_a_whole_answer_to_who_asked_for_a_stream_may_break() -> None:
    """A connection that ends within the body of one that is no stream is an error of the provider."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with model(f"http://127.0.0.1:{port}/v1") as asked:
            with pytest.raises(ModelBusy, match="broke"):
                await asked.ask(streamed([]), LONG_S)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"finish_reason": "stop", "message": {"refusal": "No."}}, Refused),
        ({"finish_reason": "length", "message": {"content": "{"}}, Truncated),
        ({"finish_reason": "content_filter", "message": {"content": ""}}, Filtered),
    ],
)
async def test_an_answer_that_is_none_has_cost_what_it_has(choice: dict, expected: type[ModelError]) -> None:
    """The provider counts its tokens too."""
    body = {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
    async with Server(json.dumps(body).encode()).running() as server, model(server.url) as asked:
        with pytest.raises(expected) as raised:
            await asked.ask(QUESTION, LONG_S)
    assert (raised.value.input_tokens, raised.value.output_tokens) == (11, 7)
