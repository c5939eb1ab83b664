"""The consumer engine: what it takes, what it leaves unacknowledged, and how it ends."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker
from travelrec.errors import BrokerUnavailable
from travelrec.ports import Delivery, Subscription
from travelrec.wire import Message, dead_letter_topic
from travelrec_worker import engine as engines
from travelrec_worker.engine import Engine
from travelrec_worker.progress import Progress

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

TOPIC, GROUP = "topic", "group"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_TAKE_S", 0.02)
    monkeypatch.setattr(engines, "_TURN_S", 0.02)
    monkeypatch.setattr(engines, "_RETRY_S", 0.02)
    monkeypatch.setattr(engines, "_LONGEST_RETRY_S", 0.1)


class Watched:
    """A subscription that counts what is asked of it, and may break."""

    def __init__(self, subscription: Subscription, broker: "Broker") -> None:
        self._subscription = subscription
        self._broker = broker

    async def take(self, limit: int, timeout_s: float) -> Sequence[Delivery]:
        self._broker.limits.append(limit)
        if self._broker.away:
            raise BrokerUnavailable("away")
        return await self._subscription.take(limit, timeout_s)


class Broker(MemoryBroker):
    """A broker that can be away, to whom it is shown how often each group was joined and left."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.limits: list[int] = []
        self.joins = 0
        self.leaves = 0

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[Watched]:
        if self.away:
            self.joins += 1
            raise BrokerUnavailable("away")
        async with super().subscribe(topic, group) as subscription:
            self.joins += 1
            yield Watched(subscription, self)
        self.leaves += 1

    async def send(self, *texts: str, key: str | None = None) -> None:
        await self.publish(TOPIC, [Message(text.encode(), key=key) for text in texts])

    async def left_over(self) -> list[str]:
        """What another member of the group gets."""
        async with super().subscribe(TOPIC, GROUP) as subscription:
            return [delivery.message.value.decode() for delivery in await subscription.take(1000, 0.01)]


class Handler:
    """Keeps what it was given; while `held`, its runs wait. What it acknowledges is said by `acknowledges`."""

    def __init__(self, *, held: bool = False) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.fails: set[str] = set()
        self.acknowledges: Callable[[Delivery], None] = lambda delivery: delivery.acknowledge()
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, delivery: Delivery) -> None:
        text = delivery.message.value.decode()
        self.begun.append(text)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.go.wait()
            if text in self.fails:
                raise RuntimeError(text)
            self.acknowledges(delivery)
            self.ended.append(text)
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        finally:
            self.in_flight -= 1


class World:
    """A broker, a handler and one engine between them."""

    def __init__(
        self, *, concurrency: int = 3, held: bool = False, early: bool = False, in_key_order: bool = False
    ) -> None:
        self.broker = Broker()
        self.handler = Handler(held=held)
        self.intake = asyncio.Event()
        self.intake.set()
        self.engine = Engine(
            self.broker,
            TOPIC,
            GROUP,
            self.handler,
            concurrency=concurrency,
            intake=self.intake,
            progress=Progress(5.0),
            early=early,
            in_key_order=in_key_order,
        )

    @asynccontextmanager
    async def running(self, grace_s: float = 0.0) -> AsyncIterator[asyncio.Task[None]]:
        """The engine runs; in the end it is stopped, if it was not yet, and ends by itself."""
        task = asyncio.create_task(self.engine.run(grace_s))
        try:
            yield task
            assert not task.done() or task.exception() is None
        finally:
            self.engine.stop()
            async with asyncio.timeout(10):
                await asyncio.wait([task])


async def test_every_message_is_handled_once() -> None:
    """What is published is handled, in order of arrival, and acknowledged by its handler."""
    world = World(concurrency=100)
    texts = [str(n) for n in range(100)]
    async with world.running():
        await world.broker.send(*texts)
        await eventually(lambda: len(world.handler.ended) == 100)
    assert world.handler.begun == texts
    assert await world.broker.left_over() == []


async def test_no_more_than_so_many_at_a_time() -> None:
    """The number of handlers in flight is bounded, and reached although there is one queue only."""
    world = World(concurrency=3, held=True)
    async with world.running():
        await world.broker.send(*map(str, range(10)))
        await eventually(lambda: world.engine.in_flight == 3)
        world.handler.go.set()
        await eventually(lambda: len(world.handler.ended) == 10)
    assert world.handler.most_in_flight == 3


