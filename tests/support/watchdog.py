"""Outlives a test process that was killed, to end the processes and remove the folders it left behind.

Reads lines from the test process: "process PGID", "ended PGID", "folder PATH", "removed PATH". The end of
its input means that the test process is gone, however it went.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import ClassVar


class Watchdog:
    """The test process's side: started with the first process, told of every one that follows."""

    _dogs: ClassVar[dict[int, subprocess.Popen[str]]] = {}

    @classmethod
    def tell(cls, event: str, subject: int | str | Path) -> None:
        """Pass one line on; the watchdog is started when there is none (also anew after a fork)."""
        dog = cls._dogs.get(os.getpid())
        if dog is None:
            dog = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal must not end it before us
                text=True,
            )
            cls._dogs[os.getpid()] = dog
            atexit.register(cls.dismiss)
        assert dog.stdin is not None
        dog.stdin.write(f"{event} {subject}\n")
        dog.stdin.flush()

    @classmethod
    def dismiss(cls) -> None:
        """Let it go at the end of this process; what is still on its list, it ends."""
        dog = cls._dogs.pop(os.getpid(), None)
        if dog is not None and dog.stdin is not None:
            dog.stdin.close()
            dog.wait(timeout=10)


def main() -> None:
    """Keep the list; when the input ends, end what is still on it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    groups: set[int] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        event, _, subject = line.rstrip("\n").partition(" ")
        match event:
            case "process":
                groups.add(int(subject))
            case "ended":
                groups.discard(int(subject))
            case "folder":
                folders.add(subject)
            case "removed":
                folders.discard(subject)
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
