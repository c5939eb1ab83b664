"""What is said of a run, while it goes on and in the end."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from chaos.run import Plan, Report

SHOWN = 5  # violations of each name


def lines(report: Report) -> Iterator[str]:
    """The report for a reader."""
    jobs, clients = report.jobs, Counter(report.clients)
    answered = clients["answered"]
    yield (
        f"seed {report.seed}: {answered:,} requests answered in {report.load_s:.1f} s "
        f"({clients['refused']:,} refused with 503, {clients['broken off']:,} broken off)"
    )
    yield f"faults: {_counted(report.faults) or 'none'}"
    yield (
        f"jobs: {_counted(jobs)}; {clients['ended']:,} of {answered:,} answered ones ended, the last "
        f"{report.calm_s:.1f} s after load and faults; {report.claimed_again:,} claimed again"
    )
    yield (
        f"model calls: {report.calls:,} for {sum(jobs.values()):,} jobs of {report.keys:,} keys; "
        f"{report.repeated:,} repeated, {report.lost_in_flight:,} were in flight when their worker was lost"
    )
    for name, count in Counter(violation.name for violation in report.violations).items():
        yield f"VIOLATION: {name}, {count} times, such as:"
        yield from [f"  {each.text}" for each in report.violations if each.name == name][:SHOWN]
    if not report.violations:
        yield "no violation: nothing lost, nothing done twice, nothing mixed up, nothing paid for without cause"


class Shown:
    """What is going on, on stderr: a bar on a terminal, and a line for each fault."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts = Counter[str]()
        self._progress = Progress(
            BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)
        )
        self._bar = self._progress.add_task("starting", total=plan.jobs)

    def __enter__(self) -> Self:
        self._progress.start()
        load = f"{self._plan.jobs:,} requests by {self._plan.clients:,} clients"
        self._print(f"seed {self._plan.seed}: {load}, {self._plan.workers} workers, {self._plan.apis} APIs")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._print(f"{text}  [{self._told()}]")

    def show(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._progress.update(self._bar, completed=counts["ended"], description=self._told())

    def _told(self) -> str:
        return f"{self._counts['answered']:,} answered, {self._counts['ended']:,} ended"

    def _print(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))
