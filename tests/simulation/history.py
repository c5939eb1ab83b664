"""What happened, seen from the neighbours; whatever must not happen is noted the moment it does."""

from __future__ import annotations

import json
from collections import Counter, UserDict
from collections.abc import Sequence

from simulation.loop import EPOCH, Process, VirtualLoop, driven, process_now
from travelrec.adapters.memory import MemoryStore
from travelrec.errors import BadModelRequest
from travelrec.job import HandedBack, Job, Phase, Retry, Settlement, Status
from travelrec.wire import JOBS_TOPIC, Message, dead_letter_topic, decode_job

CLOCKS_S = 2.1  # what two clocks differ by at the most, and a little


class History:
    """A store that watches its jobs, and the counts of the other neighbours."""

    def __init__(self, loop: VirtualLoop, *, calm: bool) -> None:
        self._loop = loop
        self._call = ""
        self.calm = calm
        self.memory = MemoryStore()
        self.jobs = self.memory.jobs = _Watched(self)  # type: ignore[assignment]
        self.violations: list[str] = []
        self.story: list[str] = []
        self.changed_at = 0.0
        self.ended_at: dict[str, float] = {}
        self.claims: Counter[str] = Counter()
        self.holders: dict[str, Process | None] = {}  # token → who claimed with it
        self.publishes: Counter[str] = Counter()  # before the first claim
        self.wished: dict[str, float] = {}  # key → when the provider wants to be asked again, at the earliest
        self.dead_letters: set[str] = set()
        self.calls: Counter[str] = Counter()  # of the model, by key
        self.excused: Counter[str] = Counter()  # those that failed by nobody's fault
        self.failed: Counter[str] = Counter()
        self.aborted: Counter[str] = Counter()
        self.spell = False  # the model accepts nothing
        self.spoiled: set[str] = set()  # keys whose jobs failed in the spell

    @property
    def now(self) -> float:
        return EPOCH + self._loop.now

    def tell(self, text: str) -> None:
        process = process_now.get()
        self.story.append(f"{self._loop.now:9.3f} {process.name if process else '':9} {text}")

    def never(self, text: str) -> None:
        """Notes what must never happen."""
        self.tell(f"NEVER: {text}")
        self.violations.append(text)

    # --- the store ------------------------------------------------------------------------------------

    def store(self, name: str, args: tuple[object, ...], caller: Process | None) -> object:
        self._call = name
        if name == "claim":
            self.holders[str(args[1])] = caller
        if name == "settle":
            return self._settle(*args)  # type: ignore[arg-type]
        return driven(getattr(self.memory, name)(*args))

    def _settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        stood = set()
        for one in settlements:
            old = self.jobs.get(one.uid)
            stood |= driven(self.memory.settle([one], now))
            new = self.jobs.get(one.uid)
            if old is None or new is None or new is old:
                continue
            if old.token != one.token:
                self.never(f"a result counted without the lease: {one.uid}")
            wished = self.wished.get(new.params["key"], 0.0) - CLOCKS_S
            if (
                isinstance(one.outcome, Retry)
                and one.outcome.last is not None
                and one.outcome.due_at < wished
            ):
                self.never(f"to be tried again before the provider wished: {one.uid}")
            if self.spell and new.error == BadModelRequest.title:
                self.spoiled.add(new.params["key"])
            if isinstance(one.outcome, HandedBack) and (new.claims, new.tries) != (old.claims - 1, old.tries):
                self.never(f"handing back cost something: {one.uid}")
        return stood

    def changed(self, uid: str, old: Job | None, new: Job | None) -> None:
        """Called with every change of a job."""
        self.changed_at = self._loop.now
        self.tell(f"{self._call} {uid[-4:]} {_seen(old)} -> {_seen(new)}")
        if new is not None and new.ended:
            self.ended_at.setdefault(uid, self._loop.now)
        if old is None or new is None:
            if old is not None and not old.ended:
                self.never(f"a pending job was deleted: {uid}")
            return
        if old.ended:
            self.never(f"an ended job changed: {uid} by {self._call}")
        stands_for_s = old.due_at - self.now
        if old.phase is Phase.RUNNING and new.phase is Phase.DUE and stands_for_s > CLOCKS_S:
            self.never(f"a sweeper took a job whose lease stands: {uid}")
        holder = self.holders.get(old.token or "")
        if self._call == "release" and holder is not None and not holder.dead:
            self.never(f"a living worker's lease was released: {uid}")
        if new.token is not None and new.token != old.token:
            self.claims[uid] += 1
            if self._call != "claim":
                self.never(f"a lease came out of {self._call}: {uid}")
            if old.phase is Phase.RUNNING and stands_for_s > CLOCKS_S:
                self.never(f"two leases at one time: {uid}")
            if old.phase is Phase.WAITING and stands_for_s > CLOCKS_S:
                self.never(f"a back-off was cut short: {uid}")
            if old.token is not None and self.calm:
                self.never(f"a lease ran out although nothing went wrong: {uid}")

    def leases_of(self, key: str) -> set[str | None]:
        """The tokens under which jobs of `key` run."""
        running = (job for job in self.jobs.values() if job.phase is Phase.RUNNING)
        return {job.token for job in running if job.params["key"] == key}

    # --- the broker -----------------------------------------------------------------------------------

    def published(self, topic: str, message: Message) -> None:
        if topic == JOBS_TOPIC:
            uid = decode_job(message)
            self.tell(f"published {uid[-4:]}")
            self.publishes[uid] += not self.claims[uid]
            if uid not in self.jobs:
                self.never(f"a message names a job that does not stand: {uid}")
        elif topic == dead_letter_topic(JOBS_TOPIC):
            self.dead_letters.add(str(json.loads(message.value)["uid"]))

    def acknowledged(self, message: Message) -> None:
        uid = decode_job(message)
        job = self.jobs.get(uid)
        if job is not None and not job.ended and not self.claims[uid]:
            self.never(f"acknowledged before the claim: {uid}")

    def committed(self, unfinished: list[Message]) -> None:
        if unfinished:
            self.never(f"an offset was committed past {len(unfinished)} unfinished messages")

    # --- when all is quiet ----------------------------------------------------------------------------

    def check(self, answered: set[str]) -> None:
        """What must be true of a history that has come to its end."""
        keys: Counter[str] = Counter()
        for uid, job in self.jobs.items():
            key = job.params["key"]
            keys[key] += self.claims[uid]
            if not job.ended:
                self.never(f"never ended: {uid} {_seen(job)}")
            if job.status is Status.COMPLETED and job.result != {"answer": f"to {key}"}:
                self.never(f"a result of another request: {uid} {job.result}")
            if job.status is Status.FAILED and uid not in self.dead_letters:
                self.never(f"failed without a dead letter: {uid}")
            timed_out = 0 if self.calm else self.aborted[key]  # of a frozen process
            if len(job.tries) > self.failed[key] + timed_out:
                self.never(f"more attempts than failed calls: {uid}")
            if self.calm and self.publishes[uid] > 1:
                self.never(f"published {self.publishes[uid]} times before anybody had it: {uid}")
        for uid in answered - set(self.jobs):
            self.never(f"lost: {uid}")
        cancelled = {job.params["key"] for job in self.jobs.values() if job.status is Status.CANCELLED}
        for key, calls in self.calls.items():
            if calls - self.excused[key] > keys[key]:
                self.never(f"{calls} model calls for {keys[key]} claims of {key}")
            lost = (self.failed + self.excused + self.aborted)[key] or key in cancelled
            if self.calm and calls > 1 and not lost:
                self.never(f"{calls} model calls for one key, although none failed: {key}")


class _Watched(UserDict[str, Job]):
    """Jobs that tell of their changes."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def __setitem__(self, uid: str, job: Job) -> None:
        old = self.data.get(uid)
        self.data[uid] = job
        if job != old:
            self._history.changed(uid, old, job)

    def __delitem__(self, uid: str) -> None:
        self._history.changed(uid, self.data.pop(uid), None)


def _seen(job: Job | None) -> str:
    if job is None:
        return "nothing"
    if job.ended:
        return job.status.value
    phase = job.phase.value if job.phase else "?"
    return f"{phase}({(job.token or '-')[-4:]}, due {job.due_at - EPOCH:.1f}, {len(job.tries)} tries)"
