"""The model that predicts where no other is named: it takes its time, and the same input gives the same result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256


def mock(latency_s: float) -> Callable[[str], Awaitable[str]]:
    """A model function that answers after `latency_s` seconds with a number that depends on its input alone."""

    async def predict(text: str) -> str:
        await asyncio.sleep(latency_s)
        return str(1000 + int.from_bytes(sha256(text.encode()).digest()[:4]) % 19_000)

    return predict