async def test_a_free_place_is_taken_at_once() -> None:
    """The end of one handler starts the next: a slow one holds up nobody else."""
    world = World(concurrency=2, held=True)
    slow = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        if delivery.message.value == b"slow":
            await slow.wait()
        world.handler.begun.append(delivery.message.value.decode())
        delivery.acknowledge()

    world.engine._handle = handle
    async with world.running():
        await world.broker.send("slow", *map(str, range(50)))
        await eventually(lambda: len(world.handler.begun) == 50)
        slow.set()
        await eventually(lambda: len(world.handler.begun) == 51)


async def test_a_full_engine_still_tells_the_broker_that_it_lives() -> None:
    """While no place is free it goes on asking for nothing, or its group would take it for dead."""
    world = World(concurrency=2, held=True)
    async with world.running():
        await world.broker.send("a", "b", "c")
        await eventually(lambda: world.broker.limits.count(0) > 3)
        assert world.handler.begun == ["a", "b"]
        world.handler.go.set()
        await eventually(lambda: world.handler.ended == ["a", "b", "c"])


async def test_nothing_is_taken_while_the_intake_is_closed() -> None:
    """It stays a member of the group without taking anything, and goes on as soon as the intake opens."""
    world = World()
    world.intake.clear()
    async with world.running():
        await world.broker.send("a")
        await eventually(lambda: world.broker.limits.count(0) > 3)
        assert set(world.broker.limits) == {0}
        world.intake.set()
        await eventually(lambda: world.handler.ended == ["a"])


async def test_the_acknowledgement_is_the_handlers() -> None:
    """A message whose handler has ended without acknowledging it is delivered to another member."""
    world = World()
    world.handler.acknowledges = lambda delivery: (
        delivery.acknowledge() if delivery.message.value == b"a" else None
    )
    async with world.running():
        await world.broker.send("a", "b")
        await eventually(lambda: len(world.handler.ended) == 2)
    assert await world.broker.left_over() == ["b"]


async def test_a_handlers_error_costs_its_message_only() -> None:
    """The engine goes on; the message is handled again, and then is moved out of the way of those behind it."""
    world = World()
    world.handler.fails = {"bad"}
    async with world.running() as task:
        await world.broker.send("bad", "good")
        await eventually(lambda: world.handler.ended == ["good"])
        await world.broker.send("later")
        await eventually(lambda: world.handler.ended == ["good", "later"])
        await eventually(lambda: world.engine.in_flight == 0)
        assert not task.done()
    assert world.handler.begun.count("bad") == engines._TRIES
    assert await world.broker.left_over() == []
    async with MemoryBroker.subscribe(world.broker, dead_letter_topic(TOPIC), GROUP) as dead:
        (letter,) = await dead.take(10, 0.01)
    assert (letter.message.value, letter.message.headers) == (
        b"bad",
        {"travelrec-error": "Its handler failed.", "travelrec-topic": TOPIC},
    )


async def test_what_a_handler_could_not_do_at_first_is_done() -> None:
    """A message is not lost to an error that passes, and its group does not wait for another member to have it."""
    world = World()
    world.handler.fails = {"bad"}
    async with world.running():
        await world.broker.send("bad")
        await eventually(lambda: world.handler.begun)
        world.handler.fails = set()
        await eventually(lambda: world.handler.ended == ["bad"])
    assert await world.broker.left_over() == []


async def test_a_bad_release_keeps_its_messages() -> None:
    """While every handler fails only the first few are moved away; once they succeed all others have come again."""
    world = World(concurrency=20)
    texts = [str(number) for number in range(60)]
    world.handler.fails = set(texts)
    async with world.running():
        await world.broker.send(*texts)
        await eventually(lambda: world.broker.joins >= 4, 20)
        world.handler.fails = set()
        letters = world.broker._topics[dead_letter_topic(TOPIC)]
        await eventually(lambda: len(set(world.handler.ended)) == 60 - len(letters), 20)
        moved = len(letters)
    assert engines._MOVED <= moved < engines._MOVED + 10
    assert await world.broker.left_over() == []


