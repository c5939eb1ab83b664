"""A request's way through two APIs of two processes and two workers, on real servers, while things go wrong."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition

from support import Kafka, Mongo, Process, eventually, unique_name
from support.deployment import PLACES, Asked, Client, Deployment, Load, client_of, ready
from travelrec.adapters.kafka import KafkaBroker
from travelrec.fake_openai import FakeSettings
from travelrec.job import Job
from travelrec.kinds.recommendation.places import find_country
from travelrec.wire import JOBS_GROUP, JOBS_TOPIC, Message, dead_letter_topic, encode_job

pytestmark = [pytest.mark.asyncio, pytest.mark.real("kafka", "mongo"), pytest.mark.timeout(180)]

OUTAGE_S = float(os.environ.get("TRAVELREC_TEST_OUTAGE_S", "6"))
LEASE_S = 5
LONG_LEASE_S = 120  # nothing that is seen within a test has waited for it
MODEL_AT_EASE = {**FakeSettings().as_dict(), "faults": {}}


@pytest.fixture(scope="module")
def running() -> Iterator[Deployment]:
    """One deployment for the module: its tests kill, freeze and stop parts of it, and the next one repairs it."""
    with (
        Kafka() as kafka,
        Mongo() as mongo,
        Deployment(
            kafka,
            mongo,
            apis=2,
            workers=2,
            WEB_CONCURRENCY="2",
            JOB_LEASE=str(LEASE_S),
            JOB_MAX_ATTEMPTS="25",
            RECOMMENDATION_CACHE_TTL="0",
            NEIGHBOUR_TIMEOUT="3",
            SHUTDOWN_GRACE="10",
        ) as deployment,
    ):
        yield deployment


@pytest_asyncio.fixture
async def deployment(running: Deployment) -> AsyncIterator[Deployment]:
    await running.healthy()
    yield running
    print(running.story())


@pytest_asyncio.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    names = {place: find_country(place) for place in PLACES}
    async with client_of(deployment, names) as client:
        await client.model(**MODEL_AT_EASE)
        await client.forget_calls()
        await client.forget_jobs()
        yield client
        await client.model(**MODEL_AT_EASE)


@pytest_asyncio.fixture
async def forgetful(deployment: Deployment) -> AsyncIterator[None]:
    """What this test teaches the workers about their provider, the next one must not find."""
    yield
    await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in deployment.workers))


def broker_of(deployment: Deployment) -> AbstractAsyncContextManager[KafkaBroker]:
    return KafkaBroker.opened(deployment.kafka.address, timeout_s=10.0)


async def nothing_waits(broker: KafkaBroker) -> None:
    """Returns when the workers have acknowledged every message of every partition."""

    async def nothing() -> bool:
        return await broker.oldest_waiting(JOBS_TOPIC, JOBS_GROUP) is None

    await eventually(nothing, 20, "all messages to be acknowledged")


async def dead_letters(deployment: Deployment) -> list[tuple[bytes, dict[str, str]]]:
    """Every (value, headers) on the dead-letter topic."""
    topic = dead_letter_topic(JOBS_TOPIC)
    consumer = AIOKafkaConsumer(bootstrap_servers=deployment.kafka.address, enable_auto_commit=False)
    await consumer.start()
    try:
        await consumer._client._wait_on_metadata(topic)
        places = [TopicPartition(topic, place) for place in consumer.partitions_for_topic(topic)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends, found = await consumer.end_offsets(places), []
        for place in places:
            while await consumer.position(place) < ends[place]:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [(r.value, {name: v.decode() for name, v in r.headers}) for r in records]
        return found
    finally:
        await consumer.stop()


async def test_every_request_is_finished_once_whatever_replica_took_it(
    client: Client, deployment: Deployment
) -> None:
    """2,000 requests of 100 clients over all replicas complete, each claimed and asked once, read elsewhere."""

    async def finished() -> list[float]:
        counter = 'travelrec_jobs_finished_total{kind="recommendation",outcome="completed"}'
        return [await client.metric(worker, counter) for worker in deployment.workers]

    async def everybody_works() -> bool:  # who has just come gets its partitions when the others have noticed
        first = await finished()
        await client.all_completed([await client.accept(place=place) for place in PLACES])
        return all(now > then for now, then in zip(await finished(), first, strict=True))

    await eventually(everybody_works, 30, "all workers to have partitions")
    await client.forget_calls()
    before = await finished()
    load = await client.accept_many(Load(), clients=100, total=2000)
    assert (len(load.asked), load.refused, load.lost) == (2000, [], 0)
    assert len({one.uid for one in load.asked}) == 2000
    await client.all_completed(load.asked)
    await client.all_finished_once(load.asked)
    assert await client.extra_calls(load.asked) == 0
    done = [now - then for now, then in zip(await finished(), before, strict=True)]
    assert sum(done) == 2000
    assert min(done) > 0, "one worker did everything"


async def test_a_message_that_nobody_can_read_holds_nobody_up(client: Client, deployment: Deployment) -> None:
    """Garbage in every partition goes to the dead-letter topic with its reason; the jobs behind it complete."""
    mark = unique_name()
    garbage = [b"garbage", b"[1]", b'{"v":1}', b'{"v":99,"uid":"' + b"0" * 32 + b'"}', b"\xff\xfe", b""]
    async with broker_of(deployment) as broker:
        for value in garbage:  # each call takes the next partition
            await broker.publish(JOBS_TOPIC, [Message(value, {"mark": mark})])
        asked = [await client.accept(place=place) for place in PLACES]
        await client.all_completed(asked)
        await nothing_waits(broker)
    dead = [
        (value, headers) for value, headers in await dead_letters(deployment) if headers.get("mark") == mark
    ]
    assert {value for value, _ in dead} == set(garbage)  # twice where a rebalance came between copy and note
    assert all(headers["travelrec-error"] for _, headers in dead)


async def test_a_message_that_comes_twice_is_one_job(client: Client, deployment: Deployment) -> None:
    """Copies of a job's message, while it runs and after its end, cause no second claim and no second call."""
    await client.model(latency_s=1.0)
    dropped = "travelrec_messages_dropped_total"
    before = [await client.metric(worker, dropped) for worker in deployment.workers]
    asked = await client.accept(place="JP")
    copy = encode_job(Job(uid=asked.uid, kind="recommendation", params={}, created_at=0.0))
    await client.in_flight(1)
    async with broker_of(deployment) as broker:
        for _ in range(6):
            await broker.publish(JOBS_TOPIC, [copy])
        await client.all_completed([asked])
        for _ in range(6):
            await broker.publish(JOBS_TOPIC, [copy])
        await nothing_waits(broker)
    after = [await client.metric(worker, dropped) for worker in deployment.workers]
    assert sum(after) - sum(before) == 12
    await client.all_finished_once([asked])
    assert (await client.calls())["calls"] == 1


