"""What was seen of a run from outside, and what of it must not be; pure."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from travelrec.fake_openai.suggestions import suggestions

CLOCK_S = 0.05  # between noting a moment and the moment
MARGIN_S = 1.0  # leases are renewed when a third of them is over, and on a busy machine a little later
ENDS = ("completed", "failed", "cancelled")
STORE_AWAY = frozenset(
    {"store-kill", "store-restart", "store-freeze", "store-cut", "store-hang", "store-late"}
)

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was answered with a uid."""

    uid: str
    country: str
    season: str
    at: float
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told of a uid: the end, or anything else once it had been told of an end."""

    uid: str
    asked_at: float
    at: float
    by: str
    status: int
    body: Body

    @property
    def ended(self) -> bool:
        """Whether this is an end."""
        return self.status == 200 and self.body.get("status") in ENDS


@dataclass(frozen=True, slots=True)
class Call:
    """A model call, as the model saw it; `caller` is the worker."""

    key: str
    caller: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Record:
    """A job, as the store has it in the end."""

    uid: str
    key: str
    status: str
    claims: int
    tries: int
    created_at: float
    ended_at: float | None
    recommendations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Incident:
    """A fault that came to pass, a process that `died` by itself, or a store that was `late` by itself."""

    fault: str
    target: str
    began: float
    over: float

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return self.over - self.began


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be, by its name."""

    name: str
    text: str


@dataclass
class History:
    """Everything that was seen; grows while the run goes on."""

    lease_s: float
    shared: bool
    """Whether one model call serves a key for the whole run."""
    asked: list[Asked] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    """Answers that no client should ever get."""
    calls: list[Call] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)


def key_of(country: str, season: str) -> str:
    """What the model is asked, as it counts it."""
    return f"Country: {country}\nSeason: {season}"


def check(history: History) -> list[Violation]:
    """Everything in `history` that must not be."""
    found = [
        *_odd(history),
        *_repeats(history),
        *_uids(history),
        *_ends(history),
        *_costs(history),
        *_calls(history),
    ]
    return [Violation(name, text) for name, text in found]


def repeated_calls(history: History) -> int:
    """How many model calls there were more than needed, whether something excuses them or not."""
    wanted = _wanted(history)
    return sum(max(0, made - wanted[key]) for key, made in Counter(c.key for c in history.calls).items())


def lost_calls(history: History) -> list[Call]:
    """The calls whose job had not ended when the worker that made them was lost."""
    losses = [one for one in history.incidents if _loses(history, one)]
    jobs = defaultdict(list)
    for record in history.records:
        jobs[record.key].append((record.created_at, record.ended_at or float("inf")))
    return [
        call
        for call in history.calls
        if any(
            (one.target == call.caller or one.fault in STORE_AWAY)
            and call.began <= one.over + CLOCK_S
            and any(accepted <= call.began and ended >= one.began for accepted, ended in jobs[call.key])
            for one in losses
        )
    ]


Found = Iterator[tuple[str, str]]


def _odd(history: History) -> Found:
    for text in history.odd:
        yield "unexpected answer", text
    for one in history.incidents:
        if one.fault == "died":
            yield "process ended by itself", one.target


def _repeats(history: History) -> Found:
    by_key = defaultdict(set)
    for asked in history.asked:
        if asked.idempotency_key is not None:
            by_key[asked.idempotency_key].add(asked.uid)
    for key, uids in by_key.items():
        if len(uids) > 1:
            yield "two jobs for one Idempotency-Key", f"{key}: {', '.join(sorted(uids))}"