async def test_bad_messages_in_any_number_do_not_hold_up_good_ones() -> None:
    """More of them than places, all at once: they are found as soon as something succeeds."""
    world = World(concurrency=8)
    bad = [f"bad {number}" for number in range(24)]
    world.handler.fails = set(bad)
    async with world.running():
        await world.broker.send(*bad)
        for number in range(3):
            await world.broker.send(f"good {number}")
            await eventually(lambda number=number: f"good {number}" in world.handler.ended, 20)
        await eventually(lambda: len(world.broker._topics[dead_letter_topic(TOPIC)]) == 24, 20)
    assert await world.broker.left_over() == []


async def test_a_message_that_is_left_is_not_overtaken_by_the_next_of_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those behind it come again with it."""
    monkeypatch.setattr(engines, "_RETRY_S", 0.3)
    world = World(in_key_order=True)
    world.engine._given_up = engines._MOVED
    world.handler.fails = {"first"}
    async with world.running():
        await world.broker.send("first", "second", key="a")
        await eventually(lambda: world.broker.joins == 2)
        world.handler.fails = set()
        await eventually(lambda: len(world.handler.ended) == 2)
    assert world.handler.ended == ["first", "second"]


async def test_a_message_of_an_earlier_membership_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again by itself: tried here as well it would be handled, and moved, twice."""
    monkeypatch.setattr(engines, "_RETRY_S", 0.2)
    world = World()
    world.handler.fails = {"bad"}
    async with world.running():
        await world.broker.send("bad")
        await eventually(lambda: world.handler.begun == ["bad"] and not world.handler.in_flight)
        world.engine.shed(True)
        await eventually(lambda: not world.engine.joined.is_set() and not world.engine.in_flight)
    assert world.handler.begun == ["bad"]
    assert await world.broker.left_over() == ["bad"]


