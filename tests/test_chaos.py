"""`travelrec chaos`: its check finds what must not be, its schedule follows the seed, and a short run finds nothing."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.history import (
    Asked,
    Call,
    History,
    Incident,
    Record,
    Told,
    check,
    key_of,
    lost_calls,
    repeated_calls,
)
from chaos.schedule import FAULTS, Due, Item, once, parse, repeated
from travelrec.fake_openai.suggestions import suggestions

TRAVELREC = Path(sys.executable).with_name("travelrec")
UID, OTHER = "a" * 32, "b" * 32
SAID = suggestions(0, "Canada", "winter", 3)
KEY = key_of("Canada", "winter")
BODY = {
    "uid": UID,
    "country": "Canada",
    "season": "winter",
    "recommendations": list(SAID),
    "status": "completed",
}
PENDING = {"uid": UID, "status": "pending", "message": "…"}


def told(at: float = 13.0, **changes: object) -> Told:
    """What a client was told; it asked half a second before."""
    return replace(Told(UID, at - 0.5, at, "api-0", 200, BODY), **changes)


def record(**changes: object) -> Record:
    return replace(Record(UID, KEY, "completed", 1, 0, 10.0, 12.0, SAID), **changes)


def history(**changes: object) -> History:
    """One job that is asked for at 10, runs from 11 to 12, and is told at 13; with `changes`."""
    good = History(
        lease_s=30.0,
        shared=False,
        asked=[Asked(UID, "Canada", "winter", 10.0, "key")],
        told=[told(), told(20.0, by="api-1 stream")],
        calls=[Call(KEY, "worker-0", 11.0, 12.0)],
        records=[record()],
    )
    return replace(good, **changes)


def names(seen: History) -> list[str]:
    return [violation.name for violation in check(seen)]


# --- the check ----------------------------------------------------------------------------------------


def test_a_good_history_has_no_violation() -> None:
    """A job that was asked for, called for once, and told the same twice is as it should be."""
    assert check(history()) == []


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lost", {"told": [], "records": [record(status="pending", ended_at=None, recommendations=())]}),
        ("lost", {"asked": [], "told": [], "records": [record(status="pending", ended_at=None)]}),
        ("unknown uid", {"told": [], "records": [], "calls": []}),
        ("unknown uid", {"told": [told(), told(20.0, status=404, body={})]}),
        ("failed without cause", {"told": [], "records": [record(status="failed")]}),
        ("failed without cause", {"told": [], "records": [record(status="cancelled")]}),
        ("two results", {"told": [told(), told(20.0, body={**BODY, "recommendations": ["a", "b", "c"]})]}),
        ("two results", {"records": [record(recommendations=("a", "b", "c"))]}),
        ("two results", {"told": [told(), told(20.0, body={**PENDING, "status": "cancelled"})]}),
        ("changed after its end", {"told": [told(), told(20.0, body=PENDING)]}),
        ("result of another request", {"asked": [Asked(UID, "Peru", "winter", 10.0)]}),
        (
            "result of another request",
            {
                "told": [told(body={**BODY, "recommendations": ["a", "b", "c"]})],
                "records": [record(recommendations=("a", "b", "c"))],
            },
        ),
        (
            "two jobs for one Idempotency-Key",
            {
                "asked": [Asked(uid, "Canada", "winter", 10.0, "key") for uid in (UID, OTHER)],
                "records": [record(), record(uid=OTHER)],
            },
        ),
        ("too many calls", {"calls": [Call(KEY, "worker-0", at, at + 1) for at in (11.0, 12.0)]}),
        ("claimed without cause", {"records": [record(claims=2)]}),
        ("attempt counted without cause", {"records": [record(tries=1)]}),
        ("unexpected answer", {"odd": ["GET: 500"]}),
        ("process ended by itself", {"incidents": [Incident("died", "worker-1", 20.0, 20.1)]}),
    ],
)
def test_a_doctored_history_is_found_out(name: str, changes: dict[str, object]) -> None:
    """Each thing that must not be is found, under its name and no other."""
    assert set(names(history(**changes))) == {name}


TWICE = {
    "calls": [Call(KEY, "worker-0", 11.0, 12.0), Call(KEY, "worker-1", 42.0, 43.0)],
    "records": [record(claims=2, ended_at=43.0)],
    "told": [told(44.0)],
}


@pytest.mark.parametrize(
    ("incident", "excuses"),
    [
        (Incident("kill", "worker-0", 11.5, 11.6), True),
        (Incident("kill", "worker-0", 12.5, 12.6), True),  # answered, and not written down yet
        (Incident("kill", "worker-0", 10.5, 10.6), False),  # before the call
        (Incident("kill", "worker-1", 11.5, 11.6), False),  # another worker
        (Incident("kill", "api-0", 11.5, 11.6), False),
        (Incident("freeze-worker", "worker-0", 11.5, 41.5), True),
        (Incident("freeze-worker", "worker-0", 11.5, 13.5), False),  # its lease stands
        (Incident("store-freeze", "store", 11.5, 41.5), True),
        (Incident("store-freeze", "store", 11.5, 21.5), False),
        (Incident("store-slow", "store", 11.5, 41.5), False),
        (Incident("broker-freeze", "broker", 11.5, 41.5), False),
        (Incident("rebalance", "broker", 11.5, 14.5), False),
        (Incident("term", "worker-0", 11.5, 14.5), False),
    ],
)
def test_only_a_lost_call_may_be_repeated(incident: Incident, excuses: bool) -> None:
    """A second call is excused when the worker of the first was lost before the job ended, and by nothing else."""
    seen = history(**TWICE, incidents=[incident])
    assert ("too many calls" not in names(seen)) is excuses
    assert len(lost_calls(seen)) == excuses
    assert repeated_calls(seen) == 1


def test_a_worker_told_to_end_while_the_store_is_away_may_lose_calls() -> None:
    """It could not hand back what it ran."""
    away, term = Incident("store-freeze", "store", 11.0, 15.0), Incident("term", "worker-0", 11.5, 14.5)
    assert names(history(**TWICE, incidents=[away, term])) == []


def test_a_lost_call_excuses_only_one_more() -> None:
    """Two calls after one loss are one too many."""
    kill = Incident("kill", "worker-0", 11.5, 11.6)
    calls = [*TWICE["calls"], Call(KEY, "worker-2", 42.0, 43.0)]
    assert names(history(**{**TWICE, "calls": calls}, incidents=[kill])) == ["too many calls"]


def test_a_shared_key_is_called_for_once() -> None:
    """Where answers are reused, two jobs of a key allow no second call; where they are not, they do."""
    twice = {
        "asked": [Asked(UID, "Canada", "winter", 10.0), Asked(OTHER, "Canada", "winter", 15.0)],
        "calls": [Call(KEY, "worker-0", at, at + 1) for at in (11.0, 15.0)],
        "records": [record(), record(uid=OTHER, created_at=15.0, ended_at=17.0)],
    }
    assert names(history(**twice)) == []
    assert names(history(**twice, shared=True)) == ["too many calls"]


# --- the schedule -------------------------------------------------------------------------------------


def test_a_seed_is_one_schedule() -> None:
    """The same seed gives the same faults on the same targets; another gives others."""
    items = parse("all")

    def first(seed: int) -> list[Due]:
        return list(itertools.islice(repeated(items, 2.0, seed), 50))

    assert first(7) == first(7)
    assert first(7) != first(8)
    assert {due.item.name for due in itertools.islice(repeated(items, 2.0, 7), 500)} == set(FAULTS)


def test_a_fault_with_a_moment_comes_once() -> None:
    """The others come every so often, for ever."""
    items = parse("kill,store-freeze:10@5,broker-restart@3")
    assert items[1] == Item("store-freeze", 10.0, 5.0)
    assert [(one.at, one.item.name) for one in once(items, 1)] == [
        (3.0, "broker-restart"),
        (5.0, "store-freeze"),
    ]
    again = itertools.islice(repeated(items, 2.0, 1), 4)
    assert [(one.at, one.item.name) for one in again] == [(at, "kill") for at in (2.0, 4.0, 6.0, 8.0)]


def test_without_faults_nothing_is_due() -> None:
    """`none` is an empty schedule."""
    assert parse("none") == ()
    assert [*once((), 1), *repeated((), 2.0, 1)] == []


@pytest.mark.parametrize("text", ["", "kil", "kill:", "kill:soon", "kill@", "kill,,term", "kill:1@2@3"])
def test_a_fault_that_is_not_there_is_refused(text: str) -> None:
    """What is wrong is named, and what there is."""
    with pytest.raises(ValueError, match=r"is no fault NAME.*store-freeze"):
        parse(text)


# --- the command --------------------------------------------------------------------------------------


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TRAVELREC, "chaos", *arguments], capture_output=True, text=True, timeout=170, check=False
    )


def test_bad_usage_is_one_line() -> None:
    """A fault or a setting that can't be exits with 2."""
    for arguments in (["--faults", "earthquake"], ["--set", "JOB_LEASE"]):
        done = ran(*arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        assert arguments[1] in done.stderr


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "broker",
    [pytest.param(name, marks=pytest.mark.real(name, "mongo")) for name in ("kafka", "rabbitmq")],
)
def test_a_short_run_finds_nothing(broker: str) -> None:
    """Kills, restarts, store and broker away, a bad network: nothing is lost, done twice or mixed up.

    Leases are long, so that a busy machine which stands still for some seconds is not taken for a fault of ours.
    """
    faults = "kill,kill-worker,term,rebalance,store-freeze:2@3,broker-slow:2@6,store-cut:1@9,broker-kill:1@12"
    done = ran(
        *("--broker", broker, "--jobs", "400", "--clients", "40", "--workers", "2", "--latency", "0.2"),
        *("--seconds", "15", "--faults", faults, "--every", "3", "--seed", "1"),
        *("--set", "JOB_LEASE=15", "--json"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert report["clients"]["ended"] == 400
    assert {"store-freeze", "broker-kill", "store-cut", "broker-slow"} < report["faults"].keys()
    assert sum(report["faults"].values()) >= 8
    assert "died" not in report["faults"]
    assert "seed 1:" in done.stderr


@pytest.mark.timeout(180)
@pytest.mark.real("kafka", "mongo")
def test_a_run_that_finds_something_fails() -> None:
    """Jobs that fail because they are given no time: the run names that, shows some, and exits with 1."""
    done = ran(
        *("--jobs", "20", "--workers", "1", "--apis", "1", "--latency", "3", "--faults", "none"),
        *("--set", "MODEL_TIMEOUT=0.5", "--set", "JOB_MAX_ATTEMPTS=1"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "VIOLATION: failed without cause, 20 times, such as:" in done.stdout
