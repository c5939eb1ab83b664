"""Names and ports that no other test, and no other test session on this machine, has."""

import fcntl
import os
import random
import secrets
import socket
import tempfile
from pathlib import Path

# Below the range from which the kernel picks ports for outgoing connections (32768 and up on Linux).
CANDIDATES = range(20_000, 32_000)
_reserved: dict[int, int] = {}  # port → the descriptor that holds its lock; the kernel drops it when we die
_random = random.SystemRandom()  # pytest-randomly reseeds the shared generator before each test


def free_port() -> int:
    """Reserve a port of 127.0.0.1 for this process, also against other test sessions that ask here."""
    folder = Path(tempfile.gettempdir()) / f"travelrec-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for _ in range(1000):
        port = _random.choice(CANDIDATES)
        if port in _reserved:
            continue
        lock = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _reserved[port] = lock
        return port
    raise RuntimeError("no free port after 1000 tries")


def release_port(port: int) -> None:
    """Give a reserved port back; releasing twice does nothing."""
    lock = _reserved.pop(port, None)
    if lock is not None:
        os.close(lock)


def unique_name(prefix: str = "test") -> str:
    """Return a name for a topic, a group or a database on a shared server."""
    return f"{prefix}-{secrets.token_hex(6)}"
