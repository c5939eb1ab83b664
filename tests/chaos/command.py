"""The command `travelrec chaos`, which a checkout adds to the command line."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from chaos.run import Plan, Report

SHOWN = 5  # violations of each name


def chaos(
    jobs: Annotated[int, typer.Option(min=1, help="How many requests have to be answered.")] = 1000,
    clients: Annotated[int, typer.Option(min=1, help="How many ask at a time.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 3,
    apis: Annotated[int, typer.Option(min=1, help="API processes.")] = 2,
    latency: Annotated[float, typer.Option(min=0, help="Seconds of a model call.")] = 0.3,
    faults: Annotated[
        str,
        typer.Option(
            metavar="NAME[:SECONDS][@AT],…",
            help="What goes wrong: each with @AT once, so many seconds after the start, the others in a random turn. "
            "`all`, `none`, or of: kill, kill-worker, kill-api, term, freeze-worker, rebalance, broker-kill, "
            "broker-restart, broker-freeze, broker-cut, broker-slow, broker-hang, store-kill, store-restart, "
            "store-freeze, store-cut, store-slow, store-hang.",
        ),
    ] = "all",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two faults without @AT.")] = 5.0,
    seconds: Annotated[
        float, typer.Option(min=0, help="Spread the requests over so long; 0: as fast as they are answered.")
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of faults and clients; default: another one.")] = None,
    zipf: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            metavar="KEYS",
            help="Ask for so many keys, the n-th as often as 1/n, and reuse answers; "
            "default: no two unfinished jobs are of one key, and no answer is reused.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of APIs and workers; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Runs a real deployment on Kafka and MongoDB under load and faults, and checks what came of every request.

    Exits with 1 if anything was lost, done twice, mixed up or paid for without cause. It takes the servers that
    `task servers` installs.
    """
    import uvloop

    from chaos.run import Plan, run
    from chaos.schedule import parse
    from support import NotInstalledError

    try:
        plan = Plan(
            jobs=jobs,
            clients=clients,
            workers=workers,
            apis=apis,
            latency_s=latency,
            faults=parse(faults),
            every_s=every,
            seconds=seconds,
            seed=random.SystemRandom().randrange(1_000_000) if seed is None else seed,
            zipf=zipf,
            settings=dict(_setting(text) for text in settings or ()),
        )
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    with _Shown(plan) as shown:
        try:
            report = uvloop.run(run(plan, shown.say, shown.show))
        except NotInstalledError as problem:
            raise typer.BadParameter(str(problem)) from problem
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print("\n".join(lines(report)))
    return 1 if report.violations else 0


def lines(report: "Report") -> Iterator[str]:
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


class _Shown:
    """What is going on, on stderr: a bar on a terminal, and a line for each fault."""

    def __init__(self, plan: "Plan") -> None:
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


def _setting(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{text!r} is no NAME=VALUE")
    return name, value
