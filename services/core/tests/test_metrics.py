"""The list of metrics, and how it is shown."""

import re

import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from travelrec import metrics, tracing

ALL = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric._name)
def test_every_metric_says_what_it_is(metric: MetricWrapperBase) -> None:
    """A name of ours, a meaning that is a sentence, and labels that name no job, request or caller."""
    assert metric._name.startswith("travelrec_")
    assert re.fullmatch(r"[A-Z][^\n]+\.", metric._documentation)
    known = {"method", "route", "status", "kind", "outcome", "reason", "at", "topic", "partition", "role"}
    assert set(metric._labelnames) <= known | {"model", "direction", "provider", "dependency"}


@pytest.mark.parametrize(
    ("parent", "found"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", {"trace_id": TRACE}),
        (f"00-{TRACE}-00f067aa0ba902b7-03", {"trace_id": TRACE}),
        (f"00-{TRACE}-00f067aa0ba902b7-00", None),
        ("00-" + "x" * 500, None),
        ("", None),
    ],
)
def test_an_exemplar_is_a_recorded_trace(parent: str, found: dict[str, str] | None) -> None:
    """What a caller sent is taken only if it is a trace context, and only if the trace is recorded."""
    assert tracing.exemplar({"traceparent": parent}) == found
    assert tracing.trace_id({"traceparent": parent}) == (TRACE if TRACE in parent else None)
    assert tracing.exemplar({}) is None


def test_a_scraper_that_asks_for_openmetrics_sees_exemplars() -> None:
    """The trace stands beside the bucket; the older text format has none."""
    metrics.WAIT_SECONDS.labels("shown").observe(0.3, {"trace_id": TRACE})
    body, content_type = metrics.exposition("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    samples = families["travelrec_job_wait_seconds"].samples
    shown = [s.exemplar for s in samples if s.labels.get("kind") == "shown" and s.exemplar]
    assert [(exemplar.labels, exemplar.value) for exemplar in shown] == [({"trace_id": TRACE}, 0.3)]
    body, content_type = metrics.exposition("")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert TRACE.encode() not in body
