"""The contract's section Common, line by line, against the real application on a real socket."""

import asyncio
import io
import json
import re
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import pytest_asyncio
import structlog
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from support import eventually, free_port, unique_name
from support.api import ASK, Answered, raw_exchange, running_api
from travelrec import metrics
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.connect import Parts
from travelrec.errors import BrokerUnavailable, SignalUnavailable
from travelrec.wire import JOBS_TOPIC
from travelrec_api import app, edge
from travelrec_api.edge import MAX_BODY_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")
UID = re.compile(r"[0-9a-f]{32}")
ERROR_KEYS = {"error", "message"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api():
    """An API in memory for all tests that leave it as it was, but for accepted jobs."""
    async with running_api() as api:
        yield api


class Gone:
    """A neighbour that can't be reached: every call raises."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    async def _refuse(self, *_: object) -> None:
        raise self._error("gone")

    publish = waiting = announce = ping = _refuse

    @asynccontextmanager
    async def listen(self, _: object):
        yield


class Defective(MemoryStore):
    """A store with a defect of ours in it."""

    async def accept(self, jobs, now):
        raise ZeroDivisionError("secret insides")


def is_error(answer, status):
    """Whether an answer is an error of the common shape."""
    assert answer.status == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json.keys() == ERROR_KEYS | ({"details"} if status == 422 else set())
    assert all(answer.json.values())
    return True


# --- request ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["a", "Req-1._x", "0" * 128, "0198c1aa-0000-7000-8000-00000000cafe"])
async def test_a_sane_request_id_of_the_caller_is_kept(api, own):
    """X-Request-ID comes back when it is 1 to 128 of A-Za-z0-9._-."""
    answer = await api.get("/healthz", headers={"X-Request-ID": own})
    assert answer.headers.getall("X-Request-ID") == [own]


@pytest.mark.parametrize(
    "insane", ["", "0" * 129, "a b", "a/b", "a\tb", "<script>", "é", "a,b", "'", "%0d%0a"]
)
async def test_an_insane_request_id_is_replaced(api, insane):
    """Anything else than 1 to 128 of A-Za-z0-9._- never comes back."""
    answer = await api.get("/healthz", headers={"X-Request-ID": insane})
    (given,) = answer.headers.getall("X-Request-ID")
    assert UID.fullmatch(given)


async def test_without_a_request_id_each_response_gets_a_new_one(api):
    """Two requests without X-Request-ID have two ids."""
    ids = {(await api.get("/healthz")).headers["X-Request-ID"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics", 200),
        ("GET", "/readyz", 200),
        ("POST", ASK, 202),
        ("GET", "/nowhere", 404),
        ("GET", "/static/nothing.js", 404),
        ("PUT", "/recommendations", 405),
        ("POST", "/recommendations", 422),
        ("GET", "/recommendations?uid=x", 404),
        ("GET", "/recommendations/events?uid=x", 404),
    ],
)
async def test_every_response_carries_the_request_id(api, method, path, status):
    """Successes, refusals and the page all carry the caller's X-Request-ID, once."""
    answer = await api.call(method, path, headers={"X-Request-ID": "mine"})
    assert answer.status == status
    assert answer.headers.getall("X-Request-ID") == ["mine"]


async def test_an_event_stream_carries_the_request_id(api):
    """The head of a stream has it too."""
    uid = await api.ask()
    path = f"{api.url}/recommendations/events?uid={uid}"
    async with api.http.get(path, headers={"X-Request-ID": "mine"}) as response:
        assert response.headers["X-Request-ID"] == "mine"


async def test_request_id_and_trace_travel_with_the_job():
    """The stored job and its message carry the request's id and the caller's trace, for the worker to continue."""
    given = {"X-Request-ID": "mine", "traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    expected = {"request-id": "mine", "traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    async with running_api() as api:
        uid = await api.ask(headers=given)
        assert (await api.parts.store.get([uid]))[uid].headers == expected
        async with api.parts.broker.subscribe(JOBS_TOPIC, "looking") as subscription:
            (delivery,) = await subscription.take(1, 5.0)
            assert delivery.message.headers == expected


async def test_a_failed_request_is_logged_with_its_id():
    """What is said about a 503 carries the id that the caller got."""
    url = f"mongodb://127.0.0.1:{free_port()}/x"
    async with running_api(store_url=url, neighbour_timeout_s=0.2) as api:
        with structlog.testing.capture_logs() as logs:
            await api.call("POST", ASK, headers={"X-Request-ID": "mine"})
            await eventually(lambda: [line for line in logs if line["event"] == "request failed"])
        assert [line["request_id"] for line in logs if line["event"] == "request failed"] == ["mine"]


# --- health, metrics, docs -----------------------------------------------------------------------------


async def test_healthz_asks_nobody():
    """The process turns, also when every neighbour is away."""
    url = f"mongodb://127.0.0.1:{free_port()}/x"
    kafka = f"kafka://127.0.0.1:{free_port()}"
    async with running_api(store_url=url, broker_url=kafka, neighbour_timeout_s=0.2) as api:
        answer = await api.get("/healthz")
        assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_readyz_names_each_dependency(api):
    """200 with every state by name when all is well."""
    answer = await api.get("/readyz")
    states = {"store": "ok", "broker": "ok", "signals": "ok", "chat": "ok"}
    assert (answer.status, answer.json) == (200, {"status": "ok", "dependencies": states})


async def test_readyz_is_503_without_the_store():
    """The store is needed; the others keep their own state."""
    url = f"mongodb://127.0.0.1:{free_port()}/x"
    async with running_api(store_url=url, neighbour_timeout_s=0.2) as api:
        answer = await api.get("/readyz")
        states = {"store": "unavailable", "broker": "ok", "signals": "ok"}
        assert (answer.status, answer.json) == (503, {"status": "unavailable", "dependencies": states})


@pytest.mark.parametrize("missing", ["broker", "signals"])
async def test_readyz_is_200_without_broker_or_signals(missing):
    """Requests are still accepted, so the process stays in the balancer; the state says what is missing."""
    broker = Gone(BrokerUnavailable) if missing == "broker" else MemoryBroker()
    signals = Gone(SignalUnavailable) if missing == "signals" else MemorySignals()
    async with running_api(parts=Parts(MemoryStore(), broker, signals)) as api:
        answer = await api.get("/readyz")
        states = {"store": "ok", "broker": "ok", "signals": "ok"} | {missing: "unavailable"}
        assert (answer.status, answer.json) == (200, {"status": "degraded", "dependencies": states})


async def test_readyz_is_503_while_the_process_ends():
    """From SIGTERM on no new requests are wanted, though the process is alive."""
    async with running_api() as api:
        api.edge.stop()
        assert (await api.get("/readyz")).status == 503
        assert (await api.get("/readyz")).json["status"] == "stopping"
        assert (await api.get("/healthz")).status == 200


async def test_metrics_are_prometheus_text_with_every_name_of_the_list(api):
    """Every metric of travelrec.metrics is there, and the text parses."""
    names = {each._name for each in vars(metrics).values() if hasattr(each, "_name")}
    answer = await api.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name for family in text_string_to_metric_families(answer.text)}
    assert len(names) > 15
    assert names <= families


async def count(api, **labels):
    """What /metrics says of answered requests with these labels."""
    text = (await api.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["travelrec_http_requests"].samples
    return sum(s.value for s in samples if s.name.endswith("_total") and labels.items() <= s.labels.items())


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("POST", ASK, {"method": "POST", "route": "/recommendations", "status": "202"}),
        ("GET", "/static/app.js", {"method": "GET", "route": "/static/{name}", "status": "200"}),
        ("GET", "/no/where?x=1", {"method": "GET", "route": "(unmatched)", "status": "404"}),
        ("PROPFIND", "/healthz", {"method": "other", "status": "405"}),
    ],
)
async def test_requests_are_counted_by_route_template_and_status(api, method, path, labels):
    """What a caller types never becomes a label."""
    before = await count(api, **labels)
    await api.call(method, path)
    assert await count(api, **labels) == before + 1


