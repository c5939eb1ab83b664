"""The servers, processes and networks that other tests rely on do what they promise."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pymongo import AsyncMongoClient

from support import Kafka, Mongo, Process, ProcessError, Proxy, eventually, free_port, installed, unique_name

PYTHON = sys.executable


# --- waiting, ports ----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_eventually_returns_the_first_truthy_value():
    """A plain condition, an async one, and one whose assertion holds only later all end with a value."""
    values = iter([None, 0, "found"])
    assert await eventually(lambda: next(values)) == "found"
    calls = []

    async def third_time() -> int:
        calls.append(1)
        assert len(calls) >= 3
        return len(calls)

    assert await eventually(third_time) == 3


@pytest.mark.asyncio
async def test_eventually_says_what_it_waited_for_and_saw():
    """The error names the wish and the last value, also when the condition itself hangs."""
    with pytest.raises(AssertionError, match=r"waited 0.1 s for two jobs; last seen: 0"):
        await eventually(lambda: 0, 0.1, "two jobs")
    with pytest.raises(AssertionError, match=r"for an answer; last seen: 'nothing yet'"):
        await eventually(asyncio.Event().wait, 0.1, "an answer")


def test_ports_are_reserved_against_other_sessions():
    """No port is given twice, neither here nor to another process that asks while we run."""
    mine = {free_port() for _ in range(50)}
    assert len(mine) == 50
    code = "from support import free_port; print(*(free_port() for _ in range(50)))"
    theirs = {int(port) for port in run_python(code).split()}
    assert len(theirs) == 50
    assert not mine & theirs


# --- processes ---------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_process_gets_a_clean_environment_and_folder(monkeypatch):
    """Keys and addresses of the developer reach no process; what the test gives does."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    code = "import os; print(os.environ.get('OPENAI_API_KEY'), os.environ['GIVEN'], os.listdir())"
    async with Process([PYTHON, "-c", code], env={"GIVEN": "yes"}) as process:
        await process.wait_for_line(r"^None yes \['output.txt'\]$")
        assert await process.wait() == 0


@pytest.mark.asyncio
async def test_waiting_ends_with_the_process():
    """A process that dies before it says the line is an error at once, with its output."""
    async with Process([PYTHON, "-c", "print('no such table'); raise SystemExit(3)"]) as process:
        with pytest.raises(ProcessError, match=r"(?s)ended with 3 before a line like 'ready'.*no such table"):
            await process.wait_for_line("ready", timeout_s=60)


@pytest.mark.asyncio
async def test_output_is_attached_to_the_error_that_passes_through():
    """A failed assertion inside the block carries what the process said, though its folder is gone."""
    process = Process([PYTHON, "-c", "print('the reason'); import time; time.sleep(60)"])

    async def fail_inside() -> None:
        async with process:
            await process.wait_for_line("reason")
            raise AssertionError("surprise")

    with pytest.raises(AssertionError, match="surprise") as caught:
        await fail_inside()
    assert "the reason" in "".join(caught.value.__notes__)
    assert not process.alive


@pytest.mark.asyncio
async def test_process_answers_http_freezes_and_restarts():
    """A frozen process answers nobody until it is thawed; after a kill it starts again, lines begin anew."""
    port = free_port()
    async with Process([PYTHON, "-m", "http.server", str(port), "--bind", "127.0.0.1"]) as process:
        await process.wait_for_http(f"http://127.0.0.1:{port}/", 200)
        process.freeze()
        with pytest.raises(ProcessError, match=r"waited 0.5 s for http://.* to answer 200"):
            await process.wait_for_http(f"http://127.0.0.1:{port}/", 200, timeout_s=0.5)
        process.thaw()
        await process.wait_for_http(f"http://127.0.0.1:{port}/nothing", 404)
        process.kill()
        assert process.returncode == -signal.SIGKILL
        process.start()
        assert process.lines("GET") == []
        await process.wait_for_http(f"http://127.0.0.1:{port}/", 200)


