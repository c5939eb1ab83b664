"""A client of a schema registry with Confluent's API: Confluent's own, Karapace, Apicurio under `/apis/ccompat/v7`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from urllib.parse import quote

import aiohttp

from travelrec.errors import RegistryUnavailable, SchemaRefused, UnknownSchema
from travelrec.job import Json

_TYPE = "application/vnd.schemaregistry.v1+json"
_TRIES = 3
_PAUSE_S = 0.2
_REFUSALS = (HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
_UNKNOWN = range(40400, 40500)  # a registry's `error_code` where it has no such subject, version or schema
_LEVELS = {
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
}  # all of them hold what BACKWARD does

Answer = tuple[int, Json]


class HttpRegistry:
    """See `trips.ports.Registry`; made by `opened`."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._http = http

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, *, timeout_s: float = 5.0) -> AsyncIterator[HttpRegistry]:
        """The registry at `url`, user and password in it if need be; the server may still be away."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        headers = {"Content-Type": _TYPE, "Accept": f"{_TYPE}, application/json"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
            yield cls(url, http)

    async def register(self, subject: str, schema: str) -> int:
        """See `trips.ports.Registry`."""
        place = f"/subjects/{quote(subject, safe='')}"
        body: Json = {"schema": schema}
        status, found = await self._ask("POST", place, body)  # whether it is a version already
        if status == HTTPStatus.NOT_FOUND:
            await self._check(subject, body)
            status, found = await self._ask("POST", f"{place}/versions", body)
            if status in _REFUSALS:
                why, refused = found, status
                status, found = await self._ask("POST", place, body)
                if status != HTTPStatus.OK:  # else another process of ours was faster
                    raise SchemaRefused(f"{subject}: {refused}: {_said(why)}")
            await self._hold_backward(subject)
        number = found.get("id") if isinstance(found, dict) else None
        if status != HTTPStatus.OK or not isinstance(number, int):
            raise self._odd(status, found)
        return number

    async def _check(self, subject: str, body: Json) -> None:
        """Raises `SchemaRefused` where a reader with the new schema could not read what the newest one wrote."""
        await self._hold_backward(subject)
        place = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        status, found = await self._ask("POST", place, body)
        if status == HTTPStatus.NOT_FOUND:  # the first of its subject
            return
        if status != HTTPStatus.OK or not isinstance(found, dict):
            raise self._odd(status, found)
        if found.get("is_compatible") is not True:
            why = found.get("reason") or found.get("messages") or "no reason given"
            raise SchemaRefused(f"{subject}: {why if isinstance(why, str) else json.dumps(why)}")

    async def _hold_backward(self, subject: str) -> None:
        """So that the registry refuses as well, whoever asks; a level that holds as much is left as it is."""
        place = f"/config/{quote(subject, safe='')}"
        for _ in range(_TRIES):
            status, found = await self._ask("GET", place)
            if isinstance(found, dict) and found.get("compatibilityLevel") in _LEVELS:
                return
            status, found = await self._ask("PUT", place, {"compatibility": "BACKWARD"})
            if status in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):  # it may know no subject before its schema
                return
            if status != HTTPStatus.CONFLICT:  # else another was faster
                break
        raise self._odd(status, found)

    async def schema(self, number: int) -> str:
        """See `trips.ports.Registry`."""
        status, found = await self._ask("GET", f"/schemas/ids/{number}")
        if status == HTTPStatus.NOT_FOUND:
            raise UnknownSchema(f"schema {number} is not known to the registry")
        text = found.get("schema") if isinstance(found, dict) else None
        if status != HTTPStatus.OK or not isinstance(text, str):
            raise self._odd(status, found)
        return text

    async def ping(self) -> None:
        """See `trips.ports.Registry`."""
        status, found = await self._ask("GET", "/schemas/types", tries=1)
        if status != HTTPStatus.OK:
            raise self._odd(status, found)

    async def _ask(self, method: str, place: str, body: Json = None, *, tries: int = _TRIES) -> Answer:
        """Status and answer; what may pass by itself is tried again. Raises `RegistryUnavailable`."""
        for tried in range(1, tries + 1):
            try:
                async with self._http.request(method, self._url + place, json=body) as response:
                    answer = response.status, _json(await response.read())
                if response.status < HTTPStatus.INTERNAL_SERVER_ERROR and not _is_strange(*answer):
                    return answer
                trouble = self._odd(*answer)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                told = str(error) or "no answer in time"
                trouble = RegistryUnavailable(f"the schema registry can't be reached: {told:.200}")
            if tried < tries:
                await asyncio.sleep(_PAUSE_S * tried)
        raise trouble

    def _odd(self, status: int, found: Json) -> RegistryUnavailable:
        return RegistryUnavailable(f"the schema registry answered {status}: {_said(found):.200}")


def _is_strange(status: int, found: Json) -> bool:
    """Whether it is a 404 of another: what stands before the registry, or a path that is none of its API."""
    code = found.get("error_code") if isinstance(found, dict) else None
    return status == HTTPStatus.NOT_FOUND and code not in _UNKNOWN


def _json(body: bytes) -> Json:
    try:
        found: Json = json.loads(body)
    except ValueError:
        return body[:200].decode("utf-8", "replace")
    return found


def _said(found: Json) -> str:
    message = found.get("message") if isinstance(found, dict) else found
    return message if isinstance(message, str) else json.dumps(found)
