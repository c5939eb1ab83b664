"""One trace for each uid, over real processes, Kafka and the MongoDB protocol, as a collector receives it."""

import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, Process, RabbitMQ, free_port
from support.collector import Collector, Span, collecting
from support.deployment import COMMAND, PLACES, Client, Deployment, client_of, ready, url_of
from travelrec.fake_openai import FakeSettings
from travelrec.kinds.recommendation.places import find_country
from travelrec.trips.entities import JOINED, SOURCES

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.real("kafka", "mongo"),
    pytest.mark.timeout(180),
]
MODEL_AT_EASE = {**FakeSettings().as_dict(), "faults": {}}
PLANTED = "sk-planted-7d1f"
CALLER, OTHER_CALLER = "0af7651916cd43dd8448eb211c80319c", "1bf7651916cd43dd8448eb211c80319c"
JOB = "process travelrec.jobs"
ACCEPTED = ("POST /recommendations", "store accept", "publish travelrec.jobs")
WORKED = ("receive travelrec.jobs", JOB, "claim", "generate", "chat gpt-4o-mini", "settle")
WHOLE = (*ACCEPTED, *WORKED, "publish travelrec.signals")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@contextmanager
def running(kind: type[Kafka | RabbitMQ], collector: Collector) -> Iterator[Deployment]:
    """Two APIs and two workers that are traced; one job at a time is no load, so every span is exported at once."""
    with (
        kind() as broker,
        Mongo() as mongo,
        Deployment(
            broker,
            mongo,
            apis=2,
            workers=2,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="100",
            RECOMMENDATION_CACHE_TTL="3600",
            JOB_MAX_ATTEMPTS="2",
            OPENAI_API_KEY=PLANTED,
        ) as deployment,
    ):
        yield deployment


@pytest.fixture(scope="module")
def deployment(collector: Collector) -> Iterator[Deployment]:
    with running(Kafka, collector) as deployment:
        yield deployment


@pytest_asyncio.fixture(loop_scope="module")
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    async with at_rest(deployment) as client:
        yield client


@asynccontextmanager
async def at_rest(deployment: Deployment) -> AsyncIterator[Client]:
    """All of it works, and remembers nothing."""
    await deployment.healthy()
    async with client_of(deployment, {place: find_country(place) for place in PLACES}) as client:
        await client.model(**MODEL_AT_EASE)
        await client.forget_jobs()
        await client._mongo[deployment.database]["leads"].delete_many({})
        yield client
        await client.model(**MODEL_AT_EASE)
        print(deployment.story())


async def asked(api: Process, place: str, season: str = "winter", **headers: str) -> tuple[str, str]:
    """The uid of a new request and the traceparent that its answer names."""
    params = {"country": place, "season": season}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url_of(api)}/recommendations", params=params, headers=headers) as response,
    ):
        assert response.status == 202
        return (await response.json())["uid"], response.headers["traceresponse"]


async def waited(api: Process, uid: str, **headers: str) -> dict[str, str]:
    """The body once the job has ended."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{url_of(api)}/recommendations", params={"uid": uid, "wait": "30"}, headers=headers) as got,
    ):
        return await got.json()


def trace_of(traceparent: str) -> str:
    return traceparent.split("-")[1]


def only(spans: list[Span], name: str) -> Span:
    (span,) = [span for span in spans if span.name == name]
    return span


def all_of(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


async def test_a_request_is_one_trace_from_its_caller_to_the_waiter_elsewhere(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """The caller's trace goes on through API, worker and the other API that tells a waiter, in parent order."""
    await one_trace(client, deployment, collector, CALLER, "kafka")


@pytest.mark.real("rabbitmq")
async def test_so_it_is_on_rabbitmq(collector: Collector) -> None:
    """The same spans, which name that broker; its exchange is a fan-out, so that no span has a routing key."""
    with running(RabbitMQ, collector) as deployment:
        async with at_rest(deployment) as client:
            await one_trace(client, deployment, collector, OTHER_CALLER, "rabbitmq")


