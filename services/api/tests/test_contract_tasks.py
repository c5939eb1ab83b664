"""The contract's section Tasks, as a client sees it, against the real application on a real socket."""

import asyncio
import json
import re
from urllib.parse import quote

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import eventually
from support.api import Api, running_api
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.adapters.memory_tasks import MemoryTaskStore
from travelrec.connect import Parts
from travelrec.errors import StoreUnavailable
from travelrec.job import new_uid
from travelrec_api import withdraw

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATUSES = ["Not Started", "In Progress", "Completed", "Error"]
NEW = {"id": "1", "status": "Not Started", "error_message": None}


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        "memory",
        "sqlite",
        pytest.param("mongo-motor", marks=pytest.mark.real("mongo")),
        pytest.param("mongo-pymongo", marks=pytest.mark.real("mongo")),
    ],
)
async def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """An API without workers, on each store."""
    match request.param.partition("-"):
        case "memory", _, _:
            given = {}
        case "sqlite", _, _:
            given = {"store_url": f"sqlite:///{tmp_path_factory.mktemp('tasks')}/t.db"}
        case _, _, driver:
            server = request.getfixturevalue("mongo_server")
            given = {"store_url": f"{server.url.rstrip('/')}/{new_uid()}", "mongo_driver": driver}
    async with running_api(**given) as api:
        yield api


async def forget(api: Api) -> None:
    """Deletes every task."""
    for task in await api.parts.tasks.page(None, None, 1000):
        await api.parts.tasks.delete(task.id)


@pytest_asyncio.fixture(loop_scope="module")
async def api(running: Api) -> Api:
    """It, without tasks."""
    await forget(running)
    return running


async def post(api: Api, **body):
    return await api.call("POST", "/api/tasks", json=body)


async def patch(api: Api, id_: str, **body):
    return await api.call("PATCH", f"/api/tasks/{quote(id_, safe='')}", json=body)


async def read(api: Api, id_: str):
    return await api.get(f"/api/tasks/{quote(id_, safe='')}")


def is_error(answer, status: int) -> bool:
    """Whether it is an error of this status in the error shape, with details if they are due."""
    body = answer.json
    keys = {"error", "message", "details"} if status == 422 else {"error", "message"}
    told = all(isinstance(body[name], str) and body[name] for name in ("error", "message"))
    detailed = status != 422 or all(set(one) == {"field", "message"} for one in body["details"])
    return answer.status == status and set(body) == keys and told and detailed


# --- create --------------------------------------------------------------------------------------------


async def test_a_task_is_created_and_read(api) -> None:
    """201 and 200 with exactly the contract's keys; Location says where it is."""
    created = await post(api, id="1")
    assert (created.status, created.json) == (201, NEW)
    assert created.headers["Location"] == "/api/tasks/1"
    assert created.headers["Content-Type"] == "application/json"
    found = await read(api, "1")
    assert (found.status, found.json) == (200, NEW)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("1", "1"),
        ('"007"', "007"),
        ("-3", "-3"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        ("12345678901234567890123456789", "12345678901234567890123456789"),
        ("9" * 128, "9" * 128),
        ('"a/b ?&#%"', "a/b ?&#%"),
        ('"' + "é" * 128 + '"', "é" * 128),
        ('" "', " "),
        ('"1"', "1"),
        (r'"a\nb\n"', "a\nb\n"),
    ],
)
async def test_an_id_is_a_text_or_a_number_kept_as_its_string(api, sent, kept) -> None:
    """What is created as a number is found by its string, and is the same task."""
    created = await api.call("POST", "/api/tasks", data=f'{{"id": {sent}}}')
    assert (created.status, created.json) == (201, {**NEW, "id": kept})
    assert (await read(api, kept)).json == created.json
    assert is_error(await post(api, id=kept), 409)


async def test_ids_that_differ_by_a_line_end_are_two(api) -> None:
    """What is done to one is not done to the other."""
    for id_ in ("a", "a\n"):
        assert (await post(api, id=id_)).status == 201
    assert (await api.call("DELETE", "/api/tasks/a%0A")).status == 204
    assert (await read(api, "a")).json == {**NEW, "id": "a"}
    assert is_error(await read(api, "a\n"), 404)


async def test_an_id_that_exists_is_409(api) -> None:
    """Also as a number, also at the same time: of 20 one is created."""
    answers = await asyncio.gather(*(post(api, id=n) for n in [1, "1"] * 10))
    assert sorted(answer.status for answer in answers) == [201, *[409] * 19]
    assert all(is_error(answer, 409) for answer in answers if answer.status == 409)
    assert (await api.get("/api/tasks")).json == [NEW]


@pytest.mark.parametrize("status", STATUSES)
async def test_a_task_is_created_in_any_state(api, status) -> None:
    """With its message, where it is an error."""
    message = "Invalid IP range: 192.168.1.256" if status == "Error" else None
    created = await post(api, id="1", status=status, error_message=message)
    assert (created.status, created.json) == (201, {"id": "1", "status": status, "error_message": message})
    assert (await read(api, "1")).json == created.json


