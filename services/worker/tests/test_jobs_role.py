"""The role `jobs`: claim, acknowledge, run, settle, signal, and what becomes of a job when one of them fails."""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from support import eventually
from support.worker import DEAD_LETTERS, World
from travelrec.errors import (
    BadKey,
    BadModelRequest,
    BrokenOutput,
    Filtered,
    Forbidden,
    ModelBusy,
    ModelError,
    ModelTimeout,
    Never,
    NoQuota,
    NotTheJobsFault,
    ProviderDown,
    RateLimited,
    Refused,
    RequestForbidden,
    Truncated,
    TryAgain,
)
from travelrec.job import Job, Phase, Status, new_uid
from travelrec.retry import RetryPolicy
from travelrec.wire import JOBS_TOPIC, Message, Signal
from travelrec_worker import app, engine, gate, jobs, sweeper

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

DONE = {"recommendations": [f"Do number {n} in Peru." for n in range(3)]}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits of a worker are short: nothing here is about how long they are."""
    monkeypatch.setattr(app, "RetryPolicy", partial(RetryPolicy, base_s=0.02, cap_s=0.05))
    monkeypatch.setattr(engine, "_TAKE_S", 0.02)
    monkeypatch.setattr(jobs, "_STORE_RETRY_S", 0.02)
    monkeypatch.setattr(jobs, "_DEAD_LETTERS", RetryPolicy(base_s=0.02, cap_s=0.02))
    monkeypatch.setattr(jobs, "_FORBIDDEN_S", 0.1)
    monkeypatch.setattr(sweeper, "_EVERY_S", 0.02)
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(base_s=0.02, cap_s=0.02))


@pytest.fixture
def world() -> World:
    return World()


def leaves(base: type[ModelError]) -> Iterator[type[ModelError]]:
    """The errors of the product's tree that have no others below them."""
    below = [each for each in base.__subclasses__() if each.__module__ == ModelError.__module__]
    if not below:
        yield base
    for each in below:
        yield from leaves(each)


# --- in order -----------------------------------------------------------------------------------------


async def test_a_job_goes_its_way_in_order(world: World) -> None:
    """The claim stands before the message is acknowledged, and the result before its signal is sent."""
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.signals.heard)
    assert world.diary.done == ["claim", "acknowledge", "ask", "settle", "signal"]
    assert world.signals.heard == [Signal(uid, Status.COMPLETED)]
    job = world.job(uid)
    assert (job.status, job.result, job.claims, job.tries) == (Status.COMPLETED, DONE, 1, ())
    assert not await world.unacknowledged()


async def test_many_jobs_share_their_writes(world: World) -> None:
    """Jobs that come together are claimed, settled and announced together, each with its own result."""
    uids = {country: await world.accept(country) for country in (f"Land {n}" for n in range(60))}
    async with world.worker(worker_concurrency=100):
        await eventually(lambda: len(world.signals.heard) == 60)
    for country, uid in uids.items():
        assert world.job(uid).result == {
            "recommendations": [f"Do number {n} in {country}." for n in range(3)]
        }
    assert world.diary.tried["claim"] < 20
    assert world.diary.tried["settle"] < 30


# --- the store ----------------------------------------------------------------------------------------


async def test_nothing_is_acknowledged_before_its_claim_stands(world: World) -> None:
    """While the store is away messages stay unacknowledged; when it is back the job runs once."""
    world.diary.away.add("claim")
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.diary.tried["claim"] > 3)
        assert world.diary.done == []
        assert await world.unacknowledged()
        world.diary.away.clear()
        await eventually(lambda: world.job(uid).ended)
    assert (world.model.calls, world.job(uid).claims) == (1, 1)