class Addresses(HTMLParser):
    """Every address that a page loads from."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "action")]


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_page_and_docs_load_nothing_from_elsewhere(api, path):
    """They work without internet: no address of another host, and each of their own answers 200."""
    answer = await api.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.search(r"https?://", answer.text.replace("http://www.w3.org/2000/svg", ""))
    own = [each for each in Addresses(answer.text).found if each.startswith("/")]
    assert own
    assert {(await api.get(each)).status for each in own} == {200}


async def test_openapi_describes_every_route_and_answer(api):
    """/openapi.json is JSON that names the routes of the contract and the answers of each."""
    answer = await api.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    paths = answer.json["paths"]
    described = {
        (method, path): set(found["responses"])
        for path, methods in paths.items()
        for method, found in methods.items()
    }
    assert described == {
        ("post", "/recommendations"): {"202", "413", "422", "503"},
        ("get", "/recommendations"): {"200", "404", "422", "503"},
        ("delete", "/recommendations"): {"200", "404", "422", "503"},
        ("get", "/recommendations/events"): {"200", "404", "422", "503"},
        ("post", "/api/tasks"): {"201", "409", "413", "422", "503"},
        ("get", "/api/tasks"): {"200", "422", "503"},
        ("get", "/api/tasks/{id}"): {"200", "404", "503"},
        ("patch", "/api/tasks/{id}"): {"200", "404", "413", "422", "503"},
        ("delete", "/api/tasks/{id}"): {"204", "404", "503"},
        ("post", "/predict"): {"200", "202", "413", "422", "502", "503", "504"},
        ("get", "/predict/{prediction_id}"): {"200", "400", "404", "502", "503"},
        ("get", "/chat/{userid}/messages"): {"200", "403", "422", "503"},
        ("post", "/api/generate-trip"): {"201", "413", "503"},
        ("post", "/api/generate-multiple-trips"): {"201", "413", "422", "503"},
        ("get", "/healthz"): {"200"},
        ("get", "/readyz"): {"200", "503"},
        ("get", "/metrics"): {"200"},
    }
    assert "HTTPValidationError" not in json.dumps(answer.json), "FastAPI's own error shape is not ours"


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/recommendations/",
        "/healthz/",
        "/recommendations/events/x",
        "//",
        "/%00",
        "/..%2f..",
        "/%C3%A9",
    ],
)
async def test_unknown_paths_are_404_in_the_error_shape(api, path):
    """Nothing redirects, nothing is guessed."""
    assert is_error(await api.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/recommendations", {"GET", "HEAD", "POST", "DELETE"}),
        ("PATCH", "/recommendations", {"GET", "HEAD", "POST", "DELETE"}),
        ("OPTIONS", "/recommendations", {"GET", "HEAD", "POST", "DELETE"}),
        ("PROPFIND", "/recommendations", {"GET", "HEAD", "POST", "DELETE"}),
        ("POST", "/recommendations/events", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/readyz", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
        ("POST", "/", {"GET", "HEAD"}),
        ("POST", "/docs", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
    ],
)
async def test_wrong_methods_are_405_and_say_what_is_allowed(api, method, path, allowed):
    """405 in the error shape, with Allow as HTTP demands it."""
    answer = await api.call(method, path)
    assert is_error(answer, 405)
    assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/recommendations?uid={uid}"]
)
async def test_head_answers_as_get_without_a_body(api, path):
    """HEAD has GET's status and headers, and nothing else."""
    path = path.format(uid=await api.ask())
    got, head = await api.get(path), await api.call("HEAD", path)
    assert (head.status, head.body) == (got.status, b"")
    changes = {"date", "x-request-id", "content-length"} if path == "/metrics" else {"date", "x-request-id"}
    fixed = [{k.lower(): v for k, v in a.headers.items() if k.lower() not in changes} for a in (got, head)]
    assert fixed[0] == fixed[1]


