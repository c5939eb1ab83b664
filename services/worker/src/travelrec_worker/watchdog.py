"""The watchdog: says what hangs and where, lets go of the partitions meanwhile, and tells of a loop that is blocked."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from travelrec import metrics
from travelrec_worker.engine import Engine
from travelrec_worker.progress import Progress, Work

log = structlog.get_logger(__name__)

_LOOK_S = 1.0
_BLOCKED_LOOKS = 5  # without a turn of the loop


async def watch(progress: Progress, engines: Sequence[Engine]) -> None:
    """Until cancelled: while something hangs here, the engines leave their groups to other members."""
    told: set[Work] = set()
    before = time.monotonic()
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await progress.alarm.wait()
        progress.alarm.clear()
        now = time.monotonic()
        progress.turned(min(now - before, 2 * _LOOK_S))
        before = now
        metrics.OLDEST_WORK.set(progress.oldest_s)
        hanging = progress.hanging
        for work in hanging:
            if work not in told:
                for_s = round(progress.now - work.since)
                log.error("hangs", what=work.what, uid=work.uid, for_s=for_s, stack=work.where)
        for work in told.difference(hanging):
            log.warning("hangs no more", what=work.what, uid=work.uid)
        told = set(hanging)
        for engine in engines:
            engine.shed(bool(hanging))


class _Turns:
    """How often the loop turned, as another thread sees it."""

    def __init__(self) -> None:
        self.count = 0
        self.ended = threading.Event()

    def watch(self, loop_thread: int) -> None:
        """Looks from outside; one block of the loop is told once."""
        seen, looks = self.count, 0
        while not self.ended.wait(_LOOK_S):
            if self.count != seen:
                if looks >= _BLOCKED_LOOKS:
                    log.warning("event loop turns again", blocked_s=looks * _LOOK_S)
                seen, looks = self.count, 0
                continue
            looks += 1
            frame = sys._current_frames().get(loop_thread)
            if looks == _BLOCKED_LOOKS and frame is not None:
                stack = "".join(traceback.format_stack(frame))
                log.error("event loop blocked", for_s=looks * _LOOK_S, stack=stack)


@asynccontextmanager
async def loop_watched() -> AsyncIterator[None]:
    """Measures how late this loop is, and says where it is blocked, until left."""
    turns = _Turns()
    thread = threading.Thread(target=turns.watch, args=(threading.get_ident(),), daemon=True, name="watchdog")
    turning = asyncio.create_task(_turn(turns))
    thread.start()
    try:
        yield
    finally:
        turns.ended.set()
        turning.cancel()
        thread.join()


async def _turn(turns: _Turns) -> None:
    while True:
        due = time.monotonic() + _LOOK_S / 2
        await asyncio.sleep(_LOOK_S / 2)
        metrics.LOOP_LAG.set(max(0.0, time.monotonic() - due))
        turns.count += 1