async def test_a_group_is_shown_where_it_was_given(api) -> None:
    """Only then has a task a fourth key."""
    assert (await post(api, id="1", group="blue")).json == {**NEW, "group": "blue"}
    assert (await post(api, id="2", group=None)).json == {**NEW, "id": "2"}


BAD_BODIES = [
    ("{}", "id"),
    ('{"id": null}', "id"),
    ('{"id": ""}', "id"),
    ('{"id": true}', "id"),
    ('{"id": [1]}', "id"),
    ('{"id": {"$gt": ""}}', "id"),
    ('{"id": "' + "x" * 129 + '"}', "id"),
    ('{"id": ' + "9" * 129 + "}", "id"),
    ('{"id": ' + "9" * 5000 + "}", "id"),
    ('{"id": "\\ud800"}', "id"),
    ('{"id": NaN}', "body"),
    ('{"id": Infinity}', "body"),
    ('{"id": "1", "status": "completed"}', "status"),
    ('{"id": "1", "status": null}', "status"),
    ('{"id": "1", "status": 1}', "status"),
    ('{"id": "1", "status": ["Error"]}', "status"),
    ('{"id": "1", "error_message": "x"}', "error_message"),
    ('{"id": "1", "status": "Completed", "error_message": "x"}', "error_message"),
    ('{"id": "1", "status": "Error", "error_message": 5}', "error_message"),
    ('{"id": "1", "status": "Error", "error_message": "\\udfff"}', "error_message"),
    ('{"id": "1", "status": "Error", "error_message": "' + "x" * 4001 + '"}', "error_message"),
    ('{"id": "1", "group": ""}', "group"),
    ('{"id": "1", "group": 1}', "group"),
    ('{"id": "1", "statsu": "Error"}', "statsu"),
    ("", "body"),
    ("{", "body"),
    ("[]", "body"),
    ('"1"', "body"),
    ("null", "body"),
    ("[" * 60_000, "body"),
    (b"\xff\xfe", "body"),
]


async def test_what_can_not_be_used_is_422(api) -> None:
    """Each bad body is answered with the field that is wrong, and nothing is created."""
    for body, field in BAD_BODIES:
        answer = await api.call("POST", "/api/tasks", data=body)
        assert is_error(answer, 422), (body, answer.status, answer.text)
        assert [one["field"] for one in answer.json["details"]] == [field], body
    assert (await api.get("/api/tasks")).json == []


async def test_all_that_is_wrong_is_told_at_once(api) -> None:
    """One answer names every bad field."""
    answer = await post(api, id="", status="no", error_message=5)
    assert [one["field"] for one in answer.json["details"]] == ["id", "status", "error_message"]


# --- read, change, delete ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["2", "", "1/", "%00", "%ff", "1%2F2", "x" * 5000, "$ne", "%7B%22$ne%22:null%7D"]
)
async def test_an_unknown_id_is_404(api, path) -> None:
    """In the error shape, for every method; nothing is changed."""
    await post(api, id="1")
    for method in ("GET", "PATCH", "DELETE"):
        answer = await api.call(method, f"/api/tasks/{path}", data="{}" if method == "PATCH" else None)
        assert is_error(answer, 404), (method, path, answer.text)
    assert (await api.get("/api/tasks")).json == [NEW]


async def test_a_wrong_method_is_405(api) -> None:
    """In the error shape, with what is allowed."""
    answer = await api.call("PUT", "/api/tasks/1")
    assert is_error(answer, 405)
    assert {"GET", "PATCH", "DELETE"} <= set(answer.headers["Allow"].split(", "))
    assert is_error(await api.call("DELETE", "/api/tasks"), 405)


async def test_a_change_keeps_what_it_does_not_name(api) -> None:
    """PATCH answers with the task; an empty change changes nothing."""
    await post(api, id="1")
    assert (await patch(api, "1")).json == NEW
    wrong = await patch(api, "1", status="Error", error_message="broken")
    assert (wrong.status, wrong.json) == (200, {"id": "1", "status": "Error", "error_message": "broken"})
    assert (await patch(api, "1", status="Error")).json == wrong.json
    assert (await patch(api, "1", error_message="worse")).json["error_message"] == "worse"
    assert (await patch(api, "1", error_message=None)).json == {**wrong.json, "error_message": None}
    assert (await patch(api, "1", id="1")).status == 200
    assert (await patch(api, "1", id=1)).status == 200


