"""`travelrec topics`, on a Kafka that has none yet."""

import asyncio
import sys

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from support import eventually, free_port
from travelrec.cli import main
from travelrec.wire import TOPICS


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The command with these settings, in this process: its exit code, stdout and stderr."""

    def ran(*arguments, **env):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["travelrec", "topics", *arguments])
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return ran


async def described(address):
    """(partitions by topic, retention by topic) as the broker has them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        names = [topic.name for topic in TOPICS]
        partitions = {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics(names)}
        asked = [ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": None}) for name in names]
        answers = [r for answer in await admin.describe_configs(asked) for r in answer.resources]
        return partitions, {r[3]: int(r[4][0][1]) / 1000 for r in answers}
    finally:
        await admin.close()


def test_topics_are_made_once_and_grow(new_kafka, run):
    """The first run makes all with their retention, the next changes nothing, one with more partitions adds them."""
    kafka = new_kafka()
    env = {"BROKER_URL": kafka.url, "NEIGHBOUR_TIMEOUT": "20"}
    names = {topic.name for topic in TOPICS}

    async def has(count):
        partitions, retention = await described(kafka.address)
        assert partitions == dict.fromkeys(names, count)
        assert retention == {topic.name: topic.retention_s for topic in TOPICS}
        return True

    # what it did is said once: a slow broker makes it look again, and then the topic is there already
    for asked, there, word in (
        ("2", 2, "made with 2"),
        ("1", 2, "there with 2"),
        ("5", 5, "grew from 2 to 5"),
    ):
        code, out, _ = run(**env, KAFKA_PARTITIONS=asked)
        assert code == 0
        assert {line.partition(":")[0] for line in out.splitlines()} == names
        assert f": {word} partitions" in out
        asyncio.run(eventually(lambda count=there: has(count), 20))  # every broker hears of it a little later


def test_a_broker_that_stays_away_is_one_line(run):
    """Exit code 1 after the time to wait."""
    code, out, err = run(
        "--wait", "0.1", BROKER_URL=f"kafka://127.0.0.1:{free_port()}", NEIGHBOUR_TIMEOUT="1"
    )
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("travelrec: Kafka: ")


def test_a_broker_without_topics_is_a_bad_setting(run):
    """Exit code 2, naming it."""
    code, _, err = run(BROKER_URL="memory://")
    assert (code, err) == (
        2,
        "travelrec: BROKER_URL: memory:// has no topics to make; this is for kafka://… and amqp://…\n",
    )
