"""`travelrec dead-letters` on a real SQLite store."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from travelrec.adapters.sqlite import SqliteStore
from travelrec.job import Failed, Job, Settlement, Status, Try, new_uid

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def failed(path: Path, *errors: str) -> list[str]:
    """Jobs that have failed a moment ago."""
    now = time.time()
    async with SqliteStore.opened(path) as store:
        params = {"country": "Peru", "season": "winter"}
        jobs = [Job(new_uid(), "recommendation", params, now, due_at=now) for _ in errors]
        await store.accept(jobs, now)
        await store.claim([job.uid for job in jobs], "t", now, now + 30)
        outcomes = [Failed(Try(now, error, f"{error}.")) for error in errors]
        await store.settle(
            [Settlement(job.uid, "t", outcome) for job, outcome in zip(jobs, outcomes, strict=True)], now
        )
        return [job.uid for job in jobs]


def run(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    command = [sys.executable, "-m", "travelrec", "dead-letters", *args]
    env = {"STORE_URL": f"sqlite:///{path}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


async def test_list_shows_what_failed(tmp_path: Path) -> None:
    """A line for each, filtered by error, as text or JSON."""
    path = tmp_path / "jobs.db"
    one, two = await failed(path, "Model refused", "Model timeout")
    listed = run(path, "list")
    assert listed.returncode == 0, listed.stderr
    assert one in listed.stdout
    assert two in listed.stdout
    (line,) = run(path, "list", "--error", "Model timeout", "--json").stdout.splitlines()
    assert json.loads(line)["uid"] == two
    assert "Nothing failed" in run(path, "list", "--error", "Other").stdout


async def test_an_error_with_brackets_is_shown_as_it_is(tmp_path: Path) -> None:
    """It is text, not markup of the terminal."""
    path = tmp_path / "jobs.db"
    await failed(path, "[/x] [red]")
    assert "[/x] [red]" in run(path, "list").stdout


async def test_show_tells_the_whole_story(tmp_path: Path) -> None:
    """What was asked, and every attempt with its reason."""
    path = tmp_path / "jobs.db"
    (uid,) = await failed(path, "Model refused")
    shown = json.loads(run(path, "show", uid).stdout)
    assert shown["params"] == {"country": "Peru", "season": "winter"}
    assert [t["error"] for t in shown["tries"]] == ["Model refused"]
    unknown = run(path, "show", new_uid())
    assert unknown.returncode == 1
    assert "there is no job" in unknown.stderr
    assert unknown.stderr.count("\n") == 1


async def test_replay_revives_what_was_chosen(tmp_path: Path) -> None:
    """By uid, or all that the options leave; a dry run changes nothing."""
    path = tmp_path / "jobs.db"
    one, two, three = await failed(path, "Model refused", "Model timeout", "Model timeout")
    dry = run(path, "replay", "--all", "--error", "Model timeout", "--dry-run")
    assert set(dry.stdout.split()) == {two, three}
    assert "3 of 3" not in dry.stderr
    assert "1 of 1" in run(path, "replay", one).stderr
    assert "2 of 2" in run(path, "replay", "--all", "--rate", "1000").stderr
    async with SqliteStore.opened(path) as store:
        jobs = await store.get([one, two, three])
    assert {job.status for job in jobs.values()} == {Status.PENDING}
    again = run(path, "replay", one)
    assert (again.returncode, "has not failed" in again.stderr) == (1, True)


async def test_replay_needs_a_choice(tmp_path: Path) -> None:
    """Neither uids nor --all is bad usage: one line, exit code 2."""
    chosen = run(tmp_path / "jobs.db", "replay")
    assert (chosen.returncode, chosen.stderr.count("\n")) == (2, 1)
