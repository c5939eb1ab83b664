"""What happens to a job when its worker is stopped, or loses it, at an awkward moment."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.connect import Parts
from travelrec.errors import BadKey, ModelError, StoreUnavailable
from travelrec.job import Job, Phase, Settlement, Status, new_uid
from travelrec.kinds.recommendation import NAME
from travelrec.kinds.recommendation.examples import PARAMS, RECOMMENDATIONS
from travelrec.ports import Answer, Question, Subscription
from travelrec.retry import RetryPolicy
from travelrec.settings import Settings
from travelrec.wire import JOBS_TOPIC, Signal, encode_job
from travelrec_worker import gate
from travelrec_worker.app import running_roles

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

LEASE_S = 1.0  # renewed three times in it
LATER_S = 1.0  # by then a worker that was told to end has stopped taking


class Store(MemoryStore):
    """A store whose answers to claims and settlements can be held back, and that can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.claims_answered, self.settlements_answered = asyncio.Event(), asyncio.Event()
        self.claims_answered.set()
        self.settlements_answered.set()
        self.loses_next_claim = False
        self.renewals = 0
        self.takes_settlements = True

    async def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None = None
    ) -> list[Job]:
        claimed = await super().claim(uids, token, now, until, worker)
        await self.claims_answered.wait()
        if self.loses_next_claim:
            self.loses_next_claim = False
            raise StoreUnavailable("no answer")
        return claimed

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        self.renewals += 1
        return await super().renew(leases, until)

    async def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        if not self.takes_settlements:
            raise StoreUnavailable("away")
        stood = await super().settle(settlements, now)
        await self.settlements_answered.wait()
        return stood


class Model:
    """Answers once it may; counts who waits."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = 0
        self.error: ModelError | None = None

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        self.asked += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        quoted = ", ".join(f'"{one}"' for one in RECOMMENDATIONS)
        return Answer(f'{{"recommendations": [{quoted}]}}', "test", 1, 1)


class BrokerAway(MemoryBroker):
    """Nobody can join a group."""

    def __init__(self) -> None:
        super().__init__()
        self.joining = asyncio.Event()

    @asynccontextmanager
    async def subscribe(self, topic: str, group: str) -> AsyncIterator[Subscription]:
        self.joining.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")
        yield


class Bench:
    """A store, a broker and a model with one job in its message; `heard` are the signals."""

    def __init__(self) -> None:
        self.store, self.broker, self.signals = Store(), MemoryBroker(), MemorySignals()
        self.model = Model()
        self.heard: list[Signal] = []
        self.job = Job(
            uid=new_uid(), kind=NAME, params=PARAMS, created_at=time.time(), due_at=time.time() + 60
        )

    @asynccontextmanager
    async def working(self, grace_s: float = 0.0, max_attempts: int = 5) -> AsyncIterator[None]:
        settings = Settings(
            broker_url="kafka://unused",
            store_url="memory://",
            lease_s=LEASE_S,
            grace_s=grace_s,
            max_attempts=max_attempts,
            _env_file=None,
        )
        parts = Parts(self.store, self.broker, self.signals)
        await self.store.accept([self.job], time.time())
        await self.broker.publish(JOBS_TOPIC, [encode_job(self.job)])
        async with (
            self.signals.listen(self.heard.extend),
            running_roles(["jobs"], settings, parts, self.model),
        ):
            yield

    @property
    def standing(self) -> Job:
        return self.store.jobs[self.job.uid]


async def test_a_renewal_that_meets_a_settlement_stops_nothing() -> None:
    """A lease that is gone because its result was just written is not lost: the end is announced."""
    bench = Bench()
    async with bench.working():
        bench.store.settlements_answered.clear()
        bench.model.may_answer.set()
        await eventually(lambda: bench.standing.status is Status.COMPLETED)
        renewals = bench.store.renewals
        await eventually(lambda: bench.store.renewals > renewals)
        bench.store.settlements_answered.set()
        await eventually(lambda: bench.heard == [Signal(bench.job.uid, Status.COMPLETED)])


async def test_a_result_on_its_way_at_the_end_is_announced() -> None:
    """A worker that has no time left while a result is being written still tells of it, and hands nothing back."""
    bench = Bench()
    async with bench.working():
        bench.store.settlements_answered.clear()
        bench.model.may_answer.set()
        await eventually(lambda: bench.standing.status is Status.COMPLETED)
        asyncio.get_running_loop().call_later(LATER_S, bench.store.settlements_answered.set)
    assert bench.heard == [Signal(bench.job.uid, Status.COMPLETED)]


async def test_a_claim_on_its_way_at_the_end_is_handed_back() -> None:
    """A job whose claim is answered after its worker was told to end waits for nobody's lease."""
    bench = Bench()
    bench.store.claims_answered.clear()
    async with bench.working():
        await eventually(lambda: bench.standing.phase is Phase.RUNNING)
        asyncio.get_running_loop().call_later(LATER_S, bench.store.claims_answered.set)
    assert (bench.standing.phase, bench.standing.claims, bench.standing.tries) == (Phase.WAITING, 0, ())
    assert bench.standing.due_at <= time.time()


async def test_a_claim_whose_answer_is_lost_is_taken_up() -> None:
    """A claim that stands although the store did not answer is run at once, not after its lease."""
    bench = Bench()
    bench.store.loses_next_claim = True
    bench.model.may_answer.set()
    async with bench.working():
        await eventually(lambda: bench.standing.status is Status.COMPLETED)
    assert bench.standing.claims == 1


async def test_a_worker_ends_although_the_store_is_away() -> None:
    """What can't be handed back is left to its lease."""
    bench = Bench()
    async with asyncio.timeout(5):
        async with bench.working():
            await eventually(lambda: bench.model.asked)
            bench.store.takes_settlements = False
    assert bench.standing.phase is Phase.RUNNING


async def test_a_worker_ends_although_the_broker_is_away() -> None:
    """A worker that waits to join its group ends when it is told to."""
    bench = Bench()
    bench.broker = broker = BrokerAway()
    async with asyncio.timeout(5), bench.working():
        await broker.joining.wait()


async def test_a_long_trouble_of_the_provider_fails_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the provider rejects the key, the job waits for it."""
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(cap_s=0.0))
    bench = Bench()
    bench.model.error = BadKey("The key is wrong.")
    bench.model.may_answer.set()
    async with bench.working(max_attempts=1):
        await eventually(lambda: bench.model.asked > 8 or bench.standing.ended, 10)
        assert bench.standing.status is Status.PENDING, bench.standing.message
