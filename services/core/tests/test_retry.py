"""When to try again, and how long a provider asks to wait."""

import random
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from travelrec.retry import RetryPolicy, http_date, retry_after_s

NOW = 1_700_000_000.0
POLICY = RetryPolicy(max_attempts=5, base_s=0.5, cap_s=60.0)


class Ends(random.Random):
    """Draws the end of every range: the lower one, or the upper one."""

    def __init__(self, *, upper: bool) -> None:
        super().__init__(0)
        self._upper = upper

    def uniform(self, a: float, b: float) -> float:
        return b if self._upper else a


@given(st.integers(1, 10_000), st.integers())
def test_delay_is_between_nothing_and_its_ceiling(attempts: int, seed: int) -> None:
    """Full jitter: anything from 0 to the doubled base, and never more than the cap."""
    delay_s = POLICY.delay_s(attempts, rng=random.Random(seed))
    assert 0 <= delay_s <= min(60.0, 0.5 * 2 ** min(attempts - 1, 30))


@pytest.mark.parametrize(
    ("attempts", "ceiling_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (9, 60.0), (10**6, 60.0)]
)
def test_ceiling_doubles_up_to_the_cap(attempts: int, ceiling_s: float) -> None:
    """The ceiling doubles with every failure until it meets the cap; the floor stays 0."""
    assert POLICY.delay_s(attempts, rng=Ends(upper=True)) == ceiling_s
    assert POLICY.delay_s(attempts, rng=Ends(upper=False)) == 0.0


def test_delays_are_spread() -> None:
    """Jobs that failed together do not come back together."""
    rng = random.Random(7)
    delays = [POLICY.delay_s(8, rng=rng) for _ in range(1000)]
    assert len(set(delays)) == 1000
    assert 25 < sum(delays) / 1000 < 35


def test_delay_without_a_generator_of_its_own() -> None:
    """The shared generator serves when none is given."""
    assert 0 <= POLICY.delay_s(1) <= 0.5


@given(st.integers(1, 100), st.floats(0, 1e6))
def test_delay_is_never_less_than_asked_for(attempts: int, wish_s: float) -> None:
    """The provider's wish is a floor, also above the cap."""
    assert POLICY.delay_s(attempts, retry_after_s=wish_s) >= wish_s


def test_exhausted_at_the_last_attempt() -> None:
    """The number of attempts is exact."""
    assert [POLICY.exhausted(n) for n in (1, 4, 5, 6)] == [False, False, True, True]
    assert RetryPolicy(max_attempts=1).exhausted(1)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 99 Foo 2026 99:99:99 GMT"}, None),
        ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 2024 00:00:00 +999999999999999"}, None),
        ({"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}, None),
        ({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"}, None),
    ],
)
def test_what_a_provider_asks_for(headers: dict[str, str], expected: float | None) -> None:
    """Milliseconds before seconds; what can't be read, is negative or has no end is no wish."""
    assert retry_after_s(headers, NOW) == expected


@pytest.mark.parametrize(("after_s", "expected"), [(30, 30.0), (0, 0.0), (-30, None)])
def test_date_is_counted_from_now(after_s: int, expected: float | None) -> None:
    """A date in the future is a wish, one in the past is none."""
    date = format_datetime(datetime.fromtimestamp(NOW + after_s, UTC), usegmt=True)
    assert retry_after_s({"retry-after": date}, NOW) == expected


def test_date_of_another_zone_and_of_none() -> None:
    """A zone is respected, and a date without one is in UTC."""
    assert retry_after_s({"retry-after": "Tue, 14 Nov 2023 22:13:50 +0100"}, NOW) is None
    assert retry_after_s({"retry-after": "Tue, 14 Nov 2023 23:13:50 -0100"}, NOW) == 7230.0
    assert retry_after_s({"retry-after": "Tue, 14 Nov 2023 22:13:50 -0000"}, NOW) == 30.0


@given(st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d.*"))
def test_garbage_never_raises(value: str) -> None:
    """Whatever a server writes there is a wait from 0 on, or no wish."""
    for name in ("retry-after", "retry-after-ms"):
        wish = retry_after_s({name: value}, NOW)
        assert wish is None or 0 <= wish < float("inf")


def test_http_date_is_for_people() -> None:
    """A moment in words, in UTC."""
    assert http_date(NOW) == "2023-11-14 22:13:20 UTC"
