"""One process started by a test: clean environment, output in a file, its whole group ended with it."""

import asyncio
import http.client
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import psutil

from support.waiting import eventually, until
from support.watchdog import Watchdog

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "JAVA_HOME", "VIRTUAL_ENV", "USER", "LOGNAME")
SHOWN_LINES = 60


class ProcessError(AssertionError):
    """A process ended, or did not do in time what was waited for; the message ends with its last output."""


def make_folder(name: str) -> Path:
    """Make a temporary folder that is removed even when the test process is killed."""
    folder = Path(tempfile.mkdtemp(prefix=f"travelrec-{name}-"))
    Watchdog.tell("folder", folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a folder of `make_folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    Watchdog.tell("removed", folder)


class Process:
    """A command that runs in a group of its own, in a folder of its own unless `cwd` names another.

    Of this process's environment only a handful of neutral variables reach the command, so no key, address
    or .env file of the developer leaks into a test; `env` adds to it. As a context manager (plain or async)
    it starts, and always ends the process and all its children; an exception that passes through carries
    the last lines of output as a note, which pytest shows.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str | None = None,
    ) -> None:
        self.command = [str(part) for part in command]
        self.name = name or Path(self.command[0]).name
        self.env = {key: os.environ[key] for key in INHERITED if key in os.environ}
        self.env |= {"PYTHONUNBUFFERED": "1", **(env or {})}
        self._cwd = cwd
        self._folder: Path | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._begin = 0  # where in the output file the latest start begins
        self._kept_output = ""  # the output, once the folder is gone

    # --- start and end -------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the command; a process that has ended may be started again, its output goes on."""
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        if self._popen is not None:
            self._bury()
        if self._folder is None:
            self._folder = make_folder(re.sub(r"\W+", "-", self.name))
        with self._output_file.open("ab") as output:
            self._begin = output.tell()
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=self._cwd or self._folder,
                start_new_session=True,
            )
        Watchdog.tell("process", self._popen.pid)
        return self

    def terminate(self) -> None:
        """Send SIGTERM to the process itself, as a supervisor does; `wait` for what comes of it."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the process and its children, and wait until it is gone."""
        if self._popen is not None:
            self._signal_group(signal.SIGKILL)
            self._popen.wait(timeout=30)
            self._bury()

    def freeze(self) -> None:
        """SIGSTOP the process and its children, and wait until all stand still; connections stay open."""
        self._signal_group(signal.SIGSTOP)
        until(self._stands_still, timeout_s=5)

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        self._signal_group(signal.SIGCONT)

    def signal(self, number: int) -> None:
        """Send a signal to the process itself, not to its children."""
        if not self.alive:
            raise ProcessError(self.story("is not running"))
        assert self._popen is not None
        self._popen.send_signal(number)

    def end(self, timeout_s: float = 15.0) -> None:
        """End it in order, with force after `timeout_s`. Blocks; does nothing when it is over already."""
        if self.alive:
            assert self._popen is not None
            self.thaw()
            self._popen.terminate()
            until(lambda: not self.alive, timeout_s)
        self.kill()

    def close(self) -> None:
        """End it and remove its folder; `output` still works."""
        self.end()
        if self._folder is not None:
            self._kept_output = self.output()
            remove_folder(self._folder)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if error is not None and not isinstance(error, ProcessError):
            error.add_note(self.story("last said"))

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)
        if error is not None and not isinstance(error, ProcessError):
            error.add_note(self.story("last said"))

    # --- what it is and says -------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process's id; it leads the process group of the same number."""
        if self._popen is None:
            raise ProcessError(f"{self.name} was never started")
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or is frozen)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status; negative for a signal; None while it runs."""
        return None if self._popen is None else self._popen.poll()

    def output(self) -> str:
        """Everything it wrote to stdout and stderr, over all its starts."""
        if self._folder is None:
            return self._kept_output
        return self._output_file.read_text(errors="replace")

    def lines(self, pattern: str = "") -> list[str]:
        """The lines since its latest start in which the pattern is found."""
        said = self._kept_output.encode() if self._folder is None else self._output_file.read_bytes()
        said_now = said[self._begin :].decode(errors="replace")
        return [line for line in said_now.splitlines() if re.search(pattern, line)]

    # --- waiting -------------------------------------------------------------------------------------

    async def wait_for_line(self, pattern: str, timeout_s: float = 30.0) -> re.Match[str]:
        """Return the match of the first line, since the latest start, in which the pattern is found."""

        def found() -> re.Match[str] | None:
            alive = self.alive  # asked first: what a process said before its end counts
            for line in self.lines(pattern):
                return re.search(pattern, line)
            if not alive:
                raise _OverError
            return None

        return await self._eventually(found, timeout_s, f"a line like {pattern!r}")

    async def wait_for_http(self, url: str, status: int = 200, timeout_s: float = 30.0) -> None:
        """Wait until a GET of the URL is answered with the status."""

        async def answered() -> bool:
            if not self.alive:
                raise _OverError
            seen = await asyncio.to_thread(get_status, url)
            assert seen == status, f"answered {seen}"
            return True

        await self._eventually(answered, timeout_s, f"{url} to answer {status}")

    async def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end of the process and return its exit status."""
        await self._eventually(lambda: not self.alive, timeout_s, "its end")
        assert self.returncode is not None
        return self.returncode

    async def _eventually(self, condition, timeout_s, what):
        try:
            return await eventually(condition, timeout_s, what)
        except _OverError:
            raise ProcessError(self.story(f"ended with {self.returncode} before {what}")) from None
        except AssertionError as late:
            raise ProcessError(self.story(str(late))) from None

    # --- inside --------------------------------------------------------------------------------------

    @property
    def _output_file(self) -> Path:
        assert self._folder is not None, f"{self.name} was never started"
        return self._folder / "output.txt"

    def _signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _stands_still(self) -> bool:
        """Whether no thread of the process itself runs; a busy one takes a moment to stop."""
        try:
            threads = [psutil.Process(thread.id) for thread in psutil.Process(self.pid).threads()]
            return all(thread.status() == psutil.STATUS_STOPPED for thread in threads)
        except psutil.Error:  # a thread ended meanwhile, or threads have no entries of their own (macOS)
            return not self.alive or psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def _bury(self) -> None:
        """End what children are left of a process that is over; its number may be given to others then."""
        self._signal_group(signal.SIGKILL)
        Watchdog.tell("ended", self.pid)

    def story(self, what: str) -> str:
        """What happened, followed by the last lines of output; for the messages of errors."""
        last = self.output().splitlines()[-SHOWN_LINES:] if self._folder or self._kept_output else []
        return "\n".join([f"{self.name} {what}", f"--- its last output ({len(last)} lines) ---", *last])


class _OverError(Exception):
    """The process ended while something was waited for."""


def get_status(url: str) -> int | None:
    """The status of one GET, None when nobody answers in HTTP within two seconds."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=2)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
