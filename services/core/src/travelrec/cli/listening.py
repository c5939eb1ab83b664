"""Taking a port, or saying in one line why not."""

from __future__ import annotations

import errno
import os
import socket

from travelrec.errors import BadSetting, TravelrecError


def free_or_exit(
    host: str, port: int, port_from: str = "--port or PORT", host_from: str = "HOST or --host"
) -> socket.socket:
    """A socket that listens on `host`:`port`; raises what `not_listening` makes of it if it can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # named, or asyncio leaves Nagle's delay on
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # or another could bind it too, until one of the two listens
    except (OSError, UnicodeError) as error:
        bound.close()
        raise not_listening(error, host, port, port_from, host_from) from error
    return bound


def not_listening(
    error: OSError | UnicodeError, host: str, port: int, port_from: str, host_from: str
) -> TravelrecError:
    """What to say of a `host`:`port` that can't be listened on: `BadSetting` if no other port would help."""
    number = getattr(error, "errno", None)  # asyncio gives none when no address of several is ours
    if isinstance(error, socket.gaierror) or number in (None, errno.EADDRNOTAVAIL):
        return BadSetting(f"{host_from}: {host} is no address of this machine")
    return TravelrecError(
        f"can't listen on {host}:{port} ({os.strerror(number)}); choose another with {port_from}"
    )