async def test_a_lost_signal_costs_a_waiter_a_second_look(client: Client, deployment: Deployment) -> None:
    """An API that hears no signals tells of the end long before a long poll would end anyway; so do its streams."""
    async with deployment.api("api-deaf", SIGNAL_URL="memory://", WEB_CONCURRENCY="1") as deaf:
        await ready(deaf)
        await client.model(latency_s=0.5)
        asked = await client.accept()
        began = time.monotonic()
        poll, events = await asyncio.gather(client.read(asked.uid, deaf, 30), client.events(asked.uid, deaf))
        assert time.monotonic() - began < 20
        assert poll["status"] == "completed"
        assert [name for name, _ in events] == ["pending", "completed"]
        assert await client.metric(deaf, "travelrec_signals_heard_total") == 0


async def test_cancelling_stops_the_call(client: Client, deployment: Deployment) -> None:
    """DELETE at another API than the accepting one ends the model call on the worker, long before its answer."""
    await client.model(latency_s=30)
    asked = [await client.accept(place=place) for place in PLACES[:5]]
    await client.in_flight(5)
    for one in asked[:4]:
        status, body, _ = await client.call("DELETE", deployment.apis[1], "/recommendations", uid=one.uid)
        assert (status, body["status"]) == (200, "cancelled")
    await client.in_flight(1)
    for one in asked[:4]:
        assert (await client.read(one.uid))["status"] == "cancelled"
    assert (await client.read(asked[4].uid))["status"] == "pending"
    await client.call("DELETE", deployment.apis[0], "/recommendations", uid=asked[4].uid)
    await client.in_flight(0)


async def test_a_result_that_comes_too_late_changes_nothing(client: Client, deployment: Deployment) -> None:
    """A worker that did not hear of the cancelling finishes its call; the job stays cancelled."""
    lost = "travelrec_leases_lost_total"
    async with deployment.api("api-mute", SIGNAL_URL="memory://", WEB_CONCURRENCY="1") as mute:
        await ready(mute)
        before = [await client.metric(worker, lost) for worker in deployment.workers]
        await client.model(latency_s=0.7)
        asked = await client.accept(mute)
        await client.in_flight(1)
        status, body, _ = await client.call("DELETE", mute, "/recommendations", uid=asked.uid)
        assert (status, body["status"]) == (200, "cancelled")

        async def result_refused() -> bool:
            after = [await client.metric(worker, lost) for worker in deployment.workers]
            return sum(after) - sum(before) == 1

        await eventually(result_refused)
        assert await client.read(asked.uid, deployment.apis[0]) == body


