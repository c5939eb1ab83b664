"""The contract of `/predict`, line by line, over HTTP on the real application and its worker."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support import eventually
from support.api import Answered, Api, running_api
from travelrec.errors import StoreUnavailable
from travelrec.fake_openai import FakeSettings
from travelrec.job import is_uid
from travelrec_api import predictions

pytestmark = pytest.mark.asyncio

PROCESSING = {"error": "Prediction is still being processed."}
NOT_FOUND = {"error": "Prediction ID not found."}
ASYNC = {"Async-Mode": "true"}


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    """With a worker whose mock model takes no time."""
    async with running_api(model=FakeSettings(), prediction_latency_s=0) as running:
        yield running


@pytest_asyncio.fixture
async def idle() -> AsyncIterator[Api]:
    """Without a worker: nothing ends."""
    async with running_api() as running:
        yield running


async def post(api: Api, body: object, **headers: str) -> Answered:
    sent = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return await api.call(
        "POST", "/predict", data=sent, headers={"Content-Type": "application/json", **headers}
    )


async def fetched(api: Api, uid: str) -> Answered:
    """The answer for an id once it is not "still being processed"."""

    async def ended() -> Answered | None:
        answer = await api.get(f"/predict/{uid}")
        return None if answer.status == 400 else answer

    return await eventually(ended)


@pytest.mark.parametrize("headers", [{}, {"Async-Mode": "false"}, {"Async-Mode": "False"}])
async def test_sync_answers_with_the_result(api: Api, headers: dict[str, str]) -> None:
    """Exactly the input and the result; the same input has the same result; it can be fetched again."""
    answer = await post(api, {"input": "Where to go?"}, **headers)
    assert answer.status == 200
    assert list(answer.json) == ["input", "result"]
    assert answer.json["input"] == "Where to go?"
    assert (await post(api, {"input": "Where to go?"})).json == answer.json
    assert (await post(api, {"input": "Where else?"})).json["result"] != answer.json["result"]
    again = await api.get(answer.headers["Location"])
    assert again.json["output"] == answer.json


@pytest.mark.parametrize("mode", ["true", "True", "TRUE"])
async def test_async_answers_at_once_and_is_fetched_later(api: Api, mode: str) -> None:
    """202 with exactly the two keys; then 200 with id and output."""
    answer = await post(api, {"input": "slow"}, **{"Async-Mode": mode})
    uid = answer.json["prediction_id"]
    assert answer.status == 202
    assert answer.json == {"message": "Request received. Processing asynchronously.", "prediction_id": uid}
    assert is_uid(uid)
    assert answer.headers["Location"] == f"/predict/{uid}"
    found = await fetched(api, uid)
    result = (await post(api, {"input": "slow"})).json["result"]
    assert (found.status, found.json) == (
        200,
        {"prediction_id": uid, "output": {"input": "slow", "result": result}},
    )


async def test_still_working_is_400(idle: Api) -> None:
    """With exactly this body, and when to ask again."""
    uid = (await post(idle, {"input": "x"}, **ASYNC)).json["prediction_id"]
    answer = await idle.get(f"/predict/{uid}")
    assert (answer.status, answer.json, answer.headers["Retry-After"]) == (400, PROCESSING, "1")


@pytest.mark.parametrize("uid", ["nope", "0" * 32, "%00", "%C3%9C", "a" * 500, "..%2f.."])
async def test_unknown_is_404(idle: Api, uid: str) -> None:
    """Unknown and malformed ids, and those of jobs of another kind, with exactly this body."""
    answer = await idle.get(f"/predict/{uid}")
    assert answer.status == 404
    if uid != "..%2f..":  # which is another address
        assert answer.json == NOT_FOUND
    other = await idle.ask()
    assert (await idle.get(f"/predict/{other}")).json == NOT_FOUND
    uid = (await post(idle, {"input": "x"}, **ASYNC)).json["prediction_id"]
    assert (await idle.get(f"/recommendations?uid={uid}")).status == 404


@pytest.mark.parametrize("text", ["x", "x" * 8000, "😀" * 8000, " ", "\x00", '"\\\n', "é" * 8000])
async def test_one_to_8000_characters_come_back_as_they_are(api: Api, text: str) -> None:
    """Characters, not bytes; nothing is trimmed."""
    assert (await post(api, {"input": text})).json["input"] == text


BAD = {
    "empty": ({"input": ""}, "input"),
    "long": ({"input": "x" * 8001}, "input"),
    "missing": ({}, "input"),
    "number": ({"input": 5}, "input"),
    "null": ({"input": None}, "input"),
    "list": ({"input": ["a"]}, "input"),
    "extra": ({"input": "a", "more": 1}, "more"),
    "array": ([{"input": "a"}], "body"),
    "string": ("input", "body"),
    "not JSON": (b"{'input': 'a'}", "body"),
    "nothing": (b"", "body"),
    "half": (b'{"input": "a', "body"),
    "not UTF-8": (b'{"input": "\xff"}', "body"),
    "surrogate": (b'{"input": "\\ud800"}', "body"),
    "deep": (b"[" * 50_000, "body"),
    "large number": (b'{"input": ' + b"9" * 5000 + b"}", "body"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_bodies_are_422(idle: Api, name: str) -> None:
    """In the error shape, naming the field."""
    body, field = BAD[name]
    answer = await post(idle, body)
    assert answer.status == 422
    assert set(answer.json) == {"error", "message", "details"}
    assert [detail["field"] for detail in answer.json["details"]] == [field]


@pytest.mark.parametrize("mode", ["yes", "1", "", "true, false"])
async def test_bad_modes_are_422(idle: Api, mode: str) -> None:
    """Only true and false; a header given twice is none of them. Nothing is accepted."""
    answer = await post(idle, {"input": "x"}, **{"Async-Mode": mode})
    assert answer.status == 422
    assert answer.json["details"] == [{"field": "Async-Mode", "message": "Async-Mode: use true or false."}]
    assert (await idle.parts.store.backlog(10)).pending == 0


async def test_the_content_type_is_not_asked_for(api: Api) -> None:
    """curl's default serves as well."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert (await post(api, {"input": "x"}, **headers)).status == 200


