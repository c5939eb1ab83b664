"""What an outage of the store does to leases, in virtual time."""

import asyncio
from collections.abc import Sequence

import pytest

from simulation.loop import EPOCH, VirtualLoop, simulated
from travelrec.adapters.memory import MemoryStore
from travelrec.errors import StoreUnavailable
from travelrec.job import Job, new_uid
from travelrec_worker.leases import Leases
from travelrec_worker.progress import Progress

LEASE_S = 30.0
TIMEOUT_S = 5.0  # of a call that nobody answers


class Store(MemoryStore):
    """For a while it refuses everybody, or (`hangs`) answers nobody until it goes on."""

    def __init__(self, loop: VirtualLoop, away: tuple[float, float], hangs: bool) -> None:
        super().__init__()
        self._loop = loop
        self._from, self._until = away
        self._hangs = hangs

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        if self._from <= self._loop.now < self._until:
            left_s = self._until - self._loop.now
            if self._hangs:
                await asyncio.sleep(min(left_s, TIMEOUT_S))
            if left_s > TIMEOUT_S or not self._hangs:
                raise StoreUnavailable("away")
        return await super().renew(leases, until)


async def _least_left(store: Store, loop: VirtualLoop) -> float:
    """The least time that a lease had left before it was renewed."""
    job = Job(new_uid(), "recommendation", {}, EPOCH, due_at=EPOCH + 60)
    await store.accept([job], EPOCH)
    (claimed,) = await store.claim([job.uid], "mine", EPOCH, EPOCH + LEASE_S)
    leases = Leases(store, LEASE_S, Progress(TIMEOUT_S))
    keeping = asyncio.create_task(leases.keep())
    least = LEASE_S
    with leases.held(claimed):
        while loop.now < 4 * LEASE_S:
            await asyncio.sleep(0.125)
            least = min(least, store.jobs[job.uid].due_at - EPOCH - loop.now)
    keeping.cancel()
    return least


@pytest.mark.parametrize("hangs", [True, False])
@pytest.mark.parametrize("began", [9.9, 10.1, 14.0, 19.9, 25.0])
def test_leases_outlive_a_store_that_is_away_for_less_than_two_thirds_of_them(
    began: float, hangs: bool
) -> None:
    """Whenever it begins: what could not be renewed is renewed as soon as the store answers again."""
    with simulated(0) as loop:
        store = Store(loop, (began, began + LEASE_S * 2 / 3 - 1.0), hangs)
        left_s = loop.run_until_complete(_least_left(store, loop))
    assert left_s > 0.5  # renewing takes time, too
