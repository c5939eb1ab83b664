"""How many requests the offline model lets in; pure, time comes as `now`."""

from math import ceil


class TokenBucket:
    """Lets `rate_per_s` requests a second in, a second's worth of them at once."""

    def __init__(self, rate_per_s: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self.capacity = max(1, ceil(rate_per_s))
        self._tokens = float(self.capacity)
        self._at = now

    def take(self, now: float) -> float:
        """Let one request in and return 0, or return the seconds until there is room for it."""
        self._tokens = min(self.capacity, self._tokens + (now - self._at) * self._rate_per_s)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate_per_s

    @property
    def remaining(self) -> int:
        """How many requests would be let in at once, as of the last one."""
        return int(self._tokens)

    @property
    def full_in_s(self) -> float:
        """Seconds until the bucket is full again, as of the last request."""
        return (self.capacity - self._tokens) / self._rate_per_s
