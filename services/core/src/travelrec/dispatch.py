"""Publish: the messages of jobs, each in a span of its job's trace."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from opentelemetry.trace import Span, SpanKind

from travelrec import tracing
from travelrec.job import Job
from travelrec.ports import Broker
from travelrec.wire import PUBLISHED_AT, encode_job, topic_of


async def dispatch(broker: Broker, jobs: Sequence[Job]) -> None:
    """Returns when the messages of `jobs` are durable in the broker; raises `BrokerUnavailable` if one may not be."""
    by_topic: defaultdict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_topic[topic_of(job.kind)].append(job)
    for topic, some in by_topic.items():
        await _publish(broker, topic, some)


async def _publish(broker: Broker, topic: str, jobs: Sequence[Job]) -> None:
    if not any(tracing.sampled(job.headers) for job in jobs):
        await broker.publish(topic, [encode_job(job) for job in jobs])
        return
    spans = [
        tracing.started(f"publish {topic}", job.headers, SpanKind.PRODUCER, _attributes(broker, topic, job))
        for job in jobs
    ]
    try:
        await broker.publish(
            topic, [encode_job(job, _carried(span)) for job, span in zip(jobs, spans, strict=True)]
        )
    except BaseException as error:
        for span in spans:
            tracing.failed(span, type(error).__name__)
        raise
    finally:
        for span in spans:
            span.end()


def _attributes(broker: Broker, topic: str, job: Job) -> Mapping[str, str]:
    return {
        "messaging.system": broker.system,
        "messaging.destination.name": topic,
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "travelrec.uid": job.uid,
        "travelrec.kind": job.kind,
    }


def _carried(span: Span) -> dict[str, str]:
    """With the time, so that its reader can show how long the message waited."""
    if not span.is_recording():
        return {}
    return {**tracing.carried(span), PUBLISHED_AT: f"{time.time():.6f}"}
