"""Tasks without a store: the moves that are allowed, the times of submissions, and what is read of a third party."""

import json
import math
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from travelrec.errors import InvalidInput
from travelrec.fake_tasks.server import most_in_a_second
from travelrec.tasks import pace
from travelrec.tasks import task as moves
from travelrec.tasks.pace import Pace
from travelrec.tasks.reading import read_json, read_rows
from travelrec.tasks.task import (
    Again,
    Change,
    Rejected,
    Row,
    Submitted,
    Task,
    TaskStatus,
)

NOW = 1_700_000_000.0
NOT_STARTED, IN_PROGRESS, COMPLETED, ERROR = TaskStatus
RANK = {NOT_STARTED: 0, IN_PROGRESS: 1, COMPLETED: 2, ERROR: 2}

statuses = st.sampled_from(TaskStatus)
messages = st.none() | st.text(max_size=5)
changes = st.builds(Change, st.none() | statuses, messages, st.booleans())
outcomes = (
    st.builds(Submitted)
    | st.builds(Rejected, st.text(max_size=5))
    | st.builds(Again, st.floats(0, 1e9), st.booleans())
)
rows = st.builds(Row, st.just("1"), statuses, messages)


def new(**fields: object) -> Task:
    return moves.created("1", NOW, **fields)  # type: ignore[arg-type]


@given(st.lists(changes | outcomes | rows, max_size=12))
def test_a_task_keeps_its_rules(steps: list[object]) -> None:
    """Whatever happens: a message only with an error, its id, uid and age stay, and only its caller turns it back."""
    task = new()
    for step in steps:
        before = task
        match step:
            case Change():
                with suppress(InvalidInput):
                    task = moves.changed(task, step, NOW + 1)
            case Row():
                task = moves.reported(task, step) or task
                assert RANK[task.status] >= RANK[before.status]
                assert not before.ended or task == before
            case Submitted() | Rejected() | Again() if task.status is NOT_STARTED:
                task = moves.settled(task, step)
        assert task.error_message is None or task.status is ERROR
        assert (task.id, task.uid) == (before.id, before.uid)
        if task.status is not NOT_STARTED:
            assert task.token == ""


def test_a_message_needs_an_error() -> None:
    """For a new task as for a changed one."""
    with pytest.raises(InvalidInput, match="error_message"):
        new(error_message="x")
    assert new(status=ERROR, error_message="x").error_message == "x"


def test_a_task_set_back_is_a_new_submission() -> None:
    """It has another key, no attempts, and its deadline begins again; a change that changes nothing leaves all that."""
    task = moves.settled(new(), Again(NOW + 5))
    assert moves.changed(task, Change(NOT_STARTED), NOW) == task
    done = moves.changed(task, Change(COMPLETED), NOW)
    again = moves.changed(done, Change(NOT_STARTED), NOW + 9)
    assert again.key not in ("", task.key)
    assert (again.attempts, again.since, again.due_at, again.again) == (0, NOW + 9, NOW + 9, True)


# --- pace ----------------------------------------------------------------------------------------------


@given(
    rate=st.floats(0.05, 500),
    pauses=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50)), max_size=60),
)
def test_no_second_has_more_than_the_limit(rate: float, pauses: list[tuple[float, int]]) -> None:
    """However takes come and however many are wanted: no window of a second has more than the rate, and one begun."""
    before, now, times = Pace(), 1000.0, []
    for pause_s, wanted in pauses:
        now += pause_s
        given_now = pace.free_times(before, now, rate)[:wanted]
        assert all(now < at <= now + pace.AHEAD_S + 1e-6 for at in given_now)
        times += given_now
        if given_now:
            before = pace.given(before, given_now[-1], "", rate)
    assert times == sorted(times)
    first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1 + 1e-6:
            first += 1
        assert last - first + 1 <= rate + 1


@given(
    rate=st.integers(1, 500) | st.floats(0.05, 500),
    late=st.lists(st.floats(0, 1), min_size=2, max_size=600),
)
@example(rate=1, late=[1.0, 0.0])
@example(rate=10, late=[1.0] + [0.0] * 10)
@example(rate=500, late=[1.0] + [0.0] * 500)
def test_no_second_has_more_calls_than_the_limit(rate: float, late: list[float]) -> None:
    """Whichever of them are punctual and whichever as late as they may be: a limit that is no whole number is
    rounded up."""
    sent = sorted(n * pace.gap_s(rate) + share * pace.LATENESS_S for n, share in enumerate(late))
    assert most_in_a_second(sent) <= math.ceil(rate)


