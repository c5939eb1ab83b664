"""What makes a run a failure: pure, so that a test can hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """What came of a run."""

    requests: int
    failures: int
    accept_p95_ms: float
    completed: int
    completed_per_s: float


@dataclass(frozen=True)
class Thresholds:
    """What a run must keep."""

    max_failed_share: float = 0.0
    max_accept_p95_ms: float = float("inf")
    min_completed_per_s: float = 0.0

    def broken_by(self, measured: Measured) -> list[str]:
        """Each threshold that was not kept, in words; a run that completed nothing has failed whatever they are."""
        broken = []
        if measured.completed == 0:
            broken.append("nothing was completed")
        if measured.failures > self.max_failed_share * measured.requests:
            broken.append(
                f"{measured.failures} of {measured.requests} failed; allowed: {self.max_failed_share:.2%}"
            )
        if measured.accept_p95_ms > self.max_accept_p95_ms:
            broken.append(
                f"p95 of accept is {measured.accept_p95_ms:.0f} ms; allowed: {self.max_accept_p95_ms:g}"
            )
        if measured.completed_per_s < self.min_completed_per_s:
            broken.append(
                f"{measured.completed_per_s:.1f} completed a second; wanted: {self.min_completed_per_s:g}"
            )
        return broken
