"""Which offset may be committed, beside a naive model that remembers everything."""

from hypothesis import given
from hypothesis import strategies as st

from travelrec.offsets import Offsets


class Naive:
    """All offsets that were taken and finished, in sets."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.finished: set[int] = set()

    def position(self) -> int | None:
        """Up to where everything is finished: the lowest unfinished offset, or the one behind the last."""
        unfinished = [offset for offset in self.taken if offset not in self.finished]
        return min(unfinished) if unfinished else max(self.taken) + 1 if self.taken else None


@given(st.integers(0, 2**40), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans())))
def test_commits_stop_at_the_lowest_unfinished(start: int, steps: list[tuple[int, int, bool]]) -> None:
    """Whatever order messages finish in, with gaps and repeats, a commit never passes an unfinished one."""
    offsets, naive = Offsets(), Naive()
    following, committed = start, None
    for kind, number, commit in steps:
        if kind <= 1:
            following += number % 4 * kind  # a gap: the log was compacted
            offsets.taken(following)
            naive.taken.append(following)
            following += 1
        else:
            before = start - 1 - number  # of another member of the group
            finished = naive.taken[number % len(naive.taken)] if naive.taken and number else before
            offsets.finished(finished)
            naive.finished.add(finished)
        position = offsets.committable()
        assert position == (None if naive.position() == committed else naive.position())
        assert offsets.unfinished == len(set(naive.taken) - naive.finished)
        if commit and position is not None:
            assert committed is None or position > committed
            offsets.committed(position)
            committed = position
            assert offsets.committable() is None


@given(st.lists(st.integers(1, 5), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_the_end_is_reached(gaps: list[int], order: object) -> None:
    """Once everything is finished the position is behind the last message, whatever the order."""
    offsets, taken, following = Offsets(), [], 0
    for gap in gaps:
        following += gap
        taken.append(following)
        offsets.taken(following)
    order.shuffle(taken)  # type: ignore[attr-defined]  # hypothesis's random.Random
    for offset in taken:
        offsets.finished(offset)
        offsets.finished(offset)
    assert offsets.committable() == following + 1
    assert offsets.unfinished == 0


def test_nothing_taken_nothing_to_commit() -> None:
    """A partition of which nothing was taken has no position, whatever is reported finished."""
    offsets = Offsets()
    assert offsets.committable() is None
    offsets.finished(7)
    assert offsets.committable() is None


def test_the_first_message_alone_is_committed_as_its_own_place() -> None:
    """With nothing finished yet the position is the first message, so that a gap before it is passed."""
    offsets = Offsets()
    offsets.taken(40)
    assert offsets.committable() == 40
    offsets.committed(40)
    offsets.taken(41)
    offsets.finished(41)
    assert offsets.committable() is None
    offsets.finished(40)
    assert offsets.committable() == 42
