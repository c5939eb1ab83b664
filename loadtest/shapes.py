"""How many users there are at a time: pure, so that a test can hold it."""

from __future__ import annotations

SHAPES = ("steady", "ramp", "spike")

_RAMP_SHARE = 0.8  # of the run until the peak
_QUIET_SHARE = 0.2  # of the users before and after the spike
_SPIKE = (0.4, 0.6)  # of the run


def users_at(shape: str, peak: int, share: float) -> int:
    """The users of `shape` once `share` of the run, 0 to 1, is over."""
    if shape == "ramp":
        return max(1, round(peak * min(1.0, share / _RAMP_SHARE)))
    if shape == "spike" and not _SPIKE[0] <= share < _SPIKE[1]:
        return max(1, round(peak * _QUIET_SHARE))
    return peak
