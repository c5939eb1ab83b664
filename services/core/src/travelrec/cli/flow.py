"""The flow of work between two scrapes of some processes, as a table: accept, wait, run, ask, end, tell."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from travelrec.cli.addresses import shown
from travelrec.cli.samples import Samples

_BREAKERS = ("closed", "probing", "open")
_ACCEPT = {"method": "POST", "route": "/recommendations"}


@dataclass(frozen=True, slots=True)
class Flow:
    """What processes, by URL, said `seconds` apart; None: no answer."""

    before: Mapping[str, Samples | None]
    now: Mapping[str, Samples | None]
    seconds: float

    def rate(self, name: str, **labels: str) -> float:
        """How much a counter has grown a second, over all processes; one that began again has grown from 0."""
        grown = 0.0
        for url, samples in self.now.items():
            earlier = self.before.get(url)
            if samples is not None and earlier is not None:
                then, now = earlier.total(name, **labels), samples.total(name, **labels)
                grown += now - then if now >= then else now
        return grown / self.seconds

    def total(self, name: str, **labels: str) -> float:
        """The sum of a gauge over the processes."""
        return sum(samples.total(name, **labels) for samples in self.now.values() if samples is not None)

    def most(self, name: str, **labels: str) -> float:
        """The greatest of the sums of a gauge over the processes: what all of them see alike."""
        return max((s.total(name, **labels) for s in self.now.values() if s is not None), default=0.0)

    def quantile(self, q: float, name: str, **labels: str) -> float:
        """Below which so large a share of what a histogram has seen in between is; NaN when that is nothing."""
        seen: defaultdict[float, float] = defaultdict(float)
        for url, samples in self.now.items():
            for sign, one in ((1.0, samples), (-1.0, self.before.get(url))):
                if samples is not None and self.before.get(url) is not None and one is not None:
                    for has, value in one.of(f"{name}_bucket", **labels):
                        seen[float(has["le"])] += sign * value
        bounds = sorted(seen)
        if not bounds or seen[bounds[-1]] <= 0:
            return math.nan
        wanted, below, lower = q * seen[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            if seen[bound] >= wanted:
                inside = seen[bound] - below
                return lower if math.isinf(bound) else lower + (bound - lower) * (wanted - below) / inside
            below, lower = seen[bound], bound
        return lower

    def shown(self) -> Group:
        """One frame."""
        flow = Table(box=None, pad_edge=False, show_header=False)
        flow.add_column(style="bold", no_wrap=True)
        flow.add_column(justify="right", no_wrap=True)
        flow.add_column(overflow="fold")
        for step, number, detail in (
            self._accept(),
            self._wait(),
            self._run(),
            self._ask(),
            self._end(),
            self._tell(),
        ):
            flow.add_row(step, number, detail)
        return Group(flow, Text(), self._processes())

    def _accept(self) -> tuple[str, str, str]:
        refused = self._refused()
        return (
            "accept",
            _per_s(self.rate("travelrec_jobs_accepted_total")),
            f"p95 {_span(self.quantile(0.95, 'travelrec_accept_seconds'))}"
            f" · refused through our fault {_per_s(refused)}"
            f" · left to the sweeper {_per_s(self.rate('travelrec_publish_failed_total'))}",
        )

    def _refused(self) -> float:
        statuses = {
            labels["status"]
            for samples in self.now.values()
            if samples is not None
            for labels, _ in samples.of("travelrec_http_requests_total", **_ACCEPT)
            if labels["status"].startswith("5")
        }
        return sum(
            self.rate("travelrec_http_requests_total", **_ACCEPT, status=status) for status in statuses
        )

    def _wait(self) -> tuple[str, str, str]:
        return (
            "wait",
            f"{self.most('travelrec_jobs_waiting'):,.0f}",
            f"oldest {_span(self.most('travelrec_oldest_waiting_seconds'))}"
            f" · not taken {self.most('travelrec_consumer_lag'):,.0f}"
            f" · p95 in the queue {_span(self.quantile(0.95, 'travelrec_job_wait_seconds'))}"
            f" · swept {_per_s(self.rate('travelrec_sweeper_published_total'))}",
        )

    def _run(self) -> tuple[str, str, str]:
        return (
            "run",
            f"{self.total('travelrec_jobs_in_flight'):,.0f}",
            f"claimed {_per_s(self.rate('travelrec_jobs_claimed_total'))}"
            f" · coalesced {_per_s(self.rate('travelrec_jobs_followed_total'))}"
            f" · cached {_per_s(self.rate('travelrec_cache_hits_total'))}"
            f" · tried again {_per_s(self.rate('travelrec_jobs_retried_total'))}",
        )

    def _ask(self) -> tuple[str, str, str]:
        breaker = min(int(self.most("travelrec_model_breaker", provider="primary")), len(_BREAKERS) - 1)
        return (
            "ask",
            _per_s(self.rate("travelrec_model_calls_total")),
            f"p95 {_span(self.quantile(0.95, 'travelrec_model_call_seconds'))} · breaker {_BREAKERS[breaker]}"
            f" · allowed at once {self.total('travelrec_model_concurrency_allowed', provider='primary'):,.0f}"
            f" · ${3600 * self.rate('travelrec_model_cost_dollars_total'):,.2f} an hour",
        )

    def _end(self) -> tuple[str, str, str]:
        ended = "travelrec_jobs_finished_total"
        return (
            "end",
            _per_s(self.rate(ended)),
            f"completed {_per_s(self.rate(ended, outcome='completed'))}"
            f" · failed {_per_s(self.rate(ended, outcome='failed'))}"
            f" · cancelled {_per_s(self.rate(ended, outcome='cancelled'))}"
            f" · p95 from request to result {_span(self.quantile(0.95, 'travelrec_job_seconds'))}",
        )

    def _tell(self) -> tuple[str, str, str]:
        return (
            "tell",
            f"{self.total('travelrec_waiters'):,.0f}",
            f"long polls {self.total('travelrec_long_polls'):,.0f}"
            f" · event streams {self.total('travelrec_event_streams'):,.0f}"
            f" · signals {_per_s(self.rate('travelrec_signals_sent_total'))}"
            f" · late {_per_s(self.rate('travelrec_signals_late_total'))}",
        )

    def _processes(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for url, samples in self.now.items():
            if samples is None:
                table.add_row(escape(shown(url)), "[red]no answer[/red]")
                continue
            away = [labels["dependency"] for labels, up in samples.of("travelrec_dependency_up") if not up]
            missing = escape(", ".join(away))
            state = f"[red]does not reach {missing}[/red]" if away else "[green]answers[/green]"
            table.add_row(escape(shown(url)), state)
        return table


def _per_s(value: float) -> str:
    return f"{value:,.1f}/s"


def _span(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"  # noqa: PLR2004 - where minutes read better
