"""`travelrec doctor`: what it finds, in words and in its exit code."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from support import Process, free_port
from support.api import running_api
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.cli.diagnosis import Finding, State, _of_backlog, _of_failed, _of_samples, diagnosed
from travelrec.cli.doctor import _show
from travelrec.cli.samples import Samples
from travelrec.connect import Parts
from travelrec.errors import StoreUnavailable
from travelrec.fake_openai import FakeSettings, running
from travelrec.ports import Backlog, Group
from travelrec.settings import Settings

TRAVELREC = Path(sys.executable).with_name("travelrec")
SECRET = "hunter2"


def doctor(cwd: Path, *arguments: str, **env: str) -> tuple[int, str]:
    """Its exit code and what it says."""
    done = subprocess.run(
        [TRAVELREC, "doctor", *arguments],
        cwd=cwd,
        env={**Process(["x"]).env, "NEIGHBOUR_TIMEOUT": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def deployment(**settings: object) -> Settings:
    """Of neighbours that are all away."""
    away = f"127.0.0.1:{free_port()}"
    given = {
        "broker_url": f"kafka://{away}",
        "store_url": f"mongodb://ops:{SECRET}@{away}/travelrec",
        "openai_base_url": f"http://{away}/v1",
        "openai_api_key": SECRET,
        "neighbour_timeout_s": 1.0,
    }
    return Settings(**{**given, **settings}, _env_file=None)


def by_part(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.part for finding in findings}) == len(findings)
    return {finding.part: finding for finding in findings}


@pytest.mark.asyncio
async def test_each_neighbour_that_is_away_is_named_with_the_next_command() -> None:
    """Where it was looked for, what that means for callers, and never a password."""
    found = by_part(await diagnosed(deployment(), []))
    assert set(found) == {"store", "broker", "provider"}
    assert {finding.state for finding in found.values()} == {State.TROUBLE}
    assert "503" in found["store"].says
    assert "accepted" in found["broker"].says
    assert (found["broker"].next or "").startswith("nc -vz 127.0.0.1 ")
    assert (found["provider"].next or "").startswith("curl ")
    assert SECRET not in str(found)


@pytest.mark.asyncio
async def test_a_provider_that_rejects_the_key_is_told_from_one_that_is_away() -> None:
    """Each has another next step; one that lists other models than ours is worth a notice."""
    async with running(FakeSettings(require_key="right")) as fake:
        url = fake.base_url

        async def provider(key: str, model: str = "gpt-4o-mini") -> Finding:
            settings = deployment(openai_base_url=url, openai_api_key=key, openai_model=model)
            return by_part(await diagnosed(settings, []))["provider"]

        rejected = await provider("wrong")
        assert rejected.state is State.TROUBLE
        assert "rejects the API key" in rejected.says
        assert "OPENAI_API_KEY" in (rejected.next or "")
        assert (await provider("right")).state is State.FINE
        other = await provider("right", "gpt-of-ours")
        assert (other.state, "gpt-of-ours" in other.says) == (State.NOTICE, True)


@pytest.mark.parametrize(
    ("backlog", "group", "state", "words", "then"),
    [
        (Backlog(0, None), Group(2, {0: 0}), State.FINE, "nothing waits", None),
        (Backlog(7, 20.0), Group(1, {0: 3, 1: 2}), State.FINE, "7 jobs", None),
        (Backlog(7, 20.0), Group(1, {0: 3, 1: 2}), State.FINE, "5 messages not taken", None),
        (Backlog(1, 20.0), Group(0, {0: 1}), State.TROUBLE, "no worker", "travelrec worker"),
        (Backlog(0, None), Group(0, {}), State.NOTICE, "no worker", "travelrec worker"),
        (Backlog(9, 3600.0), Group(3, {0: 9}), State.TROUBLE, "60 minutes", "travelrec top"),
        (Backlog(9, 20.0), None, State.NOTICE, "9 jobs", None),
    ],
)
def test_what_waits_is_judged(
    backlog: Backlog, group: Group | None, state: State, words: str, then: str | None
) -> None:
    """By its age, and by who is there to work on it."""
    if backlog.oldest_at is not None:
        backlog = Backlog(backlog.pending, time.time() - backlog.oldest_at)
    (finding,) = _of_backlog(backlog, group)
    assert finding.state is state
    assert words in finding.says
    assert (finding.next or "").startswith(then or "")
    assert (finding.next is None) == (then is None)


def test_what_failed_lately_is_counted_by_reason() -> None:
    """It is worth knowing and no trouble by itself; the next command lists it."""
    assert _of_failed(Counter()) == []
    (finding,) = _of_failed(Counter({"Model refused": 2, "Model timeout": 5}))
    assert finding.state is State.NOTICE
    assert finding.says == "7 jobs failed within the last hour: Model timeout (5), Model refused (2)"
    assert (finding.next or "").startswith("travelrec dead-letters list")


def test_an_address_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """It is text, not markup of the terminal, in its line and in the last one."""
    url = "http://[fe80::1]:3000"
    _show([Finding(url, State.TROUBLE, "no process of travelrec answers there")], [url])
    assert capsys.readouterr().out.count(url) == 2


def test_a_worker_tells_of_its_breaker() -> None:
    """Quota and the like show only in calls, so a worker that is asked is believed."""
    broken = Samples((("travelrec_model_breaker", {"provider": "primary"}, 2.0),))
    (finding,) = _of_samples("http://w:9000", broken)
    assert (finding.part, finding.state) == ("http://w:9000", State.TROUBLE)
    assert "breaker" in finding.says
    assert _of_samples("http://w:9000", Samples((("travelrec_model_breaker", {"provider": "p"}, 0.0),))) == []


@pytest.mark.asyncio
async def test_without_a_deployment_it_asks_the_one_process() -> None:
    """Of `travelrec serve`: whether it answers, and what it does not reach."""

    class Away(MemoryStore):
        async def ping(self) -> None:
            raise StoreUnavailable("away")

    async with running_api() as api:
        (finding,) = await diagnosed(Settings(_env_file=None), [api.url])
        assert finding.state is State.FINE
    async with running_api(parts=Parts(Away(), MemoryBroker(), MemorySignals())) as api:
        (finding,) = await diagnosed(Settings(_env_file=None), [api.url])
        assert finding.state is State.TROUBLE
        assert "does not reach store" in finding.says


def test_exit_codes_are_for_scripts(tmp_path: Path) -> None:
    """1 and a last line that names the trouble, 2 for a bad setting; --json is one object that says the same."""
    port = str(free_port())
    code, said = doctor(tmp_path, PORT=port)
    assert code == 1
    assert "→ travelrec serve" in said
    assert said.splitlines()[-1] == f"Trouble with: http://localhost:{port}."
    code, said = doctor(tmp_path, "--json", PORT=port)
    told = json.loads(said)
    assert (code, told["ok"], [f["state"] for f in told["findings"]]) == (1, False, ["trouble"])
    code, said = doctor(tmp_path, BROKER_URL="mqtt://h")
    assert code == 2
    assert said.startswith("travelrec: BROKER_URL")


@pytest.mark.asyncio
async def test_all_is_fine_is_exit_code_0(tmp_path: Path) -> None:
    """With a running process, nothing else."""
    async with running_api() as api:
        code, said = await asyncio.to_thread(doctor, tmp_path, "--url", api.url)
    assert code == 0, said
    assert said.splitlines()[-1] == "All is fine."
