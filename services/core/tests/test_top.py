"""`travelrec top`: the flow between two scrapes, one frame, and the live view on a terminal."""

import asyncio
import math
import os
import pty
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from support import Process, eventually, free_port
from support.api import running_api
from travelrec.cli.flow import Flow
from travelrec.cli.samples import Samples
from travelrec.fake_openai import FakeSettings

TRAVELREC = Path(sys.executable).with_name("travelrec")
ENDED = "travelrec_jobs_finished_total"


def counted(value: float, outcome: str = "completed") -> Samples:
    return Samples(((ENDED, {"kind": "recommendation", "outcome": outcome}, value),))


def histogram(**counts: float) -> Samples:
    """Cumulative counts by upper bound, written as `le_1`, `le_inf`."""
    bounds = {name.removeprefix("le_"): value for name, value in counts.items()}
    return Samples(
        tuple(("x_bucket", {"le": "+Inf" if b == "inf" else b}, value) for b, value in bounds.items())
    )


def test_rates_are_of_all_processes_together() -> None:
    """A counter that began again has grown from 0, and a process that is new or gone is not counted."""
    before = {"a": counted(100), "b": counted(50), "c": None, "d": counted(7)}
    now = {"a": counted(120), "b": counted(4), "c": counted(1000), "d": None}
    flow = Flow(before, now, 2.0)
    assert flow.rate(ENDED) == 12.0
    assert flow.rate(ENDED, outcome="failed") == 0.0


def test_gauges_are_summed_or_the_same_for_all() -> None:
    """What each process holds is added up, what all see alike is not."""
    one, two = (Samples((("g", {}, value),)) for value in (3.0, 5.0))
    flow = Flow({}, {"a": one, "b": two, "c": None}, 1.0)
    assert (flow.total("g"), flow.most("g"), Flow({}, {}, 1.0).most("g")) == (8.0, 5.0, 0.0)


def test_quantiles_are_of_what_came_in_between() -> None:
    """Inside a bucket as Prometheus has it; above the last bound it is that bound; of nothing there is none."""
    before = {"a": histogram(le_1=10, le_2=10, le_inf=10)}
    flow = Flow(before, {"a": histogram(le_1=15, le_2=20, le_inf=20)}, 1.0)
    assert flow.quantile(0.5, "x") == pytest.approx(1.0)
    assert flow.quantile(0.75, "x") == pytest.approx(1.5)
    above = Flow(before, {"a": histogram(le_1=10, le_2=10, le_inf=20)}, 1.0)
    assert above.quantile(0.5, "x") == 2.0
    assert math.isnan(Flow(before, before, 1.0).quantile(0.5, "x"))


def test_addresses_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are text, not markup; a password stays away."""
    away = Samples((("travelrec_dependency_up", {"dependency": "[/x]"}, 0.0),))
    Console().print(Flow({}, {"http://u:hunter2@[fe80::1]:3000": None, "http://b": away}, 1.0).shown())
    out = capsys.readouterr().out
    assert "http://[fe80::1]:3000" in out
    assert "does not reach [/x]" in out
    assert "hunter2" not in out


@pytest.mark.asyncio
async def test_one_frame_shows_the_flow(tmp_path: Path) -> None:
    """`--once` prints each step with its numbers, and who did not answer; it needs no terminal."""
    nobody = f"http://127.0.0.1:{free_port()}"
    async with running_api(model=FakeSettings(latency_s=60)) as api:
        uids = [await api.ask(f"/recommendations?country={place}&season=winter") for place in ("CA", "JP")]

        async def seen() -> bool:
            process = await asyncio.create_subprocess_exec(
                TRAVELREC, "top", "--once", "--every", "0.2", "--url", api.url, "--url", nobody,
                cwd=tmp_path, env={**Process(["x"]).env, "COLUMNS": "200"}, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out = (await process.communicate())[0].decode()
            assert process.returncode == 0
            lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
            assert list(lines) == ["accept", "wait", "run", "ask", "end", "tell", api.url, nobody]
            assert "answers" in lines[api.url]
            assert "no answer" in lines[nobody]
            assert lines["run"].split()[1] == "2"
            return lines["wait"].split()[1] == "2"

        await eventually(seen, 30, "two jobs to wait and run")
        for uid in uids:
            await api.call("DELETE", f"/recommendations?uid={uid}")


@pytest.mark.asyncio
async def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    """Exit code 1, and what to do."""
    process = await asyncio.create_subprocess_exec(
        TRAVELREC, "top", "--once", "--url", f"http://127.0.0.1:{free_port()}",
        cwd=tmp_path, env=Process(["x"]).env, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = (await process.communicate())[1].decode()
    assert process.returncode == 1
    assert re.fullmatch(r"travelrec: nothing answers at http://127\.0\.0\.1:\d+; .*--url\n", said)


@pytest.mark.asyncio
@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
async def test_it_is_live_on_a_terminal_until_it_is_ended(key: bytes, tmp_path: Path) -> None:
    """Frames come and go; q and Ctrl-C end it with exit code 0 and give the terminal back as it was."""
    async with running_api() as api:
        shown = bytearray()
        ours, theirs = pty.openpty()
        os.set_blocking(ours, False)
        asyncio.get_running_loop().add_reader(ours, lambda: shown.extend(read(ours)))
        process = await asyncio.create_subprocess_exec(
            TRAVELREC, "top", "--every", "0.1", "--url", api.url,
            cwd=tmp_path, env={**Process(["x"]).env, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
            stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lambda: own_terminal(theirs),
        )  # fmt: skip
        try:
            await eventually(lambda: shown.count(b"accept") >= 3, 20, "three frames")
            os.write(ours, key)
            assert await asyncio.wait_for(process.wait(), 10) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            asyncio.get_running_loop().remove_reader(ours)
            os.close(theirs)
            os.close(ours)
        assert b"Traceback" not in shown
        assert b"\x1b[?1049l" in shown, "the screen is given back"


def read(terminal: int) -> bytes:
    """What stands there; nothing once the other side is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def own_terminal(terminal: int) -> None:
    """In the new process: a session of its own with this terminal, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
