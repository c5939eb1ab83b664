"""What a worker tells of the backlog and of its neighbours."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from support import eventually, unique_name
from support.worker import World
from travelrec import metrics
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.errors import BrokerUnavailable, StoreUnavailable
from travelrec.job import Job, new_uid
from travelrec.ports import Backlog as Seen
from travelrec.ports import Group
from travelrec.wire import INCOMING_GROUP, INCOMING_TOPIC, JOBS_TOPIC, Message, encode_job
from travelrec_worker import backlog as backlogs
from travelrec_worker.backlog import Backlog, watch_lag

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


class Store(MemoryStore):
    """May be away."""

    away = False

    async def backlog(self, limit: int) -> Seen:
        if self.away:
            raise StoreUnavailable("away")
        return await super().backlog(limit)


class Broker(MemoryBroker):
    """May be away."""

    away = False

    async def group(self, topic: str, group: str) -> Group:
        if self.away:
            raise BrokerUnavailable("away")
        return await super().group(topic, group)


@dataclass
class Said:
    """The gauges as they stand."""

    waiting: float
    oldest_s: float
    lag: float
    up: dict[str, float]


def said() -> Said:
    return Said(
        metrics.WAITING._value.get(),
        metrics.OLDEST_WAITING._value.get(),
        metrics.LAG.labels(JOBS_TOPIC, "0")._value.get(),
        {name: metrics.DEPENDENCY_UP.labels(name)._value.get() for name in ("store", "broker", "signals")},
    )


async def accept(store: Store, broker: Broker, age_s: float) -> None:
    at = time.time() - age_s
    job = Job(new_uid(), "recommendation", {}, at, due_at=at)
    await store.accept([job], at)
    await broker.publish(JOBS_TOPIC, [encode_job(job)])


async def test_what_waits_is_told_with_its_age_and_lag() -> None:
    """Counts and ages are the store's, lag is the broker's; with nothing there they are 0."""
    store, broker = Store(), Broker()
    backlog = Backlog(store, broker, MemorySignals())
    await backlog.look()
    assert said() == Said(0, 0, 0, {"store": 1, "broker": 1, "signals": 1})
    await accept(store, broker, age_s=100.0)
    await accept(store, broker, age_s=10.0)
    await backlog.look()
    assert (said().waiting, said().lag) == (2, 2)
    assert 100 <= said().oldest_s < 130


async def test_a_neighbour_that_is_away_is_told_and_what_waits_grows_older() -> None:
    """The last count stands, the age goes on, and the others are looked at all the same."""
    store, broker = Store(), Broker()
    backlog = Backlog(store, broker, MemorySignals())
    await accept(store, broker, age_s=100.0)
    await backlog.look()
    before = said().oldest_s
    store.away = True
    await accept(store, broker, age_s=0.0)
    await backlog.look()
    assert said().up == {"store": 0, "broker": 1, "signals": 1}
    assert (said().waiting, said().lag) == (1, 2)
    assert said().oldest_s > before
    store.away, broker.away = False, True
    await backlog.look()
    assert said().up == {"store": 1, "broker": 0, "signals": 1}
    assert (said().waiting, said().lag) == (2, 2)


async def test_a_worker_looks_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted while a worker runs is seen, and its end too."""
    monkeypatch.setattr(backlogs, "_EVERY_S", 0.01)
    world = World()
    world.model.hold()
    async with world.worker():
        await world.accept()
        await eventually(lambda: said().waiting == 1)
        world.model.let_go()
        await eventually(lambda: said().waiting == 0)


async def test_a_slow_neighbour_is_asked_less_often() -> None:
    """Looking takes a twentieth of the time at the most, however long it takes."""
    assert [backlogs._pause_s(took_s) for took_s in (0.0, 0.1, 3.0)] == [5.0, 5.0, 60.0]


async def test_a_neighbour_that_is_away_is_asked_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time-outs are no work for it, and its return is to be seen soon."""
    monkeypatch.setattr(backlogs, "_EVERY_S", 0.01)
    monkeypatch.setattr(backlogs, "_SHARE", 1_000_000)
    store = Store()
    store.away = True
    watching = asyncio.create_task(Backlog(store, Broker(), MemorySignals()).watch())
    await eventually(lambda: said().up["store"] == 0)
    store.away = False
    await eventually(lambda: said().up["store"] == 1)
    watching.cancel()
    await asyncio.wait([watching])


async def test_tokens_and_cost_are_counted_under_the_name_in_the_settings() -> None:
    """Whatever the provider calls its model; each call is counted by how it ended."""
    name = unique_name("model")
    world = World()
    async with world.worker(openai_model=name, model_prices=f"{name}=3/5"):
        uid = await world.accept()
        await eventually(lambda: world.job(uid).ended)
    assert metrics.MODEL_CALLS.labels(name, "ok")._value.get() == 1
    assert metrics.TOKENS.labels(name, "input")._value.get() == 1
    assert metrics.TOKENS.labels(name, "output")._value.get() == 1
    assert metrics.COST.labels(name)._value.get() == pytest.approx(8e-6)


async def test_the_lag_of_a_chat_topic_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `chat` and `relay` have not taken; a broker that is away is asked again."""
    monkeypatch.setattr(backlogs, "_EVERY_S", 0.01)
    broker = Broker()
    await broker.publish(INCOMING_TOPIC, [Message(b"1"), Message(b"2")])
    broker.away = True
    watching = asyncio.create_task(watch_lag(broker, INCOMING_TOPIC, INCOMING_GROUP))
    await asyncio.sleep(0.05)
    broker.away = False
    lag = metrics.LAG.labels(INCOMING_TOPIC, "0")
    await eventually(lambda: lag._value.get() == 2)
    watching.cancel()
