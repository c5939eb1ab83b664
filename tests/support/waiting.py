"""Waiting for a condition with a deadline: the only place in the tests that sleeps."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02


async def eventually(
    condition: Callable[[], T | Awaitable[T]], timeout_s: float = 10.0, message: str = "the condition to hold"
) -> T:
    """Return the condition's first truthy value; a failed assertion inside it means "not yet".

    The condition may be a plain or an async function. After `timeout_s` an AssertionError says what was
    waited for and what was seen last; an async condition that hangs is cut off at the deadline as well.
    """
    seen: object = "nothing yet"
    cause: AssertionError | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                cause = None
                try:
                    found = condition()
                    value = await found if inspect.isawaitable(found) else found
                    if value:
                        return value
                    seen = value
                except AssertionError as not_yet:
                    seen, cause = not_yet, not_yet
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"waited {timeout_s:g} s for {message}; last seen: {seen!r}") from cause


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Block until the condition holds; False when the deadline passed. For code that has no event loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
