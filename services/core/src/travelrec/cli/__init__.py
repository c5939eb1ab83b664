"""The command `travelrec`; heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer
from typer.exceptions import TyperException

from travelrec.cli import chat, dead_letters, trips
from travelrec.cli.ask import ask
from travelrec.cli.doctor import doctor
from travelrec.cli.embedded import demo, serve
from travelrec.cli.fake_openai import fake_openai
from travelrec.cli.fake_tasks import fake_tasks
from travelrec.cli.processes import api, worker
from travelrec.cli.top import top
from travelrec.cli.topics import topics
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
app.command()(doctor)
app.command()(top)
app.command()(topics)
app.command("fake-openai")(fake_openai)
app.command("fake-tasks")(fake_tasks)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(trips.app, name="trips")
app.add_typer(chat.app, name="chat")
for command in entry_points(group="travelrec.commands"):  # in a checkout, those of its tests
    app.command(command.name)(command.load())


def main() -> None:
    """Runs the command; what goes wrong on purpose is one line on stderr: exit code 2 for bad usage, else 1."""
    try:
        code = _run()
    except TyperException as error:
        if said := " ".join(error.format_message().split()):
            command = getattr(getattr(error, "ctx", None), "command_path", app.info.name)
            print(f"travelrec: {said.rstrip('.')}; see `{command} --help`", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(error.exit_code) from None
    except BadSetting as error:
        print(f"travelrec: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(2) from None
    except TravelrecError as error:
        print(f"travelrec: {error}", file=sys.stderr)  # noqa: T201 - this is the command line
        raise SystemExit(1) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _run() -> object:
    """The command's own exit code, if it has one; an error of a single task comes out of its task group."""
    try:
        return app(standalone_mode=False)
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
