"""What the routes of a running API share."""

from __future__ import annotations

from dataclasses import dataclass

from travelrec.health import Probes
from travelrec.ports import Signals, Store
from travelrec.tasks.ports import TaskStore
from travelrec.trips.publishing import TripPublisher
from travelrec_api.accept import Accepter
from travelrec_api.chats import Chats
from travelrec_api.joined import JoinedTrips
from travelrec_api.waiting import Waiters
from travelrec_api.withdraw import Creator


@dataclass(frozen=True, slots=True)
class State:
    """Made by the lifespan, found at `app.state.parts`."""

    store: Store
    signals: Signals
    accepter: Accepter
    waiters: Waiters
    probes: Probes
    tasks: TaskStore
    creator: Creator
    trips: TripPublisher
    joined: JoinedTrips
    chats: Chats | None  # None: there is no place for chats
