"""The gate before a worker's model calls: jobs and chats in turn, as fast as the providers allow and no faster.

Each provider has a concurrency (AIMD), a pace (its headers) and a breaker, see `limits`. A run waits here for a
place, then makes its calls through it. The second provider is asked while the first one's breaker is open, and in the
first one's stead after a failure that may be its own. Before all of them stands the guard, which sees how the runs
end. Nothing here polls: a timer runs only while somebody waits for a moment that is known.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import structlog

from travelrec import metrics
from travelrec.errors import (
    BadModelRequest,
    Forbidden,
    ModelBusy,
    ModelError,
    ModelTimeout,
    NotTheJobsFault,
    RateLimited,
    RequestForbidden,
)
from travelrec.ports import Answer, Conversation, Model, Question
from travelrec.prices import Price
from travelrec.retry import RetryPolicy
from travelrec.wire import JOBS_TOPIC
from travelrec_worker.limits import NEVER, Breaker, Concurrency, Guard, Pace, Run, Sent, State

log = structlog.get_logger(__name__)

_BACKOFF = RetryPolicy(base_s=1.0, cap_s=30.0)
_FAILURES_IN_A_ROW = 10
_GUARD_BACKOFF = RetryPolicy(base_s=0.5, cap_s=60.0)
_LAST = 30  # jobs, by which the guard judges
_ALIKE = 0.95  # of them must have failed alike
_TRIAL_S = 30.0  # all jobs show whether they still fail, then so many at a time
_PROBES = 10
_FIRST_SHARE = 0.6  # of a run's time for the first provider, where there is a second
_PATIENCE_S = 30.0  # then the jobs that wait at a gate that is shut go back, for workers that have a provider
_TIMERS_S = 0.001  # a loop's timer may come so much early


class Shut(Exception):
    """No provider can be asked for some time: the job is to be handed back."""


class Provider:
    """A model, and what its answers teach about how to ask it."""

    def __init__(self, name: str, model: Model, ceiling: int, called: str, price: Price | None) -> None:
        self.name = name
        self._called = called
        self._price = price or Price(0.0, 0.0)
        self.in_flight = 0
        self._model = model
        self._concurrency = Concurrency(ceiling)
        self._pace = Pace(_BACKOFF)
        self._breaker = Breaker(_BACKOFF, run=_FAILURES_IN_A_ROW)
        self._answered_at = -NEVER  # when the newest of the calls that it answered was sent
        self._shown = (0, State.OPEN)
        self._show()

    @property
    def broken(self) -> bool:
        """Whether its breaker waits, so that another provider is to be asked."""
        return self._breaker.state is not State.CLOSED

    def next_at(self, now: float) -> float:
        """From when on it may be asked; `NEVER` until one of its calls has ended."""
        if self.in_flight >= self._concurrency.allowed:
            return NEVER
        return max(self._breaker.next_at(), self._pace.next_at(now))

    @property
    def shut_until(self) -> float:
        """Until when it is not to be asked at all; a time that has passed if it may be asked."""
        return max(self._breaker.next_at(), self._pace.closed_until)

    def enter(self, now: float) -> Sent:
        """Takes up one place, and sends a call."""
        self.in_flight += 1
        return self.send(now)

    def leave(self, unsent: Sent | None, now: float) -> None:
        """Frees the place; the call it was entered with may not have been made."""
        self.in_flight -= 1
        if unsent is not None:
            self._pace.unsent()
            self._breaker.unknown(unsent, now)

    def give_up(self, sent: Sent, now: float) -> None:
        """Its run has left, and yet the call goes on: it hangs, and tells nothing of the provider."""
        self._breaker.unknown(sent, now)

    def send(self, now: float) -> Sent:
        """Counts a call that is about to be made."""
        return self._breaker.send(self._pace.send(now))

    async def ask(
        self, asked: Question | Conversation, timeout_s: float, sent: Sent, refused_at: float = NEVER
    ) -> Answer:
        """The answer to the call that was counted as `sent`; learns from it, or from its error.

        Its job may have been forbidden a call at `refused_at`: what was answered since tells whose fault that is.
        """
        outcome = "cancelled"
        try:
            answer = await self._model.ask(asked, timeout_s)
            self._count_tokens(answer.input_tokens, answer.output_tokens)
            now = time.monotonic()
            self._answered_at = max(self._answered_at, sent.at)
            self._pace.answered(sent, answer.allowance, now)
            self._works(sent, now)
            outcome = "ok"
            return answer
        except ModelError as error:
            told: ModelError = error
            if isinstance(error, Forbidden) and self._answered_at > min(sent.at, refused_at):
                told = RequestForbidden(str(error))
            outcome = told.title
            if error.output_tokens or error.input_tokens:
                self._count_tokens(error.input_tokens, error.output_tokens)
            self._failed(sent, told)
            if told is error:
                raise
            raise told from error
        finally:
            if outcome == "cancelled":
                self._breaker.unknown(sent, time.monotonic())
            metrics.MODEL_CALLS.labels(self._called, outcome).inc()
            metrics.MODEL_SECONDS.labels(outcome).observe(time.monotonic() - sent.at)

    def _count_tokens(self, given: int, made: int) -> None:
        metrics.TOKENS.labels(self._called, "input").inc(given)
        metrics.TOKENS.labels(self._called, "output").inc(made)
        metrics.COST.labels(self._called).inc(self._price.of(given, made))

    def _works(self, sent: Sent, now: float) -> None:
        self._concurrency.good()
        self._breaker.good(sent, now)
        if sent.probe:
            log.info("provider back", provider=self.name)
        self._show()

    def _failed(self, sent: Sent, error: ModelError) -> None:
        now = time.monotonic()
        was_broken = self.broken
        match error:
            case RateLimited():
                explained = self._pace.rejected(sent, error.allowance, error.retry_after_s, now)
                self._breaker.good(sent, now)
                if not explained:
                    self._concurrency.bad(sent, now)
            case NotTheJobsFault():
                self._breaker.bad(sent, now, fatal=True)
            case ModelBusy() | ModelTimeout():
                self._concurrency.bad(sent, now)
                self._breaker.bad(sent, now, fatal=False)
            case RequestForbidden():
                self._breaker.unknown(sent, now)
            case _:  # the job's own trouble: the provider works
                self._pace.answered(sent, None, now)
                self._works(sent, now)
        if self.broken and not was_broken:
            log.warning("provider trouble", provider=self.name, error=error.title, message=str(error))
        self._show()

    def _show(self) -> None:
        shown = (self._concurrency.allowed, self._breaker.state)
        if shown != self._shown:
            self._shown = shown
            metrics.MODEL_CONCURRENCY.labels(self.name).set(self._concurrency.allowed)
            metrics.BREAKER.labels(self.name).set(self._breaker.state)


class _Nobody:
    """The model of who asks none."""

    async def ask(self, asked: Question | Conversation, timeout_s: float) -> Answer:
        raise BadModelRequest("There is no chat model here.")


class _Unasked(Provider):
    """Lets in as many as the ceiling allows, and says nothing of a provider that there is not."""

    def _show(self) -> None:
        pass


@dataclass(slots=True)
class Turn:
    """What a run was let in with: a call that it may make of a provider, and what the guard is to be told of."""

    provider: Provider
    unsent: Sent | None
    run: Run | None
    asking: Sent | None = None
    left: bool = False


class Gate:
    """Lets runs in, `ceiling` at the most; `intake` is set while more work is of use.

    The guard judges and holds up those that are `guarded`, jobs; it is in nobody else's way. Where others wait too the
    two take turns, and among their own who came first is first: behind a backlog of jobs a chat would come too late.
    `called` has the name of each model and what its tokens cost.
    """

    def __init__(
        self,
        models: Sequence[Model],
        ceiling: int,
        called: Sequence[tuple[str, Price | None]],
        topic: str = JOBS_TOPIC,
    ) -> None:
        names = ("primary", "fallback")
        self.providers = [
            Provider(name, model, ceiling, *known)
            for name, model, known in zip(names, models, called, strict=False)
        ]
        self.guard = Guard(_GUARD_BACKOFF, last=_LAST, alike=_ALIKE, trial_s=_TRIAL_S, probes=_PROBES)
        self.intake = asyncio.Event()
        self.intake.set()
        self._ceiling = ceiling
        self._waiting: dict[bool, deque[asyncio.Future[Turn]]] = {True: deque(), False: deque()}  # by guarded
        self._guarded_next = False  # where both wait
        self._shut_at = 0.0
        self._down_at = NEVER  # since when no provider is to be asked
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._shown = metrics.GUARD.labels(topic)

    @classmethod
    def without_models(cls, ceiling: int, topic: str) -> Gate:
        """A gate for runs that ask no chat model: the ceiling and the guard are all that holds them."""
        gate = cls((), ceiling, (), topic)
        gate.providers = [_Unasked("none", _Nobody(), ceiling, "", None)]
        return gate

    def place(
        self, within_s: float, *, again: bool = False, guarded: bool = True, refused_at: float = NEVER
    ) -> Place:
        """A place in turn, or before all of its own for a run that was let in `again`; see `Place`.

        `refused_at` is when its job was last forbidden a call, by `time.monotonic`.
        """
        return Place(self, within_s, again, guarded, refused_at)

    async def enter(self, within_s: float, again: bool, guarded: bool) -> Turn:
        """Waits for a turn; raises `Shut`, or `TimeoutError` when there was none in time."""
        now = time.monotonic()
        if within_s <= 0:
            raise TimeoutError
        if again:
            await asyncio.sleep(
                0
            )  # a run that is let in at once, and fails at once, leaves the loop to the others
        if not any(self._waiting.values()):
            at, provider = self._next(now, guarded)
            if provider is not None and at <= now:
                return self._let_in(provider, now, guarded)
        turn: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting[guarded].appendleft(turn)
        else:
            self._waiting[guarded].append(turn)
        self.turn()
        try:
            async with asyncio.timeout(within_s):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(turn.result())
            raise

    def leave(self, turn: Turn) -> None:
        """A run has ended; lets the next ones in."""
        now = time.monotonic()
        turn.left = True
        turn.provider.leave(turn.unsent, now)
        if turn.asking is not None:
            turn.provider.give_up(turn.asking, now)
        if turn.run is not None:
            self.guard.unknown(turn.run)
        self.turn()

    def completed(self, run: Run) -> None:
        """The run had a result."""
        was = self.guard.state
        self.guard.completed(run)
        if self.guard.state is not was:
            log.info("jobs succeed again")
            self._shown.set(self.guard.state)

    def failed(self, run: Run, why: str, *, final: bool) -> bool:
        """The run failed, or only its attempt did. Whether that stands."""
        was = self.guard.state
        stands = self.guard.failed(run, why, time.monotonic(), final=final)
        if self.guard.state is not was:
            if was is State.CLOSED:
                log.error("nearly all jobs fail alike: none is failed for it any more", error=why)
            elif self.guard.state is State.OPEN:
                log.error("all jobs still fail alike: no more are taken", error=why)
            self._shown.set(self.guard.state)
        return stands

    def followed(self) -> float | None:
        """A job failed with another that it waited for: it stands, or is to come back after so many seconds."""
        return None if self.guard.followed() else self.guard.wait_s(time.monotonic())

    def turn(self) -> None:
        """Lets in who may go, and sets the time for the next look."""
        now = time.monotonic()
        next_at = NEVER
        while (guarded := self._whose_turn(now)) is not None:
            next_at, provider = self._next(now, guarded)
            if provider is None or next_at > now:
                break
            self._waiting[guarded].popleft().set_result(self._let_in(provider, now, guarded))
        down_until = min(provider.shut_until for provider in self.providers)
        self._down_at = min(self._down_at, now) if down_until > now else NEVER
        shut_until = max(self.guard.next_at(), down_until)
        if shut_until > now:
            self._pause(now)
            next_at = min(next_at, shut_until)
        else:
            self.intake.set()
        self._look_again(now, next_at if any(self._waiting.values()) else shut_until)

    def _whose_turn(self, now: float) -> bool | None:
        """Whether the next one is guarded; None if nobody waits. Those that the guard holds up wait for no turn."""
        for line in self._waiting.values():
            while line and line[0].done():  # its run was cancelled
                line.popleft()
        if all(self._waiting.values()):
            return self._guarded_next and self.guard.next_at() <= now
        return next((guarded for guarded, line in self._waiting.items() if line), None)

    def _let_in(self, provider: Provider, now: float, guarded: bool) -> Turn:
        self._guarded_next = not guarded
        run = self.guard.let_in(now) if guarded else None
        if run is not None and run.probe:
            self._shown.set(self.guard.state)
        return Turn(provider, provider.enter(now), run)

    def _next(self, now: float, is_guarded: bool) -> tuple[float, Provider | None]:
        """When a call may be sent next, and to whom; a time that has passed means now."""
        soonest: tuple[float, Provider | None] = (NEVER, None)
        if sum(provider.in_flight for provider in self.providers) >= self._ceiling:
            return soonest
        guarded = self.guard.next_at() if is_guarded else -NEVER
        for provider in self.providers:
            at = max(guarded, provider.next_at(now))
            if at <= now:
                return at, provider
            if at < soonest[0]:
                soonest = at, provider
            if not provider.broken:
                break
        return soonest

    def _pause(self, now: float) -> None:
        if self.intake.is_set():
            self.intake.clear()
            self._shut_at = now
            broken = all(provider.broken for provider in self.providers)
            guarded = self.guard.state is not State.CLOSED
            metrics.PAUSES.labels("guard" if guarded else "breaker" if broken else "rate limit").inc()
        if now - self._shut_at >= _PATIENCE_S:
            everybody = now - self._down_at >= _PATIENCE_S
            for guarded, line in self._waiting.items():
                while len(line) > 1 and (everybody or guarded):  # the first stays, to probe
                    if not (turn := line.pop()).done():
                        turn.set_exception(Shut())

    def _look_again(self, now: float, at: float) -> None:
        if not self.intake.is_set() and any(len(line) > 1 for line in self._waiting.values()):
            ends = (since + _PATIENCE_S for since in (self._shut_at, self._down_at))
            at = min(at, *(end for end in ends if end > now), NEVER)
        elif not any(self._waiting.values()) and at <= now:
            at = NEVER
        if self._timer is not None and self._timer_at != at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and at != NEVER:
            self._timer_at = at
            delay_s = max(0.0, at - now) + _TIMERS_S
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.turn()


class Place:
    """A run's place at the gate while it is entered, and the `ports.Model` that the run calls there.

    Before it leaves, the run says what it came to: `completed`, `failed`, or nothing if it was stopped.
    """

    def __init__(self, gate: Gate, within_s: float, again: bool, guarded: bool, refused_at: float) -> None:
        self._gate = gate
        self._within_s = within_s
        self._again = again
        self._guarded = guarded
        self._refused_at = refused_at
        self._turn = Turn(gate.providers[0], None, None)
        self.input_tokens = 0  # of all answers that were had here
        self.output_tokens = 0

    async def __aenter__(self) -> Place:
        self._turn = await self._gate.enter(self._within_s, self._again, self._guarded)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.leave(self._turn)

    def completed(self) -> None:
        """The run had a result."""
        if self._turn.run is not None:
            self._gate.completed(self._turn.run)
            self._turn.run = None

    def failed(self, why: str, *, final: bool) -> float | None:
        """The run, or only its attempt, failed: it stands, or costs nothing and is looked at after so many seconds."""
        run, self._turn.run = self._turn.run, None
        if run is None or self._gate.failed(run, why, final=final):
            return None
        return self._gate.guard.wait_s(time.monotonic())

    async def ask(self, asked: Question | Conversation, timeout_s: float) -> Answer:
        """See `ports.Model`. All providers that are asked share `timeout_s`."""
        spent: Answer | ModelError | None = None
        try:
            spent = answer = await self._answer(asked, timeout_s)
            return answer
        except ModelError as error:
            spent = error
            raise
        finally:
            if spent is not None:
                self.input_tokens += spent.input_tokens
                self.output_tokens += spent.output_tokens

    async def _answer(self, asked: Question | Conversation, timeout_s: float) -> Answer:
        began = time.monotonic()
        sent = self._turn.unsent or self._turn.provider.send(began)
        self._turn.unsent, self._turn.asking = None, sent
        try:
            return await self._ask(asked, timeout_s, sent, began)
        finally:
            self._turn.asking = None
            if self._turn.left:  # a call that could not be stopped when its run was
                self._gate.turn()

    async def _ask(
        self, asked: Question | Conversation, timeout_s: float, sent: Sent, began: float
    ) -> Answer:
        provider, standby = self._turn.provider, self._standby(began)
        if standby is None:
            return await provider.ask(asked, timeout_s, sent, self._refused_at)
        try:
            return await provider.ask(asked, timeout_s * _FIRST_SHARE, sent, self._refused_at)
        except RateLimited:
            raise  # it works, and says when to come back
        except (NotTheJobsFault, ModelBusy, ModelTimeout, RequestForbidden):
            now = time.monotonic()
            if standby.next_at(now) > now:
                raise
            with suppress(ModelError):  # what counts for the job is the first one's error
                return await self._instead(standby, asked, timeout_s - (now - began))
            raise

    async def _instead(self, standby: Provider, asked: Question | Conversation, timeout_s: float) -> Answer:
        sent = standby.enter(time.monotonic())
        try:
            return await standby.ask(asked, timeout_s, sent)
        finally:
            standby.leave(None, time.monotonic())

    def _standby(self, now: float) -> Provider | None:
        provider = self._gate.providers[-1]
        return None if provider is self._turn.provider or provider.broken else provider
