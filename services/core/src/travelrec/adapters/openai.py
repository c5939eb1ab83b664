"""The model over the OpenAI SDK: one `ask`, one HTTP request.

The SDK's typed request and answer objects cost more CPU than everything else in a worker (0.7 of 1.7 ms a job), so
its `post` is given plain JSON, and the few fields of the answer that count are read from JSON. Connections, time-outs,
authentication and errors stay the SDK's. Retries are this project's own; the SDK's are off.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any  # a provider's JSON

import aiohttp
import httpx2
import openai
import structlog
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient
from opentelemetry.trace import SpanKind

from travelrec import tracing
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
from travelrec.ports import Answer, Conversation, Question
from travelrec.retry import Allowance, allowance, retry_after_s

log = structlog.get_logger(__name__)

_FORMS = ("json_schema", "json_object", "text")  # from the strictest to what every server can do
_OBJECTS_TRIED = 20
_MOST_TOKENS = 10**9
_TOO_LATE = "The model did not answer in time."


class _UnsupportedForm(BadModelRequest):
    """The server can't be asked for an answer of this form."""


class _Unstreamable(BadModelRequest):
    """The server can't be asked for an answer in pieces."""


class OpenAIModel:
    """See `ports.Model`; made by `opened`."""

    def __init__(self, client: AsyncOpenAI, model: str, reasoning_tokens: int = 0) -> None:
        self._client = client
        self._reasoning_tokens = reasoning_tokens
        self._model = model
        self._formats: dict[str, Any] = {}
        self._form = _FORMS[0]
        self._streams = True
        self._attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",  # the protocol's; server.address tells compatible ones apart
            "gen_ai.request.model": model,
            "gen_ai.output.type": "json",
            "server.address": client.base_url.host,
            "server.port": client.base_url.port or (443 if client.base_url.scheme == "https" else 80),
        }

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, *, api_key: str, base_url: str | None, model: str, connections: int, reasoning_tokens: int = 0
    ) -> AsyncIterator[OpenAIModel]:
        """A client with up to `connections` calls in flight; nothing is sent before the first `ask`.

        Each call may use `reasoning_tokens` besides those of its answer.
        """
        http = DefaultAioHttpClient(
            limits=openai.DEFAULT_CONNECTION_LIMITS.__class__(
                max_connections=connections, max_keepalive_connections=connections
            )
        )
        async with AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0, http_client=http) as client:
            yield cls(client, model, reasoning_tokens)

    async def ask(self, asked: Question | Conversation, timeout_s: float) -> Answer:
        """See `ports.Model`. What the server can't do is found out once, and remembered."""
        if isinstance(asked, Conversation):
            return await self._converse(asked, timeout_s)
        question = asked
        ends_at = time.monotonic() + timeout_s
        while True:
            form = self._form
            try:
                return await self._ask(question, form, ends_at - time.monotonic())
            except _UnsupportedForm:
                if form == _FORMS[-1]:
                    raise
                if form == self._form:
                    self._form = _FORMS[_FORMS.index(form) + 1]
                    log.warning("model server lacks an answer format", lacks=form, uses=self._form)

    async def _ask(self, question: Question, form: str, timeout_s: float) -> Answer:
        system = question.system
        if form != "json_schema":
            schema = json.dumps(question.schema)
            system = f"{system}\nAnswer with one JSON object of this JSON schema and nothing else: {schema}"
        body = {
            "model": self._model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question.user},
            ],
            "max_completion_tokens": question.max_tokens + self._reasoning_tokens,
        }
        if form == "json_schema":
            body["response_format"] = self._format(question)
        elif form == "json_object":
            body["response_format"] = {"type": "json_object"}
        answer = await self._traced(self._answered(body, timeout_s, whole=True))
        return replace(answer, text=_object_in(answer.text))

    async def _converse(self, conversation: Conversation, timeout_s: float) -> Answer:
        said = [{"role": each.role, "content": each.text} for each in conversation.turns]
        body = {
            "model": self._model,
            "messages": [{"role": "system", "content": conversation.system}, *said],
            "max_completion_tokens": conversation.max_tokens + self._reasoning_tokens,
        }
        ends_at = time.monotonic() + timeout_s
        answer = None
        if conversation.hear is not None and self._streams:
            try:
                answer = await self._traced(self._streamed(body, timeout_s, conversation.hear))
            except _Unstreamable:
                self._streams = False
                log.warning("model server can't stream", uses="whole answers")
        if answer is None:
            left_s = ends_at - time.monotonic()
            answer = await self._traced(self._answered(body, left_s, whole=False))
        return answer

    async def _traced(self, answered: Awaitable[Answer]) -> Answer:
        with tracing.span(
            f"chat {self._model}", tracing.current(), SpanKind.CLIENT, self._attributes
        ) as span:
            answer = await answered
            span.set_attributes(
                {
                    "gen_ai.response.model": answer.model,
                    "gen_ai.usage.input_tokens": answer.input_tokens,
                    "gen_ai.usage.output_tokens": answer.output_tokens,
                }
            )
            return answer

    async def _answered(self, body: Mapping[str, Any], timeout_s: float, *, whole: bool) -> Answer:
        async with _completion(timeout_s):
            response = await self._client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response, options={"timeout": timeout_s}
            )
            return _answer(json.loads(response.content), allowance(response.headers), whole)

    async def _streamed(
        self, body: Mapping[str, Any], timeout_s: float, hear: Callable[[str], None]
    ) -> Answer:
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with _completion(timeout_s):
            stream: AsyncStream[Any] = await self._client.post(
                "/chat/completions",
                body=asked,
                cast_to=object,
                options={"timeout": timeout_s},
                stream=True,
                stream_cls=AsyncStream[object],
            )
            async with stream:
                if "event-stream" in stream.response.headers.get("content-type", ""):
                    completion = await _gathered(stream, hear)
                else:
                    completion = json.loads(await stream.response.aread())
            return _answer(completion, allowance(stream.response.headers), whole=False)

    async def offered(self, timeout_s: float) -> frozenset[str]:
        """See `ports.Model`."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.get(
                    "/models", cast_to=httpx2.Response, options={"timeout": timeout_s}
                )
            return frozenset(str(model["id"]) for model in json.loads(response.content)["data"])
        except openai.NotFoundError:
            return frozenset()
        except TimeoutError as error:
            raise ModelTimeout(_TOO_LATE) from error
        except openai.OpenAIError as error:
            raise _translated(error) from error
        except (ValueError, LookupError, TypeError) as error:
            raise BrokenOutput("The model's server answered with something else than its models.") from error

    def _format(self, question: Question) -> Any:
        if question.schema_name not in self._formats:
            self._formats[question.schema_name] = {
                "type": "json_schema",
                "json_schema": {
                    "name": question.schema_name,
                    "strict": True,
                    "schema": dict(question.schema),
                },
            }
        return self._formats[question.schema_name]


@asynccontextmanager
async def _completion(timeout_s: float) -> AsyncIterator[None]:
    """What goes wrong with a completion, in this project's errors."""
    try:
        async with asyncio.timeout(timeout_s):  # the SDK's own begins again with every byte
            yield
    except TimeoutError as error:
        raise ModelTimeout(_TOO_LATE) from error
    except openai.OpenAIError as error:
        raise _translated(error) from error
    except httpx2.RequestError as error:  # while a body is read, where the SDK lets it through
        raise _by_cause(error) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BrokenOutput("The model's server answered with something else than a completion.") from error