async def test_a_worker_that_ends_before_a_claim_stands_leaves_the_message(world: World) -> None:
    """What was not claimed is delivered to another worker."""
    world.diary.away.add("claim")
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.diary.tried["claim"])
        world.diary.away.clear()
        world.diary.close("claim")
        await eventually(lambda: world.diary.tried["claim"] > 1)
        asyncio.get_running_loop().call_later(0.1, world.diary.open, "claim")
    async with world.worker():
        await eventually(lambda: world.job(uid).ended)
    assert (world.model.calls, world.job(uid).status) == (1, Status.COMPLETED)


async def test_a_result_waits_for_the_store(world: World) -> None:
    """A store that is away when a run ends costs no second call, and nothing is announced before it is back."""
    uid = await world.accept()
    world.diary.away.add("settle")
    async with world.worker(lease_s=1.0):
        await eventually(lambda: world.diary.tried["settle"] > 3)
        renewed = world.diary.tried["renew"]
        await eventually(lambda: world.diary.tried["renew"] > renewed)
        assert (world.job(uid).ended, world.signals.heard) == (False, [])
        world.diary.away.clear()
        await eventually(lambda: world.signals.heard)
    assert (world.model.calls, world.job(uid).result) == (1, DONE)


async def test_no_call_is_begun_under_a_lease_that_has_run_out(world: World) -> None:
    """A worker that was frozen too long asks nothing for what it had claimed: another has done that meanwhile."""
    world.model.hold()
    frozen = world.of_its_own()
    async with frozen.worker(lease_s=1.0, worker_concurrency=1):
        first, ahead = await world.accept("Peru"), await world.accept("Chad")
        await eventually(lambda: all(world.job(uid).phase is Phase.RUNNING for uid in (first, ahead)))
        frozen.diary.close("renew")
        async with world.worker(worker_concurrency=2):
            await eventually(lambda: sorted(world.model.in_flight) == ["Chad", "Peru", "Peru"])
            world.model.let_go()
            await eventually(lambda: world.job(first).ended and world.job(ahead).ended)
        frozen.diary.open("renew")
    assert world.model.calls == 3


async def test_a_settlement_whose_answer_is_lost_is_written_once(world: World) -> None:
    """It is asked for again, found to stand, and announced."""
    uid = await world.accept()
    world.diary.lost.add("settle")
    async with world.worker():
        await eventually(lambda: world.diary.tried["settle"] > 2)
        ended_at = world.job(uid).ended_at
        assert world.signals.heard == []
        world.diary.lost.clear()
        await eventually(lambda: world.signals.heard)
    assert (world.job(uid).status, world.job(uid).ended_at) == (Status.COMPLETED, ended_at)
    assert world.model.calls == 1


async def test_no_model_call_waits_for_the_store(world: World) -> None:
    """While results are being written the next jobs are called for: settling holds no place."""
    for n in range(4):
        await world.accept(f"Land {n}")
    world.diary.close("settle")
    async with world.worker(worker_concurrency=2):
        await eventually(lambda: world.model.calls == 4)
        assert world.model.most_in_flight <= 2
        world.diary.open("settle")
        await eventually(lambda: len(world.signals.heard) == 4)


async def test_only_a_few_jobs_are_claimed_ahead(world: World) -> None:
    """Half as many again as may be in flight; the rest stays in the broker, for workers that have a place."""
    uids = [await world.accept(f"Land {n}") for n in range(40)]
    world.model.hold()
    async with world.worker(worker_concurrency=4):
        await eventually(lambda: len(world.model.in_flight) == 4)
        await eventually(lambda: sum(world.job(uid).claims for uid in uids) == 6)
        await eventually(lambda: world.diary.tried["claim"])
        assert world.diary.done.count("acknowledge") == 6
        world.model.let_go()
        await eventually(lambda: all(world.job(uid).ended for uid in uids))
    assert world.model.most_in_flight == 4


async def test_signals_that_are_lost_lose_no_result(world: World) -> None:
    """A job completes although nobody can be told."""
    world.diary.away.add("signal")
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.job(uid).ended and world.diary.tried["signal"])
        other = await world.accept("Chile")
        await eventually(lambda: world.job(other).ended)
    assert world.signals.heard == []


