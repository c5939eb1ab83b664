"""The moves of a job: which there are, and what each leaves behind."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from travelrec.job import (
    Completed,
    Failed,
    HandedBack,
    Job,
    Outcome,
    Phase,
    Retry,
    Status,
    Try,
    answers,
    at_work,
    cancelled,
    claimable,
    claimed,
    due,
    is_uid,
    new_uid,
    published,
    settled,
)

NOW = 1_700_000_000.0
RETENTION_S = 1000.0
TRY = Try(NOW, "Model timeout", "The model did not answer in time.")
RESULT = {"recommendations": ["a", "b", "c"]}


def job(**changes: object) -> Job:
    return replace(Job(new_uid(), "recommendation", {}, NOW, due_at=NOW + 5), **changes)  # type: ignore[arg-type]


def ended_job(status: Status) -> Job:
    return job(status=status, phase=None, due_at=NOW + RETENTION_S, ended_at=NOW)


def test_uid_is_32_lowercase_hex_digits() -> None:
    """A new uid is a UUIDv7 in its plain form."""
    uid = new_uid()
    assert is_uid(uid)
    assert len(uid) == 32
    assert (uid[12], uid[16] in "89ab") == ("7", True)


def test_uids_are_unique_and_in_order() -> None:
    """However fast they are made, no two are the same and each sorts behind the last."""
    uids = [new_uid() for _ in range(20_000)]
    assert uids == sorted(set(uids))


@pytest.mark.parametrize(
    "text",
    ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 31 + "\n", "\u0660" * 32, " " + "0" * 31, "0-" * 16],
)
def test_other_texts_are_no_uid(text: str) -> None:
    """Length, case and alphabet of a uid are exact."""
    assert not is_uid(text)


@given(st.text(max_size=40))
def test_is_uid_never_raises(text: str) -> None:
    """Whatever a caller sends is a uid or is none."""
    assert is_uid(text) == (len(text) == 32 and set(text) <= set("0123456789abcdef"))


def test_accepted_job_is_pending_and_queued() -> None:
    """A job begins as pending, on its way through the broker, without claims, tries or a lease."""
    new = job()
    assert (new.status, new.phase, new.token, new.claims, new.tries) == (
        Status.PENDING,
        Phase.QUEUED,
        None,
        0,
        (),
    )
    assert not new.ended


@pytest.mark.parametrize(
    ("phase", "late", "expected"),
    [
        (Phase.QUEUED, False, True),
        (Phase.DUE, False, True),
        (Phase.RUNNING, False, False),
        (Phase.WAITING, False, False),
        (Phase.RUNNING, True, True),
        (Phase.WAITING, True, True),
    ],
)
def test_who_may_be_claimed(phase: Phase, late: bool, expected: bool) -> None:
    """A job is claimable when it waits for a worker, or when its lease or its back-off has run out."""
    assert claimable(job(phase=phase, due_at=NOW if late else NOW + 1), NOW) is expected


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_ended_job_is_never_claimable(status: Status) -> None:
    """Nothing runs an ended job again, not even when its retention is over."""
    assert ended_job(status).ended
    assert not claimable(ended_job(status), NOW + 2 * RETENTION_S)


def test_claim_leases_and_counts() -> None:
    """A claim sets token and time, and counts."""
    won = claimed(job(claims=2), "t", NOW + 30)
    assert (won.phase, won.token, won.due_at, won.claims) == (Phase.RUNNING, "t", NOW + 30, 3)


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.DUE])
def test_published_job_is_looked_at_later(phase: Phase) -> None:
    """A job whose message is on its way is queued, and is looked at again at `due_at`."""
    sent = published(job(phase=phase), NOW + 77)
    assert (sent.phase, sent.due_at) == (Phase.QUEUED, NOW + 77)


@pytest.mark.parametrize(
    "other",
    [
        job(phase=Phase.RUNNING),
        job(phase=Phase.WAITING),
        ended_job(Status.COMPLETED),
        ended_job(Status.CANCELLED),
    ],
)
def test_published_leaves_a_claimed_job_alone(other: Job) -> None:
    """A publish that is noted after the claim, or after the end, changes nothing."""
    assert published(other, NOW + 77) is other


@pytest.mark.parametrize(
    ("phase", "then"),
    [
        (Phase.QUEUED, Phase.QUEUED),
        (Phase.RUNNING, Phase.DUE),
        (Phase.WAITING, Phase.DUE),
        (Phase.DUE, Phase.DUE),
    ],
)
def test_due_keeps_the_lease_that_ran_out(phase: Phase, then: Phase) -> None:
    """A sweeper's take moves the time and the phase; the token stays, so that a late result still counts."""
    taken = due(job(phase=phase, token="t"), NOW + 10)
    assert (taken.phase, taken.due_at, taken.token) == (then, NOW + 10, "t")