@pytest.mark.usefixtures("forgetful")
async def test_trouble_of_the_provider_ends_in_results(client: Client) -> None:
    """With every seventh call answered 429 and every seventh 500, all jobs complete, some after more attempts."""
    await client.model(faults={"429": 0.15, "500": 0.15}, retry_after_s=1)
    load = await client.accept_many(Load(), clients=20, total=150)
    await client.all_completed(load.asked)
    records = await client.records(load.asked)
    tries = [one["error"] for record in records for one in record["tries"]]
    by_status = (await client.calls())["by_status"]
    assert by_status["429"] > 5
    assert by_status["500"] > 5
    assert set(tries) <= {"Model rate limit", "Model unavailable"}
    assert len(tries) <= by_status["429"] + by_status["500"]
    print(f"150 jobs, calls {by_status}, at most {max(len(r['tries']) for r in records)} failed of a job")


async def test_a_refusal_fails_the_job_and_leaves_a_dead_letter(
    client: Client, deployment: Deployment
) -> None:
    """What can't succeed fails at the first attempt, says why and what to do, and is kept as a dead letter."""
    await client.model(faults={"refusal": 1})
    asked = await client.accept(place="PT")
    body = await client.ended(asked)
    assert (body["status"], body["error"]) == ("failed", "Model refused")
    assert body["message"] == ("The model refused to answer. Sending the same request again will not help.")
    assert (await client.calls())["calls"] == 1
    letters = [
        json.loads(value) for value, _ in await dead_letters(deployment) if asked.uid.encode() in value
    ]
    assert [(letter["uid"], letter["error"], len(letter["tries"])) for letter in letters] == [
        (asked.uid, "Model refused", 1)
    ]


@pytest.mark.usefixtures("forgetful")
async def test_a_rejected_key_costs_no_attempt(client: Client) -> None:
    """While the provider rejects the key jobs stay pending without an attempt; with the key right all complete."""
    await client.model(require_key="another")
    asked = [await client.accept(place=place) for place in PLACES[:10]]

    async def rejected_often() -> bool:
        return (await client.calls())["by_status"].get("401", 0) >= 4

    await eventually(rejected_often, 30)
    records = await client.records(asked)
    assert {(record["status"], len(record["tries"])) for record in records} == {("pending", 0)}
    await client.model(require_key=None)
    await client.all_completed(asked)
    assert all(not record["tries"] for record in await client.records(asked))


async def test_a_replica_tells_of_the_end_of_what_another_accepted(
    client: Client, deployment: Deployment
) -> None:
    """Long polls and event streams at the API that did not accept end with the job, not with a re-read."""
    await client.model(latency_s=2.0)
    one, other = deployment.apis
    heard = "travelrec_signals_heard_total"
    before = await client.metric(other, heard)
    asked = [await client.accept(one, place) for place in PLACES[:20]]
    polls = [client.read(each.uid, other, 30) for each in asked[:10]]
    streams = [client.events(each.uid, other) for each in asked[10:]]
    told, streamed = await asyncio.gather(asyncio.gather(*polls), asyncio.gather(*streams))
    assert await client.metric(other, heard) - before == 40, "each of its two processes hears each signal"
    assert [body["status"] for body in told] == ["completed"] * 10
    for events, each in zip(streamed, asked[10:], strict=True):
        assert [name for name, _ in events] == ["pending", "completed"]
        assert events[-1][1] == await client.read(each.uid, one)


async def test_a_killed_worker_loses_nothing(client: Client, deployment: Deployment) -> None:
    """With a worker SIGKILLed under load every job completes; only what it ran is run again."""
    await client.model(latency_s=1.0)
    load = Load()
    accepting = asyncio.create_task(client.accept_many(load, clients=50, total=1000, pause_s=0.05))
    worker = deployment.workers[0]
    await eventually(lambda: len(load.asked) > 300)
    await eventually(lambda: client.metric(worker, "travelrec_jobs_in_flight"), 20, "it to run jobs")
    worker.kill()
    await accepting
    assert (len(load.asked), load.refused, load.lost) == (1000, [], 0)
    await client.all_completed(load.asked)
    await client.all_finished_once(load.asked, claims=2)
    again = [record for record in await client.records(load.asked) if record["claims"] == 2]
    print(f"claimed again: {len(again)}; calls more than jobs: {await client.extra_calls(load.asked)}")
    assert 0 < len(again) <= 400  # twice its concurrency is what one worker can have in hand
    assert await client.extra_calls(load.asked) <= len(again)