# --- the closed set of outcomes -----------------------------------------------------------------------

OUTCOMES: dict[type[ModelError], str] = {
    ModelBusy: "again",
    ModelTimeout: "again",
    BrokenOutput: "again",
    RequestForbidden: "again",
    BadModelRequest: "never",
    Refused: "never",
    Truncated: "never",
    Filtered: "never",
    RateLimited: "free",
    BadKey: "free",
    Forbidden: "free",
    NoQuota: "free",
    ProviderDown: "free",
}


async def test_every_error_of_a_model_has_its_outcome() -> None:
    """A new error says here what it does to a job, by the branch of the tree it is on."""
    branch = {"again": TryAgain, "never": Never, "free": NotTheJobsFault}
    assert set(OUTCOMES) == set(leaves(ModelError))
    assert all(issubclass(error, branch[outcome]) for error, outcome in OUTCOMES.items())


@pytest.mark.parametrize("error", [error for error, outcome in OUTCOMES.items() if outcome == "again"])
async def test_what_may_help_is_tried_again(error: type[ModelError], world: World) -> None:
    """An attempt is counted with its public reason, and the next one gives the result."""
    world.model.says["Peru"] = [error("Not now.")]
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.job(uid).ended)
    job = world.job(uid)
    assert (job.status, world.model.calls) == (Status.COMPLETED, 2)
    assert [(t.error, t.message) for t in job.tries] == [(error.title, "Not now.")]
    assert world.broker.dead == []


@pytest.mark.parametrize("error", [error for error, outcome in OUTCOMES.items() if outcome == "never"])
async def test_what_can_never_help_fails_at_once(error: type[ModelError], world: World) -> None:
    """One call; the job fails with the reason, its copy is on the dead-letter topic, and its end is announced."""
    world.model.says["Peru"] = [error("No.")]
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.signals.heard)
    job = world.job(uid)
    assert (job.status, job.error, world.model.calls) == (Status.FAILED, error.title, 1)
    assert job.message == "No. Sending the same request again will not help."
    assert world.signals.heard == [Signal(uid, Status.FAILED)]
    assert world.diary.done == ["claim", "acknowledge", "ask", "dead letter", "settle", "signal"]
    assert [json.loads(message.value)["uid"] for message in world.broker.dead] == [uid]


@pytest.mark.parametrize("error", [error for error, outcome in OUTCOMES.items() if outcome == "free"])
async def test_what_is_not_the_jobs_fault_costs_no_attempt(error: type[ModelError], world: World) -> None:
    """However often it happens the job waits, and then gets its result."""
    world.model.says["Peru"] = [error("Not you.")] * 6
    uid = await world.accept()
    async with world.worker(max_attempts=1):
        await eventually(lambda: world.job(uid).ended)
    job = world.job(uid)
    assert (job.status, job.tries, world.model.calls) == (Status.COMPLETED, (), 7)


async def test_a_defect_costs_its_jobs_attempts_not_the_worker(world: World) -> None:
    """An error that nobody foresaw is told in general words, tried again, and others are not touched."""
    world.model.says["Peru"] = [ZeroDivisionError("secret detail")] * 2
    uid, other = await world.accept(), await world.accept("Chile")
    async with world.worker(max_attempts=2):
        await eventually(lambda: world.job(uid).ended and world.job(other).ended)
    job = world.job(uid)
    assert (job.status, job.error, len(job.tries)) == (Status.FAILED, "Internal error", 2)
    assert "secret" not in str(job.message)
    assert world.job(other).status is Status.COMPLETED