@pytest.mark.asyncio
async def test_children_end_with_the_process():
    """A child that ignores SIGTERM does not outlive its parent."""
    child = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    code = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}]); print('child', p.pid); p.wait()"
    )
    async with Process([PYTHON, "-c", code]) as process:
        pid = int((await process.wait_for_line(r"child (\d+)"))[1])
        await process.wait_for_line("up")
    await eventually(lambda: is_gone(pid), message="the child to be gone")


@pytest.mark.asyncio
async def test_nothing_outlives_a_killed_test_session():
    """When the test process itself gets SIGKILL, its processes end and their folders go."""
    code = (
        "import sys, time; from support import Process\n"
        "p = Process([sys.executable, '-c', 'import time; time.sleep(60)']).start()\n"
        "print('started', p.pid, p._folder); time.sleep(60)"
    )
    async with Process([PYTHON, "-c", code]) as session:
        found = await session.wait_for_line(r"started (\d+) (\S+)")
        pid, folder = int(found[1]), found[2]
        assert os.path.isdir(folder)  # noqa: ASYNC240, PTH112 - a look at a local folder
        session.kill()
        await eventually(lambda: is_gone(pid) and not Path(folder).exists(), message="the rest to be gone")


# --- a bad network -----------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_proxy_passes_delays_freezes_cuts_and_restores():
    """Each trouble has its effect on an open connection, and none stays after `restore`."""
    async with echo_server() as port, Proxy(port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)

        async def echo(word: bytes, timeout_s: float = 5) -> bytes:
            writer.write(word)
            return await asyncio.wait_for(reader.readexactly(len(word)), timeout_s)

        assert await echo(b"plain") == b"plain"
        proxy.delay(0.1)
        begun = time.monotonic()
        assert await echo(b"slow") == b"slow"
        assert time.monotonic() - begun >= 0.2  # both ways
        proxy.restore()
        proxy.freeze()
        with pytest.raises(TimeoutError):
            await echo(b"late", timeout_s=0.2)
        proxy.thaw()
        assert await reader.readexactly(4) == b"late"
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        refused, dead = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await refused.readexactly(1)
        dead.close()
        proxy.restore()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await echo(b"again") == b"again"
        writer.close()


# --- real servers ------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.asyncio
async def test_kafka_keeps_records_over_stop_and_kill(new_kafka):
    """What was acknowledged is there after an orderly restart and after SIGKILL, on the same port."""
    kafka = await asyncio.to_thread(new_kafka, partitions=3)
    topic = unique_name()
    await create_topic(kafka.address, topic)
    await send(kafka.address, topic, b"first")
    await asyncio.to_thread(kafka.restart)
    await send(kafka.address, topic, b"second")
    kafka.kill()
    assert not kafka.process.alive
    await asyncio.to_thread(kafka.start)
    assert await read(kafka.address, topic, 2) == [b"first", b"second"]


@pytest.mark.asyncio
async def test_kafka_clients_stay_on_the_proxy(kafka_server):
    """A client that comes in through a proxy is told no other address: cut off, it reaches nothing."""
    topic = unique_name()
    await create_topic(kafka_server.address, topic)
    async with kafka_server.proxy() as proxy:
        producer = AIOKafkaProducer(bootstrap_servers=proxy.address, request_timeout_ms=1000)
        async with producer:
            await producer.send_and_wait(topic, b"through", partition=0)
            proxy.cut()
            sent = await producer.send(topic, b"held back", partition=0)
            done, _ = await asyncio.wait([sent], timeout=0.3)
            assert not done
            proxy.restore()
            await asyncio.wait([sent], timeout=10)
    assert (await read(kafka_server.address, topic, 1))[0] == b"through"