async def _gathered(chunks: AsyncIterator[Mapping[str, Any]], hear: Callable[[str], None]) -> dict[str, Any]:
    """The completion that came in `chunks`; of its text `hear` is told as it grows."""
    message = {"content": "", "refusal": ""}
    whole: dict[str, Any] = {"choices": [{"message": message}]}
    async for chunk in chunks:
        whole |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for choice in chunk["choices"][:1]:
            for name in message:
                message[name] += choice["delta"].get(name) or ""
            if choice["delta"].get("content"):
                hear(message["content"])
            if choice.get("finish_reason"):
                whole["choices"][0]["finish_reason"] = choice["finish_reason"]
    if "finish_reason" not in whole["choices"][0]:
        raise ModelBusy("The connection to the model broke.")
    return whole


def _answer(body: Mapping[str, Any], allowed: Allowance | None, whole: bool) -> Answer:
    """The completion; one that is cut off at the token limit will not do where it must be `whole`."""
    choice = body["choices"][0]
    message = choice["message"]
    usage = body.get("usage") or {}
    tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if message.get("refusal"):
        raise _spent(Refused("The model refused to answer."), *tokens)
    match choice.get("finish_reason"):
        case "length" if whole:
            raise _spent(Truncated("The model's answer was cut off at its token limit."), *tokens)
        case "content_filter":
            raise _spent(Filtered("The provider's content filter held the answer back."), *tokens)
    cut = choice.get("finish_reason") == "length"
    text = message["content"]
    if not isinstance(text, str | None):
        raise TypeError(type(text))
    if not whole and not (text or "").strip():
        raise _spent(BrokenOutput("The model said nothing."), *tokens)
    return Answer(
        text=f"{text}…" if text and cut else text or "",
        model=str(body.get("model", "")),
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        allowance=allowed,
    )