async def test_a_kind_that_does_not_keep_its_time_is_stopped(world: World) -> None:
    """A call that never ends costs an attempt when its time is over."""
    world.model.hold()
    uid = await world.accept()
    async with world.worker(model_timeout_s=0.1, max_attempts=1):
        await eventually(lambda: world.job(uid).ended)
    assert (world.job(uid).status, world.job(uid).error) == (Status.FAILED, "Model timeout")
    assert world.model.stopped == ["Peru"]


async def test_an_unusable_answer_is_repaired_within_its_attempt(world: World) -> None:
    """One bad answer costs a call, not an attempt; two cost an attempt."""
    world.model.says["Peru"] = ["Sure!"]
    world.model.says["Chile"] = ["Sure!", "Sure!"]
    one, two = await world.accept("Peru"), await world.accept("Chile")
    async with world.worker():
        await eventually(lambda: world.job(one).ended and world.job(two).ended)
    assert [len(world.model.called_at[country]) for country in ("Peru", "Chile")] == [2, 3]
    assert world.job(one).tries == ()
    assert [t.error for t in world.job(two).tries] == ["Unusable model answer"]


async def test_a_kind_of_a_newer_release_waits(world: World) -> None:
    """A job of a kind that this worker does not know is left for one that does, and costs nothing."""
    uid = await world.accept(kind="haiku")
    async with world.worker():
        await eventually(lambda: world.job(uid).phase is Phase.WAITING)
    job = world.job(uid)
    assert (job.status, job.tries, job.claims, world.model.calls) == (Status.PENDING, (), 0, 0)
    assert job.due_at > time.time() + 10


# --- again --------------------------------------------------------------------------------------------


async def test_no_call_before_its_time(world: World) -> None:
    """The provider's wish is kept: the second call comes after it, although sweepers look all the time."""
    world.model.says["Peru"] = [ModelBusy("Later.", retry_after_s=0.7)]
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.job(uid).phase is Phase.WAITING)
        await world.publish(uid, 3)
        await eventually(lambda: world.job(uid).ended)
    first, second = world.model.called_at["Peru"]
    assert second - first >= 0.69
    assert world.job(uid).status is Status.COMPLETED


async def test_out_of_attempts(world: World) -> None:
    """The last attempt fails the job: all attempts are in its record and in its dead letter, in order."""
    world.model.says["Peru"] = [ModelBusy("Busy."), ModelTimeout("Late."), ModelBusy("Busy again.")]
    uid = await world.accept(headers={"x-request-id": "r-1"})
    async with world.worker(max_attempts=3):
        await eventually(lambda: world.signals.heard)
    job = world.job(uid)
    assert (job.status, job.error, world.model.calls) == (Status.FAILED, "Model unavailable", 3)
    assert job.message == "Busy again. Given up after 3 attempts. Please try again later."
    (dead,) = world.broker.dead
    story = json.loads(dead.value)
    assert [t["error"] for t in story["tries"]] == ["Model unavailable", "Model timeout", "Model unavailable"]
    assert (story["uid"], story["params"]) == (uid, {"country": "Peru", "season": "winter"})
    assert dead.headers == {"x-request-id": "r-1"}
    assert world.signals.heard == [Signal(uid, Status.FAILED)]


async def test_a_job_does_not_end_without_its_dead_letter(world: World) -> None:
    """While the copy can't be written the job stays pending, however long; then it fails for its own reason.

    The model is not asked again meanwhile.
    """
    world.model.says["Peru"] = [Refused("No.")] * 100
    world.diary.away.add("dead letter")
    uid = await world.accept()
    async with world.worker(max_attempts=1):
        await eventually(lambda: world.diary.tried["dead letter"] > 6)
        assert (world.job(uid).ended, world.signals.heard) == (False, [])
        world.diary.away.clear()
        await eventually(lambda: world.signals.heard)
    assert (world.job(uid).status, world.job(uid).error) == (Status.FAILED, "Model refused")
    assert (len(world.broker.dead), world.model.calls) == (1, 1)