async def test_a_worker_that_comes_back_holds_nobody_up(client: Client, deployment: Deployment) -> None:
    """Workers killed and started again, one by one: what is asked meanwhile is done before Kafka misses them."""
    for worker in deployment.workers:
        worker.kill()
        worker.start()
        asked = [await client.accept(place=place) for place in PLACES]
        await client.all_completed(asked, timeout_s=13)  # Kafka misses a member that says nothing for 15 s


async def test_a_worker_that_comes_back_runs_again_what_it_ran(
    client: Client, deployment: Deployment
) -> None:
    """Killed amid its calls and started again, it has its jobs done long before their leases would have run out."""
    worker = deployment.worker("worker-back", JOB_LEASE=str(LONG_LEASE_S))
    async with worker:
        await ready(worker)
        await client.model(latency_s=3.0)
        load = Load()
        accepting = asyncio.create_task(client.accept_many(load, clients=20, pause_s=0.2))

        async def busy() -> bool:
            return await client.metric(worker, "travelrec_jobs_in_flight") > 10

        await eventually(busy, 20)
        worker.kill()
        load.stopping = True
        await accepting
        await client.model(latency_s=0.0)
        worker.start()
        await client.all_completed(load.asked, timeout_s=LONG_LEASE_S / 2)
        await client.all_finished_once(load.asked, claims=2)
        again = sum(record["claims"] == 2 for record in await client.records(load.asked))
        assert again > 10
        assert await client.extra_calls(load.asked) <= again


async def test_a_killed_api_forgets_no_uid_it_answered(client: Client, deployment: Deployment) -> None:
    """With an API SIGKILLed under load every uid that was answered is known to the other and completes."""
    load = Load()
    accepting = asyncio.create_task(client.accept_many(load, clients=50, total=2000))
    await eventually(lambda: len(load.asked) > 500)
    killed = deployment.apis[0]
    killed.kill()
    await accepting
    assert load.lost > 0
    assert load.refused == []
    left = deployment.apis[1]
    assert len(load.asked) + load.lost == 2000
    print(
        f"answered: {len(load.asked)}, of them by the killed one: {sum(o.api is killed for o in load.asked)}"
    )

    for one in load.asked:
        assert (await client.read(one.uid, left))["status"] in ("pending", "completed")
    for one in load.asked:
        body = await client.ended(one, left)
        assert body["status"] == "completed"
    await client.all_finished_once(load.asked)


async def test_requests_are_accepted_while_the_broker_is_away(client: Client, deployment: Deployment) -> None:
    """Kafka stopped under load: every POST is 202 and no slower, what ran ends, the rest completes when it is back."""
    await client.model(latency_s=1.0)
    running = [await client.accept(place=place) for place in PLACES[:4]]
    await client.in_flight(4)
    load = Load()
    pause_s = OUTAGE_S / 60  # as many requests in a long outage as in a short one
    accepting = asyncio.create_task(client.accept_many(load, clients=20, pause_s=pause_s))
    await eventually(lambda: len(load.asked) > 50)
    await asyncio.to_thread(deployment.kafka.kill)
    began, before = time.monotonic(), len(load.asked)
    await client.all_completed(running, timeout_s=8)
    load.slowest_s = 0.0
    await eventually(lambda: time.monotonic() - began > OUTAGE_S, OUTAGE_S + 1)
    while_away, slowest_s = len(load.asked) - before, load.slowest_s
    status, body, _ = await client.call("GET", deployment.apis[0], "/readyz")
    assert (status, body["status"]) == (200, "degraded")
    await client.model(latency_s=0.0)
    await asyncio.to_thread(deployment.kafka.start)
    back = time.monotonic()
    load.stopping = True
    await accepting
    assert (load.refused, load.lost) == ([], 0)
    await client.all_completed(load.asked)
    await client.all_finished_once(load.asked)
    print(
        f"accepted while away: {while_away}, slowest {slowest_s:.3f} s; "
        f"all done {time.monotonic() - back:.1f} s after it was back"
    )
    assert while_away > 200
    assert slowest_s < 4.0  # nobody waited for a call of the broker to time out


