"""`travelrec doctor`: what is wrong, and which command comes next."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from travelrec.cli.addresses import http_url
from travelrec.cli.diagnosis import Finding, State, diagnosed
from travelrec.settings import read_settings

_MARKS = {State.FINE: "[green]✓[/green]", State.NOTICE: "[yellow]![/yellow]", State.TROUBLE: "[red]✗[/red]"}


def doctor(
    url: Annotated[
        list[str] | None, typer.Option(help="Also ask the API or worker there; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Looks at store, broker, signals, provider and what waits; exits 0 when all is fine, 1 when there is trouble."""
    settings = read_settings()
    urls = [http_url(one) for one in url or ()]
    logging.disable()  # what libraries complain of is said here in plain words
    findings = asyncio.run(diagnosed(settings, urls))
    troubled = [finding.part for finding in findings if finding.state is State.TROUBLE]
    if as_json:
        print(json.dumps({"ok": not troubled, "findings": [asdict(f) for f in findings]}, ensure_ascii=False))  # noqa: T201 - this is the command line
    else:
        _show(findings, troubled)
    raise typer.Exit(1 if troubled else 0)


def _show(findings: list[Finding], troubled: list[str]) -> None:
    console = Console()
    width = max(len(finding.part) for finding in findings)
    for finding in findings:
        said = escape(f"{finding.part:{width}}  {finding.says}")
        console.print(f"{_MARKS[finding.state]} {said}", highlight=False, soft_wrap=True)
        if finding.next is not None:
            console.print(f"  {'':{width}}  → {escape(finding.next)}", highlight=False, soft_wrap=True)
    verdict = f"Trouble with: {', '.join(dict.fromkeys(troubled))}." if troubled else "All is fine."
    console.print(escape(verdict), style="bold", highlight=False, soft_wrap=True)