async def test_a_job_whose_worker_ends_before_its_dead_letter_is_handed_back(world: World) -> None:
    """Whoever has it next need not wait for a lease."""
    world.model.says["Peru"] = [Refused("No.")]
    uid = await world.accept()
    async with world.worker():
        world.diary.close("dead letter")
        await eventually(lambda: world.diary.tried["dead letter"] == 1)
    assert (world.job(uid).phase, world.job(uid).claims) == (Phase.WAITING, 0)
    assert world.job(uid).due_at <= time.time()


async def test_a_job_that_kills_its_workers_is_given_up(world: World) -> None:
    """After four claims for each attempt, none of which came to an end, it is not run any more."""
    still, lost = [await world.accept(country, claims=n) for country, n in (("Peru", 7), ("Chile", 8))]
    async with world.worker(max_attempts=2):
        await eventually(lambda: world.job(still).ended and world.job(lost).ended)
    assert world.job(still).status is Status.COMPLETED
    assert (world.job(lost).status, world.job(lost).error) == (Status.FAILED, "Worker lost")
    assert list(world.model.called_at) == ["Peru"]
    assert [json.loads(message.value)["uid"] for message in world.broker.dead] == [lost]


async def test_a_job_that_is_past_its_deadline_fails(world: World) -> None:
    """It is not run, whatever it waited for."""
    late = await world.accept(created_at=time.time() - 61)
    in_time = await world.accept("Chile", created_at=time.time() - 30)
    async with world.worker(job_deadline_s=60.0):
        await eventually(lambda: world.job(late).ended and world.job(in_time).ended)
    assert (world.job(late).status, world.job(late).error) == (Status.FAILED, "Deadline passed")
    assert world.job(in_time).status is Status.COMPLETED
    assert list(world.model.called_at) == ["Chile"]


async def test_a_provider_that_asks_for_a_year_does_not_move_the_deadline(world: World) -> None:
    """A job that could only be tried again behind its deadline fails at its deadline."""
    world.model.says["Peru"] = [ModelBusy("Next year.", retry_after_s=3e7)]
    uid = await world.accept()
    async with world.worker(job_deadline_s=1.0):
        await eventually(lambda: world.job(uid).ended)
    assert (world.job(uid).status, world.job(uid).error) == (Status.FAILED, "Deadline passed")
    assert world.model.calls == 1


async def test_trouble_of_the_provider_ends_at_the_deadline(world: World) -> None:
    """A job that waits for a provider fails at its deadline, and says what the trouble was."""
    world.model.says["Peru"] = [BadKey("The key is wrong.")] * 1000
    uid = await world.accept()
    async with world.worker(job_deadline_s=0.5):
        await eventually(lambda: world.job(uid).ended)
    assert world.job(uid).error == "Deadline passed"
    assert str(world.job(uid).message).startswith("The key is wrong. ")


# --- messages that are not wanted ---------------------------------------------------------------------


async def test_a_kind_that_nobody_knows_ends_with_its_deadline(world: World) -> None:
    """A newer release may know it; when its time is over it has failed."""
    uid = await world.accept("Peru", kind="newer", created_at=time.time() - 90_000.0)
    async with world.worker(job_deadline_s=60.0):
        await eventually(lambda: world.job(uid).ended)
    assert (world.job(uid).status, world.job(uid).error) == (Status.FAILED, "Deadline passed")


async def test_repeats_are_dropped(world: World) -> None:
    """However often a message comes, before, during and after the run, there is one call and one end."""
    world.model.hold()
    uid = await world.accept()
    await world.publish(uid, 5)
    async with world.worker():
        await eventually(lambda: world.model.in_flight)
        await world.publish(uid, 5)
        await eventually(lambda: world.diary.done.count("acknowledge") == 11)
        world.model.let_go()
        await eventually(lambda: world.signals.heard)
        await world.publish(uid, 5)
        await eventually(lambda: world.diary.done.count("acknowledge") == 16)
    assert (world.model.calls, world.job(uid).claims) == (1, 1)
    assert world.signals.heard == [Signal(uid, Status.COMPLETED)]


