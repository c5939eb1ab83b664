"""The messages between processes: the only module that knows their format and its version (of Avro's: `trips.codec`).

A message is JSON with a version `v`, and string headers. A job message names the job; the store has the rest.
A reader ignores what it doesn't know and refuses a newer version, so fields may be added but never change meaning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from travelrec.errors import Undecodable
from travelrec.job import Job, Status, is_uid

VERSION = 1
JOBS_TOPIC = "travelrec.jobs"
JOBS_GROUP = JOBS_TOPIC
PREDICTIONS_TOPIC = "travelrec.predictions"
JOB_TOPICS = (JOBS_TOPIC, PREDICTIONS_TOPIC)  # each is read by one group, which has its name
SIGNALS_TOPIC = "travelrec.signals"
TRIP_TOPIC = "hw.fake.tripstream"
DRIVER_TOPIC = "hw.fake.driverstream"
RIDER_TOPIC = "hw.fake.riderstream"
JOINED_TOPIC = "hw.fake.joinedstreams"
INCOMPLETE_TOPIC = f"{JOINED_TOPIC}.incomplete"
INCOMING_TOPIC = "incoming_messages"
INCOMING_GROUP = "travelrec.chat"
RESPONSES_TOPIC = "responses"
RESPONSES_GROUP = "travelrec.relay"
PUBLISHED_AT = "travelrec-published-at"  # header of a traced message: seconds since the epoch

QUEUED_S = 10.0  # when a job that was accepted or published and that nobody has claimed is looked at again


def topic_of(kind: str) -> str:
    """The topic that the messages of a kind's jobs go through: one that never waits behind another has its own."""
    return PREDICTIONS_TOPIC if kind == "prediction" else JOBS_TOPIC


def dead_letter_topic(topic: str) -> str:
    """Where copies of what can't be finished go."""
    return f"{topic}.dead-letter"


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of ours, and how long a broker that keeps what was read keeps its messages."""

    name: str
    retention_s: float
    groups: tuple[str, ...] = ()  # all that will ever read it, where they are known


TOPICS = (
    Topic(JOBS_TOPIC, 7 * 86400.0, (JOBS_TOPIC,)),
    Topic(PREDICTIONS_TOPIC, 7 * 86400.0, (PREDICTIONS_TOPIC,)),
    Topic(dead_letter_topic(JOBS_TOPIC), 30 * 86400.0),
    Topic(dead_letter_topic(PREDICTIONS_TOPIC), 30 * 86400.0),
    Topic(SIGNALS_TOPIC, 3600.0),
    *(Topic(name, 7 * 86400.0) for name in (TRIP_TOPIC, DRIVER_TOPIC, RIDER_TOPIC, JOINED_TOPIC)),
    *(Topic(name, 30 * 86400.0) for name in (INCOMPLETE_TOPIC, dead_letter_topic(JOINED_TOPIC))),
    Topic(INCOMING_TOPIC, 7 * 86400.0),
    Topic(RESPONSES_TOPIC, 7 * 86400.0),
    Topic(dead_letter_topic(INCOMING_TOPIC), 30 * 86400.0),
    Topic(dead_letter_topic(RESPONSES_TOPIC), 30 * 86400.0),
)


@dataclass(frozen=True, slots=True)
class Message:
    """What a broker carries: opaque bytes, string headers, and a key (same key, same order) or none."""

    value: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Signal:
    """A hint that job `uid` now has `status`; the store has the truth. `trace` carries the span that says so."""

    uid: str
    status: Status
    trace: str | None = None


def encode_job(job: Job, span: Mapping[str, str] | None = None) -> Message:
    """The message that dispatches `job`, with its headers, or those of them that carry another `span` instead."""
    value = b'{"v":1,"uid":"%s","kind":"%s"}' % (job.uid.encode(), job.kind.encode())
    return Message(value, {**job.headers, **span} if span else job.headers)


def decode_job(message: Message) -> str:
    """The uid a job message names; raises `Undecodable`."""
    uid = decoded(message.value).get("uid")
    if not isinstance(uid, str) or not is_uid(uid):
        raise Undecodable("a job message without a uid")
    return uid


def encode_dead_letter(job: Job) -> Message:
    """A copy of a failed `job`: what was asked, every attempt and its reason."""
    body = {
        "v": VERSION,
        "uid": job.uid,
        "kind": job.kind,
        "params": dict(job.params),
        "created_at": job.created_at,
        "error": job.error,
        "message": job.message,
        "tries": [
            {"at": t.at, "error": t.error, "message": t.message} | ({"trace": t.trace} if t.trace else {})
            for t in job.tries
        ],
    }
    return Message(json.dumps(body, ensure_ascii=False).encode(), job.headers)


def encode_signals(signals: Sequence[Signal]) -> bytes:
    """Many signals in one message."""
    body: dict[str, object] = {"v": VERSION, "ended": [[s.uid, s.status.value] for s in signals]}
    if traces := {s.uid: s.trace for s in signals if s.trace is not None}:
        body["traces"] = traces
    return json.dumps(body).encode()


def decode_signals(value: bytes) -> list[Signal]:
    """The signals of one message; raises `Undecodable`."""
    body = decoded(value)
    ended, traces = body.get("ended"), body.get("traces", {})
    if not isinstance(ended, list) or not isinstance(traces, dict):
        raise Undecodable("a signal message without a list")
    try:
        return [Signal(str(uid), Status(status), traces.get(uid)) for uid, status in ended]
    except (TypeError, ValueError) as error:
        raise Undecodable(f"a signal message in another shape: {error}") from error


def decoded(value: bytes) -> dict[str, object]:
    """The JSON object of a message in our version; raises `Undecodable`."""
    try:
        body = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Undecodable("not JSON") from error
    if not isinstance(body, dict):
        raise Undecodable("not a JSON object")
    version = body.get("v")
    if version != VERSION:
        raise Undecodable(f"version {version!r:.40}; this release reads {VERSION}")
    return body
