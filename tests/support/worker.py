"""The role `jobs` in this process on memory adapters that tell what was done, in which order, and can be away."""

import asyncio
import copy
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.connect import Parts
from travelrec.errors import BrokerUnavailable, SignalUnavailable, StoreUnavailable
from travelrec.job import Job, Settlement, new_uid
from travelrec.kinds.recommendation import NAME
from travelrec.ports import Answer, Delivery, Question
from travelrec.settings import Settings
from travelrec.wire import JOBS_TOPIC, Message, Signal, dead_letter_topic, encode_job
from travelrec_worker.app import running_roles
from travelrec_worker.progress import Progress

DEAD_LETTERS = dead_letter_topic(JOBS_TOPIC)


@dataclass
class Diary:
    """What was done, in order; what is in `away` fails before it does anything, what is in `lost` behind it."""

    done: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    away: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    doors: dict[str, asyncio.Event] = field(default_factory=dict)

    async def enter(self, name: str, error: type[Exception]) -> None:
        """Called before anything is done."""
        self.tried[name] += 1
        if name in self.away:
            raise error("away")
        if name in self.doors:
            await self.doors[name].wait()

    def did(self, name: str, error: type[Exception]) -> None:
        """Called when it is done, before it is answered."""
        self.done.append(name)
        if name in self.lost:
            raise error("no answer")

    def close(self, name: str) -> None:
        """Holds it up until `open`."""
        self.doors[name] = asyncio.Event()

    def open(self, name: str) -> None:
        """Lets go on what was held up."""
        self.doors.pop(name).set()


class Store(MemoryStore):
    """`claim`, `settle` and `renew` are in the diary."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary

    async def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None = None
    ) -> list[Job]:
        await self._diary.enter("claim", StoreUnavailable)
        won = await super().claim(uids, token, now, until, worker)
        self._diary.did("claim", StoreUnavailable)
        return won

    async def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        await self._diary.enter("settle", StoreUnavailable)
        stood = await super().settle(settlements, now)
        self._diary.did("settle", StoreUnavailable)
        return stood

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        await self._diary.enter("renew", StoreUnavailable)
        return await super().renew(leases, until)


@dataclass
class _Told:
    """A delivery that tells of its acknowledgement."""

    delivery: Delivery
    diary: Diary

    @property
    def message(self) -> Message:
        return self.delivery.message

    def acknowledge(self) -> None:
        self.diary.done.append("acknowledge")
        self.delivery.acknowledge()


@dataclass
class _Subscription:
    take_from: Callable[[int, float], Awaitable[Sequence[Delivery]]]
    diary: Diary

    async def take(self, limit: int, timeout_s: float) -> list[_Told]:
        return [_Told(delivery, self.diary) for delivery in await self.take_from(limit, timeout_s)]


class Broker(MemoryBroker):
    """Acknowledgements and dead letters are in the diary; `dead` are the dead letters."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary
        self.dead: list[Message] = []

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        if topic == DEAD_LETTERS:
            await self._diary.enter("dead letter", BrokerUnavailable)
            self.dead += messages
            self._diary.did("dead letter", BrokerUnavailable)
        await super().publish(topic, messages)

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[_Subscription]:
        async with super().subscribe(topic, group) as subscription:
            yield _Subscription(subscription.take, self._diary)


class Signals(MemorySignals):
    """Announcements are in the diary; `heard` has their signals."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self._diary = diary
        self.heard: list[Signal] = []

    async def announce(self, signals: Sequence[Signal]) -> None:
        await self._diary.enter("signal", SignalUnavailable)
        await super().announce(signals)
        self.heard += signals
        self._diary.did("signal", SignalUnavailable)


class Model:
    """Answers well, or with the next of what a country was told to; calls wait while it is `held`."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary
        self.says: dict[str, list[str | Exception]] = {}
        self.called_at: dict[str, list[float]] = {}
        self.in_flight: list[str] = []
        self.most_in_flight = 0
        self.stopped: list[str] = []

    def hold(self) -> None:
        """Lets no call end until `let_go`."""
        self._diary.close("answer")

    def let_go(self) -> None:
        """Lets the calls end."""
        self._diary.open("answer")

    @property
    def calls(self) -> int:
        """How many calls there were."""
        return sum(map(len, self.called_at.values()))

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        country = question.user.splitlines()[0].removeprefix("Country: ")
        self._diary.done.append("ask")
        self.called_at.setdefault(country, []).append(time.monotonic())
        self.in_flight.append(country)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        try:
            await self._diary.enter("answer", AssertionError)
        except asyncio.CancelledError:
            self.stopped.append(country)
            raise
        finally:
            self.in_flight.remove(country)
        said = self.says[country].pop(0) if self.says.get(country) else good_answer(country)
        if isinstance(said, Exception):
            raise said
        return Answer(said, "test", 1, 1)


def good_answer(country: str) -> str:
    """Three different sentences about a country."""
    return json.dumps({"recommendations": [f"Do number {n} in {country}." for n in range(3)]})


class World:
    """A store, a broker, signals and a model for any number of workers, and one diary."""

    def __init__(self) -> None:
        self.diary = Diary()
        self.store = Store(self.diary)
        self.broker = Broker(self.diary)
        self.signals = Signals(self.diary)
        self.model = Model(self.diary)

    def of_its_own(self) -> Self:
        """The same jobs, messages and model, reached in another way: what is in its diary happens to it alone."""
        other = copy.copy(self)
        other.diary = Diary()
        other.store = copy.copy(self.store)  # its dictionaries are the same
        other.store._diary = other.diary
        return other

    @asynccontextmanager
    async def worker(self, progress: Progress | None = None, **settings: object) -> AsyncIterator[None]:
        """A worker until left; by default it ends without grace, and has no name, for there may be several."""
        unused = {"broker_url": "kafka://unused", "store_url": "memory://"}
        given = {**unused, "grace_s": 0.0, "metrics_port": 0, **settings}
        parts = Parts(self.store, self.broker, self.signals)
        async with running_roles(
            ["jobs"], Settings(**given, _env_file=None), parts, self.model, progress=progress
        ):
            yield

    async def accept(self, country: str = "Peru", *, publish: bool = True, **changes: object) -> str:
        """The uid of a job about a country, accepted now, whose message is on its way."""
        now = time.time()
        made = Job(new_uid(), NAME, {"country": country, "season": "winter"}, now, due_at=now + 3600)
        job = replace(made, **changes)
        await self.store.accept([job], now)
        if publish:
            await self.publish(job.uid)
        return job.uid

    async def publish(self, uid: str, times: int = 1) -> None:
        """Sends the message of a job again."""
        await self.broker.publish(JOBS_TOPIC, [encode_job(self.store.jobs[uid])] * times)

    def job(self, uid: str) -> Job:
        """The job as it stands."""
        return self.store.jobs[uid]

    async def unacknowledged(self) -> bool:
        """Whether a message waits that nobody has acknowledged."""
        return await self.broker.oldest_waiting(JOBS_TOPIC, "travelrec.jobs") is not None
