"""Which fault comes when: `kill,store-freeze:10@60` every 2 s is a schedule, the same for the same seed; pure."""

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Deed = Literal["kill", "term", "restart", "freeze", "cut", "slow", "hang", "join"]
Target = Literal["process", "api", "worker", "group", "broker", "store"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that can be asked for by its name."""

    deed: Deed
    target: Target
    title: str
    seconds: float = 0.0
    """How long it lasts, unless asked otherwise; 0: as long as a restart takes."""

    @property
    def is_of_the_network(self) -> bool:
        """Whether a proxy has to stand before its target."""
        return self.deed in ("cut", "slow", "hang") or (self.deed, self.target) == ("kill", "store")


FAULTS: Mapping[str, Fault] = MappingProxyType(
    {
        "kill": Fault("kill", "process", "SIGKILL a worker or an API and start it again"),
        "kill-worker": Fault("kill", "worker", "SIGKILL a worker and start it again"),
        "kill-api": Fault("kill", "api", "SIGKILL an API and start it again"),
        "term": Fault("term", "process", "SIGTERM a worker or an API and start it again when it has ended"),
        "freeze-worker": Fault("freeze", "worker", "SIGSTOP a worker", 2.0),
        "rebalance": Fault("join", "group", "a member joins the workers' group and leaves it", 1.0),
        "broker-kill": Fault("kill", "broker", "SIGKILL the broker", 2.0),
        "broker-restart": Fault("restart", "broker", "SIGTERM the broker and start it again"),
        "broker-freeze": Fault("freeze", "broker", "SIGSTOP the broker", 3.0),
        "broker-cut": Fault("cut", "broker", "reset each connection to the broker", 3.0),
        "broker-slow": Fault("slow", "broker", "0.2 s more each way to the broker", 5.0),
        "broker-hang": Fault("hang", "broker", "nothing comes through to the broker or back", 3.0),
        "store-kill": Fault("kill", "store", "SIGKILL MongoDB", 1.0),
        "store-restart": Fault("restart", "store", "SIGTERM MongoDB and start it again"),
        "store-freeze": Fault("freeze", "store", "SIGSTOP MongoDB", 3.0),
        "store-cut": Fault("cut", "store", "reset each connection to MongoDB", 3.0),
        "store-slow": Fault("slow", "store", "0.2 s more each way to MongoDB", 5.0),
        "store-hang": Fault("hang", "store", "nothing comes through to MongoDB or back", 3.0),
    }
)

_ITEM = re.compile(r"(?P<name>[a-z-]+)(:(?P<seconds>\d+(\.\d+)?))?(@(?P<at>\d+(\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a schedule: a fault, for so long, once at a moment or (None) every now and then."""

    name: str
    seconds: float
    at: float | None = None

    @property
    def fault(self) -> Fault:
        """What it is."""
        return FAULTS[self.name]


@dataclass(frozen=True, slots=True)
class Due:
    """A fault that is to begin `at` seconds after the load; `pick` in [0, 1) chooses among its targets."""

    at: float
    item: Item
    pick: float


def parse(text: str) -> tuple[Item, ...]:
    """`NAME[:SECONDS][@AT],…`, `all` or `none`; ValueError says what is wrong and names what there is."""
    if text == "none":
        return ()
    names = ",".join(FAULTS) if text == "all" else text
    return tuple(_item(part.strip()) for part in names.split(","))


def once(items: Sequence[Item], seed: int) -> Iterator[Due]:
    """Each of the items that have a moment, in order."""
    chance = random.Random(f"{seed} once")
    for at, item in sorted((item.at, item) for item in items if item.at is not None):
        yield Due(at, item, chance.random())


def repeated(items: Sequence[Item], every_s: float, seed: int) -> Iterator[Due]:
    """One of the items that have no moment, every `every_s`, for ever."""
    chance = random.Random(f"{seed} repeated")
    again = [item for item in items if item.at is None]
    for turn in itertools.count(1) if again else ():
        yield Due(turn * every_s, chance.choice(again), chance.random())


def _item(text: str) -> Item:
    found = _ITEM.fullmatch(text)
    if found is None or found["name"] not in FAULTS:
        raise ValueError(
            f"{text!r} is no fault NAME[:SECONDS][@AT]; there is {', '.join(FAULTS)}, all and none"
        )
    fault = FAULTS[found["name"]]
    return Item(
        found["name"],
        float(found["seconds"]) if found["seconds"] else fault.seconds,
        float(found["at"]) if found["at"] else None,
    )
