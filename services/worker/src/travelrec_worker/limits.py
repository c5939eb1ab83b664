"""How many model calls at once, how fast, and whether at all: what answers and ends teach; pure arithmetic.

Times are seconds of one clock that never goes back, and are given by the caller.
"""

from __future__ import annotations

import math
import random
from collections import deque
from enum import IntEnum
from typing import NamedTuple

from travelrec.retry import Allowance, RetryPolicy

NEVER = float("inf")

_INCREASE = 1 / 20  # of the ceiling, per round of calls
_DECREASE = 1 / 2
_SPARE = (
    1 / 10
)  # of a provider's limit, two calls at the most: what is not used of it, so that jitter costs no 429
_LONGEST_S = 3600.0  # a provider that asks for a longer pause is asked again after this


class Sent(NamedTuple):
    """A call on its way: the how manieth, since when, and whether the breaker is waiting for it."""

    number: int
    at: float
    probe: bool = False


class Concurrency:
    """Additive increase, multiplicative decrease under `ceiling`, where it starts."""

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._step = max(1.0, ceiling * _INCREASE)
        self._allowed = float(ceiling)
        self._cut_at = -NEVER

    @property
    def allowed(self) -> int:
        """How many calls may be in flight, from 1 to the ceiling."""
        return int(self._allowed)

    def good(self) -> None:
        """A call was answered; a round of `allowed` of them adds one step."""
        if self._allowed < self._ceiling:
            self._allowed = min(self._ceiling, self._allowed + self._step / self._allowed)

    def bad(self, sent: Sent, now: float) -> None:
        """A call was too much. Those that were on their way at the last decrease say nothing new."""
        if sent.at > self._cut_at:
            self._allowed = max(1.0, self._allowed * _DECREASE)
            self._cut_at = now


class Pace:
    """When the next call may be sent: ahead of the limit by what the headers say is left, after a 429 as it asks.

    What is left is known as of an answer's call, so the calls sent since are taken off and the refill since is added.
    """

    def __init__(self, backoff: RetryPolicy, rng: random.Random | None = None) -> None:
        self._backoff = backoff
        self._rng = rng
        self._sent = 0
        self._credit = NEVER
        self._limit = NEVER
        self._rate_per_s = 0.0
        self._at = 0.0
        self._closed_at = -NEVER
        self._rejections = 0
        self.closed_until = -NEVER

    def next_at(self, now: float) -> float:
        """From when on the next call may be sent; a time that has passed means at once."""
        if self._credit == NEVER:
            return self.closed_until
        missing = 1.0 + min(2.0, self._limit * _SPARE) * (self._limit > 1) - self._left(now)
        if missing <= 0:
            return self.closed_until
        refilled_at = now + missing / self._rate_per_s
        return max(self.closed_until, min(refilled_at, self._at + _LONGEST_S))

    def send(self, now: float) -> Sent:
        """A call is sent."""
        self._sent += 1
        self._credit = self._left(now) - 1
        self._at = now
        return Sent(self._sent, now)

    def unsent(self) -> None:
        """A call was not sent after all, or not counted."""
        self._sent -= 1
        self._credit += 1

    def answered(self, sent: Sent, allowance: Allowance | None, now: float) -> None:
        """The provider took the call."""
        self._rejections = 0
        self._learn(sent, allowance, now)

    def rejected(
        self, sent: Sent, allowance: Allowance | None, retry_after_s: float | None, now: float
    ) -> bool:
        """The provider answered 429. Whether the headers explain it; else there is another limit than this one."""
        self.unsent()
        self._learn(sent, allowance, now)
        explained = allowance is not None and allowance.remaining == 0 and self._rate_per_s > 0
        news = sent.at > self._closed_at  # the others of its round say nothing new
        if not retry_after_s and not explained and news:  # 0 is no pause
            self._rejections += 1
            self._closed_at = now
            retry_after_s = self._backoff.delay_s(self._rejections, rng=self._rng)
        if retry_after_s is not None:
            self.closed_until = max(self.closed_until, now + min(retry_after_s, _LONGEST_S))
        return explained

    def _left(self, now: float) -> float:
        return min(self._limit, self._credit + self._rate_per_s * (now - self._at))

    def _learn(self, sent: Sent, allowance: Allowance | None, now: float) -> None:
        if allowance is None:
            return
        used = allowance.limit - allowance.remaining
        if used and allowance.reset_s:
            self._rate_per_s = used / allowance.reset_s
        if self._rate_per_s:
            self._limit = allowance.limit
            self._credit = allowance.remaining - max(0, self._sent - sent.number)
            self._at = sent.at
            self._credit = self._left(now)
            self._at = now


class State(IntEnum):
    """Of a breaker or a guard."""

    CLOSED = 0
    PROBING = 1
    OPEN = 2


