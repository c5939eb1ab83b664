"""`travelrec chat`: tokens for users, and a talk in the terminal."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

import typer

from travelrec.chat.message import is_userid
from travelrec.chat.tokens import signed_token
from travelrec.cli.talk import Talk
from travelrec.errors import BadSetting
from travelrec.settings import read_settings

app = typer.Typer(help="Chat: talk, or a token for a user.", no_args_is_help=True)


@app.callback()
def chat() -> None:
    """Commands that concern the chat."""


@app.command()
def token(
    userid: Annotated[str, typer.Argument(help="Who may speak with it: 1 to 64 of A-Z, a-z, 0-9, . _ -")],
    hours: Annotated[float, typer.Option(help="How long it is good for.", min=0.001, max=87_600)] = 24.0,
) -> None:
    """Prints a token that CHAT_TOKEN_SECRET signs, for `/ws` and for the history."""
    if not is_userid(userid):
        raise BadSetting("USERID: use 1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen")
    settings = read_settings()
    if settings.chat_token_secret is None:
        raise BadSetting("CHAT_TOKEN_SECRET: is not set, so nothing is checked: any token will do")
    typer.echo(signed_token(settings.chat_token_secret.get_secret_value(), userid, hours * 3600.0))


@app.command()
def talk(
    userid: Annotated[str, typer.Argument(help="Who speaks: 1 to 64 of A-Z, a-z, 0-9, . _ -")],
    token: Annotated[
        str, typer.Option(help="Any, where CHAT_TOKEN_SECRET is not set.", envvar="CHAT_TOKEN")
    ] = "any",  # noqa: S107 - what is taken where nothing is checked
    url: Annotated[
        str, typer.Option(help="Where the API is.", envvar="TRAVELREC_URL")
    ] = "http://localhost:3000",
) -> int:
    """Says each line of the input and shows the answer, over lost connections too."""
    if not is_userid(userid):
        raise BadSetting("USERID: use 1 to 64 of A-Z, a-z, 0-9, dot, underscore and hyphen")
    with suppress(KeyboardInterrupt):
        asyncio.run(Talk(url, userid, token).run())
        return 0
    return 130