def _count(told: object) -> int:
    """So many tokens; 0 for what is no count, which some servers send, and no reason to lose an answer."""
    return told if isinstance(told, int) and 0 < told <= _MOST_TOKENS else 0


def _spent(error: ModelError, input_tokens: int, output_tokens: int) -> ModelError:
    error.input_tokens, error.output_tokens = input_tokens, output_tokens
    return error


def _object_in(text: str) -> str:
    """The first JSON object in `text`, which may stand in a code fence or between sentences; else `text` itself."""
    decoder, at = json.JSONDecoder(), text.find("{")
    for _ in range(_OBJECTS_TRIED):
        if at < 0:
            break
        try:
            return text[at : decoder.raw_decode(text, at)[1]]
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
    return text


def _translated(error: openai.OpenAIError) -> ModelError:
    """The SDK's errors in this project's; their texts may quote the request, so none of them is passed on."""
    match error:
        case openai.APIStatusError():
            return _by_status(error)
        case openai.APIConnectionError():
            return _by_cause(error)
        case _:
            return ModelBusy("The model's answer could not be read.")


def _by_cause(error: Exception) -> ModelError:
    """What broke, by the innermost error: on the way up a reset is turned into a time-out of the connection."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case aiohttp.ClientConnectorError() | aiohttp.InvalidURL():
                return ProviderDown("The model's server can't be reached.")
            case TimeoutError():
                return ModelTimeout(_TOO_LATE)
            case aiohttp.ClientError() | ConnectionError():
                return ModelBusy("The connection to the model broke.")
        cause = cause.__cause__ or cause.__context__
    return ModelTimeout(_TOO_LATE)


def _by_status(error: openai.APIStatusError) -> ModelError:
    headers = error.response.headers
    wish = retry_after_s(headers, time.time())
    match error.status_code:
        case 401:
            return BadKey("The model's server rejects the API key.")
        case 403:
            return Forbidden("The model's server forbids this request.")
        case 402:
            return NoQuota("The account at the model's provider has no quota left.")
        case 429 if error.code == "insufficient_quota":
            return NoQuota("The account at the model's provider has no quota left.")
        case 429:
            message = "The model's server asks for fewer requests."
            return RateLimited(message, retry_after_s=wish, allowance=allowance(headers))
        case 400 | 422 if re.search("response_format|json_schema|json_object", error.message):
            return _UnsupportedForm(f"The model's server rejects the request ({error.status_code}).")
        case 400 | 422 if re.search(r"\bstream", error.message):
            return _Unstreamable(f"The model's server rejects the request ({error.status_code}).")
        case 408 | 409 | 425:
            return ModelBusy(f"The model's server answered {error.status_code}.", retry_after_s=wish)
        case status if status >= 500:  # noqa: PLR2004 - HTTP's server errors
            return ModelBusy(f"The model's server answered {status}.", retry_after_s=wish)
        case status:
            return BadModelRequest(f"The model's server rejects the request ({status}).")