@pytest.mark.parametrize("before", STATUSES)
@pytest.mark.parametrize("after", STATUSES)
async def test_any_state_can_be_set_by_hand(api, before, after) -> None:
    """And the message of an error goes with it."""
    await post(api, id="1", status=before, error_message="old" if before == "Error" else None)
    answer = await patch(api, "1", status=after)
    message = "old" if before == after == "Error" else None
    assert (answer.status, answer.json) == (200, {"id": "1", "status": after, "error_message": message})
    assert (await read(api, "1")).json == answer.json


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"status": "done"}, "status"),
        ({"status": None}, "status"),
        ({"error_message": "x"}, "error_message"),
        ({"status": "Completed", "error_message": "x"}, "error_message"),
        ({"status": "Error", "error_message": ["x"]}, "error_message"),
        ({"id": "2"}, "id"),
        ({"group": "x"}, "group"),
        ([], "body"),
    ],
)
async def test_a_change_that_makes_no_sense_is_422(api, body, field) -> None:
    """And is not done."""
    await post(api, id="1")
    answer = await api.call("PATCH", "/api/tasks/1", json=body)
    assert is_error(answer, 422), answer.text
    assert [one["field"] for one in answer.json["details"]] == [field]
    assert (await read(api, "1")).json == NEW


async def test_a_deleted_task_is_gone(api) -> None:
    """204 without a body, then 404; the id is free again."""
    await post(api, id="1")
    deleted = await api.call("DELETE", "/api/tasks/1")
    assert (deleted.status, deleted.body) == (204, b"")
    assert is_error(await api.call("DELETE", "/api/tasks/1"), 404)
    assert is_error(await read(api, "1"), 404)
    assert (await post(api, id="1")).status == 201


# --- list ----------------------------------------------------------------------------------------------


async def test_a_list_is_paged_in_order_of_creation(api) -> None:
    """By `after`, or by following `Link`; with a filter, of those tasks only."""
    names = [str(number) for number in range(25)]
    for name in names:
        await post(api, id=name, status="Completed" if int(name) % 2 else "Not Started")
    assert [task["id"] for task in (await api.get("/api/tasks")).json] == names
    page = (await api.get("/api/tasks?limit=10&after=9")).json
    assert [task["id"] for task in page] == names[10:20]
    for path, expected in (
        ("/api/tasks?limit=7", names),
        ("/api/tasks?limit=5&status=Completed", names[1::2]),
    ):
        walked, link = [], path
        while link:
            answer = await api.get(link)
            walked += [task["id"] for task in answer.json]
            found = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("Link", ""))
            link = found[1] if found else None
        assert walked == expected
    assert (await api.get("/api/tasks?status=Not%20Started&limit=1&after=0")).json[0]["id"] == "2"
    assert (await api.get("/api/tasks?status=In+Progress")).json == []
    assert len((await api.get("/api/tasks?status=&limit=&after=")).json) == 25


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=completed", "status"),
        ("status=%00", "status"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("after=nope", "after"),
        ("after=%ff", "after"),
        ("limit=1&limit=2", "limit"),
    ],
)
async def test_a_bad_query_is_422(api, query, field) -> None:
    """Naming the parameter."""
    answer = await api.get(f"/api/tasks?{query}")
    assert is_error(answer, 422)
    assert [one["field"] for one in answer.json["details"]] == [field]


async def test_a_body_that_is_too_large_is_413(api) -> None:
    """Over 64 KiB, as everywhere."""
    assert is_error(await api.call("POST", "/api/tasks", data=b" " * 70_000), 413)


# --- the store away, and anything at all -----------------------------------------------------------------


class Shaky(MemoryTaskStore):
    """Writes, and then loses the answer while told to."""

    losing = True

    async def create(self, task):
        done = await super().create(task)
        if self.losing:
            raise StoreUnavailable("no answer")
        return done


async def test_nothing_is_half_accepted(monkeypatch) -> None:
    """A create whose answer was lost is 503 with Retry-After; what stands of it is withdrawn, or made way for."""
    monkeypatch.setattr(withdraw, "_LOOK_S", 0.3)
    store = Shaky()
    async with running_api(parts=Parts(MemoryStore(), MemoryBroker(), MemorySignals(), store)) as api:
        for id_ in ("1", "2"):
            answer = await post(api, id=id_)
            assert is_error(answer, 503)
            assert answer.headers["Retry-After"]
        store.losing = False
        assert (await post(api, id="1")).status == 201
        await eventually(lambda: set(store.tasks) == {"1"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(
    st.sampled_from(["id", "status", "error_message", "group", "x"]),
    JSON | st.sampled_from(STATUSES),
    max_size=5,
)


@given(data=st.lists(st.tuples(st.sampled_from(["POST", "PATCH"]), FIELDS | JSON), max_size=8))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_input_breaks_it(api, data) -> None:
    """Whatever is sent is answered as the contract says, never with a 500, and what is listed keeps its rules."""
    await forget(api)
    for method, body in data:
        path = "/api/tasks" if method == "POST" else "/api/tasks/0"
        answer = await api.call(method, path, data=json.dumps(body))
        assert answer.status in (200, 201, 404, 409, 422), answer.text
        if answer.status >= 400:
            assert is_error(answer, answer.status)
    for task in (await api.get("/api/tasks")).json:
        assert task.keys() - {"group"} == NEW.keys()
        assert task["status"] in STATUSES
        assert task["error_message"] is None or task["status"] == "Error"
        assert (await read(api, task["id"])).json == task
