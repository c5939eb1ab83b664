"""The two schedulers of trips, on the real clock: they run what was planned, and never more than may overlap."""

import asyncio

import pytest

from travelrec.trips.schedulers import SCHEDULERS

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("name", SCHEDULERS)]


async def test_every_tick_runs(name: str) -> None:
    """As many runs as were planned, none before its time."""
    ran = 0

    async def tick() -> None:
        nonlocal ran
        ran += 1

    ticks = await SCHEDULERS[name](tick, 50.0, 1.0, 50)
    assert (ran, ticks.planned, ticks.missed, ticks.failed) == (50, 50, 0, 0)
    assert ticks.at[-1] - ticks.at[0] > 0.8, "not all at once"


async def test_overlap_is_bounded(name: str) -> None:
    """A tick that finds no place is missed; the others end."""
    running = most = ended = 0

    async def tick() -> None:
        nonlocal running, most, ended
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.5)
        running -= 1
        ended += 1

    ticks = await SCHEDULERS[name](tick, 50.0, 0.4, 3)
    assert most == 3
    assert ended == len(ticks.at)
    assert ticks.missed == ticks.planned - ended > 0


async def test_a_run_that_fails_is_counted(name: str) -> None:
    """The schedule goes on."""

    async def tick() -> None:
        raise ValueError("no")

    ticks = await SCHEDULERS[name](tick, 50.0, 0.2, 10)
    assert (len(ticks.at), ticks.failed) == (10, 10)
