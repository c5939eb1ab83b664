"""What trips ask of the world, under the rules of `travelrec.ports`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from travelrec.trips.joining import Part, Waiting


class Registry(Protocol):
    """Where the schemas of Avro records are, by subject, version and number."""

    async def register(self, subject: str, schema: str) -> int:
        """The number of `schema`, as the newest version of `subject`; registers it where it is not.

        Raises `SchemaRefused` where who reads with it could not read what was written with the version before
        (BACKWARD), and `RegistryUnavailable`.
        """
        ...

    async def schema(self, number: int) -> str:
        """The schema of that number; raises `UnknownSchema` and `RegistryUnavailable`."""
        ...

    async def ping(self) -> None:
        """Returns when the registry answers; raises `RegistryUnavailable`."""
        ...


class TripStore(Protocol):
    """The trips that the join has seen records of. Atomic per trip, whoever races; lists, never empty, in one go.

    A trip is leased, under a token that is new with every call, to the one call that is to publish what became of
    it. Repeating a call with its own token gives the same.
    """

    async def add(
        self, parts: Sequence[Part], token: str, now: float, due_at: float, until: float
    ) -> list[Waiting]:
        """Keeps `parts`; trips that are new are due at `due_at`. One that was joined stays as it is.

        Answers the trips that this call is to publish: those that are whole, leased to it until `until`, and those
        that were published incomplete and now have news.
        """
        ...

    async def take_due(self, token: str, now: float, until: float, limit: int) -> list[Waiting]:
        """Leases up to `limit` trips that are due; of racing callers one gets each."""
        ...

    async def release(self, worker: str, now: float, until: float) -> int:
        """Makes due at `now` what `worker` has leased until `until` at most (`joining.releasable`); answers how much.

        For the successor of a dead worker of that name.
        """
        ...

    async def close(self, trips: Sequence[Waiting], now: float, keep_until: float) -> None:
        """Notes that `trips` were published as they are here (see `joining.closed`)."""
        ...

    async def purge(self, now: float, limit: int) -> int:
        """Forgets up to `limit` published trips whose time has passed; answers how many."""
        ...

    async def open(self, limit: int) -> int:
        """How many trips wait for records or for being published, counted up to `limit`."""
        ...
