"""A request whose answer is fresh is born completed."""

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemoryStore
from travelrec.errors import StoreUnavailable
from travelrec.job import Bid, Completed, Settlement, Status
from travelrec.kinds import shared
from travelrec.settings import Settings
from travelrec.wire import JOBS_GROUP, JOBS_TOPIC
from travelrec_api import answers
from travelrec_api.accept import Accepter

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]
PARAMS = {"country": "Canada", "season": "winter"}
RESULT = {"recommendations": ["a", "b", "c"]}
KEY = "recommendation:Canada:winter"


def accepter(store: MemoryStore, broker: MemoryBroker, ttl_s: float = 3600.0) -> Accepter:
    return Accepter(store, broker, shared(Settings(recommendation_cache_ttl_s=ttl_s)), 86400.0)


async def complete_one(store: MemoryStore) -> str:
    """Does what a worker does; gives the leader's uid."""
    job, _ = await accepter(store, MemoryBroker()).accept("recommendation", PARAMS, {})
    await store.lead([Bid(KEY, job.uid)], job.created_at)
    await store.claim([job.uid], "t", job.created_at, job.created_at + 30)
    await store.settle([Settlement(job.uid, "t", Completed(RESULT))], job.created_at + 1)
    return job.uid


async def test_fresh_answer_completes_at_once() -> None:
    """Every request has its own uid and record; nothing is published for it."""
    store, broker = MemoryStore(), MemoryBroker()
    leader = await complete_one(store)
    here = accepter(store, broker)
    jobs = [(await here.accept("recommendation", PARAMS, {}))[0] for _ in range(3)]
    assert len({job.uid for job in jobs} | {leader}) == 4
    assert [store.jobs[job.uid].status for job in jobs] == [Status.COMPLETED] * 3
    assert [store.jobs[job.uid].result for job in jobs] == [RESULT] * 3
    assert await broker.oldest_waiting(JOBS_TOPIC, JOBS_GROUP) is None


async def test_answer_of_another_replica_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that looked in vain looks again a moment later."""
    monkeypatch.setattr(answers, "_LOOK_AGAIN_S", 0.01)
    store, broker = MemoryStore(), MemoryBroker()
    here = accepter(store, broker)
    assert not (await here.accept("recommendation", PARAMS, {}))[0].ended
    await complete_one(store)

    async def born_completed() -> bool:
        return (await here.accept("recommendation", PARAMS, {}))[0].ended

    await eventually(born_completed, 10)


async def test_nothing_is_reused_with_no_time_to_live() -> None:
    """0 turns it off; other parameters are another question."""
    store, broker = MemoryStore(), MemoryBroker()
    await complete_one(store)
    assert not (await accepter(store, broker, 0.0).accept("recommendation", PARAMS, {}))[0].ended
    other = {"country": "Canada", "season": "summer"}
    assert not (await accepter(store, broker).accept("recommendation", other, {}))[0].ended


async def test_store_away_costs_only_the_saving() -> None:
    """A look that fails is not an error of the request."""

    class Forgetful(MemoryStore):
        async def leaders(self, keys):
            raise StoreUnavailable("away")

    job, _ = await accepter(Forgetful(), MemoryBroker()).accept("recommendation", PARAMS, {})
    assert not job.ended
