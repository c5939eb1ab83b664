"""The offline model's Batch API: files that are uploaded, batches that end with time, what came of their requests."""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from travelrec.fake_openai.answers import answer
from travelrec.fake_openai.asks import read_chat
from travelrec.fake_openai.refusals import Refused
from travelrec.fake_openai.replies import chat_reply
from travelrec.fake_openai.settings import FakeSettings

_DAY_S = 86400
_PAGE = 20
_MOST_PAGE = 100
_ENDPOINT = "/v1/chat/completions"
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}


@dataclass(slots=True)
class _Batch:
    """One batch; it works on its requests in the first part of its time, and writes its files at its end."""

    id: str
    input_file_id: str
    metadata: Mapping[str, str]
    created: float
    lasts_s: float
    ends_as: str
    total: int
    cancelled: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, object]] = field(default_factory=list)

    def status(self, now: float) -> str:
        if self.cancelled is not None:
            return "cancelled" if now >= self.cancelled + self.lasts_s / 10 else "cancelling"
        if now < self.created + self.lasts_s:
            return "validating" if now < self.created + self.lasts_s / 10 else "in_progress"
        return self.ends_as


class Batches:
    """All files and batches of one offline model."""

    def __init__(self, settings: Callable[[], FakeSettings]) -> None:
        self._settings = settings
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, _Batch] = {}
        self._by_key: dict[str, str] = {}
        self.uploads = 0

    async def handle(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Answers a request of `/files…` or `/batches…`."""
        match (request.method, *path.strip("/").split("/")):
            case ("POST", "files"):
                return await self._upload(request)
            case ("GET", "files", id_, "content"):
                return web.Response(body=self._content(id_), content_type="application/octet-stream")
            case ("POST", "batches"):
                return await self._create(request)
            case ("GET", "batches"):
                return self._listed(request)
            case ("GET", "batches", id_):
                return web.json_response(self._shown(self._found(id_)))
            case ("POST", "batches", id_, "cancel"):
                batch = self._found(id_)
                if batch.status(time.time()) in ("validating", "in_progress"):
                    batch.cancelled = time.time()
                return web.json_response(self._shown(batch))
        raise Refused(404, f"Invalid URL ({request.method} {path}).", code="unknown_url")

    async def _upload(self, request: web.BaseRequest) -> web.StreamResponse:
        content, purpose = b"", ""
        async for part in await request.multipart():
            if getattr(part, "name", None) == "file":
                content = bytes(await part.read(decode=True))  # type: ignore[union-attr]  # no part of parts
            elif getattr(part, "name", None) == "purpose":
                purpose = bytes(await part.read(decode=True)).decode()  # type: ignore[union-attr]  # as above
        if purpose != "batch" or not content:
            raise Refused(400, "Send a non-empty file with the purpose 'batch'.", param="file")
        self.uploads += 1
        return web.json_response(self._file(self._kept(content), content))

    async def _create(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            asked = json.loads(await request.read())
        except ValueError:
            raise Refused(400, "We could not parse the JSON body of your request.") from None
        if not isinstance(asked, dict) or asked.get("endpoint") != _ENDPOINT:
            raise Refused(400, f"Invalid 'endpoint': expected '{_ENDPOINT}'.", param="endpoint")
        lines = self._content(str(asked.get("input_file_id"))).splitlines()
        key = request.headers.get("Idempotency-Key", "")
        if key in self._by_key:
            return web.json_response(self._shown(self._batches[self._by_key[key]]))
        settings = self._settings()
        batch = _Batch(
            f"batch_{secrets.token_hex(12)}",
            asked["input_file_id"],
            asked.get("metadata") or {},
            time.time(),
            settings.batch_s,
            settings.batch_end,
            len(lines),
        )
        self._batches[batch.id] = batch
        if key:
            self._by_key[key] = batch.id
        return web.json_response(self._shown(batch))

    def _listed(self, request: web.BaseRequest) -> web.StreamResponse:
        limit = min(int(request.query.get("limit", _PAGE)), _MOST_PAGE)
        newest = list(reversed(self._batches.values()))
        after = request.query.get("after")
        if after:
            newest = newest[newest.index(self._found(after)) + 1 :]
        page = [self._shown(batch) for batch in newest[:limit]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        return web.json_response({"object": "list", "data": page, **ends, "has_more": len(newest) > limit})

    def _shown(self, batch: _Batch) -> dict[str, object]:
        status = batch.status(time.time())
        if status in ("completed", "expired", "cancelled") and batch.output_file_id is None:
            self._end(batch, status)
        if status == "failed":
            batch.errors = [{"code": "invalid_request", "message": "The input file is not valid.", "line": 1}]
        done = self._lines(batch.output_file_id)
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": _ENDPOINT,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "input_file_id": batch.input_file_id,
            "completion_window": "24h",
            "status": status,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            "created_at": int(batch.created),
            "expires_at": int(batch.created) + _DAY_S,
            "request_counts": {
                "total": batch.total,
                "completed": done,
                "failed": self._lines(batch.error_file_id),
            },
            "metadata": dict(batch.metadata),
        }

    def _end(self, batch: _Batch, status: str) -> None:
        """Writes the files: of an expired batch half of the requests were done, of a cancelled one half and no word
        of the others."""
        requests = [
            json.loads(line) for line in self._content(batch.input_file_id).splitlines() if line.strip()
        ]
        done = requests if status == "completed" else requests[: len(requests) // 2]
        output, errors = [], []
        for number, one in enumerate(done):
            try:
                ask = read_chat(json.dumps(one.get("body")).encode())
            except Refused as refused:
                body = json.loads(refused.body())
                errors.append(_result(one, {"status_code": refused.status, "body": body}, None))
                continue
            said = answer(ask, self._settings().seed, None)
            reply = json.loads(chat_reply(ask, said, f"{batch.id}{number}", int(time.time())))
            output.append(_result(one, {"status_code": 200, "body": reply}, None))
        if status == "expired":
            errors += [_result(one, None, _EXPIRED) for one in requests[len(done) :]]
        batch.output_file_id = self._kept(b"\n".join(output))
        if errors:
            batch.error_file_id = self._kept(b"\n".join(errors))

    def _found(self, id_: str) -> _Batch:
        if id_ not in self._batches:
            raise Refused(404, f"No batch found with id '{id_}'.")
        return self._batches[id_]

    def _content(self, id_: str) -> bytes:
        if id_ not in self._files:
            raise Refused(404, f"No such File object: {id_}", param="id")
        return self._files[id_]

    def _lines(self, id_: str | None) -> int:
        return len(self._files.get(id_ or "", b"").splitlines())

    def _kept(self, content: bytes) -> str:
        id_ = f"file-{secrets.token_hex(12)}"
        self._files[id_] = content
        return id_

    @staticmethod
    def _file(id_: str, content: bytes) -> dict[str, object]:
        return {
            "id": id_,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": "tasks.jsonl",
            "purpose": "batch",
            "status": "processed",
        }


def _result(asked: Mapping[str, object], response: object, error: object) -> bytes:
    return json.dumps(
        {
            "id": f"batch_req_{secrets.token_hex(8)}",
            "custom_id": asked.get("custom_id"),
            "response": response,
            "error": error,
        }
    ).encode()