async def test_two_workers_run_a_job_once(world: World) -> None:
    """Of two workers that get the same message one wins the claim."""
    async with world.worker(), world.worker():
        uids = [await world.accept(f"Land {n}") for n in range(30)]
        for uid in uids:
            await world.publish(uid, 3)
        await eventually(lambda: all(world.job(uid).ended for uid in uids))
    assert world.model.calls == 30
    assert {world.job(uid).claims for uid in uids} == {1}


async def test_a_message_of_a_job_that_is_not_there_is_dropped(world: World) -> None:
    """A job that was purged, or whose write was withdrawn, is nobody's any more."""
    message = Message(json.dumps({"v": 1, "uid": new_uid(), "kind": "recommendation"}).encode())
    await world.broker.publish(JOBS_TOPIC, [message])
    async with world.worker():
        await eventually(lambda: world.diary.done == ["claim", "acknowledge"])
    assert not await world.unacknowledged()
    assert world.broker.dead == []


async def test_a_message_that_nobody_here_wrote_goes_to_the_dead_letters(world: World) -> None:
    """Its bytes, key and headers are kept, with the reason; it is acknowledged once the copy stands."""
    foreign = Message(b'{"v": 9}', {"h": "1"}, "key")
    world.diary.away.add("dead letter")
    await world.broker.publish(JOBS_TOPIC, [foreign, Message(b"\xff")])
    async with world.worker():
        await eventually(lambda: world.diary.tried["dead letter"] > 3)
        assert (world.diary.done, await world.unacknowledged()) == ([], True)
        uid = await world.accept()
        await eventually(lambda: world.job(uid).ended)
        world.diary.away.clear()
        await eventually(lambda: world.diary.done.count("acknowledge") == 3)
    assert not await world.unacknowledged()
    assert {message.value for message in world.broker.dead} == {foreign.value, b"\xff"}
    copy = next(message for message in world.broker.dead if message.value == foreign.value)
    assert (copy.key, copy.headers["h"]) == ("key", "1")
    assert "version 9" in copy.headers["travelrec-error"]
    assert [len(world.broker._topics[DEAD_LETTERS])] == [2]


async def test_the_copy_of_a_message_that_is_too_large_has_its_beginning(world: World) -> None:
    """One that no broker would take blocks nothing for ever."""
    large = b"{" + bytes(2**20)
    await world.broker.publish(JOBS_TOPIC, [Message(large)])
    async with world.worker():
        await eventually(lambda: world.broker.dead)
    (copy,) = world.broker.dead
    assert (copy.value, copy.headers["travelrec-bytes"]) == (large[: 2**19], str(2**20 + 1))
    assert not await world.unacknowledged()


# --- runs that are stopped ----------------------------------------------------------------------------


async def test_a_lost_lease_stops_the_run(world: World) -> None:
    """When another worker holds the job the call is aborted, and nothing of it is written or announced."""
    world.model.hold()
    uid = await world.accept()
    async with world.worker(lease_s=1.0):
        await eventually(lambda: world.model.in_flight)
        world.store.jobs[uid] = theirs = replace(world.job(uid), token="theirs", due_at=time.time() + 60)
        await eventually(lambda: world.model.stopped == ["Peru"])
        world.model.let_go()
        other = await world.accept("Chile")
        await eventually(lambda: world.job(other).ended)
    assert world.job(uid) == theirs
    assert {signal.uid for signal in world.signals.heard} == {other}


async def test_a_result_under_a_lost_lease_does_not_count(world: World) -> None:
    """A run that ended before it noticed is refused by the store, and not announced."""
    world.model.hold()
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.model.in_flight)
        world.store.jobs[uid] = theirs = replace(world.job(uid), token="theirs", due_at=time.time() + 60)
        world.model.let_go()
        await eventually(lambda: "settle" in world.diary.done)
    assert (world.job(uid), world.signals.heard) == (theirs, [])