async def test_head_of_a_stream_ends_at_once(api):
    """HEAD of the events has the stream's type and waits for nothing."""
    head = await api.call("HEAD", f"/recommendations/events?uid={await api.ask()}")
    assert head.status == 200
    assert head.headers["Content-Type"].startswith("text/event-stream")
    assert (await api.call("HEAD", "/recommendations/events?uid=x")).status == 404


@pytest.mark.parametrize("path", [ASK, "/nowhere", "/healthz"])
async def test_a_body_over_64_kib_is_413(path):
    """With Content-Length it is refused before a byte of it is read."""
    async with running_api() as api:
        sent = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
        head, _, body = (await raw_exchange(api.url, sent.encode())).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert json.loads(body).keys() == ERROR_KEYS
        assert not api.parts.store.jobs


@pytest.mark.parametrize("blanks", [" ", "\t", " \t "])
async def test_blanks_behind_a_value_are_no_part_of_it(api, blanks):
    """As HTTP has it: the limit holds, the request's id is kept, and a key is the same key."""
    named = f"X-Request-ID: mine{blanks}\r\n"
    long = f"POST /predict HTTP/1.1\r\nHost: x\r\n{named}Content-Length: {MAX_BODY_BYTES + 1}{blanks}\r\n\r\n"
    head = await raw_exchange(api.url, long.encode())
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nx-request-id: mine\r\n" in head
    key = unique_name()
    uid = await api.ask(headers={"Idempotency-Key": key})
    again = f"POST {ASK} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {key}{blanks}\r\n\r\n"
    assert uid.encode() in await raw_exchange(api.url, again.encode())


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_caller_who_sends_far_too_much_still_reads_the_413(api, chunked):
    """The connection is not reset under a body that is on its way."""

    async def chunks():
        for _ in range(64):
            yield b"x" * 64 * 1024

    for _ in range(20):
        body = chunks() if chunked else io.BytesIO(b"x" * (4 << 20))
        assert is_error(await api.call("POST", ASK, data=body), 413)