@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_nothing_is_half_accepted_while_the_store_is_away(
    client: Client, deployment: Deployment, how: str
) -> None:
    """Store away: 503 in the error shape with Retry-After; once it is back no job waits whose uid nobody has."""
    mongo, api = deployment.mongo, deployment.apis[0]
    known = [await client.accept(api)]
    await client.all_completed(known)
    before = {record["_id"] for record in await client.jobs.find({}, {"_id": 1}).to_list(None)}
    load = Load()
    accepting = asyncio.create_task(client.accept_many(load, clients=20, pause_s=0.02))
    await eventually(lambda: len(load.asked) > 100)
    await asyncio.to_thread(mongo.stop if how == "stopped" else mongo.freeze)
    await eventually(lambda: len(load.refused) > 20, 15)
    for method, path, params in (
        ("POST", "/recommendations", {"country": "Canada", "season": "winter"}),
        ("GET", "/recommendations", {"uid": known[0].uid}),
        ("GET", "/recommendations/events", {"uid": known[0].uid}),
        ("DELETE", "/recommendations", {"uid": known[0].uid}),
    ):
        status, body, headers = await client.call(method, api, path, **params)
        assert (status, body["error"]) == (503, "Service unavailable"), (method, path, body)
        assert sorted(body) == ["error", "message"]
        assert int(headers["Retry-After"]) > 0
    assert (await client.call("GET", api, "/healthz"))[0] == 200
    status, body, _ = await client.call("GET", api, "/readyz")
    assert (status, body["dependencies"]["store"], body["dependencies"]["broker"]) == (
        503,
        "unavailable",
        "ok",
    )
    load.stopping = True
    await accepting
    await asyncio.to_thread(mongo.start if how == "stopped" else mongo.thaw)
    await eventually(lambda: accepted_again(client, load, api), 20)
    assert {status for status, _ in load.refused} == {503}
    await client.all_completed(load.asked)
    answered = {one.uid for one in load.asked}

    async def nobodys() -> Counter[str]:
        found = await client.jobs.find({}, {"status": 1}).to_list(None)
        ended = Counter(record["status"] for record in found if record["_id"] not in answered | before)
        assert not ended["pending"], f"{ended} that nobody knows"
        return ended + Counter("looked")

    # a late write is withdrawn, unless a worker was faster: then its result is there for nobody
    ended = await eventually(nobodys, 20)
    print(
        f"answered {len(answered)}, refused {len(load.refused)}, "
        f"withdrawn {ended['cancelled']}, finished for nobody {ended['completed']}"
    )
    assert ended["completed"] <= len(load.refused) / 4


async def accepted_again(client: Client, load: Load, api: Process) -> bool:
    status, body, _ = await client.call("POST", api, "/recommendations", country="Canada", season="winter")
    if status == 202:
        load.asked.append(Asked(body["uid"], "Canada", "winter", api))
    return status == 202


async def test_a_worker_that_is_told_to_end_finishes_what_it_runs(
    client: Client, deployment: Deployment
) -> None:
    """SIGTERM with grace: jobs in flight complete on that worker, new ones meanwhile on the other, none runs twice."""
    await client.model(latency_s=7.0)
    asked = [await client.accept(place=place) for place in PLACES]
    await client.in_flight(len(PLACES))
    running = [await client.metric(worker, "travelrec_jobs_in_flight") for worker in deployment.workers]
    worker = deployment.workers[running.index(max(running))]  # one that has just joined may run none yet
    await client.model(latency_s=0.0)
    worker.terminate()
    await worker.wait_for_line("worker stopping")
    later = [await client.accept(place=place, season="spring") for place in PLACES]
    await client.all_completed(later, timeout_s=10)
    assert worker.alive, "new jobs waited for the end of the worker that was told to end"
    assert await worker.wait(12) == 0
    (line,) = worker.lines("worker stopping")
    assert '"in_flight": 0' not in line
    await client.all_completed(asked)
    await client.all_finished_once(asked + later)
    assert await client.extra_calls(asked + later) == 0


async def test_a_worker_without_time_hands_its_jobs_back(client: Client, deployment: Deployment) -> None:
    """SIGTERM without grace: the other worker completes the jobs at once, not after the lease; no attempt counts."""
    worker = deployment.worker("worker-hasty", SHUTDOWN_GRACE="0", JOB_LEASE=str(LONG_LEASE_S))
    async with worker:
        await ready(worker)
        await client.model(latency_s=3.0)
        load = Load()
        accepting = asyncio.create_task(client.accept_many(load, clients=20, pause_s=0.2))
        gauge = "travelrec_jobs_in_flight"

        async def busy() -> bool:
            return await client.metric(worker, gauge) > 10

        await eventually(busy, 20)
        worker.terminate()
        assert await worker.wait(6) == 0
        load.stopping = True
        await accepting
        await client.model(latency_s=0.0)
        await client.all_completed(load.asked, timeout_s=20)
        await client.all_finished_once(load.asked)
