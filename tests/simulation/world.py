"""One history: APIs, workers and clients, faults for a while, then quiet, then the check. Everything follows the seed.

Every third seed is calm: nothing is lost and nobody is killed, workers are only replaced in an orderly way, and so
the history must be perfect. In the others anything may go wrong for half a minute.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from unittest import mock

from simulation.history import History
from simulation.loop import Process, Stuck, VirtualLoop, simulated, started
from simulation.network import SESSION_S, Broker, Cluster, Network, Signals, Store
from travelrec.connect import Parts
from travelrec.errors import (
    BadModelRequest,
    BrokerUnavailable,
    ModelBusy,
    ModelTimeout,
    ProviderDown,
    SignalUnavailable,
    StoreUnavailable,
)
from travelrec.job import Job, Json, Params, Status
from travelrec.kinds import Kind, Sharing
from travelrec.ports import Answer, Model, Question
from travelrec.settings import Settings
from travelrec.wire import Signal
from travelrec_api.accept import Accepter
from travelrec_api.waiting import Waiters
from travelrec_worker import app as worker
from travelrec_worker import gate

FAULTS_S = 30.0
QUIET_S = 1500.0  # by then everything has ended; it has long before
WAKE_S = 8.0  # for a waiter whose signal was lost: a look that hangs, another one, and the way
ABORT_S = 1.0
LEASE_S = 6.0
MODEL_TIMEOUT_S = 12.0
GONE_S = 25.0  # then a client gives up
GUARDED = 4  # jobs that fail alike, one after the other, before a worker stops
LEFT_ALONE_S = 60.0  # by then a call that hangs holds no job, wherever its worker was frozen meanwhile
SPELL_S = 20.0  # of a model that accepts nothing, in every fifth history


@dataclass(frozen=True)
class Outcome:
    """What came of one seed."""

    seed: int
    violations: tuple[str, ...]
    counts: Counter[str]
    story: tuple[str, ...] = field(repr=False)


def run(seed: int) -> Outcome:
    """The history of `seed`."""
    with (
        simulated(seed) as loop,
        mock.patch.object(worker, "kinds", return_value=KINDS),
        mock.patch.multiple(gate, _LAST=GUARDED, _ALIKE=1.0, _TRIAL_S=2.0, _PROBES=1),
    ):
        world = World(loop, seed)
        try:
            loop.run_until_complete(world.play())
        except Stuck:
            world.history.never("everybody waits and nothing will ever happen")
        history = world.history
        counts = Counter(
            jobs=len(history.jobs),
            calls=history.calls.total(),
            steps=loop.steps,
            claims=history.claims.total(),
            **world.faults,
        )
    return Outcome(seed, tuple(history.violations), counts, tuple(history.story))


async def _run(params: Params, model: Model, timeout_s: float) -> dict[str, Json]:
    """The answer names the question, so that a mix-up shows."""
    answer = await model.ask(Question("", params["key"], "", {}, 1), timeout_s)
    return {"answer": answer.text}


KINDS = {"simulated": Kind(_run, Sharing(lambda params: params["key"], 3600.0))}


class SimulatedModel:
    """Answers, fails, or hangs."""

    def __init__(self, history: History, rng: random.Random) -> None:
        self._history = history
        self._rng = rng
        self.running: dict[object, str] = {}  # call → key

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        key, history = question.user, self._history
        history.calls[key] += 1
        history.tell(f"model call for {key}")
        history.wished.pop(key, None)
        call = object()
        self.running[call] = key
        try:
            return await self._answer(key, timeout_s)
        except (ModelBusy, BadModelRequest, ModelTimeout):
            history.failed[key] += 1
            raise
        except ProviderDown:
            history.excused[key] += 1
            raise
        except asyncio.CancelledError:
            history.aborted[key] += 1
            raise
        finally:
            del self.running[call]

    async def _answer(self, key: str, timeout_s: float) -> Answer:
        if self._history.spell:
            await asyncio.sleep(self._rng.uniform(0.05, 1.0))
            if self._rng.random() < 0.1:
                raise ProviderDown("The model can't be reached.")
            raise BadModelRequest("The model does not like anything.")
        takes_s = self._rng.uniform(7.0, 10.0) if self._rng.random() < 0.25 else self._rng.uniform(0.05, 3.0)
        dice = self._rng.random()
        if self._history.calm:
            dice = min(dice, 0.79)
        if dice > 0.985:
            await self._hang(key, self._rng.uniform(15.0, 90.0))
        if dice > 0.95:
            await asyncio.sleep(timeout_s - 0.01)
            raise ModelTimeout("The model did not answer in time.")
        await asyncio.sleep(takes_s)
        if dice > 0.9:
            raise ProviderDown("The model can't be reached.")
        if dice > 0.8:
            raise ModelBusy("The model is busy.")
        if dice > 0.7:
            if list(self.running.values()).count(key) == 1:
                self._history.wished[key] = self._history.now + 10.0
            raise ModelBusy("The model is busy.", retry_after_s=10.0)
        if dice > 0.65:
            raise BadModelRequest("The model does not like it.")
        return Answer(f"to {key}", "simulated", 1, 1)

    async def _hang(self, key: str, for_s: float) -> None:
        """Takes no cancellation. Its job must not wait for it for long."""
        until = self._history.now + for_s
        before = self._history.leases_of(key)
        while (left_s := until - self._history.now) > 0:
            try:
                await asyncio.sleep(left_s)
            except asyncio.CancelledError:
                self._history.aborted[key] += 1
        if for_s > LEFT_ALONE_S and before & self._history.leases_of(key):
            self._history.never(f"a job waits for a call that hangs: {key}")


class Api:
    """What the routes of an API process need; made anew by each start."""

    def __init__(self, world: World) -> None:
        self.parts = world.parts()
        sharing = {name: kind.sharing for name, kind in KINDS.items()}
        self.accepter = Accepter(self.parts.store, self.parts.broker, sharing, world.settings.job_retention_s)
        self.waiters = Waiters(self.parts.store)

    async def serve(self) -> None:
        async with self.parts.signals.listen(self.waiters.hear), asyncio.TaskGroup() as background:
            background.create_task(self.waiters.look_again())
            background.create_task(self.accepter.withdraw())

    async def cancel(self, uid: str, now: float) -> tuple[Job | None, bool]:
        job, ended_now = await self.parts.store.cancel(uid, now, "Cancelled.")
        if ended_now:
            try:
                await self.parts.signals.announce([Signal(uid, Status.CANCELLED)])
            except SignalUnavailable:
                self.waiters.hear([Signal(uid, Status.CANCELLED)])
        return job, ended_now


class World:
    """The processes and their neighbours."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop = loop
        self.rng = random.Random(seed)
        self.calm = seed % 3 == 0
        self.cursed = not self.calm and self.rng.random() < 0.4  # with a spell in which everything fails
        self.history = History(loop, calm=self.calm)
        self.network = Network(loop, self.rng)
        self.network.faulty = self.network.forgetful = not self.calm
        self.quiet_at = math.inf
        self.cluster = Cluster(self.network, self.history)
        self.signals = Signals(self.network)
        self.model = SimulatedModel(self.history, self.rng)
        self.answered: set[str] = set()
        self.keyed: dict[str, set[str]] = {}  # idempotency key → the uids it was answered with
        self.faults: Counter[str] = Counter()
        self.workers_started = 0
        self.running: dict[str, Process] = {}
        self.apis: dict[str, Api] = {}
        self.settings = Settings(
            broker_url="kafka://simulated",
            store_url="memory://",
            lease_s=LEASE_S,
            grace_s=0.5,
            worker_concurrency=3,
            model_timeout_s=MODEL_TIMEOUT_S,
            _env_file=None,
        )

    def parts(self) -> Parts:
        return Parts(Store(self.network, self.history), Broker(self.cluster), self.signals)  # type: ignore[arg-type]

    async def play(self) -> None:
        """Everything, up to the check."""
        keepers = [
            asyncio.create_task(self.kept(f"{name}-{n}"))
            for name, count in (("api", 2), ("worker", 1 if self.cursed else self.rng.randint(1, 3)))
            for n in range(count)
        ]
        chaos = asyncio.create_task(self.chaos())
        spell = asyncio.create_task(self.spell())
        crowd = self.rng.choice((12, 24, 48)) if self.calm else 24
        crowd += 36 * self.cursed
        clients = [asyncio.create_task(self.client(n)) for n in range(self.rng.randint(8, crowd))]
        await asyncio.wait([chaos])
        try:
            async with asyncio.timeout(QUIET_S):
                await asyncio.gather(*clients)
                while self.busy():  # noqa: ASYNC110 - time is virtual: looking costs nothing
                    await asyncio.sleep(SESSION_S)  # somebody may still have something to say
        except TimeoutError:
            self.history.tell("it does not end")
        for task in (chaos, spell, *keepers):
            if task.done() and task.exception() is not None:
                self.history.never(f"a process failed: {task.exception()!r}")
        self.history.check(self.answered)
        for key, uids in self.keyed.items():
            if len(uids) > 1:
                self.history.never(f"one idempotency key, {len(uids)} jobs: {key}")

    def busy(self) -> bool:
        frozen = any(process.frozen for process in self.running.values())
        unsaid = self.loop.now < self.history.changed_at + SESSION_S
        return frozen or unsaid or any(not job.ended for job in self.history.jobs.values())

    # --- processes ------------------------------------------------------------------------------------

    async def kept(self, name: str) -> None:
        """A process that is started again whenever it ends."""
        while True:
            process = self.running[name] = Process(name, self.rng.uniform(-1.0, 1.0))
            self.workers_started += name.startswith("worker")
            main = started(process, lambda process=process: self.main(process))
            died = asyncio.create_task(process.died.wait())
            await asyncio.wait([main, died], return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if main.done():
                main.result()
            else:
                self.history.tell(f"{name} was killed")
                self.faults["kills"] += 1
            process.dead = True
            self.loop.call_later(SESSION_S, self.expel, process)
            await asyncio.sleep(self.rng.uniform(0.2, 8.0))

    async def main(self, process: Process) -> None:
        if process.name.startswith("api"):
            self.apis[process.name] = Api(self)
            await self.apis[process.name].serve()
        else:
            named = self.settings.model_copy(update={"metrics_port": 9000 + int(process.name[-1])})
            async with worker.running_roles(["jobs"], named, self.parts(), self.model):
                await process.stopping.wait()

    def expel(self, process: Process) -> None:
        """What the broker does with a member that it has not heard of for a while."""
        for group in self.cluster.groups.values():
            for member in [one for one in group.members if one.process is process]:
                if process.dead or process.frozen:
                    group.leave(member)

    async def chaos(self) -> None:
        """Faults until the quiet begins, and in its beginning the end of all faults."""
        while self.loop.now < FAULTS_S:
            await asyncio.sleep(self.rng.expovariate(1 / 4.0))
            victim = self.running[self.rng.choice(sorted(self.running))]
            if self.calm:
                if victim.name.startswith("worker"):
                    self.stop(victim)
                continue
            match self.rng.randrange(5):
                case 0 | 1:
                    victim.dies_in(self.rng.randint(1, 300))
                case 2:
                    self.freeze(victim, self.rng.uniform(1.0, 15.0))
                case 3 if victim.name.startswith("worker"):
                    self.stop(victim)
                case _:
                    await self.outage()
        self.network.faulty = False
        self.quiet_at = self.loop.now

    async def spell(self) -> None:
        """Every call fails its job for some time: few jobs may fail for it."""
        if not self.cursed:
            return
        await asyncio.sleep(self.rng.uniform(0.0, FAULTS_S - SPELL_S))
        self.history.tell("the model accepts nothing")
        self.history.spell = True
        await asyncio.sleep(SPELL_S)
        self.history.spell = False
        self.history.tell("the model accepts again")
        spoiled = len(self.history.spoiled)
        if spoiled > 2 * GUARDED * self.workers_started:
            self.history.never(f"{spoiled} keys failed alike with {self.workers_started} starts of a worker")

    def stop(self, process: Process) -> None:
        self.history.tell(f"{process.name} is told to end")
        self.faults["stops"] += 1
        process.stopping.set()

    def freeze(self, process: Process, for_s: float) -> None:
        if process.frozen:
            return
        self.history.tell(f"{process.name} is frozen for {for_s:.1f} s")
        self.faults["freezes"] += 1
        process.frozen = True
        self.loop.call_later(for_s, process.thaw)
        if for_s > SESSION_S:
            self.loop.call_later(SESSION_S, self.expel, process)

    async def outage(self) -> None:
        away = self.rng.choice((StoreUnavailable, BrokerUnavailable, SignalUnavailable))
        self.history.tell(f"the {away.name} is away")
        self.faults["outages"] += 1
        self.network.away.add(away)
        await asyncio.sleep(self.rng.uniform(0.5, 10.0))
        self.network.away.discard(away)
        self.history.tell(f"the {away.name} is back")

    # --- clients --------------------------------------------------------------------------------------

    async def asked(self, api: str, ask: Callable[[Api], Coroutine[object, object, object]]) -> object:
        """The answer of an API process; None if there is none."""
        process = self.running.get(api)
        if process is None or process.dead or api not in self.apis:
            return None
        asked = self.apis[api]

        async def answered() -> object:
            try:
                return await ask(asked)
            except StoreUnavailable:
                return None  # a 503

        try:
            async with asyncio.timeout(GONE_S):
                return await asyncio.shield(started(process, answered))
        except TimeoutError:
            return None

    async def client(self, number: int) -> None:
        """Asks, perhaps again with the same key, waits, perhaps cancels."""
        earliest, latest = ((0.0, 1.0), (0.0, FAULTS_S), (0.0, 1.0), (FAULTS_S, FAULTS_S + 10.0))[number % 4]
        await asyncio.sleep(self.rng.uniform(earliest, latest))
        while not self.apis:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)
        key = f"shared {number % 2}" if self.rng.random() < 0.3 else f"own {number}"
        idempotency_key = f"client {number}" if self.rng.random() < 0.3 else None
        times = self.rng.randint(1, 3) if idempotency_key else 1
        uids = await asyncio.gather(*(self.accepted(key, idempotency_key) for _ in range(times)))
        for uid in set(uids) - {None}:
            patience_s = self.rng.uniform(0.0, 8.0) if self.rng.random() < 0.3 else None
            await asyncio.gather(
                *([self.cancelled(uid, key, patience_s)] if patience_s else []), self.waited(uid)
            )

    async def accepted(self, key: str, idempotency_key: str | None) -> str | None:
        name = self.rng.choice(sorted(self.apis))
        found = await self.asked(
            name, lambda api: api.accepter.accept("simulated", {"key": key}, {}, idempotency_key)
        )
        if found is None:
            return None
        uid: str = found[0].uid  # type: ignore[index]
        self.history.tell(f"answered {uid[-4:]}")
        if uid not in self.history.jobs:
            self.history.never(f"answered before it stood: {uid}")
        self.answered.add(uid)
        if idempotency_key is not None:
            self.keyed.setdefault(idempotency_key, set()).add(uid)
        return uid

    async def waited(self, uid: str) -> None:
        """Long polls, one after the other, until the job has ended; the last one must hear of it in time."""
        while True:
            name = self.rng.choice(sorted(self.apis))
            process, began = self.running[name], self.loop.now
            patience_s = 2 * QUIET_S if self.calm else 20.0
            job = await self.asked(name, lambda api, s=patience_s: api.waiters.until_ended(uid, s))
            ended_at = self.history.ended_at.get(uid)
            if (
                ended_at is not None
                and not process.dead
                and not process.frozen
                and process is self.running[name]
            ):
                late_s = self.loop.now - max(began, ended_at, process.thawed_at, self.quiet_at)
                if late_s > WAKE_S:
                    self.history.never(f"a waiter woke {late_s:.1f} s late: {uid}")
                if self.calm and late_s > ABORT_S:
                    self.history.never(f"a waiter was not woken by a signal: {uid}")
            if isinstance(job, Job) and job.ended:
                return
            await asyncio.sleep(0.5)

    async def cancelled(self, uid: str, key: str, patience_s: float) -> None:
        await asyncio.sleep(patience_s)
        name = self.rng.choice(sorted(self.apis))
        running = [call for call, of in self.model.running.items() if of == key]
        found = await self.asked(name, lambda api: api.cancel(uid, self.history.now))
        if found is None or not found[1]:  # type: ignore[index]
            return
        await asyncio.sleep(ABORT_S)
        if self.calm and key.startswith("own") and any(call in self.model.running for call in running):
            self.history.never(f"a cancelled job's call goes on: {uid}")
        if self.history.jobs[uid].status is not Status.CANCELLED:
            self.history.never(f"cancelled, and yet {self.history.jobs[uid].status}: {uid}")