def told(url, body):
    """What `urllib` makes of a POST; it asks for the connection's end with every request."""
    try:
        with urlopen(Request(url, data=body, headers={"X-Request-ID": "mine"}, method="POST")) as answer:
            return Answered(answer.status, answer.headers, answer.read())
    except HTTPError as refused:
        with refused:
            return Answered(refused.code, refused.headers, refused.read())


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("size", [5 << 20, 20 << 20])
async def test_the_413_is_read_also_by_a_caller_who_ends_the_connection(api, chunked, size):
    """What is still on its way is read and dropped before the connection is closed: a reset would hide the answer."""
    body = iter([b"x" * size]) if chunked else b"x" * size
    answer = await asyncio.to_thread(told, f"{api.url}/predict", body)
    assert is_error(answer, 413)
    assert answer.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), (ASK, 202)])
async def test_a_body_that_nobody_needs_is_read_before_the_connection_is_closed(api, path, status):
    """A caller who is slow with it is not reset."""
    pieces = ["x" * 1_000] * 20
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 20000\r\n\r\n"
    assert await statuses(api, head, *pieces) == [status]


async def test_a_body_that_never_ends_is_not_read_for_ever(api, monkeypatch):
    """Of what is too long so much is read and no more; then the connection is closed."""
    monkeypatch.setattr(edge, "_DROPPED_BYTES", 1 << 20)
    url = URL(api.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {1 << 40}\r\n\r\n"

    async def pour() -> None:
        writer.write(head.encode())
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await pour()
    writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(api, monkeypatch):
    """A caller who is told 413 and sends nothing more has the connection closed."""
    monkeypatch.setattr(edge, "_DROPPED_S", 0.05)
    url = URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {1 << 20}\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_body_that_stops_coming_is_408(api, monkeypatch):
    """Also where nobody has a use for it; and the connection is closed."""
    monkeypatch.setattr(edge, "_BODY_S", 0.05)
    url = URL(api.url)
    for line in (f"POST {ASK}", "GET /healthz", "POST /predict"):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        async with asyncio.timeout(20):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body).keys() == ERROR_KEYS
        writer.close()


async def test_the_time_of_a_413_is_that_of_its_answer(api, monkeypatch):
    """And not of the rest of the body, which is read and dropped."""
    monkeypatch.setattr(edge, "_DROPPED_S", 0.5)
    timed = metrics.HTTP_SECONDS.labels("PATCH", "(unmatched)")
    before = timed._sum.get()
    url = URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"PATCH /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    assert 0 < timed._sum.get() - before < edge._DROPPED_S


