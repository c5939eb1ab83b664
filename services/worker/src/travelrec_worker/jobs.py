"""The role `jobs`: claim, acknowledge, generate, store under the lease, signal."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import NamedTuple

import structlog
from opentelemetry.trace import Span, SpanKind

from travelrec import metrics, tracing
from travelrec.batching import Batcher
from travelrec.errors import (
    BrokerUnavailable,
    Forbidden,
    Never,
    NotTheJobsFault,
    RateLimited,
    RequestForbidden,
    SignalUnavailable,
    StoreUnavailable,
    TryAgain,
    Undecodable,
)
from travelrec.job import (
    DEADLINE_PASSED,
    Completed,
    Failed,
    HandedBack,
    Job,
    Outcome,
    Retry,
    Settlement,
    Status,
    Try,
    new_uid,
    settled,
)
from travelrec.kinds import Kind
from travelrec.ports import Broker, Delivery, Signals, Store
from travelrec.retry import RetryPolicy
from travelrec.wire import (
    SIGNALS_TOPIC,
    Signal,
    dead_letter_topic,
    decode_job,
    encode_dead_letter,
)
from travelrec_worker.coalescing import Coalescer
from travelrec_worker.gate import Gate, Place, Shut
from travelrec_worker.leases import Leases
from travelrec_worker.limits import NEVER
from travelrec_worker.progress import Progress
from travelrec_worker.rejected import rejected
from travelrec_worker.story import Story

log = structlog.get_logger(__name__)


_STORE_RETRY_S = 0.25
_DEAD_LETTERS = RetryPolicy(base_s=0.5, cap_s=5.0)
_LATE_CLAIM_S = 5.0  # how long a worker that ends waits for a claim, to hand the job back
_AHEAD = 2  # half as many jobs again are claimed before a call is free for them
_MAX_UNANNOUNCED = 5_000
_DRAIN_S = 5.0  # for signals, where they can't be sent
_LONGEST_WISH_S = 3600.0  # of a provider, for one job: others of its key wait for it
_UNKNOWN_KIND_S = 30.0  # a newer release may be about to take over
_FORBIDDEN_S = 10.0  # the key may be forbidden all, or this job alone
_REFUSED_KEPT = 1_000
_CLAIMS_PER_ATTEMPT = 4  # a job that keeps killing its worker is given up


class _Ended(NamedTuple):
    """What a run of `job` came to, and the traceparent of its span if it has one."""

    job: Job
    outcome: Outcome
    trace: str | None = None


class Jobs:
    """Handles one job message of `topic` at a time; many at once share their claims, settlements and signals.

    The gate lets `concurrency` model calls be in flight at the most. A few more jobs are claimed ahead, and settling
    holds no place, so that no call waits for the store.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        topic: str,
        signals: Signals,
        gate: Gate,
        kinds: Mapping[str, Kind],
        leases: Leases,
        progress: Progress,
        *,
        concurrency: int,
        retry: RetryPolicy,
        model_timeout_s: float,
        deadline_s: float,
    ) -> None:
        self._store = store
        self._broker = broker
        self._topic = topic
        self._signals = signals
        self._gate = gate
        self._kinds = kinds
        self._leases = leases
        self._progress = progress
        self._retry = retry
        self._model_timeout_s = model_timeout_s
        self._deadline_s = deadline_s
        self._dead_letters = metrics.DEAD_LETTERS.labels(dead_letter_topic(topic))
        for kind in kinds:  # from 0 on, so that the first of them is an increase
            for status in (Status.COMPLETED, Status.FAILED):
                metrics.FINISHED.labels(kind, status.value)
        self._refused_at: dict[str, float] = {}  # when jobs were last forbidden a call
        self._coalescer = Coalescer(store, progress)
        self._ahead = asyncio.Semaphore(concurrency + -(-concurrency // _AHEAD))
        self._claims: Batcher[str, Job | None] = Batcher(self._claim_all, grow=16)
        self._settlements: Batcher[_Ended, bool] = Batcher(self._settle_all, grow=16, apart=True)
        self._announcements: Batcher[Signal, None] = Batcher(self._announce_all, max_in_flight=2)

    async def handle(self, delivery: Delivery) -> None:
        """One message, from its claim to its signal."""
        try:
            uid = decode_job(delivery.message)
        except Undecodable as error:
            await rejected(self._broker, self._topic, delivery, str(error))
            return
        await self._ahead.acquire()
        with (
            Story(delivery.message, uid, self._broker.system, self._topic) as story,
            ExitStack() as held,
            ExitStack() as place,
        ):
            place.callback(self._ahead.release)
            with story.step("claim"):
                job = await self._claim(uid)
            delivery.acknowledge()  # from here on the lease protects the job
            if job is None:
                metrics.NOT_CLAIMED.inc()
                story.dropped()
                return
            story.claimed(job)
            held.enter_context(self._leases.held(job))
            outcome = await self._outcome(job, story, place.close)
            place.close()
            if outcome is not None:
                self._leases.decided(job)
                with story.step("settle"):
                    standing = await self._settle(job, outcome, story.trace)
                story.ended(standing)

    def hear(self, signals: Sequence[Signal]) -> None:
        """Stops the runs of jobs that their callers have cancelled, and wakes those that follow an ended one."""
        self._coalescer.hear(signals)
        for signal in signals:
            if signal.status is Status.CANCELLED:
                self._leases.abandon(signal.uid)

    async def drain(self) -> None:
        """Returns when every settlement on its way is out, and every signal that can be sent in time."""
        await self._settlements.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._announcements.drain()

    async def _outcome(self, job: Job, story: Story, following: Callable[[], None]) -> Outcome | None:
        """Runs or follows; None when the job was cancelled or lost: nothing is left to write."""
        metrics.CLAIMED.labels(job.kind).inc()
        metrics.WAIT_SECONDS.labels(job.kind).observe(
            max(0.0, time.time() - job.created_at), tracing.exemplar(job.headers)
        )
        settled_already = self._without_run(job)
        if settled_already is not None:
            return settled_already
        sharing = self._kinds[job.kind].sharing
        ran = False

        async def run() -> Outcome:
            nonlocal ran
            ran = True
            return await self._run_in_turn(job, story)

        try:
            if sharing is None:
                return await run()
            key = sharing.key(job.params)
            outcome = await self._coalescer.outcome(job, key, sharing.fresh_s, run, following)
            if not ran and isinstance(outcome, Completed):
                story.followed(outcome.trace)
            return outcome if ran else self._shared(job, outcome)
        except asyncio.CancelledError:
            if self._leases.abandoned():
                return None
            await self._hand_back(job)
            raise

    async def _run_in_turn(self, job: Job, story: Story) -> Outcome:
        """What `job` came to; an error that is not its fault costs it no more than time, up to its deadline."""
        trouble, goes_first = "", False
        with story.step("generate") as trace:
            while True:
                left_s = job.created_at + self._deadline_s - time.time()
                refused_at = self._refused_at.get(job.uid, NEVER)
                try:
                    async with self._gate.place(left_s, again=goes_first, refused_at=refused_at) as place:
                        if not self._leases.stands(job, time.time()):
                            return HandedBack()  # to whoever may have it by now
                        with metrics.IN_FLIGHT.track_inprogress():
                            outcome = await self._run(job, place, story)
                        return _traced(self._guarded(job, outcome, place), trace)
                except NotTheJobsFault as error:
                    trouble = f"{error} "
                    metrics.RETRIED.labels(error.title).inc()
                    # where it may be this one's fault another tries next
                    goes_first = isinstance(error, RateLimited)
                    if isinstance(error, Forbidden):
                        self._refused(job.uid)
                        due_at = time.time() + _FORBIDDEN_S
                        if due_at < job.created_at + self._deadline_s:
                            return Retry(due_at)  # nobody else is to wait behind it
                except Shut:
                    return HandedBack()
                except TimeoutError:
                    return _traced(_too_late(trouble), trace)

    def _guarded(self, job: Job, outcome: Outcome, place: Place) -> Outcome:
        """The `outcome`; a failure costs nothing while nearly all jobs fail alike, and is looked at again later."""
        match outcome:
            case Completed():
                place.completed()
            case Failed(last) | Retry(_, Try() as last):
                return self._held(job, outcome, place.failed(last.error, final=isinstance(outcome, Failed)))
        return outcome

    def _shared(self, job: Job, outcome: Outcome) -> Outcome:
        """What the outcome of another's run is for `job`, which waited for it."""
        if isinstance(outcome, Retry) and outcome.last is not None:
            due_at, attempt = outcome.due_at, outcome.last
            outcome = self._again(job, attempt.error, attempt.message, None)
            if isinstance(outcome, Retry) and due_at:
                outcome = Retry(due_at, attempt)  # together with who ran
        return self._held(job, outcome, self._gate.followed()) if isinstance(outcome, Failed) else outcome

    def _held(self, job: Job, outcome: Failed | Retry, wait_s: float | None) -> Outcome:
        """The failure if it stands, else another look after so many seconds."""
        if wait_s is None or outcome.last is None:
            return outcome
        metrics.HELD.labels(outcome.last.error).inc()
        due_at = outcome.due_at if isinstance(outcome, Retry) else 0.0
        later = max(due_at, time.time() + wait_s)
        return Retry(min(later, job.created_at + self._deadline_s))

    def _without_run(self, job: Job) -> Outcome | None:
        """The outcome of a job that is not to be run (again) here."""
        now = time.time()
        if now - job.created_at > self._deadline_s:
            return _too_late()
        if job.kind not in self._kinds:
            log.warning("unknown kind", uid=job.uid, kind=job.kind)
            return Retry(min(now + _UNKNOWN_KIND_S, job.created_at + self._deadline_s))
        if job.claims > self._retry.max_attempts * _CLAIMS_PER_ATTEMPT:
            return Failed(
                Try(now, "Worker lost", "Every worker that ran this request was lost. Please report it.")
            )
        return None

    async def _run(self, job: Job, model: Place, story: Story) -> Outcome:
        """What running `job` came to; decides, and writes nothing. Raises `NotTheJobsFault`."""
        try:
            run = self._kinds[job.kind].run(job.params, model, self._model_timeout_s)
            # the net below a kind that does not keep to its time: one that does ends with the model's own error
            result = await self._progress.within(self._model_timeout_s * 1.1, "run", job.uid, run)
        except NotTheJobsFault:
            raise
        except Never as error:
            return Failed(
                Try(time.time(), error.title, f"{error} Sending the same request again will not help.")
            )
        except TryAgain as error:
            if isinstance(error, RequestForbidden):
                self._refused(job.uid)
            return self._again(job, error.title, str(error), error.retry_after_s)
        except TimeoutError:
            return self._again(job, "Model timeout", "The model did not answer in time.", None)
        except Exception:  # a defect of the kind must cost this job's attempts, not the worker
            log.exception("kind failed", uid=job.uid, kind=job.kind)
            return self._again(job, "Internal error", "Something went wrong on our side.", None)
        finally:
            story.spent(model.input_tokens, model.output_tokens)
        return Completed(result)

    def _refused(self, uid: str) -> None:
        """Notes when a job was last forbidden its call: what is answered from then on tells whose fault the next is."""
        self._refused_at.pop(uid, None)
        self._refused_at[uid] = time.monotonic()
        if len(self._refused_at) > _REFUSED_KEPT:
            del self._refused_at[next(iter(self._refused_at))]

    def _again(self, job: Job, error: str, message: str, retry_after_s: float | None) -> Outcome:
        attempts = len(job.tries) + 1
        now = time.time()
        if self._retry.exhausted(attempts):
            told = f"{message} Given up after {attempts} attempts. Please try again later."
            return Failed(Try(now, error, told), Try(now, error, message))
        metrics.RETRIED.labels(error).inc()
        wish_s = None if retry_after_s is None else min(retry_after_s, _LONGEST_WISH_S)
        delay_s = self._retry.delay_s(attempts, retry_after_s=wish_s)
        due_at = min(now + delay_s, job.created_at + self._deadline_s)  # behind which it only fails
        return Retry(due_at, Try(now, error, message))

    async def _settle(self, job: Job, outcome: Outcome, trace: str | None) -> Outcome | None:
        """Writes the outcome, however long the store is away; answers what stands, None if it was not wanted."""
        if isinstance(outcome, Failed):
            try:
                outcome = await self._with_dead_letter(job, outcome)
            except asyncio.CancelledError:
                await self._hand_back(job)
                raise
        while True:
            try:
                stands = await self._settlements.submit(_Ended(job, outcome, trace))
                return outcome if stands else None
            except StoreUnavailable as error:
                log.warning("result not stored yet", uid=job.uid, error=str(error))
                await asyncio.sleep(_STORE_RETRY_S)

    async def _hand_back(self, job: Job) -> None:
        """Lets another worker have `job` at once; while the store is away, once its lease has run out."""
        try:
            await self._settlements.submit(_Ended(job, HandedBack()))
        except StoreUnavailable as error:
            log.warning("not handed back", uid=job.uid, error=str(error))

    async def _with_dead_letter(self, job: Job, outcome: Failed) -> Outcome:
        """The outcome once a copy of the job stands on the dead-letter topic; without one the job can't end.

        The job waits for it under its lease: run again it would be paid for again.
        """
        topic = dead_letter_topic(self._topic)
        copy = settled(replace(job), outcome, time.time(), 0.0)
        for failures in itertools.count(1):
            try:
                await self._broker.publish(topic, [encode_dead_letter(copy)])
            except BrokerUnavailable as error:
                log.warning("no dead letter yet", uid=job.uid, error=str(error))
            else:
                break
            if not self._leases.stands(job, time.time()):
                return HandedBack()  # somebody else may have it by now
            await asyncio.sleep(_DEAD_LETTERS.delay_s(failures))
        self._dead_letters.inc()
        return outcome

    async def _claim(self, uid: str) -> Job | None:
        claiming = self._claims.enqueue(uid)
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # the claim is on its way: nobody would run the job until its lease has run out
            with suppress(TimeoutError):
                async with asyncio.timeout(_LATE_CLAIM_S):
                    if job := await claiming:
                        await self._hand_back(job)
            raise

    async def _claim_all(self, uids: list[str]) -> list[Job | None]:
        token = new_uid()
        while True:
            now = time.time()
            try:
                with self._progress.calling("claiming", calls=4):
                    until = now + self._leases.lease_s
                    won = await self._store.claim(uids, token, now, until, self._leases.worker)
            except StoreUnavailable as error:  # the claim may stand: asking again with its token finds it
                log.warning("not claimed yet", jobs=len(uids), error=str(error))
                await asyncio.sleep(_STORE_RETRY_S)
            else:
                break
        by_uid = {job.uid: job for job in won}
        return [by_uid.pop(uid, None) for uid in uids]  # a repeat within the batch gets nothing

    async def _settle_all(self, ended: list[_Ended]) -> list[bool]:
        settlements = [Settlement(each.job.uid, each.job.token or "", each.outcome) for each in ended]
        now = time.time()
        with self._progress.calling("settling", calls=3):
            stood = await self._store.settle(settlements, now)
        for job, outcome, trace in ended:
            if job.uid not in stood:
                metrics.LOST_LEASES.inc()
                log.warning("result not wanted any more", uid=job.uid)
            elif isinstance(outcome, Completed | Failed):
                status = Status.COMPLETED if isinstance(outcome, Completed) else Status.FAILED
                metrics.FINISHED.labels(job.kind, status.value).inc()
                metrics.JOB_SECONDS.labels(job.kind, status.value).observe(
                    max(0.0, now - job.created_at), tracing.exemplar(job.headers)
                )
                if self._announcements.waiting < _MAX_UNANNOUNCED:  # who waits for a lost one looks again
                    self._announcements.post(Signal(job.uid, status, trace))
        return [each.job.uid in stood for each in ended]

    async def _announce_all(self, signals: list[Signal]) -> list[None]:
        spans = [_signal_span(signal) for signal in signals if signal.trace]
        traces = {uid: tracing.carried(span).get("traceparent") for uid, span in spans}
        try:
            await self._signals.announce(
                [Signal(signal.uid, signal.status, traces.get(signal.uid)) for signal in signals]
                if traces
                else signals
            )
            metrics.SIGNALS_SENT.inc(len(signals))
        except SignalUnavailable as error:
            log.warning("signals lost", jobs=len(signals), error=str(error))
            for _, span in spans:
                tracing.failed(span, type(error).__name__)
        for _, span in spans:
            span.end()
        return [None] * len(signals)


def _signal_span(signal: Signal) -> tuple[str, Span]:
    attributes = {
        "messaging.destination.name": SIGNALS_TOPIC,
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "travelrec.uid": signal.uid,
    }
    parent = {"traceparent": signal.trace or ""}
    return signal.uid, tracing.started(f"publish {SIGNALS_TOPIC}", parent, SpanKind.PRODUCER, attributes)


def _traced(outcome: Outcome, trace: str | None) -> Outcome:
    """`outcome` with the span of the run that it came of."""
    match outcome:
        case Completed(result):
            return Completed(result, trace)
        case Failed(last):
            return Failed(replace(last, trace=trace))
        case Retry(due_at, last) if last is not None:
            return Retry(due_at, replace(last, trace=trace))
    return outcome


def _too_late(trouble: str = "") -> Failed:
    told = f"{trouble}No answer could be had in time. Please try again later."
    return Failed(Try(time.time(), DEADLINE_PASSED, told))
