"""When to try again, and what a provider's headers say of it: pure arithmetic over attempts and time."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_LONGEST_RESET_S = 31 * 86400.0
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a provider says of its limit: `remaining` of `limit` requests, and all of them again in `reset_s`."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full-jitter exponential back-off (AWS Architecture Blog, "Exponential Backoff and Jitter"); all in seconds."""

    max_attempts: int = 5
    base_s: float = 0.5
    cap_s: float = 60.0

    def exhausted(self, attempts: int) -> bool:
        """Whether `attempts` failed attempts are enough."""
        return attempts >= self.max_attempts

    def delay_s(
        self, attempts: int, *, retry_after_s: float | None = None, rng: random.Random | None = None
    ) -> float:
        """How long to wait after the `attempts`-th failure (1-based); never less than the provider asked for."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(attempts - 1, 30))
        jittered = (rng or random).uniform(0.0, ceiling)
        return max(jittered, retry_after_s or 0.0)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """The wait a provider asks for in `retry-after-ms` or `Retry-After` (seconds or a date), in seconds from `now`.

    Anything unreadable or negative counts as no wish; header names are expected in lower case.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            try:
                moment = parsedate_to_datetime(value)
                seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now
            except (ValueError, OverflowError):
                continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def allowance(headers: Mapping[str, str]) -> Allowance | None:
    """What `x-ratelimit-{limit,remaining,reset}-requests` say; None if they are missing or unreadable.

    The reset is a duration (`1s`, `6m0s`, `20ms`) or a bare number of seconds; header names in lower case. One of more
    than a month counts as unreadable: some servers send a moment there.
    """
    try:
        limit = int(headers["x-ratelimit-limit-requests"])
        remaining = int(headers["x-ratelimit-remaining-requests"])
        reset_s = _duration_s(headers["x-ratelimit-reset-requests"])
    except (KeyError, ValueError):
        return None
    if limit < 1 or remaining < 0 or not 0 <= reset_s <= _LONGEST_RESET_S:
        return None
    return Allowance(limit, min(limit, remaining), reset_s)


def _duration_s(text: str) -> float:
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return float(text)
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def http_date(at: float) -> str:
    """`at` (seconds since the epoch) in words for a person: `2026-11-23 19:30:00 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
