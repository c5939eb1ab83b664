"""Taking a port, or saying in one line why not."""

from __future__ import annotations

import socket

from travelrec.errors import TravelrecError


def free_or_exit(host: str, port: int, chosen_with: str = "--port or PORT") -> socket.socket:
    """A socket that listens on `host`:`port`; raises `TravelrecError` with the next step if it can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # named, or asyncio leaves Nagle's delay on
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # or another could bind it too, until one of the two listens
    except OSError as error:
        bound.close()
        raise TravelrecError(
            f"can't listen on {host}:{port} ({error.strerror}); choose another with {chosen_with}"
        ) from error
    return bound