async def test_over_64_kib_is_413(idle: Api) -> None:
    """As everywhere."""
    answer = await post(idle, {"input": "x" * 70_000})
    assert (answer.status, set(answer.json)) == (413, {"error", "message"})


async def test_no_result_in_time_is_504(idle: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 60 s, in the error shape; it goes on, and `Location` names it."""
    assert predictions._WAIT_S == 60.0
    monkeypatch.setattr(predictions, "_WAIT_S", 0.2)
    answer = await post(idle, {"input": "x"})
    assert answer.status == 504
    assert set(answer.json) == {"error", "message"}
    assert (await idle.get(answer.headers["Location"])).json == PROCESSING


async def test_a_failed_prediction_is_502() -> None:
    """When waited for and when fetched: why, in the error shape, and nothing of the insides."""
    async with running_api(model=FakeSettings(), prediction_model="json:loads", max_attempts=1) as api:
        waited = await post(api, {"input": "x"})
        later = await fetched(api, (await post(api, {"input": "x"}, **ASYNC)).json["prediction_id"])
        for answer in (waited, later):
            assert answer.status == 502
            assert set(answer.json) == {"error", "message"}
            assert "Expecting" not in answer.text, "what the model raised"


async def test_the_same_key_is_the_same_prediction(api: Api) -> None:
    """Sent again it is answered with the first one's id or result; with another input 422; kinds share no keys."""
    key = {"Idempotency-Key": "k1"}
    first = await post(api, {"input": "x"}, **ASYNC, **key)
    again = await post(api, {"input": "x"}, **ASYNC, **key)
    assert again.json == first.json
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await post(api, {"input": "x"}, **key)).status == 200
    assert (await post(api, {"input": "y"}, **key)).status == 422
    other = await api.call("POST", "/recommendations?country=Canada&season=winter", headers=key)
    assert other.status == 202
    assert "Idempotent-Replayed" not in other.headers


async def test_a_store_that_goes_away_while_it_waits_is_waited_for(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted is never said not to be: only the time-out ends the wait."""
    monkeypatch.setattr(predictions, "_WAIT_S", 1.5)
    waiting = asyncio.create_task(post(idle, {"input": "x"}))

    async def accepted() -> bool:
        return (await idle.parts.store.backlog(10)).pending == 1

    await eventually(accepted)
    asked = 0

    async def away(uids: object) -> dict[str, object]:
        nonlocal asked
        asked += 1
        raise StoreUnavailable("away")

    monkeypatch.setattr(idle.parts.store, "get", away)
    assert (await waiting).status == 504
    assert asked


async def test_an_api_that_ends_says_so(idle: Api) -> None:
    """Who waits is told to try again, and where the result will be."""
    waiting = asyncio.create_task(post(idle, {"input": "x"}))

    async def accepted() -> bool:
        return (await idle.parts.store.backlog(10)).pending == 1

    await eventually(accepted)
    idle.edge.stop()
    answer = await waiting
    assert (answer.status, set(answer.json)) == (503, {"error", "message"})
    assert answer.headers["Location"].startswith("/predict/")


async def test_nothing_is_half_accepted_while_the_store_is_away(
    idle: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After, as everywhere."""

    async def away(*_: object) -> list[object]:
        raise StoreUnavailable("away")

    monkeypatch.setattr(idle.parts.store, "accept", away)
    for mode in ("true", "false"):
        answer = await post(idle, {"input": "x"}, **{"Async-Mode": mode})
        assert (answer.status, "Retry-After" in answer.headers) == (503, True)


async def test_many_at_once_each_have_their_own_result(api: Api) -> None:
    """Nothing is mixed up, and equal inputs share no job."""
    answers = await asyncio.gather(*(post(api, {"input": f"n{n % 40}"}) for n in range(120)))
    assert [answer.json["input"] for answer in answers] == [f"n{n % 40}" for n in range(120)]
    assert len({answer.headers["Location"] for answer in answers}) == 120
    by_input = {}
    for answer in answers:
        assert by_input.setdefault(answer.json["input"], answer.json["result"]) == answer.json["result"]


async def test_a_model_that_is_away_is_nothing_to_predictions() -> None:
    """A provider without a key, whose breaker is open: predictions go on."""
    async with running_api(model=FakeSettings(faults={"401": 1.0}), prediction_latency_s=0) as api:
        uid = await api.ask()
        await eventually(lambda: api.model is not None and api.model.stats()["calls"] > 0)
        assert (await post(api, {"input": "x"})).status == 200
        assert (await api.get(f"/recommendations?uid={uid}")).json["status"] == "pending"


async def test_wrong_methods_are_405(idle: Api) -> None:
    """In the error shape, with what is allowed."""
    answer = await idle.get("/predict")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert (await idle.call("DELETE", "/predict/x")).headers["Allow"] == "GET, HEAD"
