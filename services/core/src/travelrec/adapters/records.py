"""A job as a flat record of JSON values, and back: what SQLite and MongoDB keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any  # a record's values are whatever the database hands back

from travelrec.job import Job, Phase, Status, Try

Record = dict[str, Any]


def try_to_record(t: Try) -> Record:
    """One attempt."""
    record = {"at": t.at, "error": t.error, "message": t.message}
    return record if t.trace is None else {**record, "trace": t.trace}


def _tries(records: Sequence[Mapping[str, Any]]) -> tuple[Try, ...]:
    return tuple(Try(t["at"], t["error"], t["message"], t.get("trace")) for t in records)


def to_record(job: Job) -> Record:
    """Every field of `job` except its uid, leaving out those that are None."""
    record: Record = {
        "kind": job.kind,
        "params": dict(job.params),
        "created_at": job.created_at,
        "status": job.status.value,
        "phase": job.phase.value if job.phase else None,
        "due_at": job.due_at,
        "sent_at": job.sent_at,
        "token": job.token,
        "worker": job.worker,
        "claims": job.claims,
        "tries": [try_to_record(t) for t in job.tries],
        "earlier": [try_to_record(t) for t in job.earlier] or None,
        "result": dict(job.result) if job.result is not None else None,
        "trace": job.trace,
        "error": job.error,
        "message": job.message,
        "ended_at": job.ended_at,
        "idempotency_key": job.idempotency_key,
        "headers": dict(job.headers),
    }
    return {name: value for name, value in record.items() if value is not None}


def from_record(uid: str, record: Mapping[str, Any]) -> Job:
    """The job that `to_record` wrote."""
    phase = record.get("phase")
    return Job(
        uid=uid,
        kind=record["kind"],
        params=record["params"],
        created_at=record["created_at"],
        status=Status(record["status"]),
        phase=Phase(phase) if phase else None,
        due_at=record["due_at"],
        sent_at=record.get("sent_at"),
        token=record.get("token"),
        worker=record.get("worker"),
        claims=record["claims"],
        tries=_tries(record.get("tries", ())),
        earlier=_tries(record.get("earlier", ())),
        result=record.get("result"),
        trace=record.get("trace"),
        error=record.get("error"),
        message=record.get("message"),
        ended_at=record.get("ended_at"),
        idempotency_key=record.get("idempotency_key"),
        headers=record["headers"],
    )