async def test_a_cancelled_job_stops_its_run(world: World) -> None:
    """When the signal of its end comes the call is aborted; the worker writes nothing and goes on."""
    world.model.hold()
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.model.in_flight)
        await world.store.cancel(uid, time.time(), "Cancelled.")
        await world.signals.announce([Signal(uid, Status.CANCELLED)])
        await eventually(lambda: world.model.stopped == ["Peru"])
        world.model.let_go()
        other = await world.accept("Chile")
        await eventually(lambda: world.job(other).ended)
    assert world.job(uid).status is Status.CANCELLED
    assert world.diary.done.count("settle") == 1


async def test_a_cancelled_job_is_noticed_without_its_signal(world: World) -> None:
    """A lost signal costs no more than the time to the next renewal."""
    world.model.hold()
    uid = await world.accept()
    async with world.worker(lease_s=1.0):
        await eventually(lambda: world.model.in_flight)
        await world.store.cancel(uid, time.time(), "Cancelled.")
        await eventually(lambda: world.model.stopped == ["Peru"])
        world.model.let_go()
    assert world.job(uid).status is Status.CANCELLED


async def test_a_stopped_worker_hands_back_what_it_runs_and_waits_for(world: World) -> None:
    """Jobs in flight and those claimed ahead cost neither claim nor attempt, and are due at once for another."""
    world.model.hold()
    uids = [await world.accept(f"Land {n}") for n in range(5)]
    async with world.worker(worker_concurrency=2):
        await eventually(lambda: sum(world.job(uid).claims for uid in uids) == 3)
    assert len(world.model.stopped) == 2
    for job in map(world.job, uids):
        assert (job.claims, job.tries, job.status, job.token) == (0, (), Status.PENDING, None)
        assert job.phase is Phase.QUEUED or job.due_at <= time.time()
    world.model.let_go()
    async with world.worker():
        await eventually(lambda: all(world.job(uid).ended for uid in uids))
    assert {world.job(uid).status for uid in uids} == {Status.COMPLETED}
    assert {world.job(uid).claims for uid in uids} == {1}


async def test_a_stopped_worker_gives_running_calls_their_grace(world: World) -> None:
    """A call that ends within the grace period is written and announced."""
    world.model.hold()
    uid = await world.accept()
    async with world.worker(grace_s=10.0):
        await eventually(lambda: world.model.in_flight)
        asyncio.get_running_loop().call_later(0.2, world.model.let_go)
    assert (world.job(uid).status, world.model.stopped) == (Status.COMPLETED, [])
    assert world.signals.heard == [Signal(uid, Status.COMPLETED)]


async def test_an_expired_lease_is_taken_over(world: World) -> None:
    """A job whose worker died is run by another once its lease has run out, and the dead one's claim is counted."""
    uid = await world.accept(publish=False)
    now = time.time()
    dead: list[Job] = await world.store.claim([uid], "dead", now, now + 0.3)
    async with world.worker():
        await eventually(lambda: world.job(uid).ended)
    assert (world.job(uid).status, world.job(uid).claims) == (Status.COMPLETED, dead[0].claims + 1)
    assert (world.job(uid).ended_at or 0) >= now + 0.3


async def test_a_provider_that_asks_for_a_day_keeps_its_key_for_an_hour(world: World) -> None:
    """Other jobs of the key wait for the one that leads it."""
    world.model.says["Peru"] = [ModelBusy("Tomorrow.", retry_after_s=86_400.0)]
    uid = await world.accept()
    async with world.worker():
        await eventually(lambda: world.job(uid).phase is Phase.WAITING)
    assert world.job(uid).due_at <= time.time() + 3600.0


