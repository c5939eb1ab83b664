"""Whether a process can work: each neighbour is asked, all at once, and answers by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from travelrec.errors import Unavailable

_ASK_S = 2.0


class Probes:
    """The neighbours of a process; without a `needed` one it is not ready, without another it is only degraded."""

    def __init__(
        self,
        needed: Mapping[str, Callable[[], Awaitable[None]]],
        wanted: Mapping[str, Callable[[], Awaitable[None]]],
    ) -> None:
        self._needed = needed
        self._asks = {**needed, **wanted}
        self.stopping = False

    async def readiness(self) -> tuple[bool, dict[str, object]]:
        """Whether it is ready, and the body that says why."""
        states = dict(
            zip(self._asks, await asyncio.gather(*(_state(ask) for ask in self._asks.values())), strict=True)
        )
        ready = not self.stopping and all(states[name] == "ok" for name in self._needed)
        if self.stopping:
            status = "stopping"
        elif not ready:
            status = "unavailable"
        else:
            status = "ok" if all(state == "ok" for state in states.values()) else "degraded"
        return ready, {"status": status, "dependencies": states}


async def _state(ask: Callable[[], Awaitable[None]]) -> str:
    try:
        async with asyncio.timeout(_ASK_S):
            await ask()
    except (Unavailable, TimeoutError):
        return "unavailable"
    return "ok"