async def one_trace(
    client: Client, deployment: Deployment, collector: Collector, caller: str, system: str
) -> None:
    """A request in the trace of its `caller` leaves exactly the spans that it should."""
    await client.model(latency_s=0.5)
    one, other = deployment.apis
    uid, traceresponse = await asked(one, "CA", traceparent=f"00-{caller}-b7ad6b7169203331-01")
    assert trace_of(traceresponse) == caller
    body = await waited(other, uid, traceparent=traceresponse)
    assert body["status"] == "completed"
    spans = await collector.trace(caller, *WHOLE, "notify", "GET /recommendations")
    assert {span.trace_id for span in collector.spans if span.uid == uid} == {caller}
    assert sorted(span.name for span in spans) == sorted([*WHOLE, "notify", "GET /recommendations"])

    by_name = {span.name: span for span in spans}
    parents = {
        "POST /recommendations": None,
        "store accept": "POST /recommendations",
        "publish travelrec.jobs": "POST /recommendations",
        "receive travelrec.jobs": "publish travelrec.jobs",
        JOB: "publish travelrec.jobs",
        "claim": JOB,
        "generate": JOB,
        "chat gpt-4o-mini": "generate",
        "settle": JOB,
        "publish travelrec.signals": JOB,
        "notify": "publish travelrec.signals",
        "GET /recommendations": "POST /recommendations",
    }
    for name, parent in parents.items():
        expected = "b7ad6b7169203331" if parent is None else by_name[parent].span_id
        assert by_name[name].parent_id == expected, name
        assert by_name[name].ended_at >= by_name[name].began_at
    services = {name: span.service for name, span in by_name.items()}
    assert {services[name] for name in (*ACCEPTED, "notify")} == {"travelrec-api"}
    assert {services[name] for name in WORKED} == {"travelrec-worker"}
    kinds = [by_name[name].kind for name in ("POST /recommendations", "publish travelrec.jobs", JOB)]
    assert kinds == ["SERVER", "PRODUCER", "CONSUMER"]
    assert (by_name["notify"].uid, by_name["notify"].attributes["travelrec.waiters"]) == (uid, 1)
    for name in ("publish travelrec.jobs", "receive travelrec.jobs", JOB):
        assert by_name[name].attributes["messaging.system"] == system
        assert by_name[name].attributes["messaging.destination.name"] == "travelrec.jobs"
        assert by_name[name].attributes["messaging.operation.name"] == name.partition(" ")[0]
    assert not [key for span in spans for key in span.attributes if key.endswith("routing_key")]


