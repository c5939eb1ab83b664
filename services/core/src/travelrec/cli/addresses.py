"""The addresses that a user gives: which can be one, and how they are shown."""

from __future__ import annotations

from travelrec.errors import BadSetting
from travelrec.settings import refuse_bad_servers


def http_url(url: str) -> str:
    """The address of a process as a user gives it; raises `BadSetting` if it can't be one."""
    if url.startswith(("ws://", "wss://")):  # as chats have it
        url = f"http{url.removeprefix('ws')}"
    try:
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError("it is not http")
        refuse_bad_servers(url)
    except ValueError as error:
        raise BadSetting(f"--url: use http://host:port, not {shown(url)[:60]!r}; {error}") from None
    return url.rstrip("/")


def shown(url: str) -> str:
    """A URL without what may be secret in it."""
    scheme, found, rest = url.partition("://")
    if not found:
        scheme, rest = "", url
    return f"{scheme}{found}{rest.rpartition('@')[2].partition('?')[0]}"
