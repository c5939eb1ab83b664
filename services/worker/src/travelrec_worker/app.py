"""The composition root of a worker process: opens the neighbours, starts the roles, stops in reverse."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import structlog

from travelrec import tracing
from travelrec.chat.ports import ChatHistory
from travelrec.connect import Parts, opened_models, opened_parts, opened_third_party
from travelrec.errors import BadSetting
from travelrec.health import Probes
from travelrec.kinds import kinds
from travelrec.ports import Delivery, Model
from travelrec.retry import RetryPolicy
from travelrec.settings import Settings
from travelrec.stopping import told_to_stop
from travelrec.trips.codec import Codec
from travelrec.trips.entities import SOURCES
from travelrec.wire import (
    INCOMING_GROUP,
    INCOMING_TOPIC,
    JOB_TOPICS,
    RESPONSES_GROUP,
    RESPONSES_TOPIC,
    Signal,
    topic_of,
)
from travelrec_worker.backlog import Backlog, watch_lag
from travelrec_worker.chat import Chat
from travelrec_worker.engine import Engine
from travelrec_worker.gate import Gate
from travelrec_worker.health import served
from travelrec_worker.jobs import Jobs
from travelrec_worker.join import DEAD_LETTERS_TOPIC, Join, group_of
from travelrec_worker.leases import Leases
from travelrec_worker.poll import Poller
from travelrec_worker.progress import Progress
from travelrec_worker.relay import Relay
from travelrec_worker.submit import Submitter
from travelrec_worker.sweeper import Sweeper
from travelrec_worker.watchdog import loop_watched, watch

log = structlog.get_logger(__name__)

_RECORDS_AT_ONCE = 1000  # of each stream: so many may share a write
_COLLECT_AFTER = 10_000, 20, 50  # new objects, and so many collections of the younger ones


@asynccontextmanager
async def running_roles(
    roles: Sequence[str],
    settings: Settings,
    parts: Parts,
    *models: Model,
    progress: Progress | None = None,
) -> AsyncIterator[Sequence[Engine]]:
    """Runs `roles` until left; leaving waits out the grace period and hands back what is not done.

    The second of `models`, if there is one, stands in for the first; roles that ask none need none. `progress` is
    for who wants to know of it.
    """
    progress = progress or Progress(settings.neighbour_timeout_s)
    prices = [(name, settings.price_of(name)) for name in settings.model_names]
    gate = Gate(models, settings.worker_concurrency, prices)
    engines: list[Engine] = []
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(asyncio.TaskGroup())
        watching = background.create_task(watch(progress, engines))
        for role in roles:
            engines += await stack.enter_async_context(ROLES[role](settings, parts, gate, progress))
        try:
            yield engines
        finally:
            for engine in engines:  # all at once, or the grace periods would add up
                engine.stop()
            stack.callback(watching.cancel)


@asynccontextmanager
async def _jobs(
    settings: Settings, parts: Parts, gate: Gate, progress: Progress
) -> AsyncIterator[list[Engine]]:
    leases = Leases(parts.store, settings.lease_s, progress, settings.worker_name)
    known = kinds(settings)
    lanes: list[Jobs] = []
    engines: list[Engine] = []
    for topic in JOB_TOPICS:
        concurrency, own = settings.worker_concurrency, gate
        if not any(kind.asks for name, kind in known.items() if topic_of(name) == topic):
            concurrency = settings.prediction_concurrency
            own = Gate.without_models(concurrency, topic)  # what the chat model suffers is nothing to them
        jobs = Jobs(
            parts.store,
            parts.broker,
            topic,
            parts.signals,
            own,
            known,
            leases,
            progress,
            concurrency=concurrency,
            retry=RetryPolicy(max_attempts=settings.max_attempts),
            model_timeout_s=settings.model_timeout_s,
            deadline_s=settings.job_deadline_s,
        )
        lanes.append(jobs)
        engines.append(
            Engine(
                parts.broker,
                topic,
                topic,
                jobs.handle,
                concurrency=2 * concurrency,
                intake=own.intake,
                progress=progress,
                early=True,
            )
        )

    def hear(signals: Sequence[Signal]) -> None:
        for jobs in lanes:
            jobs.hear(signals)

    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(asyncio.TaskGroup())
        helpers = [background.create_task(leases.keep())]
        if settings.broker_url.startswith("memory:"):
            await parts.store.take_due(float("inf"), 0.0, 2**31)  # the broker has forgotten what it held
        else:
            await leases.inherit()  # METRICS_PORT is ours: nobody of our name lives
        helpers.append(background.create_task(Sweeper(parts.store, parts.broker, progress).run()))
        helpers.append(background.create_task(Backlog(parts.store, parts.broker, parts.signals).watch()))
        await stack.enter_async_context(parts.signals.listen(hear))
        running = [background.create_task(engine.run(settings.grace_s)) for engine in engines]
        try:
            yield engines
        finally:
            for engine in engines:
                engine.stop()
            await asyncio.wait(running)
            for jobs in lanes:
                await jobs.drain()
            for helper in helpers:
                helper.cancel()


@asynccontextmanager
async def _submit(
    settings: Settings, parts: Parts, _: Gate, progress: Progress
) -> AsyncIterator[list[Engine]]:
    async with opened_third_party(settings) as third_party, asyncio.TaskGroup() as background:
        submitter = Submitter(
            parts.tasks,
            third_party,
            progress,
            rate=settings.tasks_rate_limit,
            concurrency=max(settings.worker_concurrency, round(2 * settings.tasks_rate_limit)),
            retry=RetryPolicy(max_attempts=settings.max_attempts),
            timeout_s=settings.tasks_timeout_s,
            deadline_s=settings.job_deadline_s,
        )
        counting = background.create_task(submitter.count())
        running = background.create_task(submitter.run())
        try:
            yield []
        finally:
            await submitter.stop(settings.grace_s)
            counting.cancel()
            running.cancel()


@asynccontextmanager
async def _poll(settings: Settings, parts: Parts, _: Gate, progress: Progress) -> AsyncIterator[list[Engine]]:
    async with opened_third_party(settings) as third_party, asyncio.TaskGroup() as background:
        poller = Poller(
            parts.tasks,
            third_party,
            progress,
            interval_s=settings.tasks_poll_interval_s,
            timeout_s=settings.tasks_timeout_s,
        )
        polling = background.create_task(poller.run())
        try:
            yield []
        finally:
            polling.cancel()
            await asyncio.wait([polling])
            await poller.give_up()


@asynccontextmanager
async def _join(
    settings: Settings, parts: Parts, gate: Gate, progress: Progress
) -> AsyncIterator[list[Engine]]:
    join = Join(
        parts.trips,
        parts.broker,
        Codec(parts.registry),
        progress,
        window_s=settings.trips_join_window_s,
        worker=settings.worker_name,
    )
    await join.inherit()  # METRICS_PORT is ours: nobody of our name lives
    intake = asyncio.Event()
    intake.set()
    engines = [
        Engine(
            parts.broker,
            stream.topic,
            group_of(stream),
            partial(join.handle, stream),
            concurrency=_RECORDS_AT_ONCE,
            intake=intake,
            progress=progress,
            dead_letters=DEAD_LETTERS_TOPIC,
        )
        for stream in SOURCES
    ]
    async with asyncio.TaskGroup() as background:
        helpers = [background.create_task(join.sweep()), background.create_task(join.watch())]
        running = [background.create_task(engine.run(settings.grace_s)) for engine in engines]
        try:
            yield engines
        finally:
            for engine in engines:
                engine.stop()
            await asyncio.wait(running)
            for helper in helpers:
                helper.cancel()
            await join.end()


@asynccontextmanager
async def _chat(
    settings: Settings, parts: Parts, gate: Gate, progress: Progress
) -> AsyncIterator[list[Engine]]:
    chat = Chat(
        parts.broker,
        _place_for_chats(parts),
        gate,
        progress,
        retry=RetryPolicy(max_attempts=settings.max_attempts, base_s=0.5, cap_s=5.0),
        timeout_s=settings.chat_timeout_s,
    )
    async with _in_turn(settings, parts, progress, INCOMING_TOPIC, INCOMING_GROUP, chat.handle) as engine:
        yield [engine]


@asynccontextmanager
async def _relay(
    settings: Settings, parts: Parts, _: Gate, progress: Progress
) -> AsyncIterator[list[Engine]]:
    relay = Relay(parts.broker, _place_for_chats(parts))
    async with _in_turn(settings, parts, progress, RESPONSES_TOPIC, RESPONSES_GROUP, relay.handle) as engine:
        yield [engine]


def _place_for_chats(parts: Parts) -> ChatHistory:
    if parts.chat is None:
        raise BadSetting("REDIS_URL: is not set, and `chat` and `relay` need it")
    return parts.chat.history


@asynccontextmanager
async def _in_turn(
    settings: Settings,
    parts: Parts,
    progress: Progress,
    topic: str,
    group: str,
    handle: Callable[[Delivery], Awaitable[None]],
) -> AsyncIterator[Engine]:
    """An engine that handles the messages of a user one after the other; it never pauses, for users wait."""
    intake = asyncio.Event()
    intake.set()
    engine = Engine(
        parts.broker,
        topic,
        group,
        handle,
        concurrency=2 * settings.worker_concurrency,
        intake=intake,
        progress=progress,
        in_key_order=True,
    )
    async with asyncio.TaskGroup() as background:
        running = background.create_task(engine.run(settings.grace_s))
        watching = background.create_task(watch_lag(parts.broker, topic, group))
        try:
            yield engine
        finally:
            engine.stop()
            await asyncio.wait([running])
            watching.cancel()


_Role = Callable[[Settings, Parts, Gate, Progress], AbstractAsyncContextManager[Sequence[Engine]]]
ROLES: dict[str, _Role] = {
    "jobs": _jobs,
    "submit": _submit,
    "poll": _poll,
    "join": _join,
    "chat": _chat,
    "relay": _relay,
}
_ASKING = {"jobs", "chat"}  # those that need a model
_OF_TASKS = {"submit", "poll"}  # those that need a third party, and no broker
_OF_CHAT = {"chat", "relay"}


def possible_roles(settings: Settings) -> list[str]:
    """All roles but those whose neighbour the settings don't name."""
    left_out = (set() if settings.has_third_party else _OF_TASKS) | (set() if settings.has_chat else _OF_CHAT)
    return [role for role in ROLES if role not in left_out]


