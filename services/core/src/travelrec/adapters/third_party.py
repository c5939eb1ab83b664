"""The third party over HTTP: `POST {url}/tasks` submits a task, `GET {url}/tasks` says how all of them are."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

import aiohttp

from travelrec.errors import ThirdPartyAway, ThirdPartyError, ThirdPartyFailed, ThirdPartyRefused
from travelrec.retry import retry_after_s
from travelrec.tasks.ports import Rows
from travelrec.tasks.reading import read_json, read_rows

_MAX_BYTES = 64 * 1024 * 1024  # of one answer
_SHOWN = 300  # characters of what it says
_AWAY = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.PAYMENT_REQUIRED,
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)  # of the place and its limits, not of the task


class HttpThirdParty:
    """See `tasks.ports.ThirdParty`; made by `opened`."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = f"{url.rstrip('/')}/tasks"

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str, *, timeout_s: float) -> AsyncIterator[HttpThirdParty]:
        """A client of the third party at `url`; nothing is sent before the first call."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as http:
            yield cls(http, url)

    async def submit(self, id_: str, key: str, headers: Mapping[str, str]) -> None:
        """See `tasks.ports.ThirdParty`. A 409 says that it has the task already."""
        status, body, said = await self._call("POST", {"id": id_}, {"Idempotency-Key": key, **headers})
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES or status == HTTPStatus.CONFLICT:
            return
        raise _refusal(status, body, said)

    async def rows(self) -> Rows:
        """See `tasks.ports.ThirdParty`."""
        status, body, said = await self._call("GET", None, {})
        if status != HTTPStatus.OK:
            raise _refusal(status, body, said)
        try:
            listed = read_json(body)
        except ValueError as error:
            raise ThirdPartyFailed("The third party's answer is no JSON.") from error
        if not isinstance(listed, list):
            raise ThirdPartyFailed("The third party's answer is no JSON array.")
        return Rows(*read_rows(listed))

    async def _call(
        self, method: str, sent: Mapping[str, str] | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes, Mapping[str, str]]:
        try:
            async with self._http.request(
                method, self._url, json=sent, headers=headers, allow_redirects=False
            ) as response:
                said = {name.lower(): value for name, value in response.headers.items()}
                return response.status, await _read(response), said
        except TimeoutError as error:
            raise ThirdPartyFailed("The third party did not answer in time.") from error
        except aiohttp.ClientConnectorError as error:
            raise ThirdPartyAway("The third party can't be reached.") from error
        except aiohttp.ClientError as error:
            raise ThirdPartyFailed("The third party broke the connection.") from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > _MAX_BYTES:
            raise ThirdPartyFailed("The third party's answer is larger than 64 MiB.")
    return bytes(body)


def _refusal(status: int, body: bytes, headers: Mapping[str, str]) -> ThirdPartyError:
    """The error of an answer, by whose fault it is."""
    asked_s = retry_after_s(headers, time.time())
    told = _told(body)
    message = f"The third party answered {status}" + (f": {told}" if told else ".")
    if (
        status in _AWAY
        or HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
        or (status == HTTPStatus.SERVICE_UNAVAILABLE and asked_s is not None)
    ):
        return ThirdPartyAway(message, retry_after_s=asked_s)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        return ThirdPartyFailed(message)
    return ThirdPartyRefused(message)


def _told(body: bytes) -> str:
    """What an error's body says, in one line: its message, if it has one, or the beginning of its text."""
    text = body[: 4 * _SHOWN].decode(errors="replace")
    try:
        said = json.loads(body[: 1 << 16])
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict):
        inner = said.get("error")
        found = [
            said.get("message"),
            inner.get("message") if isinstance(inner, dict) else inner,
            said.get("detail"),
        ]
        text = next((one for one in found if isinstance(one, str) and one), "")
    return " ".join(text.encode(errors="replace").decode().split())[:_SHOWN]
