"""Chats over two APIs, two workers, Kafka and Redis, while each of them is killed."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
import pytest_asyncio

from support import Kafka, Mongo, Redis, eventually, unique_name
from support.deployment import Deployment, url_of
from support.talking import Talker, length_in
from travelrec.adapters.kafka import KafkaBroker
from travelrec.chat.tokens import signed_token
from travelrec.wire import INCOMING_GROUP, INCOMING_TOPIC, RESPONSES_GROUP, RESPONSES_TOPIC, Message

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real("kafka", "mongo", "redis"),
    pytest.mark.timeout(240),
]

SECRET = "a secret of at least thirty-two characters"
LIMIT = 100


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    with Redis() as server:
        yield server


@pytest.fixture(scope="module")
def running(redis: Redis) -> Iterator[Deployment]:
    with (
        Kafka() as kafka,
        Mongo(durable=False) as mongo,
        Deployment(
            kafka,
            mongo,
            apis=3,
            workers=2,
            REDIS_URL=redis.url,
            CHAT_TOKEN_SECRET=SECRET,
            CHAT_RATE_LIMIT=str(LIMIT),
            NEIGHBOUR_TIMEOUT="3",
            SHUTDOWN_GRACE="5",
        ) as deployment,
    ):
        for worker in deployment.workers:
            worker.command.extend(["chat", "relay"])
        yield deployment


@pytest_asyncio.fixture
async def deployment(running: Deployment) -> AsyncIterator[Deployment]:
    await running.healthy()
    yield running
    print(running.story())


@pytest_asyncio.fixture
async def http(deployment: Deployment) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.post(
            f"http://127.0.0.1:{deployment.model_port}/control", json={"latency_s": 0.1}
        ) as changed:
            assert changed.status == 200
        yield session


async def history(http: aiohttp.ClientSession, deployment: Deployment, userid: str) -> list[dict]:
    query = {"token": signed_token(SECRET, userid, 60), "limit": "500"}
    async with http.get(f"{url_of(deployment.apis[1])}/chat/{userid}/messages", params=query) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def all_was_heard_once(
    http: aiohttp.ClientSession, deployment: Deployment, talkers: list[Talker], lengths: list[int]
) -> None:
    """Each user heard every answer once and in order, and the history has nothing else."""
    for talker in talkers:
        assert talker.lengths == lengths
        assert {answer["userid"] for answer in talker.heard} == {talker.userid}
        kept = await history(http, deployment, talker.userid)
        assert [entry for entry in kept if entry["type"] == "response"] == talker.heard
        assert [len(entry["content"]) for entry in kept if entry["type"] == "message"] == lengths


async def test_every_message_is_answered_once_and_in_order(
    http: aiohttp.ClientSession, deployment: Deployment
) -> None:
    """Thirty users on three replicas send five messages each at once: their own answers come, in their order."""
    lengths = [20, 21, 22, 23, 24]

    async def one(number: int) -> list[int]:
        userid = unique_name("user")
        api = deployment.apis[number % len(deployment.apis)]
        query = {"token": signed_token(SECRET, userid, 60), "userid": userid}
        async with http.ws_connect(f"{url_of(api)}/ws", params=query) as socket:
            for length in lengths:
                said = {"type": "message", "content": "x" * (length + 10 * number), "userid": userid}
                await socket.send_str(json.dumps(said))
            answers = [await socket.receive_json(timeout=30) for _ in lengths]
        assert {answer["userid"] for answer in answers} == {userid}
        return [length_in(answer) - 10 * number for answer in answers]

    assert await asyncio.gather(*(one(n) for n in range(30))) == [lengths] * 30


async def test_an_answer_is_heard_while_it_is_made(
    http: aiohttp.ClientSession, deployment: Deployment
) -> None:
    """From the model through a worker and Redis to the replica that the user is on; another user hears nothing."""
    control = f"http://127.0.0.1:{deployment.model_port}/control"
    users = [unique_name("user") for _ in range(2)]
    async with AsyncExitStack() as stack:
        sockets = []
        for userid, api in zip(users, deployment.apis, strict=False):
            query = {"token": signed_token(SECRET, userid, 60), "userid": userid, "stream": "true"}
            sockets.append(
                await stack.enter_async_context(http.ws_connect(f"{url_of(api)}/ws", params=query))
            )
        await http.post(control, json={"piece_s": 0.2})
        said = {"type": "message", "content": "x" * 17, "userid": users[0], "id": "m-1"}
        await sockets[0].send_str(json.dumps(said))
        text, pieces = "", 0
        while (frame := await sockets[0].receive_json(timeout=30))["type"] == "delta":
            text, pieces = text[: frame["offset"]] + frame["content"], pieces + 1
            assert (frame["to"], frame["userid"]) == ("m-1", users[0])
        assert frame["content"].startswith(text)
        assert pieces > 1
        await http.post(control, json={"piece_s": 0})
        await sockets[1].send_str(json.dumps({**said, "content": "x" * 18, "userid": users[1]}))
        heard = [await sockets[1].receive_json(timeout=30)]
        while heard[-1]["type"] == "delta":
            heard.append(await sockets[1].receive_json(timeout=30))
        assert {frame["userid"] for frame in heard} == {users[1]}


async def test_nothing_is_lost_and_nothing_comes_twice_while_everything_dies(
    http: aiohttp.ClientSession, deployment: Deployment, redis: Redis
) -> None:
    """An API and a worker are killed, Redis is restarted, Kafka stops for seconds; clients go on with `since`."""
    lengths = list(range(30, 54))
    urls = [url_of(api) for api in deployment.apis]
    talkers = [Talker(http, urls[n % 3 :] + urls[: n % 3], unique_name("user"), SECRET) for n in range(24)]
    talking = asyncio.gather(*(talker.talk(["x" * length for length in lengths]) for talker in talkers))

    async def heard(least: int) -> None:
        total = len(talkers) * len(lengths)
        await eventually(
            lambda: talking.done() or sum(len(t.heard) for t in talkers) >= min(least, total), 90
        )

    await heard(50)
    await asyncio.to_thread(deployment.apis[0].kill)
    await heard(120)
    await asyncio.to_thread(deployment.workers[0].kill)
    deployment.apis[0].start()
    await heard(220)
    await asyncio.to_thread(redis.restart)
    deployment.workers[0].start()
    await heard(320)
    await asyncio.to_thread(deployment.kafka.stop)
    await asyncio.to_thread(deployment.kafka.start)
    await asyncio.wait_for(talking, 120)
    await all_was_heard_once(http, deployment, talkers, lengths)
    assert sum(talker.reconnected for talker in talkers) > 0


async def test_an_api_that_ends_sends_its_clients_elsewhere(
    http: aiohttp.ClientSession, deployment: Deployment
) -> None:
    """SIGTERM closes the connections with 1012, and the process ends in time."""
    userid = unique_name("user")
    query = {"token": signed_token(SECRET, userid, 60), "userid": userid}
    async with http.ws_connect(f"{url_of(deployment.apis[2])}/ws", params=query) as socket:
        ending = asyncio.create_task(asyncio.to_thread(deployment.apis[2].end))
        message = await socket.receive(timeout=15)
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1012)
        await socket.close()
        await asyncio.wait_for(ending, 30)


async def test_one_user_over_three_replicas_has_one_limit(
    http: aiohttp.ClientSession, deployment: Deployment
) -> None:
    """Exactly the limit is taken over, however the messages are spread and however fast they come."""
    userid = unique_name("user")
    query = {"token": signed_token(SECRET, userid, 60), "userid": userid}

    async def through(api_number: int) -> int:
        refused = 0
        api = url_of(deployment.apis[api_number])
        async with http.ws_connect(f"{api}/ws", params=query) as socket:
            for _ in range(LIMIT // 2):
                await socket.send_str(json.dumps({"type": "message", "content": "hello", "userid": userid}))
            await socket.send_str("{")  # whose error comes after all others
            while True:
                answer = await socket.receive_json(timeout=30)
                if answer["type"] == "error":
                    if "JSON" in answer["message"]:
                        return refused
                    assert re.fullmatch(
                        r"Rate limit exceeded\. Try again in \d+ seconds\.", answer["message"]
                    )
                    refused += 1

    refused = sum(await asyncio.gather(*(through(n) for n in range(3))))
    assert 3 * (LIMIT // 2) - refused == LIMIT


async def test_what_nobody_can_read_is_a_dead_letter(deployment: Deployment) -> None:
    """Both topics go on behind it, and a copy is kept."""
    async with KafkaBroker.opened(deployment.kafka.address, timeout_s=10.0) as broker:
        for topic, group in ((INCOMING_TOPIC, INCOMING_GROUP), (RESPONSES_TOPIC, RESPONSES_GROUP)):
            bad = unique_name("bad").encode()
            await broker.publish(topic, [Message(bad, {}, "somebody")])
            async with broker.subscribe(f"{topic}.dead-letter", unique_name("look")) as dead:

                async def arrived(dead=dead, bad=bad) -> bool:
                    return any(each.message.value == bad for each in await dead.take(100, 0.5))

                await eventually(arrived, 30)

            async def nothing_waits(topic=topic, group=group) -> bool:
                return await broker.oldest_waiting(topic, group) is None

            await eventually(nothing_waits, 30)
