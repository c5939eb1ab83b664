"""The command `travelrec`; heavy imports wait until a command needs them."""

from __future__ import annotations

import sys

import typer

from travelrec.cli.ask import ask
from travelrec.cli.embedded import demo, serve
from travelrec.cli.fake_openai import fake_openai
from travelrec.cli.processes import api, worker
from travelrec.errors import BadSetting, TravelrecError

app = typer.Typer(
    name="travelrec",
    help="Slow, flaky, paid-for model calls behind an API that answers at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(serve)
app.command()(api)
app.command()(worker)
app.command()(ask)
app.command("fake-openai")(fake_openai)


def main() -> None:
    """Runs the command; what goes wrong on purpose is one line on stderr: exit code 2 for bad usage, else 1."""
    try:
        app()
    except BadSetting as error:
        print(f"travelrec: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(2) from None
    except TravelrecError as error:
        print(f"travelrec: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(1) from None
