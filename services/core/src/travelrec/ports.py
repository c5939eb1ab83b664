"""What the parts of travelrec ask of the world; each docstring is the contract that every adapter keeps.

Rules for all: times are seconds since the epoch and are given by the caller. Every call ends within the adapter's
own time-out. A neighbour that is away raises its `Unavailable`; a write in flight then may or may not stand, and
repeating the same call with the same arguments is safe.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from travelrec.job import Bid, Job, Json, Settlement
from travelrec.retry import Allowance
from travelrec.wire import Message, Signal


@dataclass(frozen=True, slots=True)
class Backlog:
    """What has been accepted and has not ended."""

    pending: int
    oldest_at: float | None  # when it was accepted, or revived


class Store(Protocol):
    """The truth about jobs. Every method is atomic per job, whoever races; lists, never empty, are worked in one go."""

    async def accept(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """Makes `jobs` durable; the answer has the same length and order.

        Where a younger than 24 h job with the same idempotency key stands, that one is answered instead and nothing
        is written. A uid that stands already is this call repeated: it is answered as it stands.
        """
        ...

    async def get(self, uids: Sequence[str]) -> dict[str, Job]:
        """Those of `uids` that exist, as they stand; sees every write that has returned."""
        ...

    async def claim(
        self, uids: Sequence[str], token: str, now: float, until: float, worker: str | None = None
    ) -> list[Job]:
        """Leases those of `uids` that are claimable at `now` (see `job.claimable`) under `token` until `until`, later.

        Answers them as claimed, by `worker`; a `token` is new with every call, so each job is won by one call only.
        """
        ...

    async def release(self, worker: str, now: float, until: float) -> int:
        """Ends at `now` the leases of `worker` that would end by `until` (see `job.releasable`); answers how many.

        For the successor of a dead worker of that name. A call that comes late does no harm: what the successor has
        claimed itself ends after `until`.
        """
        ...

    async def renew(self, leases: Sequence[tuple[str, str]], until: float) -> set[str]:
        """Extends the (uid, token) leases that still stand, and shortens none; answers their uids.

        The others have been lost.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement], now: float) -> set[str]:
        """Writes what runs came to: only under the job's newest token, only onto a pending job.

        Answers the uids whose settlement stands, also when an earlier, unanswered call wrote it.
        """
        ...

    async def cancel(self, uid: str, now: float, message: str) -> tuple[Job | None, bool]:
        """Ends a pending job; answers it as it then stands (None: unknown), and whether this call ended it."""
        ...

    async def published(self, uids: Sequence[str], due_at: float, sent_at: float | None = None) -> None:
        """Notes that the messages of `uids` are on their way, since `sent_at` if sent again (see `job.published`)."""
        ...

    async def take_due(self, now: float, until: float, limit: int) -> list[Job]:
        """Takes up to `limit` pending jobs whose `due_at` has passed, oldest first, and moves it to `until`.

        Answers them as they then stand (see `job.due`); of racing callers one gets each job.
        """
        ...

    async def lead(self, bids: Sequence[Bid], now: float) -> list[str]:
        """For each bid the uid of the job that then leads its key, in the same order; one leads, whoever races.

        The bidder leads where nobody did, or where the one that did was `instead_of`.
        """
        ...

    async def leaders(self, keys: Sequence[str]) -> dict[str, str]:
        """The uids of the jobs that lead those of `keys` that are led."""
        ...

    async def failed(self, since: float, limit: int) -> list[Job]:
        """The failed jobs that ended at or after `since`, newest first."""
        ...

    async def revive(self, uids: Sequence[str], now: float) -> set[str]:
        """Makes failed jobs pending and due again (see `job.revived`); answers which of `uids` this call revived."""
        ...

    async def purge(self, now: float, limit: int) -> int:
        """Deletes up to `limit` ended jobs whose time has passed, and leads as old; answers how many jobs."""
        ...

    async def backlog(self, limit: int) -> Backlog:
        """How many jobs are pending, counted up to `limit`, and since when the oldest of them is."""
        ...

    async def ping(self) -> None:
        """Returns when the store answers; raises `StoreUnavailable`."""
        ...


class Delivery(Protocol):
    """A message that was taken and not yet acknowledged."""

    @property
    def message(self) -> Message:
        """What was published."""
        ...

    def acknowledge(self) -> None:
        """It need never be delivered again. Returns at once; order does not matter; a crash before it is noted
        delivers the message again."""
        ...


class Subscription(Protocol):
    """One member of a consumer group."""

    async def take(self, limit: int, timeout_s: float) -> Sequence[Delivery]:
        """Between 0 and `limit` messages, as soon as there is one, else after `timeout_s`.

        With `limit` 0 it takes nothing and tells the broker that this member is alive.
        """
        ...


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group of one topic."""

    members: int
    lag: Mapping[int, int]  # partition → messages that no member has acknowledged


class Broker(Protocol):
    """Dispatch: at least once, durable, shared by the members of a group."""

    system: str
    "Its name in traces, by OpenTelemetry's conventions: `kafka`, `rabbitmq`."

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """Returns when every message is acknowledged as durable; raises `BrokerUnavailable` if one may not be."""
        ...

    def subscribe(self, topic: str, group: str) -> AbstractAsyncContextManager[Subscription]:
        """Joins `group`; a new group begins at the oldest message. Leaving notes what was acknowledged; the rest is
        delivered to another member. Joining waits for a broker that is away."""
        ...

    def tail(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Message]]:
        """Every message of `topic` published from about now on, to everybody who asks; waits for a broker that
        is away. If it goes away later it is waited for, or `BrokerUnavailable` is raised where messages would be
        missed meanwhile. Who reads too slowly misses the oldest."""
        ...

    async def oldest_waiting(self, topic: str, group: str) -> float | None:
        """When the oldest message that no member of `group` has acknowledged was published; None if none waits."""
        ...

    async def group(self, topic: str, group: str) -> Group:
        """Who reads `topic` as `group`, and what is still to be read."""
        ...

    async def ping(self) -> None:
        """Returns when the broker answers; raises `BrokerUnavailable`."""
        ...


class Signals(Protocol):
    """Hints to everybody who listens right now; a lost one costs a reader a second look, no more."""

    async def announce(self, signals: Sequence[Signal]) -> None:
        """Sends them; raises `SignalUnavailable`."""
        ...

    def listen(
        self, hear: Callable[[Sequence[Signal]], Awaitable[None] | None]
    ) -> AbstractAsyncContextManager[None]:
        """Calls `hear` with every signal announced from about now on until left; reconnects by itself."""
        ...

    async def ping(self) -> None:
        """Returns when signals can be sent; raises `SignalUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """What a kind asks the model: two messages and the JSON schema of the answer."""

    system: str
    user: str
    schema_name: str
    schema: Mapping[str, Json]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation said."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is said to the model when the answer is plain text: the last turn is the one to be answered.

    `hear` is called with what there is of the answer each time that there is more, by each call from its beginning.
    """

    system: str
    turns: Sequence[Turn]
    max_tokens: int
    hear: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said: its text, what it cost, and what its provider allows from here on, if it says so."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    allowance: Allowance | None = None


class Model(Protocol):
    """A chat model. One call, one answer: repeats are the caller's decision."""

    async def ask(self, asked: Question | Conversation, timeout_s: float) -> Answer:
        """Raises the `ModelError` that says whether trying again can help."""
        ...


class ModelServer(Model, Protocol):
    """A model, and the server that has it."""

    async def offered(self, timeout_s: float) -> frozenset[str]:
        """The names of the models that its server lists, none if it lists none; costs nothing. Raises `ModelError`."""
        ...