async def test_a_chunked_body_over_64_kib_is_413():
    """Without Content-Length it is counted while it comes."""

    async def chunks():
        for _ in range(65):
            yield b"x" * 1024

    async with running_api() as api:
        assert is_error(await api.call("POST", ASK, data=chunks()), 413)
        assert not api.parts.store.jobs


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_of_64_kib_is_taken(api, chunked):
    """The limit itself is allowed; this API has no use for the body."""

    async def chunks():
        for _ in range(64):
            yield b"x" * 1024

    body = chunks() if chunked else io.BytesIO(b"x" * MAX_BODY_BYTES)
    assert (await api.call("POST", ASK, data=body)).status == 202


async def test_the_connection_lives_on_after_refusals(api):
    """404, 405 and 422 don't cost the caller the connection."""
    sent = b"".join(
        f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        for line in ("GET /nowhere", "PUT /healthz", "POST /recommendations", "GET /healthz")
    )
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    seen = b""
    while b'{"status":"ok"}' not in seen:
        piece = await reader.read(65536)
        assert piece, seen
        seen += piece
    writer.close()
    await writer.wait_closed()
    assert re.findall(rb"HTTP/1.1 (\d+)", seen) == [b"404", b"405", b"422", b"200"]


@pytest.mark.parametrize("line", ["BREW /healthz", "GET /\N{LATIN SMALL LETTER E WITH ACUTE}", "nonsense"])
async def test_what_is_not_http_is_400_in_the_error_shape(api, line):
    """Also what the application never sees has the shape and an id."""
    answer = await raw_exchange(api.url, f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body).keys() == ERROR_KEYS
    assert re.search(rb"x-request-id: [0-9a-f]{32}", head.lower())


@pytest.mark.parametrize(
    "bad", ["Accept: */*\r\nno header\r\n", "A: \x01\r\n", "Transfer-Encoding: gzip\r\n"]
)
async def test_what_is_not_http_keeps_the_id_that_was_read(api, bad, caplog):
    """The answer and the log line have the caller's X-Request-ID where it stood before what could not be read."""
    sent = f"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-ID: mine\r\n{bad}\r\n"
    head, _, _ = (await raw_exchange(api.url, sent.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert head.lower().count(b"\r\nx-request-id: mine\r\n") == 1
    assert [record.request_id for record in caplog.records if record.name == "uvicorn.error"] == ["mine"]


UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
KEY = "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
HANDSHAKE = f"GET /ws?token=x&userid=a HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"GET /ws?token={'x' * 8_300}&userid=a HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}\r\n", 403),
        (f"GET /ws?token=x&userid=a HTTP/1.1\r\nHost: x\r\nCookie: {'x' * 9_000}\r\n{UPGRADE}{KEY}\r\n", 400),
        (f"GET /ws?token=x&userid=a HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n", 400),
        (f"GET /ws?token=x&userid=a HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY.replace('13', '12')}\r\n", 400),
        (f"GET /ws?token=x&userid=a HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}Content-Length: 1\r\n\r\nx", 400),
        ("GET /ws HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 130 + f"{UPGRADE}{KEY}\r\n", 400),
        (f"GET /nowhere HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}\r\n", 404),
        (f"GET /recommendations?uid=nobody HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n", 404),
        (f"POST /ws HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}\r\n", 405),
        (f"POST /predict HTTP/1.1\r\nHost: x\r\n{UPGRADE}Content-Length: 2\r\n\r\n{{}}", 422),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
        (f"GET /ws?token=x&userid=a HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY}{KEY}\r\n", 400),
        (f"{HANDSHAKE}Sec-WebSocket-Protocol: ;;\r\n\r\n", 400),
        (f"{HANDSHAKE}Sec-WebSocket-Version: 13\r\n\r\n", 400),
        (f"{HANDSHAKE}Origin: http://a\r\nOrigin: http://b\r\n\r\n", 400),
        (f"{HANDSHAKE}Upgrade: h2c\r\n\r\n", 400),
        (HANDSHAKE.replace("1.1", "1.0") + "\r\n", 400),
    ],
)
async def test_what_asks_for_an_upgrade_has_an_answer(api, sent, status):
    """A handshake that can't be read, or that is none, is an ordinary request, and is not left waiting."""
    async with asyncio.timeout(20):
        head, _, body = (await raw_exchange(api.url, sent.encode())).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert re.search(rb"x-request-id: [0-9a-f]{32}", head.lower())
    assert status == 200 or json.loads(body).keys() >= ERROR_KEYS