async def test_spans_say_what_an_operator_asks_for(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """Kind, attempt, outcome, tokens and the conventions' names are attributes; no text of prompt or answer is."""
    uid, traceresponse = await asked(deployment.apis[0], "JP", "spring", **{"X-Request-ID": "mine"})
    body = await waited(deployment.apis[0], uid)
    spans = await collector.trace(trace_of(traceresponse), *WHOLE)
    process, chat = only(spans, JOB).attributes, only(spans, "chat gpt-4o-mini").attributes
    request = only(spans, "POST /recommendations").attributes
    assert {name: process[name] for name in process if name.startswith("travelrec.")} == {
        "travelrec.uid": uid,
        "travelrec.kind": "recommendation",
        "travelrec.attempt": 1,
        "travelrec.outcome": "completed",
    }
    assert process["messaging.system"] == "kafka"
    assert process["messaging.destination.name"] == "travelrec.jobs"
    assert (chat["gen_ai.operation.name"], chat["gen_ai.provider.name"]) == ("chat", "openai")
    assert chat["gen_ai.request.model"] == "gpt-4o-mini"
    assert chat["gen_ai.usage.input_tokens"] > 0
    assert chat["gen_ai.usage.output_tokens"] > 0
    assert (request["http.response.status_code"], request["http.route"]) == (202, "/recommendations")
    assert request["travelrec.request_id"] == "mine"
    told = json.dumps([span.attributes for span in spans])
    for secret in ("Japan", "travel assistant", *body["recommendations"]):
        assert secret not in told


async def test_the_same_ids_are_in_the_logs(client: Client, deployment: Deployment) -> None:
    """The API's line of the request and the worker's line of the job have its uid, request id and trace id."""
    uid, traceresponse = await asked(deployment.apis[0], "PE", **{"X-Request-ID": "seen-everywhere"})
    await waited(deployment.apis[0], uid)
    found = []
    for process in (deployment.apis[0], *deployment.workers):
        for line in process.lines(uid):
            told = json.loads(line)
            if told["event"] in {"request", "job finished"} and told.get("method") != "GET":
                found.append(told)
    assert {told["event"] for told in found} == {"request", "job finished"}
    for told in found:
        assert (told["uid"], told["request_id"]) == (uid, "seen-everywhere")
        assert told["trace_id"] == trace_of(traceresponse)
    (job,) = [told for told in found if told["event"] == "job finished"]
    assert (job["kind"], job["outcome"], job["attempt"]) == ("recommendation", "completed", 1)
    assert all(job[f"{step}_s"] >= 0 for step in ("wait", "claim", "generate", "settle", "total"))
    assert job["input_tokens"] > 0


async def test_a_retry_is_linked_to_the_first_try(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """A job that failed once is tried again in the same trace, by a span that is linked to the first try's."""
    await client.model(faults={"500": 1})
    uid, traceresponse = await asked(deployment.apis[0], "FR")
    trace_id = trace_of(traceresponse)
    await collector.trace(trace_id, "generate", JOB)
    await client.model(faults={})
    assert (await waited(deployment.apis[0], uid))["status"] == "completed"
    spans = await collector.trace(trace_id, JOB, JOB, "generate", "generate", "publish travelrec.jobs")
    first, second = all_of(spans, JOB)
    assert (first.attributes["travelrec.attempt"], first.attributes["travelrec.outcome"]) == (1, "retry")
    assert first.failed
    assert (second.attributes["travelrec.attempt"], second.failed) == (2, False)
    assert second.links == ((trace_id, all_of(spans, "generate")[0].span_id),)
    assert not first.links


async def test_a_coalesced_job_is_linked_to_the_call_that_it_shares(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """Of six jobs of one key one calls the model; the others' spans are linked to its run, across workers too."""
    await client.model(latency_s=1.0)
    all_asked = [await asked(deployment.apis[n % 2], "IS") for n in range(6)]
    for uid, _ in all_asked:
        assert (await waited(deployment.apis[0], uid))["status"] == "completed"
    traces = [await collector.trace(trace_of(traceresponse), JOB) for _, traceresponse in all_asked]
    leaders = [spans for spans in traces if all_of(spans, "generate")]
    assert len(leaders) == 1
    generate = only(leaders[0], "generate")
    followers = [spans for spans in traces if spans is not leaders[0]]
    last = [all_of(spans, JOB)[-1] for spans in followers]
    assert [span.links for span in last] == [((generate.trace_id, generate.span_id),)] * 5
    assert all(span.attributes["travelrec.coalesced"] for span in last)

    uid, traceresponse = await asked(deployment.apis[0], "IS")  # born completed
    spans = await collector.trace(trace_of(traceresponse), "POST /recommendations")
    assert (generate.trace_id, generate.span_id) in only(spans, "POST /recommendations").links


async def test_a_joined_trip_is_linked_to_its_three_sources(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """The span that publishes it is in the caller's trace, and linked to those that published its records."""
    streams = [stream.topic for stream in SOURCES]
    trace_id = os.urandom(16).hex()
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url_of(deployment.apis[0])}/api/generate-trip", headers=headers) as response,
    ):
        assert response.status == 201
    published = [f"publish {topic}" for topic in streams]
    spans = await collector.trace(trace_id, *published, f"publish {JOINED.topic}", timeout_s=60.0)
    joined = only(spans, f"publish {JOINED.topic}")
    sources = {(trace_id, only(spans, name).span_id) for name in published}
    assert set(joined.links) == sources
    assert joined.parent_id in {span_id for _, span_id in sources}


async def test_a_replayed_job_stays_in_its_trace_and_is_linked_to_the_first_try(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """A dead letter that is replayed completes in the trace of its request, linked to the try that failed."""
    await client.model(faults={"refusal": 1})
    uid, traceresponse = await asked(deployment.apis[0], "KE")
    trace_id = trace_of(traceresponse)
    assert (await waited(deployment.apis[0], uid))["status"] == "failed"
    await client.model(faults={})
    replay = Process(
        [*COMMAND, "dead-letters", "replay", uid], env=deployment.apis[0].env, name="dead-letters"
    )
    async with replay:
        assert await replay.wait(20) == 0
    assert (await waited(deployment.apis[0], uid))["status"] == "completed"
    spans = await collector.trace(trace_id, JOB, JOB, "generate", "generate")
    first, second = all_of(spans, JOB)
    assert (first.attributes["travelrec.outcome"], first.failed) == ("failed", True)
    assert second.attributes["travelrec.outcome"] == "completed"
    assert second.links == ((trace_id, all_of(spans, "generate")[0].span_id),)
    (record,) = await client.jobs.find({"_id": uid}).to_list(None)
    assert [each["error"] for each in record["earlier"]] == ["Model refused"]


async def test_a_failure_shows_in_a_trace_that_was_not_sampled(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """Of an unsampled trace nothing is exported, unless its job fails: one span then tells when, why and how often."""
    unsampled = "11" * 16
    uid, traceresponse = await asked(
        deployment.apis[0], "NO", traceparent=f"00-{unsampled}-b7ad6b7169203331-00"
    )
    assert trace_of(traceresponse) == unsampled
    assert (await waited(deployment.apis[0], uid))["status"] == "completed"
    await client.model(faults={"refusal": 1})
    uid, _ = await asked(deployment.apis[0], "PT", traceparent=f"00-{unsampled}-b7ad6b7169203331-00")
    assert (await waited(deployment.apis[0], uid))["status"] == "failed"
    (span,) = await collector.trace(unsampled, "failed recommendation")
    assert (span.uid, span.failed, span.attributes["error.type"]) == (uid, True, "Model refused")
    assert span.events == ("Model refused",)


async def test_no_secret_is_told_to_anybody(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """After trouble of every sort the key and the prompt's text are in no log, no metric, no span and no answer."""
    answers = []
    for fault in ("401", "500", "refusal", "broken-json"):
        await client.model(faults={fault: 1})
        uid, _ = await asked(deployment.apis[0], "GR", "summer")
        if fault == "401":  # not the job's fault: it stays pending until the key is accepted
            await client.in_flight(0)
            await client.model(faults={})
        answers.append(json.dumps(await waited(deployment.apis[0], uid)))
    told = [*answers, json.dumps([span.attributes for span in collector.spans])]
    for process in (*deployment.apis, *deployment.workers):
        told.append(process.output())
        async with aiohttp.ClientSession() as http, http.get(f"{url_of(process)}/metrics") as response:
            told.append(await response.text())
    assert "Greece" in answers[0]
    for text in told:
        assert PLANTED not in text
        assert "Country: Greece" not in text
        assert "You are" not in text


async def test_ask_says_by_which_ids_it_is_found(
    client: Client, deployment: Deployment, collector: Collector
) -> None:
    """`travelrec ask --verbose` shows the request id and the trace id, under which the collector has the spans."""
    command = [*COMMAND, "ask", "Austria", "spring", "--verbose", "--url", url_of(deployment.apis[0])]
    async with Process(command, name="ask") as asking:
        assert await asking.wait(30) == 0
        found = re.search(r"request id (\w{32}), trace (\w{32})", asking.output())
    assert found is not None, asking.output()
    spans = await collector.trace(found[2], "POST /recommendations")
    assert only(spans, "POST /recommendations").attributes["travelrec.request_id"] == found[1]


async def test_a_collector_that_is_away_holds_nothing_up(client: Client, deployment: Deployment) -> None:
    """Requests are answered and the process ends in its time when spans can't be delivered."""
    gone = f"http://127.0.0.1:{free_port()}"
    api = deployment.api("api-untraced", OTEL_EXPORTER_OTLP_ENDPOINT=gone, WEB_CONCURRENCY="1")
    async with api:
        await ready(api)
        uids = [(await asked(api, place))[0] for place in PLACES[:10]]
        for uid in uids:
            assert (await waited(api, uid))["status"] == "completed"
        api.terminate()
        assert await api.wait(15) == 0
    assert '"api stopped"' in api.output()