@given(
    waiting=st.dictionaries(st.text(max_size=2), st.lists(st.text(), min_size=1, max_size=5), max_size=5),
    count=st.integers(0, 12),
)
def test_groups_have_equal_shares(waiting: dict[str, list[str]], count: int) -> None:
    """No group has two more than another that still waits, and within each the order stays."""
    named = {group: [f"{group}/{n}" for n in range(len(line))] for group, line in waiting.items()}
    chosen = pace.in_turn(named, count)
    assert len(chosen) == min(count, sum(map(len, named.values())))
    shares = {}
    for group, line in named.items():
        mine = [one for one in chosen if one in line]
        assert mine == line[: len(mine)]
        shares[group] = len(mine)
    for group, line in named.items():
        if shares[group] < len(line):
            assert all(other <= shares[group] + 1 for other in shares.values())


def test_groups_go_on_behind_the_last() -> None:
    """In a circle."""
    assert pace.served_groups("cab", "a", 2) == ["b", "c"]
    assert pace.served_groups("cab", "c", 5) == ["a", "b", "c"]
    assert pace.served_groups("cab", "b", 2) == ["c", "a"]


def test_a_late_poll_does_not_make_the_next_one_late() -> None:
    """Polls stay at their distance; those that were missed are not made up for; the first is followed by one."""
    assert pace.next_poll_at(100.0, 100.1, 10.0, 0.0) == 110.0
    assert pace.next_poll_at(100.0, 108.0, 10.0, 0.0) == 110.0
    assert pace.next_poll_at(100.0, 125.0, 10.0, 0.0) == 130.0
    assert pace.next_poll_at(0.0, 125.0, 10.0, 0.0) == 135.0
    for jitter in (-1.0, 1.0):
        assert abs(pace.next_poll_at(100.0, 100.0, 10.0, jitter) - 110.0) == pytest.approx(0.5)


# --- reading -------------------------------------------------------------------------------------------


def test_bad_rows_are_skipped_and_counted() -> None:
    """What can be used is, the last word on each task counts, and a number is kept as its string."""
    text = """[
        {"id": "1", "status": "In Progress"},
        {"id": 2, "status": "Completed", "error_message": null, "more": 1},
        {"id": 2.50, "status": "Completed", "error_message": "not of an error"},
        {"id": "3", "status": "Error", "error_message": "Invalid IP range: 192.168.1.256"},
        {"id": "4", "status": "Error"},
        {"id": "1", "status": "Completed"},
        {"id": "5", "status": "done"}, {"id": "6"}, {"status": "Completed"}, {"id": null, "status": "Error"},
        {"id": true, "status": "Error"}, {"id": "", "status": "Error"}, {"id": "\\ud800", "status": "Error"},
        {"id": "7", "status": "Error", "error_message": 7}, {"id": "8", "status": "Error", "error_message": "\\ud800"},
        {"id": "9", "status": ["Error"]}, [], null, 1, "x"
    ]"""
    listed = read_json(text.encode())
    assert isinstance(listed, list)
    good, bad = read_rows(listed)
    assert good == [
        Row("1", COMPLETED),
        Row("2", COMPLETED),
        Row("2.50", COMPLETED),
        Row("3", ERROR, "Invalid IP range: 192.168.1.256"),
        Row("4", ERROR),
    ]
    assert bad == 14


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_what_is_no_json_is_a_value_error(body: bytes) -> None:
    """And nothing else."""
    try:
        read_json(body)
    except ValueError:
        return
    json.loads(body)


def test_long_messages_are_cut() -> None:
    """A third party that says a lot is heard to a point."""
    ((row,), _) = read_rows([{"id": "1", "status": "Error", "error_message": "x" * 100_000}])
    assert row.error_message == "x" * moves.MAX_MESSAGE


def test_the_fake_counts_what_is_too_much() -> None:
    """`most_in_a_second` sees a burst across any border."""
    assert most_in_a_second([]) == 0
    assert most_in_a_second([0.0, 0.5, 1.0, 1.4, 1.6]) == 3