@pytest.mark.asyncio
async def test_kafka_creates_no_topic_by_itself(kafka_server):
    """A misspelled topic is an error in the tests, as it is in production."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_server.address)
    await admin.start()
    try:
        name = unique_name()
        await admin.describe_topics([name])  # asks for its metadata, which creates it where that is allowed
        assert name not in await admin.list_topics()
    finally:
        await admin.close()


@pytest.mark.asyncio
async def test_mongo_keeps_documents_over_stop_and_kill(new_mongo):
    """What was acknowledged (50 ms ago) is there after an orderly restart and after SIGKILL."""
    mongo = await asyncio.to_thread(new_mongo)
    async with AsyncMongoClient(mongo.url, serverSelectionTimeoutMS=5000) as client:
        await client.test.things.insert_one({"_id": 1})
    await asyncio.to_thread(mongo.restart)
    async with AsyncMongoClient(mongo.url, serverSelectionTimeoutMS=5000) as client:
        await client.test.things.insert_one({"_id": 2})
        acknowledged = time.monotonic()
        await eventually(lambda: time.monotonic() - acknowledged > 0.2, message="the server's next commit")
    mongo.kill()
    await asyncio.to_thread(mongo.start)
    async with AsyncMongoClient(mongo.url, serverSelectionTimeoutMS=5000) as client:
        assert [thing["_id"] async for thing in client.test.things.find().sort("_id")] == [1, 2]


@pytest.mark.asyncio
async def test_frozen_mongo_times_out_and_comes_back(new_mongo):
    """A frozen server answers nothing; after the thaw the same client goes on."""
    mongo = await asyncio.to_thread(new_mongo, durable=False)
    async with AsyncMongoClient(mongo.url) as client:
        await client.admin.command("ping")
        mongo.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.admin.command("ping"), 0.3)
        mongo.thaw()
        await asyncio.wait_for(client.admin.command("ping"), 5)


@pytest.mark.asyncio
async def test_redis_keeps_keys_over_a_kill(new_redis):
    """Redis writes each command to disk before it answers."""
    redis = await asyncio.to_thread(new_redis)
    assert await redis_says(redis.port, "SET key value") == "+OK"
    redis.kill()
    await asyncio.to_thread(redis.start)
    assert await redis_says(redis.port, "EXISTS key") == ":1"


@pytest.mark.real("kafka")
@pytest.mark.asyncio
async def test_server_that_cannot_start_says_why():
    """A broker with a bad setting is an error with its last log lines; nothing of it is left."""
    kafka = Kafka(settings={"num.io.threads": "many"})
    with pytest.raises(ProcessError, match=r"num\.io\.threads"):
        async with kafka:
            pass
    assert kafka.story() == "kafka is not running"


@pytest.mark.real("mongo")
def test_a_stranger_on_the_port_is_no_server_of_ours():
    """When someone else listens on its port, a server does not start, whatever answers there."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        mongo = Mongo()
        mongo.port = stranger.getsockname()[1]
        with pytest.raises(ProcessError, match=r"(?s)ended with 1 while it started.*already in use"):
            mongo.start()
        mongo.close()


@pytest.mark.real("mongo")
def test_two_installs_may_race(tmp_path, monkeypatch):
    """Of two installs at once both succeed, and one complete folder results."""
    if shutil.which("mvn") is None:
        pytest.skip("needs Maven")
    env = os.environ | {"TRAVELREC_TEST_CACHE": str(tmp_path)}
    code = "from support import install, installed; install.install(installed.MONGO)"
    racers = [subprocess.Popen([PYTHON, "-c", code], env=env) for _ in range(2)]
    assert [racer.wait(timeout=100) for racer in racers] == [0, 0]
    monkeypatch.setenv("TRAVELREC_TEST_CACHE", str(tmp_path))
    assert list(tmp_path.iterdir()) == [installed.MONGO.folder]
    assert (installed.MONGO.folder / "MongoDev.class").is_file()


# --- how these tests look at things ------------------------------------------------------------------


def run_python(code: str) -> str:
    return subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1024):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def create_topic(address: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def send(address: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address, acks="all") as producer:
        await producer.send_and_wait(topic, value, partition=0)


async def read(address: str, topic: str, count: int) -> list[bytes]:
    async with AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        async with asyncio.timeout(10):
            return [(await consumer.getone()).value for _ in range(count)]


async def redis_says(port: int, command: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{command}\r\n".encode())
    answer = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return answer.decode().strip()
