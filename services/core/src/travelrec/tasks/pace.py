"""When submissions may go out, and whose: pure.

Submissions have times, at equal distances, and each time is given to one task. A time that is not used has passed and
is lost, so that whatever dies or is late, no second has more of them than the limit allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

LEAD_S = 0.15  # from taking a task to the first time that it can have
AHEAD_S = 0.8  # how far ahead times are given
REFILL_S = 0.5  # so much before the last of them more are given
SPARE = 0.025  # share of the limit that is not used, so that calls may be a little late
LATENESS_S = 0.025  # how late a time may still be used: no more than SPARE makes of a second
MAX_TAKEN = 200  # tasks in one go
LOCK_S = 2.0  # when a replica that died while it took tasks is followed by another


@dataclass(frozen=True, slots=True)
class Pace:
    """What has been given away: times before `free_at`, those until `held_until` to nobody, `group` was last."""

    free_at: float = 0.0
    held_until: float = 0.0
    group: str = ""


def free_times(pace: Pace, now: float, rate: float, limit: int = MAX_TAKEN) -> list[float]:
    """Up to `limit` times that may be given now at `rate` a second, in order; none while enough have been."""
    first = max(pace.free_at, pace.held_until, now + LEAD_S)
    count = min(limit, MAX_TAKEN, math.floor((now + AHEAD_S - first) / gap_s(rate)) + 1)
    return [first + n * gap_s(rate) for n in range(count)]


def given(pace: Pace, at: float, group: str, rate: float) -> Pace:
    """When the times up to that at `at` have been given, this last one to `group`."""
    return replace(pace, free_at=at + gap_s(rate), group=group)


def gap_s(rate: float) -> float:
    """From one time to the next."""
    return 1 / (rate * (1 - SPARE))


def look_again_at(pace: Pace, now: float) -> float:
    """When there will be times to give again, after some have been given."""
    return max(pace.free_at - REFILL_S, pace.held_until - LEAD_S, now)


def served_groups(groups: Iterable[str], last: str, count: int) -> list[str]:
    """The up to `count` groups whose turn it is after `last`, in the order in which they are served."""
    ordered = sorted(groups)
    after = [group for group in ordered if group > last]
    return (after + ordered[: len(ordered) - len(after)])[:count]


def in_turn(waiting: Mapping[str, Sequence[str]], count: int) -> list[str]:
    """Up to `count` of what waits, one of each group after the other, within a group in order."""
    lines = list(waiting.values())
    longest = max(map(len, lines), default=0)
    return [line[place] for place in range(longest) for line in lines if place < len(line)][:count]


def next_poll_at(due_at: float, now: float, interval_s: float, jitter: float) -> float:
    """When to ask again after the poll that was due at `due_at` (0: never) and is made now; `jitter` is from -1 to 1.

    At equal distances but for the jitter, so that a late poll does not make the next one late; what was missed is not
    made up for.
    """
    missed = math.floor((now - due_at) / interval_s) if due_at else 0
    return (due_at or now) + (missed + 1 + _JITTER * jitter) * interval_s


_JITTER = 0.05