LAST = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def statuses(api, *pieces):
    """Of all that one connection is told until it is closed; a piece is sent when the one before has been read."""
    url = URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    for piece in pieces:
        writer.write(piece.encode())
        await writer.drain()
        await api.get("/healthz")
    async with asyncio.timeout(20):
        seen = await reader.read()
    writer.close()
    await writer.wait_closed()
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", seen)]


H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


@pytest.mark.parametrize("framing", ["same segment", "later segment", "chunked", "chunked later"])
@pytest.mark.parametrize(
    "asked",
    [H2C, UPGRADE, UPGRADE + KEY, H2C + "Expect: 100-continue\r\n", H2C + "Proxy-Connection: Upgrade\r\n"],
)
async def test_a_body_is_read_whatever_upgrade_is_asked_for(api, asked, framing):
    """An upgrade that is no WebSocket's handshake is not made, and the request is one as any other."""
    body = json.dumps({"id": unique_name()})
    chunked = framing.startswith("chunked")
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"POST /api/tasks HTTP/1.1\r\nHost: x\r\n{asked}{length}\r\n\r\n"
    sent = f"3\r\n{body[:3]}\r\n{len(body) - 3:x}\r\n{body[3:]}\r\n0\r\n\r\n" if chunked else body
    pieces = [head, sent[:7], sent[7:]] if "later" in framing else [head + sent]
    answered = [each for each in await statuses(api, *pieces, LAST) if each != 100]
    assert answered == [201, 200]


async def test_upgrades_that_are_not_made_can_be_pipelined(api):
    """Each request has its own body, however many are sent at once, and the last word on the connection is kept."""
    names = [unique_name() for _ in range(300)]
    bodies = [json.dumps({"id": name}) for name in names]
    sent = [
        f"POST /api/tasks HTTP/1.1\r\nHost: x\r\n{UPGRADE}Content-Length: {len(body)}\r\n\r\n{body}"
        for body in bodies
    ]
    assert await statuses(api, "".join(sent), LAST) == [201] * len(names) + [200]
    last = sent[0].replace("Connection: Upgrade", "Connection: close, Upgrade")
    assert await statuses(api, last + "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") == [409]


@pytest.mark.parametrize("later", [True, False])
async def test_a_body_never_becomes_a_request(api, later):
    """What looks like a request in a body is only a body, also behind an `Upgrade`."""
    victim = unique_name()
    assert (await api.call("POST", "/api/tasks", json={"id": victim})).status == 201
    body = f"DELETE /api/tasks/{victim} HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\n{H2C}Content-Length: {len(body)}\r\n\r\n"
    assert await statuses(api, *([head, body] if later else [head + body]), LAST) == [422, 200]
    assert (await api.get(f"/api/tasks/{victim}")).status == 200


async def test_connect_is_refused_and_ends_the_connection(api):
    """What follows it would be a tunnel's, and is no request."""
    sent = "CONNECT /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    assert await statuses(api, sent) == [405]


@pytest.mark.parametrize(
    "accept", ['application/openmetrics-text; version="1.0.0"', "text/plain;version=x", "text/plain;version="]
)
async def test_metrics_take_any_accept(api, accept):
    """A version that is none is no reason to say nothing."""
    answer = await api.call("GET", "/metrics", headers={"Accept": accept})
    assert answer.status == 200
    assert "travelrec_jobs_accepted_total" in answer.text


async def test_a_422_says_what_is_wrong_with_each_field(api):
    """All fields at once, each with what would be right."""
    answer = await api.call("POST", "/recommendations?country=Canda&season=monsoon")
    assert is_error(answer, 422)
    details = {detail["field"]: detail["message"] for detail in answer.json["details"]}
    assert details.keys() == {"country", "season"}
    assert all(each.keys() == {"field", "message"} for each in answer.json["details"])
    assert "Canada" in details["country"]
    assert all(name in details["season"] for name in ("spring", "summer", "autumn", "winter"))