class Breaker:
    """Open after one error that no job is to blame for, or after `run` failures in a row; then one probe at a time."""

    def __init__(self, backoff: RetryPolicy, *, run: int, rng: random.Random | None = None) -> None:
        self._backoff = backoff
        self._run = run
        self._rng = rng
        self._failures = 0
        self._openings = 0
        self._until = -NEVER
        self._closed_at = -NEVER
        self.state = State.CLOSED

    def next_at(self) -> float:
        """From when on a call may be sent: at any time, as the next probe, or only after the probe's end."""
        return NEVER if self.state is State.PROBING else self._until

    def send(self, sent: Sent) -> Sent:
        """A call is sent, as the probe if one is due."""
        if self.state is not State.OPEN or sent.at < self._until:
            return sent
        self.state, self._until = State.PROBING, NEVER
        return sent._replace(probe=True)

    def good(self, sent: Sent, now: float) -> None:
        """The provider works. What was on its way before the breaker opened does not close it."""
        if sent.probe:
            self._openings = 0
            self._closed_at = now
            self.state, self._until = State.CLOSED, -NEVER
        self._failures = 0

    def bad(self, sent: Sent, now: float, *, fatal: bool) -> None:
        """The provider failed, by an error that every job would meet if `fatal`."""
        if not sent.probe and (self.state is not State.CLOSED or sent.at < self._closed_at):
            return
        self._failures += 1
        if fatal or sent.probe or self._failures >= self._run:
            self._openings += 1
            self._failures = 0
            self.state = State.OPEN
            self._until = now + self._backoff.delay_s(self._openings, rng=self._rng)

    def unknown(self, sent: Sent, now: float) -> None:
        """The call came to nothing, so another may be the probe at once."""
        if sent.probe:
            self.state, self._until = State.OPEN, now


class Run(NamedTuple):
    """A job that was let in: since when, and in which round of probes, if it is one."""

    at: float
    probe: int = 0


class Guard:
    """A breaker of jobs, where `Breaker` is one of calls: a bad release fails them although its provider answers.

    When nearly all of the `last` jobs failed `alike` no failure stands any more, so that a backlog is not failed with
    what nobody but we are to blame for. For `trial_s` seconds all jobs are probes: a burst of bad ones passes in that
    time. Then it is open, and after ever longer waits `probes` jobs at a time show whether they still fail.
    """

    def __init__(
        self,
        backoff: RetryPolicy,
        *,
        last: int,
        alike: float,
        trial_s: float,
        probes: int,
        rng: random.Random | None = None,
    ) -> None:
        self._backoff = backoff
        self._rng = rng
        self._ended: deque[tuple[str | None, float]] = deque(maxlen=last)  # why it failed, and when it began
        self._enough = math.ceil(last * alike)
        self._trial_s = trial_s
        self._probes = probes
        self._round, self._openings = 1, 0
        self._unsent = self._out = 0
        self._first_at = NEVER
        self._until = -NEVER
        self._followed = 0  # failures that stand of jobs that did not run, since one last succeeded
        self.state = State.CLOSED

    def next_at(self) -> float:
        """From when on a job may be let in: at any time, as a probe of the next round, or only after this one's end."""
        if self.state is State.PROBING:
            return -NEVER if self._unsent or not self._openings else NEVER
        return self._until

    def let_in(self, now: float) -> Run:
        """A job is let in, as a probe if one is due."""
        if self.state is State.OPEN and now >= self._until:
            self.state = State.PROBING
            self._round += 1
            self._unsent, self._out = self._probes, 0
        if self.state is not State.PROBING or not self._unsent:
            return Run(now)
        self._unsent, self._out = self._unsent - 1, self._out + 1
        return Run(now, self._round)

    def completed(self, run: Run) -> None:
        """The job succeeded. One that began before the first of the failures says nothing of what came after."""
        self._followed = 0
        if self.state is State.CLOSED:
            self._ended.append((None, run.at))
        elif run.at > self._first_at:
            self.state, self._until = State.CLOSED, -NEVER
            self._round, self._openings = self._round + 1, 0
            self._unsent = self._out = 0
            self._ended.clear()

    def failed(self, run: Run, why: str, now: float, *, final: bool) -> bool:
        """The job failed, or its attempt did if that was not the `final` one. Whether that stands."""
        if self.state is State.CLOSED:
            if not final:
                return True
            self._ended.append((why, run.at))
            began = [at for other, at in self._ended if other == why]
            if len(began) < self._enough:
                return True
            self._first_at, self._until = min(began), now + self._trial_s
            self.state = State.PROBING
        elif not self._openings:
            if now >= self._until:
                self._open(now)
        elif self._is_out(run):
            self._out -= 1
            if not self._unsent and not self._out:
                self._open(now)
        return False

    def followed(self) -> bool:
        """A job failed with another that it waited for. Whether that stands: it tells nothing, but is no less lost."""
        if self.state is not State.CLOSED or self._followed >= self._enough - 1:
            return False
        self._followed += 1
        return True

    def unknown(self, run: Run) -> None:
        """The job came to nothing, so another may be let in instead."""
        if self._is_out(run):
            self._unsent, self._out = self._unsent + 1, self._out - 1

    def wait_s(self, now: float) -> float:
        """After which a job whose failure does not stand is to come back; a burst is not to come back as one."""
        return max(self._until - now, 0.0) + (self._rng or random).uniform(0.0, self._trial_s)

    def _is_out(self, run: Run) -> bool:
        return self.state is State.PROBING and run.probe == self._round

    def _open(self, now: float) -> None:
        self._openings += 1
        self.state = State.OPEN
        self._until = now + self._backoff.delay_s(self._openings, rng=self._rng)
