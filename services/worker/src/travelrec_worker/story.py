"""What is told of one message's way through a worker: its span, and the line in the log when its job has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import structlog
from opentelemetry.trace import SpanKind

from travelrec import tracing
from travelrec.job import Completed, Failed, Job, Outcome, Retry, Try
from travelrec.wire import PUBLISHED_AT, Message

log = structlog.get_logger(__name__)


class Story:
    """Entered when the message was taken. Its steps are spans below its own, and seconds in the log line."""

    def __init__(self, message: Message, uid: str, system: str, topic: str) -> None:
        self._topic = topic
        self._headers = message.headers
        self._taken_at = time.time()
        self._seconds: dict[str, float] = {}
        self._job: Job | None = None
        self._tokens = (0, 0)
        attributes = {
            "messaging.system": system,
            "messaging.destination.name": topic,
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "travelrec.uid": uid,
        }
        self.span = tracing.started(f"process {topic}", message.headers, SpanKind.CONSUMER, attributes)
        if self.span.is_recording():
            self._show_wait(attributes)

    def __enter__(self) -> Story:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            tracing.failed(self.span, kind.__name__)
        self.span.end()

    @property
    def trace(self) -> str | None:
        """The traceparent of its span, where it is recorded."""
        return tracing.carried(self.span).get("traceparent") if self.span.is_recording() else None

    @contextmanager
    def step(self, name: str) -> Iterator[str | None]:
        """One step; gives the traceparent of its span, where it is recorded."""
        began = time.monotonic()
        try:
            with tracing.span(name, self.span) as span:
                yield tracing.carried(span).get("traceparent") if span.is_recording() else None
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began

    def claimed(self, job: Job) -> None:
        """The job was won; a try after the first is linked to that one."""
        self._job = job
        if self.span.is_recording():
            self.span.set_attributes({"travelrec.kind": job.kind, "travelrec.attempt": len(job.tries) + 1})
            for first in (*job.earlier, *job.tries)[:1]:
                tracing.linked(self.span, first.trace)

    def dropped(self) -> None:
        """The message's job was finished, or leased elsewhere."""
        self.span.set_attribute("travelrec.outcome", "dropped")

    def followed(self, trace: str | None) -> None:
        """The outcome is that of another job's run, whose span is `trace`."""
        self.span.set_attribute("travelrec.coalesced", True)
        tracing.linked(self.span, trace)

    def spent(self, input_tokens: int, output_tokens: int) -> None:
        """The model's provider has counted so many tokens."""
        self._tokens = (self._tokens[0] + input_tokens, self._tokens[1] + output_tokens)

    def ended(self, outcome: Outcome | None) -> None:
        """The outcome that now stands, or None when it was not wanted any more."""
        job = self._job
        if job is None:
            return
        self.span.set_attribute("travelrec.outcome", _NAMES.get(type(outcome), "dropped"))
        match outcome:
            case Completed():
                self._tell("job finished", job, outcome="completed", attempt=len(job.tries) + 1)
            case Failed(last):
                tracing.failed(self.span, last.error)
                self._rescue(job, last)
                self._tell(
                    "job finished", job, outcome="failed", attempt=len(job.tries) + 1, error=last.error
                )
            case Retry(due_at, last) if last is not None:
                tracing.failed(self.span, last.error)
                in_s = round(due_at - time.time(), 3)
                self._tell("job waits", job, attempt=len(job.tries) + 1, error=last.error, again_in_s=in_s)
            case _:
                pass

    def _tell(self, event: str, job: Job, **more: object) -> None:
        now = time.time()
        log.info(
            event,
            uid=job.uid,
            kind=job.kind,
            **more,
            wait_s=round(self._taken_at - job.created_at, 6),
            **{f"{name}_s": round(seconds, 6) for name, seconds in self._seconds.items()},
            total_s=round(now - job.created_at, 6),
            input_tokens=self._tokens[0],
            output_tokens=self._tokens[1],
            request_id=job.headers.get("request-id"),
            trace_id=tracing.trace_id(job.headers),
        )

    def _rescue(self, job: Job, last: Try) -> None:
        attributes = {"travelrec.uid": job.uid, "travelrec.kind": job.kind, "error.type": last.error}
        events = [(each.at, each.error) for each in (*job.tries, last)]
        began_at = job.created_at
        tracing.rescued(f"failed {job.kind}", job.headers, attributes, began_at=began_at, events=events)

    def _show_wait(self, attributes: dict[str, str]) -> None:
        """The time from publish to take as a span of its own."""
        try:
            published_at = float(self._headers[PUBLISHED_AT])
        except (KeyError, ValueError):
            return
        waited = {
            **attributes,
            "messaging.operation.type": "receive",
            "messaging.operation.name": "receive",
        }
        tracing.started(
            f"receive {self._topic}", self._headers, SpanKind.CONSUMER, waited, began_at=published_at
        ).end()


_NAMES: dict[type, str] = {Completed: "completed", Failed: "failed", Retry: "retry"}
