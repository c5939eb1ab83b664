"""Group commit: concurrent calls share one bulk call, and a lone one is not delayed."""

import asyncio
from collections.abc import Awaitable, Sequence

import pytest

from travelrec.batching import Batcher
from travelrec.errors import StoreUnavailable

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


class Calls:
    """A bulk call that shows what it was given; while `held`, its calls wait to be let go one by one."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.fails: dict[int, BaseException] = {}  # an item → what the batch with it raises
        self.loses = 0  # how many replies of a batch are missing
        self._held = held
        self._doors: list[asyncio.Event] = []

    async def __call__(self, items: list[int]) -> Sequence[str]:
        self.batches.append(items)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self._held:
                self._doors.append(asyncio.Event())
                await self._doors[-1].wait()
            for item in items:
                if item in self.fails:
                    raise self.fails[item]
            return [f"re {item}" for item in items][: len(items) - self.loses]
        finally:
            self.in_flight -= 1

    def let_go(self, number: int) -> None:
        """Lets call `number` end, counted from 0."""
        self._doors[number].set()

    def let_all_go(self) -> None:
        """Lets the calls end that are in flight, and those that come."""
        self._held = False
        for door in self._doors:
            door.set()


async def turns(count: int = 5) -> None:
    """Lets everything run that can run now."""
    for _ in range(count):
        await asyncio.sleep(0)


def submitted(batcher: Batcher[int, str], *items: int) -> list[asyncio.Task[str]]:
    async def one(item: int) -> str:
        return await batcher.submit(item)

    return [asyncio.create_task(one(item)) for item in items]


async def all_of(tasks: Sequence[Awaitable[str]]) -> list[str | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_lone_item_goes_at_once() -> None:
    """One item is a batch of its own, in the next turn of the loop: nothing is waited for."""
    calls = Calls(held=True)
    batcher = Batcher(calls)
    waiting = batcher.enqueue(1)
    assert (calls.batches, batcher.waiting) == ([], 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (calls.batches, batcher.waiting) == ([[1]], 0)
    calls.let_all_go()
    assert await waiting == "re 1"


async def test_items_of_one_turn_share_a_batch_in_order() -> None:
    """What comes together goes together; each item gets its own reply."""
    calls = Calls()
    batcher = Batcher(calls)
    assert await all_of(submitted(batcher, *range(20))) == [f"re {n}" for n in range(20)]
    assert calls.batches == [list(range(20))]


async def test_equal_items_are_not_one() -> None:
    """The same item twice is worked twice."""
    calls = Calls()
    assert await all_of(submitted(Batcher(calls), 7, 7)) == ["re 7", "re 7"]
    assert calls.batches == [[7, 7]]


async def test_batches_grow_with_the_load() -> None:
    """While a batch is in flight, late items gather until there are `grow` for each batch in flight."""
    calls = Calls(held=True)
    batcher = Batcher(calls, grow=3, max_in_flight=4)
    tasks = submitted(batcher, 0)
    await turns()
    for item in (1, 2):
        tasks += submitted(batcher, item)
        await turns()
    assert (calls.batches, batcher.waiting) == ([[0]], 2)
    tasks += submitted(batcher, 3)
    await turns()
    assert calls.batches == [[0], [1, 2, 3]]
    for item in range(4, 9):
        tasks += submitted(batcher, item)
        await turns()
    assert (len(calls.batches), batcher.waiting) == (2, 5)
    tasks += submitted(batcher, 9)
    await turns()
    assert calls.batches[2:] == [[4, 5, 6, 7, 8, 9]]
    calls.let_all_go()
    assert await all_of(tasks) == [f"re {n}" for n in range(10)]


async def test_the_end_of_a_batch_starts_what_waits() -> None:
    """A few items that wait behind a batch go when it ends, without another item having to come."""
    calls = Calls(held=True)
    batcher = Batcher(calls, grow=100)
    first = submitted(batcher, 0)
    await turns()
    late = submitted(batcher, 1, 2)
    await turns()
    assert calls.batches == [[0]]
    calls.let_go(0)
    assert await all_of(first) == ["re 0"]
    await turns()
    assert calls.batches == [[0], [1, 2]]
    calls.let_all_go()
    await all_of(late)


async def test_batches_and_their_number_are_bounded() -> None:
    """No batch is larger than `max_items`, no more than `max_in_flight` run at once, and nothing is lost."""
    calls = Calls(held=True)
    batcher = Batcher(calls, max_items=10, max_in_flight=2, grow=1)
    tasks = submitted(batcher, *range(95))
    await turns()
    assert [len(batch) for batch in calls.batches] == [10, 10]
    calls.let_all_go()
    assert await all_of(tasks) == [f"re {n}" for n in range(95)]
    assert [item for batch in calls.batches for item in batch] == list(range(95))
    assert max(len(batch) for batch in calls.batches) == 10
    assert calls.most_in_flight == 2


async def test_a_slow_batch_does_not_hold_up_another() -> None:
    """Several batches are in flight at once, and end in any order."""
    calls = Calls(held=True)
    batcher = Batcher(calls, grow=2)
    slow = submitted(batcher, 0)
    await turns()
    quick = submitted(batcher, 1, 2)
    await turns()
    calls.let_go(1)
    assert await all_of(quick) == ["re 1", "re 2"]
    assert not slow[0].done()
    calls.let_go(0)
    assert await all_of(slow) == ["re 0"]


async def test_an_error_reaches_exactly_its_batch() -> None:
    """Every item of the batch that failed hears of it, no other does, and the next batches go on."""
    calls = Calls(held=True)
    batcher = Batcher(calls, grow=2)
    broken = RuntimeError("away")
    calls.fails[1] = broken
    good = submitted(batcher, 0)
    await turns()
    bad = submitted(batcher, 1, 2)
    await turns()
    calls.let_all_go()
    assert await all_of(bad) == [broken, broken]
    assert await all_of(good) == ["re 0"]
    assert await all_of(submitted(batcher, 3)) == ["re 3"]


async def test_what_nobody_foresaw_is_found_among_the_items() -> None:
    """With `apart` only the item that is wrong hears of it; a neighbour that is away concerns all of them, once."""
    calls = Calls()
    calls.fails[2] = broken = ValueError("no key of a document may be a number")
    batcher = Batcher(calls, apart=True)
    assert await all_of(submitted(batcher, 1, 2, 3)) == ["re 1", broken, "re 3"]
    calls.fails[2] = away = StoreUnavailable("away")
    calls.batches.clear()
    assert await all_of(submitted(batcher, 1, 2, 3)) == [away] * 3
    assert calls.batches == [[1, 2, 3]]


async def test_a_batch_that_is_cancelled_while_its_items_are_tried_apart_ends() -> None:
    """None of the others is begun."""
    calls = Calls(held=True)
    calls.fails[2] = ValueError("no key")
    batcher = Batcher(calls, apart=True)
    answers = submitted(batcher, 1, 2, 3)
    await turns()
    calls.let_go(0)
    await turns()
    assert calls.batches == [[1, 2, 3], [1]]
    (running,) = batcher._running
    running.cancel()
    assert all(isinstance(answer, asyncio.CancelledError) for answer in await all_of(answers))
    assert len(calls.batches) == 2


async def test_missing_replies_are_an_error_of_the_batch() -> None:
    """A call that answers fewer than it was asked leaves nobody waiting for ever."""
    calls = Calls()
    calls.loses = 1
    answers = await all_of(submitted(Batcher(calls), 1, 2, 3))
    assert [type(answer) for answer in answers] == [ValueError] * 3


async def test_a_cancelled_call_cancels_its_submitters() -> None:
    """Who waits for a call that was cancelled is cancelled, not left waiting."""
    calls = Calls()
    calls.fails[1] = asyncio.CancelledError()
    (answer,) = await all_of(submitted(Batcher(calls), 1))
    assert isinstance(answer, asyncio.CancelledError)


@pytest.mark.parametrize("started", [False, True])
async def test_a_cancelled_submitter_harms_nobody(started: bool) -> None:
    """Its item is worked all the same, and the others of its batch get their replies."""
    calls = Calls(held=True)
    batcher = Batcher(calls)
    gone, stays = submitted(batcher, 1, 2)
    await turns(3 if started else 1)
    assert bool(calls.batches) is started
    gone.cancel()
    await turns()
    calls.let_all_go()
    assert await stays == "re 2"
    assert calls.batches == [[1, 2]]
    assert gone.cancelled()


async def test_a_cancelled_submitter_does_not_hide_an_error() -> None:
    """An error still reaches those who wait when one of them has gone."""
    calls = Calls(held=True)
    batcher = Batcher(calls)
    calls.fails[1] = RuntimeError("away")
    gone, stays = submitted(batcher, 1, 2)
    await turns()
    gone.cancel()
    calls.let_all_go()
    (answer,) = await all_of([stays])
    assert isinstance(answer, RuntimeError)


async def test_post_never_raises() -> None:
    """Nobody waits for a posted item: it is worked, and an error of it disturbs nothing."""
    calls = Calls()
    calls.fails[1] = RuntimeError("away")
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    batcher = Batcher(calls)
    batcher.post(1)
    await batcher.drain()
    batcher.post(2)
    await batcher.drain()
    assert calls.batches == [[1], [2]]
    assert unheard == []


async def test_drain_waits_for_all_that_was_submitted() -> None:
    """It returns once nothing waits and nothing runs, also for what came in while it waited."""
    calls = Calls(held=True)
    batcher = Batcher(calls, max_in_flight=1)
    batcher.post(1)
    draining = asyncio.create_task(batcher.drain())
    await turns()
    batcher.post(2)
    calls.let_go(0)
    await turns()
    assert (calls.batches, draining.done()) == ([[1], [2]], False)
    calls.let_all_go()
    await draining
    assert (batcher.waiting, calls.in_flight) == (0, 0)


async def test_drain_with_nothing_to_do_returns() -> None:
    """A batcher at rest is drained at once."""
    async with asyncio.timeout(5):
        await Batcher(Calls()).drain()