@pytest.mark.parametrize(
    "query",
    [
        "%",
        "%ff%fe",
        "&&&===",
        "country=%00&season=%00",
        "country[$ne]=x&season[$gt]=",
        "country=CA&season=winter&season=summer",
        "country=%ED%A0%80&season=winter",
        "country=" + "a" * 20_000 + "&season=winter",
        "country=%F0%9F%8F%96&season=%E2%80%AE",
        "country=CA;season=winter",
        "uid=" + "%25" * 5_000,
    ],
)
async def test_bad_input_is_never_a_500(api, query):
    """Whatever stands in the query, it is a 422 in the error shape."""
    assert is_error(await api.call("POST", f"/recommendations?{query}"), 422)
    assert (await api.get(f"/recommendations?{query}")).status in (404, 422)


async def test_a_defect_of_ours_shows_no_insides():
    """500 in the error shape, with the request's id and without a word about what broke."""
    async with running_api(parts=Parts(Defective(), MemoryBroker(), MemorySignals())) as api:
        answer = await api.call("POST", ASK, headers={"X-Request-ID": "mine"})
        assert is_error(answer, 500)
        assert answer.headers["X-Request-ID"] == "mine"
        assert not re.search("Zero|secret|Traceback|File|travelrec", answer.text)


async def test_json_is_utf8_as_it_is(api):
    """Names come in UTF-8, not escaped."""
    answer = await api.call("POST", "/recommendations?country=C%C3%B4te%20d&season=winter")
    assert "Côte d" in answer.text
    assert answer.headers["Content-Type"] == "application/json"


# --- neighbours away -----------------------------------------------------------------------------------


async def test_without_the_store_everything_about_jobs_is_503_and_nothing_is_accepted():
    """503 with Retry-After in the error shape; no message goes out for what was not stored."""
    url = f"mongodb://user:hunter2@127.0.0.1:{free_port()}/x"
    uid = "0" * 32
    async with running_api(store_url=url, neighbour_timeout_s=0.2) as api:
        accepted = metrics.ACCEPTED.labels("recommendation")._value.get()
        for method, path in (
            ("POST", ASK),
            ("GET", f"/recommendations?uid={uid}"),
            ("GET", f"/recommendations?uid={uid}&wait=5"),
            ("GET", f"/recommendations/events?uid={uid}"),
            ("DELETE", f"/recommendations?uid={uid}"),
        ):
            answer = await api.call(method, path)
            assert is_error(answer, 503)
            assert int(answer.headers["Retry-After"]) > 0
            assert not re.search(r"mongo|127\.0\.0\.1|hunter2|Traceback", answer.text, re.IGNORECASE)
        assert metrics.ACCEPTED.labels("recommendation")._value.get() == accepted
        async with api.parts.broker.subscribe(JOBS_TOPIC, "looking") as subscription:
            assert not await subscription.take(1, 0.05)


async def test_bad_input_is_said_even_without_the_store():
    """A request that could never be accepted is not asked to come back."""
    url = f"mongodb://127.0.0.1:{free_port()}/x"
    async with running_api(store_url=url, neighbour_timeout_s=0.2) as api:
        assert is_error(await api.call("POST", "/recommendations?country=CA"), 422)
        assert (await api.get("/recommendations?uid=nonsense")).status == 404


async def test_without_the_broker_requests_are_accepted():
    """202 while Kafka can't be reached; the job is stored, and pending."""
    kafka = f"kafka://127.0.0.1:{free_port()}"
    async with running_api(broker_url=kafka, neighbour_timeout_s=0.2) as api:
        uid = await api.ask()
        assert (await api.get(f"/recommendations?uid={uid}")).json["status"] == "pending"
        assert not api.parts.store.jobs[uid].ended


async def test_an_api_ends_in_its_time_although_its_messages_go_nowhere(monkeypatch):
    """What is not published then is left to the sweeper, instead of holding the process until it is killed."""

    class Hung(MemoryBroker):
        async def publish(self, topic, messages):
            await asyncio.Event().wait()

    monkeypatch.setattr(app, "_DRAIN_S", 0.1)
    store = MemoryStore()
    async with asyncio.timeout(10):
        async with running_api(parts=Parts(store, Hung(), MemorySignals())) as api:
            uid = await api.ask()
    assert not store.jobs[uid].ended