def spare_the_collector() -> None:
    """Leaves out of garbage collections what was loaded for good: looking through it again took 15 % of the CPU."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def _joined(engines: Sequence[Engine]) -> None:
    for engine in engines:
        await engine.joined.wait()


async def work(settings: Settings, roles: Sequence[str]) -> None:
    """Runs `roles` (default: all) until SIGTERM or SIGINT; raises `BadSetting`, or `OSError` for a taken port."""
    unknown = [role for role in roles if role not in ROLES]
    roles = roles or possible_roles(settings)
    if unknown:
        raise BadSetting(f"unknown role {', '.join(unknown)}; there is {', '.join(ROLES)}")
    if settings.broker_url.startswith("memory:") or settings.store_url.startswith(("memory:", "sqlite:")):
        raise BadSetting(
            "BROKER_URL, STORE_URL: memory:// and sqlite:// serve one process only; set kafka://… and mongodb://…,"
            " or use `travelrec serve`"
        )
    async with AsyncExitStack() as stack:
        stopping = stack.enter_context(told_to_stop())
        stack.enter_context(tracing.exported("travelrec-worker"))
        models: Sequence[Model] = ()
        if _ASKING.intersection(roles):
            models = await stack.enter_async_context(opened_models(settings))
        parts = await stack.enter_async_context(opened_parts(settings))
        needed = {"store": parts.store.ping}
        if not _OF_TASKS.issuperset(roles):
            needed["broker"] = parts.broker.ping
        probes = Probes(needed, {})
        progress = Progress(settings.neighbour_timeout_s)
        await stack.enter_async_context(served(probes, progress, settings.host, settings.metrics_port))
        await stack.enter_async_context(loop_watched())
        engines = await stack.enter_async_context(
            running_roles(roles, settings, parts, *models, progress=progress)
        )
        if not settings.has_third_party:
            log.info("no role submits or polls: TASKS_PROVIDER_URL is not set, tasks stay Not Started")
        if not settings.has_chat:
            log.info("no role chats or relays: REDIS_URL is not set")
        spare_the_collector()
        log.info("worker started", roles=list(roles), concurrency=settings.worker_concurrency)
        joined = asyncio.create_task(_joined(engines))
        await asyncio.wait(
            [joined, stopped := asyncio.create_task(stopping.wait())], return_when="FIRST_COMPLETED"
        )
        if not stopping.is_set():
            log.info("worker ready", roles=list(roles))
        await stopped
        joined.cancel()
        probes.stopping = True
        in_flight = sum(engine.in_flight for engine in engines)
        log.info("worker stopping", in_flight=in_flight, grace_s=settings.grace_s)
    log.info("worker stopped")
