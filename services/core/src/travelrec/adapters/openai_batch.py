"""An OpenAI-compatible Batch API as the third party: each task is one request of a batch, and is done when that is.

Tasks that are submitted at the same time share one upload and one batch. What came of them is read from the output and
error files of batches that have ended, also of those that expired or were cancelled; requests that neither file names
are errors. A batch is made once for one `Idempotency-Key` where the server honours it. OpenAI does not say that it
does: after a crash between making a batch and noting it a task may be in two, and the newer one counts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import aiohttp
import openai
import structlog
from openai import AsyncOpenAI, DefaultAioHttpClient
from openai.types import Batch

from travelrec.batching import Batcher
from travelrec.errors import ThirdPartyAway, ThirdPartyFailed, ThirdPartyRefused
from travelrec.retry import retry_after_s
from travelrec.tasks.ports import Rows
from travelrec.tasks.reading import read_rows
from travelrec.tasks.task import Row, TaskStatus

_ENDPOINT: Final = "/v1/chat/completions"
_OURS = {"travelrec": "tasks"}  # metadata of our batches
_MOST = 10_000  # requests in a batch; OpenAI takes 50,000
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_KEPT_S = 3 * 86400.0  # a batch ends within a day, and what it said is known soon after
_AWAY = (
    openai.AuthenticationError,
    openai.PermissionDeniedError,
    openai.NotFoundError,
    openai.RateLimitError,
)
_REFUSED = (openai.BadRequestError, openai.UnprocessableEntityError)

log = structlog.get_logger(__name__)


class OpenAIBatches:
    """See `tasks.ports.ThirdParty`; made by `opened`."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self._client = client
        self._model = model
        self._submits: Batcher[tuple[str, str], None] = Batcher(
            self._submit_all, max_items=_MOST, max_in_flight=2, grow=1
        )
        self._ended: dict[str, Rows] = {}  # what batches that have ended came to

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, *, api_key: str, base_url: str | None, model: str, timeout_s: float
    ) -> AsyncIterator[OpenAIBatches]:
        """A client; nothing is sent before the first call."""
        async with AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=timeout_s / 2,  # a submission makes two calls
            http_client=DefaultAioHttpClient(),
        ) as client:
            yield cls(client, model)

    async def submit(self, id_: str, key: str, headers: Mapping[str, str]) -> None:
        """See `tasks.ports.ThirdParty`."""
        await self._submits.submit((id_, key))

    async def rows(self) -> Rows:
        """See `tasks.ports.ThirdParty`. Tasks of batches that have not ended are in progress, as they were."""
        since = time.time() - _KEPT_S
        batches = []
        with _translated():
            async for batch in self._client.batches.list(limit=100):
                if batch.created_at < since:
                    break
                if (batch.metadata or {}).items() >= _OURS.items() and batch.status in _ENDED:
                    batches.append(batch)
            for batch in batches:
                if batch.id in self._ended:
                    continue
                try:  # kept one by one: what a poll has no time for is left to the next
                    self._ended[batch.id] = await self._read(batch)
                except openai.NotFoundError:
                    log.warning("a file of a batch is gone, so nothing is known of its tasks", batch=batch.id)
        self._ended = known = {
            batch.id: self._ended[batch.id] for batch in batches if batch.id in self._ended
        }
        good: dict[str, Row] = {}
        for rows in reversed(known.values()):  # the newest has the last word
            good.update((row.id, row) for row in rows.good)
        return Rows(list(good.values()), sum(rows.bad for rows in known.values()))

    async def _submit_all(self, tasks: list[tuple[str, str]]) -> Sequence[None]:
        lines = "\n".join(json.dumps(self._request(id_, key)) for id_, key in tasks)
        key = hashlib.sha256("\n".join(key for _, key in tasks).encode()).hexdigest()
        with _translated():
            uploaded = await self._client.files.create(file=("tasks.jsonl", lines.encode()), purpose="batch")
            await self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata=_OURS,
                extra_headers={"Idempotency-Key": key},
            )
        return [None] * len(tasks)

    def _request(self, id_: str, key: str) -> dict[str, object]:
        body = {"model": self._model, "messages": [{"role": "user", "content": id_}]}
        return {"custom_id": f"{key}:{id_}", "method": "POST", "url": _ENDPOINT, "body": body}

    async def _read(self, batch: Batch) -> Rows:
        """What became of each request of a batch that has ended."""
        said: list[object] = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            said += [_row(line) for line in await self._lines(file_id)]
        good, bad = read_rows(said)
        if batch.status != "completed":
            named = {row.id for row in good}
            asked = [_id(line) for line in await self._lines(batch.input_file_id)]
            reason = _reason(batch)
            good += [Row(id_, TaskStatus.ERROR, reason) for id_ in asked if id_ and id_ not in named]
        return Rows(good, bad)

    async def _lines(self, file_id: str | None) -> list[object]:
        if file_id is None:
            return []
        content = await self._client.files.content(file_id)
        lines: list[object] = []
        for line in content.content.splitlines():
            if line.strip():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    lines.append(None)
        return lines


def _id(line: object) -> str | None:
    custom = line.get("custom_id") if isinstance(line, dict) else None
    return custom.partition(":")[2] if isinstance(custom, str) else None


def _row(line: object) -> dict[str, object] | None:
    """One result in the words of a third party's row."""
    if not isinstance(line, dict) or _id(line) is None:
        return None
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict) and response.get("status_code") == 200 and not error:  # noqa: PLR2004 - HTTP's OK
        return {"id": _id(line), "status": TaskStatus.COMPLETED}
    if not isinstance(error, dict) and isinstance(response, dict) and isinstance(response.get("body"), dict):
        error = response["body"].get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return {
        "id": _id(line),
        "status": TaskStatus.ERROR,
        "error_message": message if isinstance(message, str) else "The request failed.",
    }


def _reason(batch: Batch) -> str:
    told = [error.message for error in (batch.errors.data or [])] if batch.errors else []
    first = next((message for message in told if message), None)
    return f"The batch is {batch.status}" + (f": {first}" if first else ".")


def _unreachable(error: BaseException) -> bool:
    """Whether nobody is there: on the way up that is turned into a time-out of the connection."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.InvalidURL):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def _translated() -> Iterator[None]:
    """The SDK's errors, by whose fault they are."""
    try:
        yield
    except openai.APIConnectionError as error:
        if _unreachable(error):
            raise ThirdPartyAway("The Batch API can't be reached.") from error
        raise ThirdPartyFailed("The Batch API did not answer in time, or broke the connection.") from error
    except _AWAY as error:
        asked_s = retry_after_s({k.lower(): v for k, v in error.response.headers.items()}, time.time())
        raise ThirdPartyAway(f"The Batch API answered {error.status_code}.", retry_after_s=asked_s) from error
    except _REFUSED as error:
        raise ThirdPartyRefused(f"The Batch API refused the tasks: {error.message[:300]}") from error
    except openai.OpenAIError as error:
        raise ThirdPartyFailed("The Batch API failed.") from error