def _uids(history: History) -> Found:
    """Every answered uid is known and ends; what nobody was told of ends too."""
    records = {record.uid: record for record in history.records}
    answered = {asked.uid for asked in history.asked}
    unknown = {told.uid for told in history.told if told.status == 404} | (answered - records.keys())
    for uid in sorted(unknown):
        yield "unknown uid", f"{uid} was answered, and is not known"
    for record in history.records:
        if record.status == "pending":
            whose = "" if record.uid in answered else ", of which nobody was told,"
            yield "lost", f"{record.uid}{whose} has not ended"
        elif record.uid in answered and record.status != "completed":
            yield "failed without cause", f"{record.uid} is {record.status}"


def _ends(history: History) -> Found:
    """Every uid has one end, which is what was asked for, and is told the same for ever."""
    asked_for = {asked.uid: (asked.country, asked.season) for asked in history.asked}
    records = {record.uid: record for record in history.records}
    told_of = defaultdict(list)
    for told in sorted(history.told, key=lambda told: told.at):
        told_of[told.uid].append(told)
    for uid, each in told_of.items():
        ends = [told for told in each if told.ended]
        if not ends:
            continue
        first = ends[0]
        later = [told for told in each if told.asked_at > first.at and not told.ended and told.status == 200]
        for told in later:
            yield "changed after its end", f"{uid} is {told.body.get('status')} again, says {told.by}"
        for told in ends[1:]:
            if told.body != first.body:
                yield "two results", f"{uid}: {first.by} told {first.body}, {told.by} told {told.body}"
        if uid in records and (first.body.get("status"), _said(first.body)) != (
            records[uid].status,
            records[uid].recommendations,
        ):
            yield "two results", f"{uid}: {first.by} told {first.body}, the store has {records[uid]}"
        country, season = asked_for[uid]
        body = first.body
        if body.get("status") == "completed" and (
            (body.get("uid"), body.get("country"), body.get("season")) != (uid, country, season)
            or _said(body) != suggestions(0, country, season, 3)
        ):
            yield "result of another request", f"{uid} asked for {country}, {season} and was told {body}"


def _said(body: Body) -> tuple[str, ...]:
    return tuple(body.get("recommendations", ()))


def _costs(history: History) -> Found:
    """A job is claimed again only when something was lost, and no attempt is counted for what is not its fault."""
    losses = [one for one in history.incidents if _loses(history, one)]
    for record in history.records:
        until = record.ended_at or float("inf")
        lost = sum(one.over >= record.created_at and one.began <= until for one in losses)
        if record.claims > 1 + lost:
            yield "claimed without cause", f"{record.uid}: {record.claims} claims, {lost} losses in its time"
        if record.tries:
            yield "attempt counted without cause", f"{record.uid}: {record.tries} attempts that failed"


def _calls(history: History) -> Found:
    """A key is asked again only for a job whose claim was lost, and only when a call for it was in flight then."""
    wanted = _wanted(history)
    lost = Counter(call.key for call in lost_calls(history))
    claims = Counter[str]()
    for record in history.records:
        claims[record.key] += max(0, record.claims - 1)
    for key, made in Counter(call.key for call in history.calls).items():
        excused = min(lost[key], claims[key])
        if made > wanted[key] + excused:
            yield (
                "too many calls",
                f"{' '.join(key.split())}: {made} calls, {wanted[key]} needed, {lost[key]} lost in flight, "
                f"{claims[key]} claims lost",
            )


def _wanted(history: History) -> Counter[str]:
    jobs = Counter(record.key for record in history.records)
    return Counter(dict.fromkeys(jobs, 1)) if history.shared else jobs


def _loses(history: History, one: Incident) -> bool:
    """Whether leases are lost by it: their holder is gone, or could not renew them in time."""
    is_long = one.seconds > history.lease_s * 2 / 3 - MARGIN_S
    if one.fault in STORE_AWAY:
        return is_long
    if not one.target.startswith("worker"):
        return False
    if one.fault == "term":  # what could not be handed back is lost
        return any(
            other.fault in STORE_AWAY and other.began <= one.over and one.began <= other.over
            for other in history.incidents
        )
    return is_long or one.fault != "freeze-worker"