def test_completed_job() -> None:
    """A result ends a job, and its record is kept for the retention."""
    end = settled(claimed(job(), "t", NOW + 30), Completed(RESULT), NOW + 3, RETENTION_S)
    assert (end.status, end.phase, end.token, end.result) == (Status.COMPLETED, None, None, RESULT)
    assert (end.ended_at, end.due_at) == (NOW + 3, NOW + 3 + RETENTION_S)
    assert (end.error, end.message, end.tries) == (None, None, ())


def test_failed_job_says_why() -> None:
    """The last attempt is kept with the others, and its words become the job's."""
    end = settled(job(tries=(TRY,), token="t"), Failed(Try(NOW, "Refused", "No.")), NOW, RETENTION_S)
    assert (end.status, end.error, end.message) == (Status.FAILED, "Refused", "No.")
    assert [t.error for t in end.tries] == ["Model timeout", "Refused"]
    assert end.result is None


def test_retry_waits_and_keeps_the_reason() -> None:
    """A run to be tried again backs off, and its attempt is counted with its reason."""
    again = settled(claimed(job(), "t", NOW + 30), Retry(NOW + 9, TRY), NOW, RETENTION_S)
    assert (again.phase, again.token, again.due_at, again.tries) == (Phase.WAITING, None, NOW + 9, (TRY,))
    assert (again.claims, again.ended) == (1, False)


def test_retry_that_costs_no_attempt_costs_no_claim() -> None:
    """A run that waited for a leader or for the provider was lost by no worker, however often that happens."""
    again = settled(claimed(job(claims=2, tries=(TRY,)), "t", NOW + 30), Retry(NOW + 9), NOW, RETENTION_S)
    assert (again.phase, again.token, again.due_at) == (Phase.WAITING, None, NOW + 9)
    assert (again.claims, again.tries) == (2, (TRY,))


def test_handed_back_as_if_never_claimed() -> None:
    """A run that was stopped from outside costs neither a claim nor an attempt, and is due at once."""
    back = settled(claimed(job(), "t", NOW + 30), HandedBack(), NOW + 1, RETENTION_S)
    assert (back.phase, back.token, back.due_at, back.claims, back.tries) == (
        Phase.WAITING,
        None,
        NOW + 1,
        0,
        (),
    )
    assert claimable(back, NOW + 1)


def test_cancelled_job_says_so() -> None:
    """A cancelled job ends with a message, and neither error nor result."""
    end = cancelled(claimed(job(), "t", NOW + 30), NOW, RETENTION_S, "Cancelled by its caller.")
    assert (end.status, end.phase, end.token, end.message) == (
        Status.CANCELLED,
        None,
        None,
        "Cancelled by its caller.",
    )
    assert (end.error, end.result) == (None, None)


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
def test_cancel_leaves_an_ended_job_alone(status: Status) -> None:
    """Who cancels too late changes nothing."""
    end = ended_job(status)
    assert cancelled(end, NOW + 1, RETENTION_S, "x") is end


@pytest.mark.parametrize(
    ("ended_at", "asked_at", "fresh_s", "expected"),
    [
        (NOW - 10, NOW, 60.0, True),
        (NOW - 61, NOW, 60.0, False),
        (NOW - 61, NOW - 70, 60.0, True),
        (NOW - 1, NOW, 0.0, False),
        (NOW, NOW - 1, 0.0, True),
    ],
)
def test_whose_answer_serves(ended_at: float, asked_at: float, fresh_s: float, expected: bool) -> None:
    """A result serves a job of its key while it is fresh, or when it came after that job was accepted."""
    leader = replace(ended_job(Status.COMPLETED), ended_at=ended_at)
    assert answers(leader, asked_at, NOW, fresh_s) is expected


@pytest.mark.parametrize("leader", [job(), ended_job(Status.FAILED), ended_job(Status.CANCELLED)])
def test_job_without_a_result_answers_nobody(leader: Job) -> None:
    """Only a completed job has something to give."""
    assert not answers(leader, NOW - 100, NOW, 1e9)


