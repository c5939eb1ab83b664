"""The command `travelrec chaos`, which a checkout adds to the command line."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from chaos.schedule import FAULTS, parse

NAMED = "; ".join(f"{name} ({fault.title})" for name, fault in FAULTS.items())


def chaos(
    broker: Annotated[
        Literal["kafka", "rabbitmq"], typer.Option(help="What the jobs' messages go through.")
    ] = "kafka",
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
            f"`all`, `none`, or of: {NAMED}.",
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
    keep: Annotated[
        Path | None,
        typer.Option(help="A folder for the history and what each process said, to look into a violation."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> int:
    """Runs a real deployment on its broker and MongoDB under load and faults, and checks what came of every request.

    Exits with 1 if anything was lost, done twice, mixed up or paid for without cause. It takes the servers that
    `task servers` installs.
    """
    import uvloop

    from chaos.report import Shown, lines
    from chaos.run import Plan, run
    from support import NotInstalledError

    try:
        plan = Plan(
            broker=broker,
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
            keep=keep,
        )
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    with Shown(plan) as shown:
        try:
            report = uvloop.run(run(plan, shown.say, shown.show))
        except NotInstalledError as problem:
            raise typer.BadParameter(str(problem)) from problem
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        print("\n".join(lines(report)))
    return 1 if report.violations else 0


def _setting(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise ValueError(f"{text!r} is no NAME=VALUE")
    return name, value
