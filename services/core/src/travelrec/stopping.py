"""The end of a process that was told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def told_to_stop() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set, instead of what they did before, until left."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in _SIGNS:
        loop.add_signal_handler(sign, stopped.set)
    try:
        yield stopped
    finally:
        for sign in _SIGNS:
            loop.remove_signal_handler(sign)
