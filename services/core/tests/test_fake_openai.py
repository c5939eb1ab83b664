"""The offline model over a real socket, mostly with the real SDK."""

import asyncio
import io
import json
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import aiohttp
import jsonschema_rs
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import Process
from support.waiting import eventually
from travelrec.cli.fake_openai import fake_openai
from travelrec.fake_openai import FAULTS, FakeOpenAI, FakeSettings, parse_fault, running
from travelrec.fake_openai.answers import answer
from travelrec.fake_openai.asks import read_chat
from travelrec.fake_openai.limits import TokenBucket
from travelrec.fake_openai.refusals import Refused
from travelrec.fake_openai.samples import sample_of
from travelrec.fake_openai.suggestions import IDEAS, suggestions
from travelrec.kinds.recommendation.models import SCHEMA as OF_THE_PRODUCT
from travelrec.kinds.recommendation.places import COUNTRIES
from travelrec.kinds.recommendation.prompt import question

SCHEMA = {
    "type": "object",
    "properties": {
        "recommendations": {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3}
    },
    "required": ["recommendations"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": SCHEMA}}
PROMPT = "Suggest three things to do.\nCountry: Canada\nSeason: winter"
URL_LINE = r"OPENAI_BASE_URL=(http://127\.0\.0\.1:\d+/v1) "


def user(text: str = PROMPT) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Answer in JSON."}, {"role": "user", "content": text}]


def chat(text: str = PROMPT, **more: object) -> dict[str, object]:
    return {"model": "gpt-4o-mini", "messages": user(text), "response_format": AS_SCHEMA, **more}


@asynccontextmanager
async def sdk(fake: FakeOpenAI, key: str = "x", timeout: float = 20) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=fake.base_url,
        api_key=key,
        http_client=openai.DefaultAioHttpClient(),
        max_retries=0,
        timeout=timeout,
    ) as client:
        yield client


async def ask(client: openai.AsyncOpenAI, text: str = PROMPT, **more: object) -> str:
    completion = await client.chat.completions.create(**chat(text, **more))
    return completion.choices[0].message.content


async def post(fake: FakeOpenAI, body: object = None, path: str = "/chat/completions", **more: object):
    """Return the status, the headers and the JSON of one POST."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(fake.base_url + path, json=chat() if body is None else body, **more) as got,
    ):
        return got.status, got.headers, await got.json()


# --- what it answers ---------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_trip_gets_three_samples_of_its_country_and_season():
    """A prompt that names a country and a season gets three distinct sentences that say what they are."""
    async with running() as fake, sdk(fake) as client:
        completion = await client.chat.completions.create(**chat())
        found = json.loads(completion.choices[0].message.content)
    assert jsonschema_rs.is_valid(SCHEMA, found)
    assert len(set(found["recommendations"])) == 3
    for each in found["recommendations"]:
        assert re.fullmatch(r"Offline sample: [^.!?\n<>*]+\.", each)
        assert "Canada" in each
        assert "winter" in each
    assert completion.model == "gpt-4o-mini"
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")
    assert abs(completion.created - time.time()) < 5
    assert completion.system_fingerprint
    assert completion.choices[0].finish_reason == "stop"
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 20


@pytest.mark.asyncio
async def test_headers_tell_the_request_and_the_limits():
    """The headers a client reads are there, with another request id each time."""
    async with running(FakeSettings(rate_limit_per_s=50)) as fake, sdk(fake) as client:
        first = await client.chat.completions.with_raw_response.create(**chat())
        second = await client.chat.completions.with_raw_response.create(**chat())
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.headers["x-ratelimit-limit-requests"] == "50"
    assert 40 <= int(second.headers["x-ratelimit-remaining-requests"]) < 50
    assert re.fullmatch(r"\d+ms", first.headers["x-ratelimit-reset-requests"])
    assert first.headers["openai-processing-ms"].isdigit()


@pytest.mark.asyncio
async def test_the_same_seed_and_request_get_the_same_answer_in_any_order():
    """The answer depends on the seed and the request, not on what was asked before."""
    prompts = [f"Country: {country}\nSeason: summer" for country in ("Peru", "Kenya", "Japan", "Norway")]
    seen = []
    for seed, order in ((7, prompts), (7, prompts[::-1]), (8, prompts)):
        async with running(FakeSettings(seed=seed)) as fake, sdk(fake) as client:
            seen.append({prompt: await ask(client, prompt) for prompt in order})
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert len(set(seen[0].values())) == 4


@pytest.mark.asyncio
async def test_a_streamed_answer_is_the_whole_one_in_pieces():
    """stream=True gives the same content in chunks, the finish, the usage if asked, and the end mark."""
    async with running() as fake, sdk(fake) as client:
        whole = await ask(client)
        stream = await client.chat.completions.create(
            **chat(stream=True, stream_options={"include_usage": True})
        )
        chunks = [chunk async for chunk in stream]
        plain = await client.chat.completions.create(**chat(stream=True))
        plain_chunks = [chunk async for chunk in plain]
        async with aiohttp.ClientSession() as session:
            got = await session.post(fake.base_url + "/chat/completions", json=chat(stream=True))
            text = await got.text()
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens > 0
    assert all(chunk.usage is None for chunk in [*chunks[:-1], *plain_chunks])
    assert got.content_type == "text/event-stream"
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.asyncio
async def test_a_streamed_answer_takes_its_time_for_each_piece():
    """piece_s: the pieces come one by one, so that a caller sees an answer grow."""
    async with running(FakeSettings(piece_s=0.05)) as fake, sdk(fake) as client:
        loop = asyncio.get_running_loop()
        began = loop.time()
        chunks = [chunk async for chunk in await client.chat.completions.create(**chat(stream=True))]
        assert loop.time() - began >= 0.05 * (len(chunks) - 1)


@pytest.mark.asyncio
async def test_json_mode_follows_the_schema_in_the_prompt():
    """json_object gives the trip, or an instance of a schema written into the prompt; without 'json': 400."""
    other = {"type": "object", "properties": {"budget": {"type": "integer", "minimum": 40}}}
    async with running() as fake, sdk(fake) as client:
        trip = json.loads(await ask(client, response_format={"type": "json_object"}))
        written = f"Give JSON like this schema: {json.dumps(other)}"
        found = json.loads(await ask(client, written, response_format={"type": "json_object"}))
        with pytest.raises(openai.BadRequestError, match="must contain the word 'json'"):
            await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "x"}],
                response_format={"type": "json_object"},
            )
    assert jsonschema_rs.is_valid(SCHEMA, trip)
    assert found == {"budget": 40}


@pytest.mark.asyncio
async def test_plain_chat_says_it_is_the_sample_and_repeats_no_text():
    """Without a format the answer is friendly prose with the message's length in place of its text."""
    async with running() as fake, sdk(fake) as client:
        said = await ask(client, "Zanzibar?", response_format={"type": "text"})
        parts = [{"type": "text", "text": "Zanzi"}, {"type": "text", "text": "bar"}]
        also = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": parts}])
    assert "offline sample model" in said
    assert "9 characters" in said
    assert "Zanzibar" not in said
    assert "9 characters" in also.choices[0].message.content


@pytest.mark.asyncio
async def test_max_completion_tokens_cuts_the_answer():
    """An answer longer than the caller allows is cut, and says so."""
    async with running() as fake, sdk(fake) as client:
        completion = await client.chat.completions.create(**chat(max_completion_tokens=10))
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens <= 10


@pytest.mark.asyncio
async def test_the_responses_api_answers_with_the_schema():
    """responses.create gives the same trip as chat, for a text and for a list of messages."""
    form = {"format": {"type": "json_schema", "name": "trip", "strict": True, "schema": SCHEMA}}
    async with running() as fake, sdk(fake) as client:
        by_chat = await ask(client)
        by_text = await client.responses.create(model="m", input=PROMPT, instructions="Be kind.", text=form)
        by_list = await client.responses.create(model="m", input=user(), text=form)
        prose = await client.responses.create(model="m", input="Hello")
        fake.configure(faults={"refusal": 1.0})
        refused = await client.responses.create(model="m", input=PROMPT, text=form)
        fake.configure(faults={"length": 1.0})
        cut = await client.responses.create(model="m", input=PROMPT, text=form)
        with pytest.raises(openai.BadRequestError, match="streams chat completions only"):
            await client.responses.create(model="m", input=PROMPT, stream=True)
    assert by_text.output_text == by_list.output_text == by_chat
    assert (by_text.status, by_text.error, by_text.model) == ("completed", None, "m")
    assert by_text.usage.total_tokens == by_text.usage.input_tokens + by_text.usage.output_tokens
    assert "5 characters" in prose.output_text
    assert refused.output[0].content[0].type == "refusal"
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.asyncio
async def test_models_and_health():
    """The SDK lists models and finds any by name; /healthz is 200; a path works without /v1 too."""
    async with running() as fake, sdk(fake) as client, aiohttp.ClientSession() as session:
        models = [model.id async for model in client.models.list()]
        assert (await client.models.retrieve("my-model")).id == "my-model"
        origin = fake.base_url.removesuffix("/v1")
        async with session.get(f"{origin}/healthz") as health:
            assert health.status == 200
        async with session.post(f"{origin}/chat/completions?api-version=1", json=chat()) as bare:
            assert bare.status == 200
    assert models


def test_there_are_enough_ideas_and_they_fit_any_country():
    """At least twelve distinct ideas a season, each naming place and season, in one sentence."""
    assert set(IDEAS) == {"spring", "summer", "autumn", "winter"}
    for season, ideas in IDEAS.items():
        assert len(set(ideas)) == len(ideas) >= 12
        assert all(season in idea and idea.count("{place}") == 1 and "." not in idea for idea in ideas)
    assert "in the Netherlands" in " ".join(suggestions(0, "Netherlands", "summer", 14))
    assert len(suggestions(3, "St. {x}", "spring", 3)) == 3
    assert "old town" not in " ".join(suggestions(0, "Antarctica", "winter", 14))


@pytest.mark.parametrize("season", IDEAS)
def test_every_country_of_the_product_is_served(season):
    """For each canonical name, asked as the product asks, the product's own schema gets three ideas of it."""
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": OF_THE_PRODUCT}}
    for country in COUNTRIES:
        asked = read_chat(json.dumps(chat(question(country, season).user, response_format=form)).encode())
        found = json.loads(answer(asked, 0, None).text)["recommendations"]
        assert len(set(found)) == 3
        assert all(
            f" {country}" in each and season in each and each.startswith("Offline sample: ") for each in found
        )


# --- any other schema --------------------------------------------------------------------------------

SCHEMAS = {
    "scalars": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 5, "multipleOf": 4},
            "b": {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.5},
            "c": {"type": "boolean"},
            "d": {"type": ["null", "string"], "minLength": 40, "maxLength": 41},
            "e": {"enum": ["x", "y"]},
            "f": {"const": 3},
            "g": {"type": "null"},
            "h": {"type": "string", "maxLength": 2},
            "i": {"type": "integer", "maximum": -7},
            "j": {"type": "string", "format": "date"},
        },
        "required": list("abcdefghij"),
        "additionalProperties": False,
    },
    "references": {
        "$defs": {
            "City": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
        },
        "type": "object",
        "properties": {
            "cities": {
                "type": "array",
                "items": {"$ref": "#/$defs/City"},
                "minItems": 2,
                "uniqueItems": True,
            },
            "best": {"anyOf": [{"$ref": "#/$defs/City"}, {"type": "null"}]},
            "both": {"allOf": [{"$ref": "#/$defs/City"}, {"properties": {"n": {"type": "integer"}}}]},
        },
        "required": ["cities", "best", "both"],
    },
    "recursive": {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                },
                "required": ["next", "kids"],
            }
        },
        "$ref": "#/$defs/Node",
    },
    "tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "maxItems": 2},
    "empty list": {"type": "array", "items": {"type": "string"}, "maxItems": 0},
    "several words": {"type": "array", "items": {"type": "string"}, "minItems": 4, "uniqueItems": True},
}