async def test_an_engine_that_stops_leaves_a_failed_message_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopping does not wait for the next attempt."""
    monkeypatch.setattr(engines, "_RETRY_S", 60.0)
    world = World()
    world.handler.fails = {"bad"}
    async with world.running(grace_s=20.0) as task:
        await world.broker.send("bad")
        await eventually(lambda: world.handler.begun and not world.handler.in_flight)
        world.engine.stop()
        async with asyncio.timeout(5):
            await task
    assert await world.broker.left_over() == ["bad"]


async def test_an_error_behind_the_acknowledgement_repeats_nothing() -> None:
    """What was acknowledged is not handled again."""
    world = World()

    def acknowledges(delivery: Delivery) -> None:
        delivery.acknowledge()
        raise RuntimeError("behind it")

    world.handler.acknowledges = acknowledges
    async with world.running():
        await world.broker.send("a")
        await eventually(lambda: world.handler.begun and world.engine.in_flight == 0)
    assert world.handler.begun == ["a"]


@pytest.mark.parametrize("early", [False, True])
async def test_stop_waits_for_what_runs(early: bool) -> None:
    """Within the grace period a handler comes to its end; nothing new is taken meanwhile."""
    world = World(concurrency=1, held=True, early=early)
    async with world.running(grace_s=20.0) as task:
        await world.broker.send("a", "b")
        await eventually(lambda: world.handler.begun == ["a"])
        world.engine.stop()
        await world.broker.send("c")
        asyncio.get_running_loop().call_later(0.1, world.handler.go.set)
        async with asyncio.timeout(5):
            await task
    assert (world.handler.begun, world.handler.cancelled) == (["a"], [])
    if not early:
        assert world.handler.ended == ["a"]
        assert await world.broker.left_over() == ["b", "c"]


async def test_stop_cancels_what_takes_too_long() -> None:
    """After the grace period handlers are cancelled, all of them, and the messages go to another member."""
    world = World(concurrency=2, held=True)
    async with world.running(grace_s=0.05) as task:
        await world.broker.send("a", "b", "c")
        await eventually(lambda: world.engine.in_flight == 2)
        world.engine.stop()
        async with asyncio.timeout(5):
            await task
    assert sorted(world.handler.cancelled) == ["a", "b"]
    assert await world.broker.left_over() == ["a", "b", "c"]


async def test_a_cancelled_handler_may_finish_what_it_must() -> None:
    """The engine ends only when the handlers it cancelled have ended: they hand their jobs back first."""
    world = World()
    handed_back = asyncio.Event()

    async def handle(_: Delivery) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            handed_back.set()

    world.engine._handle = handle
    async with world.running() as task:
        await world.broker.send("a")
        await eventually(lambda: world.engine.in_flight == 1)
        world.engine.stop()
        await task
        assert handed_back.is_set()


async def test_one_that_acknowledges_early_leaves_its_group_first() -> None:
    """Nobody waits for its grace period: its place in the group is free at once, while its handlers go on."""
    world = World(held=True, early=True)
    world.handler.acknowledges = lambda _: None
    async with world.running(grace_s=20.0) as task:
        await world.broker.send("a")
        await eventually(lambda: world.engine.in_flight == 1)
        world.engine.stop()
        await eventually(lambda: world.broker.leaves == 1)
        assert world.engine.in_flight == 1
        world.handler.go.set()
        async with asyncio.timeout(5):
            await task
    assert world.handler.ended == ["a"]


async def test_one_that_acknowledges_late_leaves_its_group_last() -> None:
    """What its handlers acknowledge within the grace period counts, and is not delivered again."""
    world = World(held=True)
    async with world.running(grace_s=20.0) as task:
        await world.broker.send("a")
        await eventually(lambda: world.engine.in_flight == 1)
        world.engine.stop()
        await eventually(lambda: world.broker.limits)
        assert world.broker.leaves == 0
        world.handler.go.set()
        await task
    assert world.broker.leaves == 1
    assert await world.broker.left_over() == []


async def test_a_broker_that_is_away_is_joined_again() -> None:
    """It tries until the broker is back, and then says that it has joined."""
    world = World()
    world.broker.away = True
    async with world.running():
        await eventually(lambda: world.broker.joins > 2)
        assert not world.engine.joined.is_set()
        world.broker.away = False
        await asyncio.wait_for(world.engine.joined.wait(), 10)
        await world.broker.send("a")
        await eventually(lambda: world.handler.ended == ["a"])


async def test_a_broker_that_goes_away_interrupts_no_handler() -> None:
    """What runs goes on while the broker is away; when it is back, so does the intake."""
    world = World(held=True)
    async with world.running():
        await world.broker.send("a")
        await eventually(lambda: world.engine.in_flight == 1)
        world.broker.away = True
        await eventually(lambda: not world.engine.joined.is_set())
        assert world.handler.cancelled == []
        world.broker.away = False
        await asyncio.wait_for(world.engine.joined.wait(), 10)
        world.handler.go.set()
        await world.broker.send("b")
        await eventually(lambda: {"a", "b"} <= set(world.handler.ended))
    assert world.broker.joins >= 2


async def test_stop_while_the_broker_is_away() -> None:
    """The engine ends, and what runs gets its grace period all the same."""
    world = World(held=True)
    async with world.running(grace_s=20.0) as task:
        await world.broker.send("a")
        await eventually(lambda: world.engine.in_flight == 1)
        world.broker.away = True
        await eventually(lambda: not world.engine.joined.is_set())
        world.engine.stop()
        world.handler.go.set()
        async with asyncio.timeout(5):
            await task
    assert (world.handler.ended, world.handler.cancelled) == (["a"], [])


async def test_stop_before_anything_came() -> None:
    """An idle engine ends at once, also when its intake is closed or it never ran."""
    for closed in (False, True):
        world = World()
        if closed:
            world.intake.clear()
        async with world.running() as task:
            await asyncio.wait_for(world.engine.joined.wait(), 10)
            world.engine.stop()
            async with asyncio.timeout(5):
                await task
    world = World()
    world.engine.stop()
    async with asyncio.timeout(5):
        await world.engine.run(0.0)
    assert world.broker.joins == 0


async def test_a_cancelled_engine_leaves_nothing_behind() -> None:
    """When its task is cancelled its handlers are, and have ended before it has."""
    world = World(held=True)
    running = asyncio.create_task(world.engine.run(20.0))
    await world.broker.send("a", "b")
    await eventually(lambda: world.engine.in_flight == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (world.handler.in_flight, world.engine.in_flight) == (0, 0)
    assert sorted(world.handler.cancelled) == ["a", "b"]


# --- in key order -------------------------------------------------------------------------------------


async def test_messages_of_one_key_are_handled_one_after_the_other() -> None:
    """In the order taken, while other keys and messages without one go on beside them."""
    world = World(concurrency=40, in_key_order=True)
    running, done = Counter[str | None](), list[tuple[str | None, int]]()

    async def handle(delivery: Delivery) -> None:
        key = delivery.message.key
        running[key] += 1
        assert key is None or running[key] == 1
        for _ in range(random.randrange(5)):
            await asyncio.sleep(0)
        done.append((key, int(delivery.message.value)))
        running[key] -= 1
        delivery.acknowledge()

    world.engine._handle = handle
    async with world.running():
        for number in range(200):
            await world.broker.send(str(number), key=random.choice(["a", "b", "c", None]))
        await eventually(lambda: len(done) == 200)
    for name in "abc":
        numbers = [number for key, number in done if key == name]
        assert numbers == sorted(numbers)
    assert await world.broker.left_over() == []


async def test_a_slow_key_holds_up_no_other() -> None:
    """What waits behind a slow handler waits alone."""
    world = World(concurrency=10, held=True, in_key_order=True)
    async with world.running():
        await world.broker.send("slow", "behind", key="a")
        await world.broker.send("b", key="b")
        await eventually(lambda: sorted(world.handler.begun) == ["b", "slow"])
        world.handler.go.set()
        await eventually(lambda: sorted(world.handler.ended) == ["b", "behind", "slow"])


async def test_what_waits_for_its_turn_has_a_place() -> None:
    """The messages of one busy key are not taken without bound."""
    world = World(concurrency=3, held=True, in_key_order=True)
    async with world.running():
        await world.broker.send(*map(str, range(10)), key="a")
        await eventually(lambda: world.broker.limits.count(0) > 3)
        group = world.broker._group(TOPIC, GROUP)
        assert (world.handler.begun, len(group.ready)) == (["0"], 7)
        world.handler.go.set()
        await eventually(lambda: len(world.handler.ended) == 10)
    assert world.handler.begun == [str(number) for number in range(10)]


async def test_what_waits_for_its_turn_goes_to_the_next_member() -> None:
    """An engine that is told to end, or that loses its group, begins nothing more of what it has taken."""
    for away in (False, True):
        world = World(concurrency=10, held=True, in_key_order=True)
        async with world.running(grace_s=20.0) as task:
            await world.broker.send("a", "b", "c", key="a")
            await eventually(lambda world=world: world.handler.begun == ["a"])
            if away:
                world.broker.away = True
                await eventually(lambda world=world: not world.engine.joined.is_set())
            world.engine.stop()
            world.handler.go.set()
            async with asyncio.timeout(5):
                await task
        world.broker.away = False
        assert world.handler.begun == ["a"]
        assert [text for text in await world.broker.left_over() if text != "a"] == ["b", "c"]


async def test_a_failed_message_lets_the_next_of_its_key_go_on() -> None:
    """Once it was tried again, and is out of the way."""
    world = World(concurrency=10, in_key_order=True)
    world.handler.fails = {"bad"}
    async with world.running():
        await world.broker.send("bad", "good", key="a")
        await eventually(lambda: world.handler.ended == ["good"])
    assert world.handler.begun == ["bad", "bad", "bad", "good"]
    assert await world.broker.left_over() == []


async def test_what_comes_again_is_not_dropped_with_the_handler_it_waits_for() -> None:
    """A handler of an earlier membership fails late: the messages that wait behind it are the next membership's."""
    world = World(concurrency=10, held=True, in_key_order=True)
    failures = iter([RuntimeError("late")])

    def acknowledge(delivery: Delivery) -> None:
        for failure in failures:
            raise failure
        delivery.acknowledge()

    world.handler.acknowledges = acknowledge
    await world.broker.send("1", "2", key="k")
    async with world.running():
        await eventually(lambda: world.handler.begun == ["1"])
        world.broker.away = True
        await eventually(lambda: world.broker.leaves == 1 or world.broker.joins > 1)
        world.broker.away = False
        limits = world.broker.limits
        await eventually(lambda: limits[-1] == 10 - 3)  # both have come again, and wait
        world.handler.go.set()
        await eventually(lambda: world.handler.ended == ["1", "2"])
    assert await world.broker.left_over() == []