@pytest.mark.parametrize(
    ("leader", "expected"),
    [
        (job(phase=Phase.RUNNING), True),
        (job(phase=Phase.WAITING), True),
        (job(phase=Phase.RUNNING, due_at=NOW), False),
        (job(phase=Phase.QUEUED), False),
        (job(phase=Phase.DUE), False),
        (ended_job(Status.COMPLETED), False),
    ],
)
def test_who_is_at_work(leader: Job, expected: bool) -> None:
    """One follows a job that runs or backs off, as long as somebody stands for it."""
    assert at_work(leader, NOW) is expected


# --- any moves in any order, beside a reference -------------------------------------------------------

MOVES: dict[tuple[Phase | None, str], Phase | None] = {
    (Phase.QUEUED, "claim"): Phase.RUNNING,
    (Phase.QUEUED, "publish"): Phase.QUEUED,
    (Phase.QUEUED, "due"): Phase.QUEUED,
    (Phase.RUNNING, "due"): Phase.DUE,
    (Phase.RUNNING, "late claim"): Phase.RUNNING,
    (Phase.RUNNING, "retry"): Phase.WAITING,
    (Phase.WAITING, "due"): Phase.DUE,
    (Phase.WAITING, "late claim"): Phase.RUNNING,
    (Phase.DUE, "claim"): Phase.RUNNING,
    (Phase.DUE, "publish"): Phase.QUEUED,
    (Phase.DUE, "due"): Phase.DUE,
    (Phase.DUE, "retry"): Phase.WAITING,
    (
        Phase.QUEUED,
        "retry",
    ): Phase.WAITING,  # the lease ran out, its message is on its way, its holder comes back
    **{(phase, "end"): None for phase in Phase},
}
OUTCOMES: list[Outcome] = [Completed(RESULT), Failed(TRY), Retry(0.0, TRY), Retry(0.0), HandedBack()]


@dataclass
class World:
    """One job, the time, and the leases that were ever given."""

    job: Job
    now: float = NOW
    leases: int = 0

    def step(self, move: str, wait_s: int, number: int) -> str | None:
        """Does one move as a store would; answers its name in MOVES, or None if nobody may do it now."""
        self.now += wait_s
        was = self.job
        late = was.due_at <= self.now
        match move:
            case "claim" if claimable(was, self.now):
                self.leases += 1
                self.job = claimed(was, f"t{self.leases}", self.now + 30)
                return "claim" if was.phase in (Phase.QUEUED, Phase.DUE) else "late claim"
            case "publish":
                self.job = published(was, self.now + 10)
                return "publish" if self.job is not was else None
            case "due" if late and not was.ended:
                self.job = due(was, self.now + 10)
                return "due"
            case "settle" if not was.ended and was.token == f"t{number % (self.leases + 1)}":
                outcome = OUTCOMES[number % len(OUTCOMES)]
                self.job = settled(
                    was,
                    replace(outcome, due_at=self.now + 5) if isinstance(outcome, Retry) else outcome,
                    self.now,
                    RETENTION_S,
                )
                return "end" if isinstance(outcome, Completed | Failed) else "retry"
            case "cancel":
                self.job = cancelled(was, self.now, RETENTION_S, "x")
                return "end" if self.job is not was else None
        return None


steps = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "publish", "due", "settle", "settle", "cancel"]),
        st.sampled_from([0, 0, 1, 5, 11, 31]),
        st.integers(0, 20),
    ),
    max_size=25,
)


@given(steps)
def test_only_the_moves_of_the_picture(taken: list[tuple[str, int, int]]) -> None:
    """In whatever order moves come, each is one of the reference, and an ended job never changes again."""
    world = World(job())
    for move, wait_s, number in taken:
        before = world.job
        made = world.step(move, wait_s, number)
        after = world.job
        if made is None:
            assert after == before
            continue
        assert not before.ended
        assert after.phase == MOVES[before.phase, made]
        assert after.ended == (after.phase is None)
        assert (after.result is not None) == (after.status is Status.COMPLETED)
        assert (after.error is not None) == (after.status is Status.FAILED)
        assert after.tries[: len(before.tries)] == before.tries
        assert after.due_at >= world.now
        assert 0 <= after.claims <= world.leases
        assert (after.uid, after.kind, after.params, after.created_at) == (
            before.uid,
            before.kind,
            before.params,
            before.created_at,
        )