KEYWORDS = (
    "type properties required items anyOf allOf $ref enum const minItems maxItems minLength maxLength minimum maximum "
    "exclusiveMinimum multipleOf format prefixItems additionalProperties x"
)
WORDS = st.sampled_from(KEYWORDS.split())


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_any_schema_gets_a_valid_instance(schema):
    """The sample of a schema is an instance of it, by an independent judge."""
    jsonschema_rs.validate(schema, sample_of(schema))


@given(
    low=st.integers(-1000, 1000),
    span=st.integers(1, 1000),
    step=st.sampled_from([None, 1, 2, 5]),
    whole=st.booleans(),
)
def test_numbers_stay_in_their_bounds(low, span, step, whole):
    """Whatever the bounds, if a number fits them the sample does."""
    schema = {"type": "integer" if whole else "number", "minimum": low, "maximum": low + span + 5}
    if step:
        schema["multipleOf"] = step
    jsonschema_rs.validate(schema, sample_of(schema))


def test_a_schema_without_an_end_is_refused():
    """A schema that requires itself, or refers to nothing, is a 400 and not a crash."""
    endless = {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]}
    for schema in (endless, {"$ref": "#/$defs/Nobody"}):
        with pytest.raises(Refused) as caught:
            sample_of(schema)
        assert caught.value.status == 400


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["string", "object", "#", "array"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(schema=st.dictionaries(WORDS, JSON, min_size=1))
def test_nonsense_for_a_schema_is_answered_or_refused(schema):
    """No schema, however odd, makes the server fail: it gets an instance or a 400, strict or not."""
    for strict in (True, False):
        form = {"type": "json_schema", "json_schema": {"name": "x", "strict": strict, "schema": schema}}
        with suppress(Refused):
            json.dumps(sample_of(read_chat(json.dumps(chat(response_format=form)).encode()).schema))


@pytest.mark.asyncio
async def test_odd_text_and_deep_nesting_are_no_server_error():
    """Half a surrogate pair in the prompt is answered, nesting beyond reason is a 400."""
    deep = {}
    for _ in range(400):
        deep = {"anyOf": [deep]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": deep}}
    async with running() as fake:
        assert (await post(fake, chat("Country: \ud800\nSeason: winter")))[0] == 200
        assert (await post(fake, chat(response_format=form)))[0] == 400


# --- bad requests ------------------------------------------------------------------------------------

BAD = {
    "no model": ({"messages": user()}, "model"),
    "no messages": ({"model": "m"}, "messages"),
    "empty messages": ({"model": "m", "messages": []}, "messages"),
    "bad role": ({"model": "m", "messages": [{"role": "boss", "content": "x"}]}, "messages[0].role"),
    "unhashable role": ({"model": "m", "messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    "bad content": ({"model": "m", "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    "bad format": (chat(response_format={"type": "xml"}), "response_format.type"),
    "no schema": (
        chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}),
        "response_format.json_schema.schema",
    ),
    "bad max_tokens": (chat(max_tokens=0), "max_tokens"),
    "a list": ([], None),
}


@pytest.mark.parametrize(("body", "param"), BAD.values(), ids=BAD)
@pytest.mark.asyncio
async def test_a_bad_request_gets_a_400_that_names_the_parameter(body, param):
    """What the API would refuse is refused in its shape."""
    async with running() as fake:
        status, headers, answer = await post(fake, body)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "schema",
    [
        {**SCHEMA, "additionalProperties": True},
        {**SCHEMA, "required": []},
        {**SCHEMA, "properties": {"recommendations": {"type": "object", "properties": {}}}},
    ],
)
def test_strict_mode_refuses_what_openai_refuses(schema):
    """A strict schema with open or optional properties fails here already, at any depth."""
    form = {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": schema}}
    with pytest.raises(Refused, match="Invalid schema for response_format 'trip'"):
        read_chat(json.dumps(chat(response_format=form)).encode())
    form["json_schema"]["strict"] = False
    read_chat(json.dumps(chat(response_format=form)).encode())


@pytest.mark.asyncio
async def test_what_is_no_json_too_large_or_elsewhere_is_an_error_in_openais_shape():
    """Broken JSON 400, a huge body 413, an unknown path 404, a wrong method 405."""
    async with running() as fake, aiohttp.ClientSession() as session:
        url = fake.base_url + "/chat/completions"
        for request, status in (
            (session.post(url, data=b'{"model": '), 400),
            (session.post(url, data=b"\xff"), 400),
            (session.post(url, data=b"[" * 100_000), 400),
            (session.post(url, data=io.BytesIO(b"x" * 2**21)), 413),
            (session.get(fake.base_url + "/nothing"), 404),
            (session.get(url), 405),
            (session.post(fake.base_url + "/models"), 405),
        ):
            async with request as got:
                assert got.status == status
                assert set((await got.json())["error"]) == {"message", "type", "param", "code"}
                if status == 405:
                    assert got.headers["Allow"] in ("GET", "POST")


@pytest.mark.asyncio
async def test_require_key_refuses_any_other_key():
    """With a required key another one, or none, gets the SDK's AuthenticationError."""
    async with running(FakeSettings(require_key="right")) as fake:
        async with sdk(fake, key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await ask(client)
        assert caught.value.code == "invalid_api_key"
        assert "wrong" not in str(caught.value)
        assert (await post(fake))[0] == 401
        async with sdk(fake, key="right") as client:
            assert await ask(client)


# --- faults ------------------------------------------------------------------------------------------

AS_SDK_ERROR = {
    "429": (openai.RateLimitError, "rate_limit_exceeded"),
    "429-no-retry-after": (openai.RateLimitError, "rate_limit_exceeded"),
    "quota": (openai.RateLimitError, "insufficient_quota"),
    "401": (openai.AuthenticationError, "invalid_api_key"),
    "403": (openai.PermissionDeniedError, "permission_denied"),
    "500": (openai.InternalServerError, None),
    "503": (openai.InternalServerError, None),
    "wrong-model": (openai.NotFoundError, "model_not_found"),
    "no-json-schema": (openai.BadRequestError, None),
}
BY_SOCKET = {"reset", "hang", "slow-drip", "half-body"}
IN_CONTENT = set(FAULTS) - set(AS_SDK_ERROR) - BY_SOCKET


@pytest.mark.parametrize("fault", AS_SDK_ERROR)
@pytest.mark.asyncio
async def test_a_fault_of_http_becomes_the_sdks_exception(fault):
    """Each error has the SDK's class, code, and Retry-After where it should."""
    kind, code = AS_SDK_ERROR[fault]
    async with running(FakeSettings(faults={fault: 1.0}, retry_after_s=2.5)) as fake, sdk(fake) as client:
        with pytest.raises(kind) as caught:
            await ask(client)
    headers = caught.value.response.headers
    assert caught.value.code == code
    assert caught.value.request_id.startswith("req_")
    waits = (headers.get("retry-after"), headers.get("retry-after-ms"))
    assert waits == (("3", "2500") if fault in ("429", "503") else (None, None))


@pytest.mark.asyncio
async def test_without_json_schema_json_mode_still_works():
    """A client that falls back from json_schema to json_object gets its answer."""
    async with running(FakeSettings(faults={"no-json-schema": 1.0})) as fake, sdk(fake) as client:
        with pytest.raises(openai.BadRequestError, match="'json_schema' is not supported"):
            await ask(client)
        found = json.loads(await ask(client, response_format={"type": "json_object"}))
    assert jsonschema_rs.is_valid(SCHEMA, found)


@pytest.mark.parametrize("fault", sorted(IN_CONTENT))
@pytest.mark.asyncio
async def test_a_fault_of_the_content_spoils_it_as_named(fault):
    """Each fault of the content gives a 200 with exactly that wrong with it."""
    async with running(FakeSettings(faults={fault: 1.0})) as fake, sdk(fake) as client:
        choice = (await client.chat.completions.create(**chat())).choices[0]
    text = choice.message.content
    assert choice.finish_reason == {"length": "length", "content-filter": "content_filter"}.get(fault, "stop")
    match fault:
        case "refusal":
            assert choice.message.refusal
            assert text is None
        case "content-filter":
            assert not text
        case "length" | "broken-json":
            assert len(text) > 50
            with pytest.raises(ValueError, match=r"line 1"):
                json.loads(text)
        case "wrong-schema":
            assert not jsonschema_rs.is_valid(SCHEMA, json.loads(text))
        case "wrong-count":
            assert len(json.loads(text)["recommendations"]) == 2
        case "duplicates":
            items = json.loads(text)["recommendations"]
            assert len(items) == 3
            assert len(set(items)) == 1
        case "empty-strings":
            assert json.loads(text)["recommendations"] == ["", "", ""]
        case "markup":
            items = json.loads(text)["recommendations"]
            assert len(items) == 3
            assert all("**" in item and "<b>" in item and "\n" in item for item in items)
        case _:
            pytest.fail(f"no expectation for {fault}")


@pytest.mark.parametrize("fault", ["reset", "half-body"])
@pytest.mark.asyncio
async def test_a_broken_connection_is_a_connection_error(fault):
    """A reset and a body cut short reach the SDK as APIConnectionError, and nothing stays in flight.

    Over aiohttp the SDK calls a reset APITimeoutError, a subclass: its transport takes it for a connect timeout.
    """
    async with running(FakeSettings(faults={fault: 1.0})) as fake, sdk(fake) as client:
        with pytest.raises(openai.APIConnectionError):
            await ask(client)
        await eventually(lambda: fake.stats()["in_flight"] == 0)


async def read_raw(base_url: str) -> bytes:
    """Send one call over a plain socket and read until its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(base_url).port)
    body = json.dumps(chat()).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    try:
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.asyncio
async def test_reset_is_a_real_rst():
    """The socket sees ECONNRESET, not an orderly end; also from the command, which may run on uvloop."""
    async with running(FakeSettings(faults={"reset": 1.0})) as fake:
        with pytest.raises(ConnectionResetError):
            await read_raw(fake.base_url)
    async with command("--port", "0", "--fault", "reset") as process:
        line = await process.wait_for_line(URL_LINE)
        with pytest.raises(ConnectionResetError):
            await read_raw(line[1])


@pytest.mark.asyncio
async def test_half_a_body_promises_more_than_it_sends():
    """Content-Length is larger than what comes before the end."""
    async with running(FakeSettings(faults={"half-body": 1.0})) as fake, aiohttp.ClientSession() as session:
        got = await session.post(fake.base_url + "/chat/completions", json=chat())
        assert got.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await got.read()
        streamed = await session.post(fake.base_url + "/chat/completions", json=chat(stream=True))
        with pytest.raises(aiohttp.ClientPayloadError):
            await streamed.read()


@pytest.mark.asyncio
async def test_a_hanging_call_ends_with_its_caller_or_the_server():
    """A hang is in flight until the caller goes; one that is left when the server stops doesn't hold it."""
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        async with running(FakeSettings(faults={"hang": 1.0})) as fake, sdk(fake, timeout=0.2) as hasty:
            with pytest.raises(openai.APITimeoutError):
                await ask(hasty)
            await eventually(lambda: fake.stats()["in_flight"] == 0)

            async def left_hanging() -> None:
                with pytest.raises(aiohttp.ClientError):
                    await post(fake)

            tasks.create_task(left_hanging())
            await eventually(lambda: fake.stats()["in_flight"] == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 2


@pytest.mark.asyncio
async def test_slow_drip_sends_a_byte_at_a_time():
    """The body comes in single bytes, so that only a limit on the whole call ends it."""
    async with running(FakeSettings(faults={"slow-drip": 1.0})) as fake, aiohttp.ClientSession() as session:
        async with session.post(fake.base_url + "/chat/completions", json=chat()) as got:
            assert int(got.headers["Content-Length"]) > 300
            assert len(await got.content.readany()) <= 2
            got.close()
        await eventually(lambda: fake.stats()["in_flight"] == 0)


@pytest.mark.asyncio
async def test_faults_reach_streams_too():
    """A streamed answer carries the refusal and the finish of its fault."""
    async with running(FakeSettings(faults={"refusal": 1.0})) as fake, sdk(fake) as client:
        stream = await client.chat.completions.create(**chat(stream=True))
        said = "".join([chunk.choices[0].delta.refusal or "" async for chunk in stream])
        assert "sample refusal" in said
        fake.configure(faults={"length": 1.0})
        stream = await client.chat.completions.create(**chat(stream=True))
        assert [chunk.choices[0].finish_reason async for chunk in stream][-1] == "length"


# --- rates, limits, latency --------------------------------------------------------------------------


def test_which_calls_fail_depends_on_the_seed_and_the_number_only():
    """The same seed fails the same calls, near the share asked for; another seed fails others."""
    settings = FakeSettings(seed=1, error_rate=0.3, error_status=(500, 429))
    fails = [settings.trouble(number) for number in range(5000)]
    assert fails == [settings.trouble(number) for number in range(5000)]
    assert fails != [FakeSettings(seed=2, error_rate=0.3).trouble(number) for number in range(5000)]
    counts = Counter(fails)
    assert set(counts) == {None, 500, 429}
    assert 1350 < 5000 - counts[None] < 1650
    assert abs(counts[500] - counts[429]) < 200
    shares = Counter(
        FakeSettings(faults={"500": 0.2, "markup": 0.5}).trouble(number) for number in range(5000)
    )
    assert 850 < shares["500"] < 1150
    assert 2300 < shares["markup"] < 2700
    assert 1300 < shares[None] < 1700


@pytest.mark.asyncio
async def test_a_reset_of_the_counts_repeats_the_faults():
    """After /stats/reset the same calls fail again."""
    seen = []
    async with running(FakeSettings(error_rate=0.5, error_status=(502,))) as fake:
        for _ in range(2):
            seen.append([(await post(fake))[0] for _ in range(12)])
            assert (await post(fake, path="/stats/reset"))[2]["calls"] == 0
    assert seen[0] == seen[1]
    assert set(seen[0]) == {200, 502}


@pytest.mark.asyncio
async def test_more_than_the_rate_limit_gets_429_with_retry_after():
    """Beyond a second's worth of requests the answer is 429 and says how long to wait."""
    async with running(FakeSettings(rate_limit_per_s=2)) as fake:
        answers = [await post(fake) for _ in range(4)]
        stats = fake.stats()
    refused = [(headers, body) for status, headers, body in answers if status == 429]
    assert len(refused) >= 1
    for headers, body in refused:
        assert body["error"]["code"] == "rate_limit_exceeded"
        assert headers["Retry-After"] == "1"
        assert 0 < int(headers["retry-after-ms"]) <= 500
        assert headers["x-ratelimit-remaining-requests"] == "0"
    assert stats["by_status"] == {"200": 4 - len(refused), "429": len(refused)}


@given(rate=st.floats(0.5, 200), gaps=st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_the_bucket_never_lets_in_more_than_its_rate(rate, gaps):
    """Over any time the bucket lets in at most a second's worth plus the rate; waiting as told is enough."""
    now = 100.0
    bucket = TokenBucket(rate, now)
    for let_in, gap in enumerate(gaps, start=1):
        now += gap
        wait_s = bucket.take(now)
        if wait_s:
            assert not bucket.remaining
            now += wait_s + 1e-6
            assert bucket.take(now) == 0
        assert let_in <= bucket.capacity + (now - 100.0) * rate + 1e-3
        assert 0 <= bucket.full_in_s <= bucket.capacity / rate + 1e-6


@pytest.mark.asyncio
async def test_latency_is_kept_and_calls_overlap():
    """Each call takes its latency, and calls in flight together take it together."""
    settings = FakeSettings(latency_s=0.3, latency_jitter=0.5)
    drawn = [settings.latency_of(number) for number in range(1000)]
    assert 0.15 <= min(drawn) < 0.17
    assert 0.43 < max(drawn) <= 0.45
    async with running(settings) as fake, sdk(fake) as client:
        began = time.monotonic()
        await asyncio.gather(*(ask(client) for _ in range(20)))
        took = time.monotonic() - began
        assert fake.stats()["max_in_flight"] == 20
    assert 0.15 <= took < 3


# --- counting and control ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_stats_count_calls_by_the_last_user_message():
    """Every POST to a generating endpoint counts, the refused ones too; by_key counts the readable ones."""
    async with running() as fake, aiohttp.ClientSession() as session:
        for text in ("one", "two", "two"):
            await post(fake, chat(text))
        await post(fake, {"model": "m", "input": "two"}, "/responses")
        await post(fake, {})
        async with session.get(fake.base_url.removesuffix("/v1") + "/stats") as got:
            stats = await got.json()
        assert stats == fake.stats()
        assert stats["calls"] == 5
        assert stats["by_key"] == {"one": 1, "two": 3}
        assert stats["by_status"] == {"200": 4, "400": 1}
        assert (stats["in_flight"], stats["max_in_flight"]) == (0, 1)
        fake.reset_stats()
        assert fake.stats() == {"calls": 0, "in_flight": 0, "max_in_flight": 0, "by_status": {}, "by_key": {}}


@pytest.mark.asyncio
async def test_by_key_is_bounded(monkeypatch):
    """Beyond its bound further texts count together, so that a long run keeps its memory."""
    monkeypatch.setattr("travelrec.fake_openai.server._KEYS_KEPT", 2)
    async with running() as fake:
        for text in ("a", "b", "c", "d", "a"):
            await post(fake, chat(text))
        assert fake.stats()["by_key"] == {"a": 2, "b": 1, "(other)": 2}


@pytest.mark.asyncio
async def test_control_changes_settings_while_it_runs():
    """/control takes any of the settings, all or nothing, and shows what is in force, but not the key."""
    async with running() as fake:
        status, _, shown = await post(
            fake, {"faults": {"500": 1}, "error_status": [502], "require_key": "k"}, "/control"
        )
        assert status == 200
        assert shown["faults"] == {"500": 1}
        assert shown["require_key"] == "(set)"
        headers = {"Authorization": "Bearer k"}
        assert (await post(fake, headers=headers))[0] == 500
        assert (await post(fake))[0] == 401
        fake.configure(faults={}, rate_limit_per_s=1, require_key=None)
        assert [(await post(fake))[0] for _ in range(2)] == [200, 429]
        fake.configure(rate_limit_per_s=None)
        assert (await post(fake))[0] == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"speed": 1},
        {"latency_s": -1},
        {"latency_s": "fast"},
        {"latency_s": None},
        {"seed": True},
        {"error_rate": 1.5},
        {"error_status": [200]},
        {"error_status": []},
        {"error_status": "500"},
        {"rate_limit_per_s": 0},
        {"retry_after_s": float("inf")},
        {"require_key": 1},
        {"faults": {"nonsense": 1}},
        {"faults": {"500": 2}},
        {"faults": {"500": 0.6, "429": 0.6}},
        {"faults": ["500"]},
        ["seed"],
    ],
    ids=str,
)
@pytest.mark.asyncio
async def test_control_refuses_what_makes_no_sense(changes):
    """A bad setting is a 400 with a message, and nothing changes."""
    async with running() as fake:
        status, _, body = await post(fake, changes, "/control")
        assert status == 400
        assert body["error"]["message"]
        assert fake.settings == FakeSettings()


# --- load and the command ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_many_calls_in_flight_are_all_answered_and_counted():
    """500 connections at once get their own answers."""
    countries = [f"Land {number}" for number in range(500)]
    async with (
        running(FakeSettings(latency_s=0.2)) as fake,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):

        async def one(country: str) -> bool:
            body = chat(f"Country: {country}\nSeason: spring")
            async with session.post(fake.base_url + "/chat/completions", json=body) as got:
                content = (await got.json())["choices"][0]["message"]["content"]
                return all(f" {country}" in each for each in json.loads(content)["recommendations"])

        assert all(await asyncio.gather(*map(one, countries)))
        stats = fake.stats()
    assert stats["calls"] == len(stats["by_key"]) == 500
    assert stats["max_in_flight"] > 100


@pytest.mark.asyncio
async def test_a_taken_port_raises_oserror():
    """Starting on a port that someone has is an OSError for the caller to explain."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with running(port=taken.getsockname()[1]):
            pytest.fail("it started")


def command(*arguments: str) -> Process:
    return Process([sys.executable, "-m", "travelrec", "fake-openai", *arguments], name="fake-openai")


@pytest.mark.parametrize("ending", ["terminate", "interrupt"])
@pytest.mark.asyncio
async def test_the_command_serves_and_stops_at_once(ending):
    """It says its URL in one line, answers, and SIGTERM or Ctrl-C ends it at once though a call hangs."""
    async with command("--port", "0", "--fault", "hang", "--latency", "0.01", "--jitter", "0.5") as process:
        line = await process.wait_for_line(URL_LINE)
        url = line[1]
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:

            async def hanging() -> None:
                with pytest.raises(aiohttp.ClientError):
                    await session.post(url + "/chat/completions", json=chat())

            async def in_flight() -> bool:
                async with session.get(url + "/stats") as got:
                    return (await got.json())["in_flight"] == 1

            tasks.create_task(hanging())
            await eventually(in_flight)
            began = time.monotonic()
            process.signal(15 if ending == "terminate" else 2)
            assert await process.wait() == 0
        assert time.monotonic() - began < 3
        assert len(process.output().splitlines()) == 1


@pytest.mark.asyncio
async def test_the_command_explains_a_taken_port_in_one_line():
    """A port that someone has: exit 1 and one line that says so."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with command("--port", str(port)) as process:
            assert await process.wait() == 1
            assert process.output().splitlines() == [
                f"travelrec: can't listen on 127.0.0.1:{port} (Address already in use); choose another with --port"
            ]


@pytest.mark.asyncio
async def test_the_command_names_the_known_faults_for_an_unknown_one():
    """An unknown fault, or a bad share: exit 2, and the known names."""
    async with command("--fault", "gremlins") as process:
        assert await process.wait() == 2
        said = process.output()
        assert "gremlins" in said
        assert all(name in said for name in FAULTS)
    async with command("--rate-limit", "-1") as process:
        assert await process.wait() == 2


def test_help_names_every_fault_and_fault_shares_are_read():
    """The help of --fault lists exactly the faults there are; NAME:SHARE is read, nonsense is not."""
    option = fake_openai.__annotations__["fault"].__metadata__[0]
    names = option.help.split("Names: ")[1].removesuffix(".").split(", ")
    assert names == list(FAULTS)
    assert parse_fault("429:0.25") == ("429", 0.25)
    assert parse_fault("hang") == ("hang", 1.0)
    for bad in ("429:", "429:2", "429:x", "429:nan", "nothing"):
        with pytest.raises(ValueError, match=r"share|known"):
            parse_fault(bad)


def test_the_global_random_is_left_alone():
    """Answering does not touch the seed that others draw from."""
    random.seed(1)
    state = random.getstate()
    suggestions(99, "Nowhere", "summer", 3)
    assert random.getstate() == state
