"""Which offset of a partition may be committed while messages finish in any order: pure."""

from __future__ import annotations


class Offsets:
    """The messages of one partition that were taken; a commit may go up to the lowest unfinished one."""

    def __init__(self) -> None:
        self._unfinished: dict[int, None] = {}  # in the order taken, so the first one is the lowest
        self._next: int | None = None
        self._committed: int | None = None

    def taken(self, offset: int) -> None:
        """`offset` was handed out; offsets come in rising order, with gaps where the log was compacted."""
        self._unfinished[offset] = None
        self._next = offset + 1

    def finished(self, offset: int) -> None:
        """`offset` need not come again; repeats are harmless."""
        self._unfinished.pop(offset, None)

    def committable(self) -> int | None:
        """The offset to commit (that of the next message to read), or None when nothing is new."""
        position = next(iter(self._unfinished), self._next)
        return None if position == self._committed else position

    def committed(self, position: int) -> None:
        """The broker has noted `position`."""
        self._committed = position

    @property
    def unfinished(self) -> int:
        """How many messages are out."""
        return len(self._unfinished)
