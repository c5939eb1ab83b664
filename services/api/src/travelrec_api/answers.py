"""What is known already: a request whose answer is fresh is born completed."""

from __future__ import annotations

import time
from collections import OrderedDict

from travelrec.batching import Batcher
from travelrec.errors import StoreUnavailable
from travelrec.job import Completed, Job, answers
from travelrec.ports import Store

_KEYS = 10_000
_LOOK_AGAIN_S = 1.0  # at a key that had no answer


class Answers:
    """Fresh answers by key, remembered in this process; the store is asked about a key once a second at the most."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: OrderedDict[str, tuple[float, Job | None]] = OrderedDict()
        self._reads: Batcher[str, Job | None] = Batcher(self._read_all, grow=16)

    async def fresh(self, key: str, fresh_s: float) -> Completed | None:
        """A result for `key` that is younger than `fresh_s` seconds, or None. Never fails: it is only a saving."""
        if fresh_s <= 0:
            return None
        now = time.time()
        looked_at, job = self._known.get(key, (0.0, None))
        if job is None or not answers(job, now, now, fresh_s):
            if looked_at + _LOOK_AGAIN_S > now:
                return None
            self._remember(key, now, None)  # others who ask meanwhile need not look too
            try:
                job = await self._reads.submit(key)
            except StoreUnavailable:
                return None
            if job is None or not answers(job, now, now, fresh_s):
                return None
            self._remember(key, now, job)
        return Completed(job.result or {}, job.trace)

    def _remember(self, key: str, now: float, job: Job | None) -> None:
        self._known[key] = (now, job)
        self._known.move_to_end(key)
        if len(self._known) > _KEYS:
            self._known.popitem(last=False)

    async def _read_all(self, keys: list[str]) -> list[Job | None]:
        led = await self._store.leaders(keys)
        found = await self._store.get(list(led.values()))
        return [found.get(led.get(key, "")) for key in keys]