async def test_a_job_whose_every_call_is_forbidden_lets_another_probe(world: World) -> None:
    """A 403 may be for what it asks: the next in line goes before it, and opens the way."""
    world.model.says["Peru"] = [Forbidden("No.")] * 1000
    await world.accept("Peru")
    other = await world.accept("Chile")
    async with world.worker(worker_concurrency=1):
        await eventually(lambda: world.job(other).ended)
    assert world.job(other).status is Status.COMPLETED
    assert len(world.model.called_at["Peru"]) < 10


@pytest.mark.parametrize("count", [1, 3])
async def test_forbidden_jobs_alone_do_not_bar_their_worker(
    world: World, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go back for a while, so that what comes then is taken, and shows that others are answered."""
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(base_s=0.1, cap_s=30.0))
    countries = [f"Land {n}" for n in range(count)]
    world.model.says.update((country, [Forbidden("No.")] * 1_000) for country in countries)
    forbidden = [await world.accept(country) for country in countries]
    async with world.worker(worker_concurrency=4):
        await eventually(lambda: all(len(world.model.called_at.get(each, ())) > 1 for each in countries))
        other = await world.accept("Chile")
        await eventually(lambda: world.job(other).ended, 5)
    assert world.job(other).status is Status.COMPLETED
    assert {world.job(uid).status for uid in forbidden} == {Status.PENDING}


async def test_a_forbidden_job_keeps_its_deadline(world: World) -> None:
    """And says then what was in its way, however long it waited for its turn."""
    world.model.says["Peru"] = [Forbidden("No.")] * 10_000
    uid = await world.accept("Peru")
    async with world.worker(job_deadline_s=0.5):
        await eventually(lambda: world.job(uid).ended)
    assert (world.job(uid).error, str(world.job(uid).message)[:4]) == ("Deadline passed", "No. ")


async def test_a_job_that_is_forbidden_what_others_are_not_runs_out_of_attempts(world: World) -> None:
    """Once a provider has answered others meanwhile, its 403 is for the request, and bars nobody."""
    world.model.says["Peru"] = [Forbidden("No.")] * 1000
    forbidden = await world.accept("Peru")
    others = []
    async with world.worker(worker_concurrency=4, max_attempts=3):
        while not world.job(forbidden).ended:
            others.append(await world.accept(f"Land {len(others)}"))
            await asyncio.sleep(0.01)
        await eventually(lambda: all(world.job(other).ended for other in others))
    job = world.job(forbidden)
    assert (job.status, job.error, len(job.tries)) == (Status.FAILED, RequestForbidden.title, 3)
    assert {world.job(other).status for other in others} == {Status.COMPLETED}


async def test_one_answer_of_another_charges_a_forbidden_job_once(world: World) -> None:
    """What was answered before its last refusal says nothing of the next: the key may have lost its rights since."""
    world.model.says["Peru"] = [Forbidden("No.")] * 10_000
    uid = await world.accept("Peru")
    async with world.worker(max_attempts=3):
        await eventually(lambda: world.model.called_at.get("Peru"))
        other = await world.accept("Chile")
        await eventually(lambda: world.job(other).ended)
        calls = len(world.model.called_at["Peru"])
        await eventually(lambda: len(world.model.called_at["Peru"]) > calls + 5)
        assert len(world.job(uid).tries) <= 1


async def test_a_key_that_is_forbidden_everything_costs_no_attempt(world: World) -> None:
    """While nobody is answered, and whatever was answered before."""
    async with world.worker(worker_concurrency=8, max_attempts=1):
        before = await world.accept("Chile")
        await eventually(lambda: world.job(before).ended)
        countries = [f"Land {n}" for n in range(8)]
        for country in countries:
            world.model.says[country] = [Forbidden("No.")] * 10_000
        uids = [await world.accept(country) for country in countries]
        await eventually(lambda: all(len(world.model.called_at.get(each, ())) > 1 for each in countries))
        assert not any(world.job(uid).tries for uid in uids)
