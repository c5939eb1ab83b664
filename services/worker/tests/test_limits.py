"""What a provider's answers teach: arithmetic, on a clock that the test turns."""

import random
from heapq import heappop, heappush

from hypothesis import given, settings
from hypothesis import strategies as st

from travelrec.retry import Allowance, RetryPolicy, allowance
from travelrec_worker.limits import NEVER, Breaker, Concurrency, Guard, Pace, Run, Sent, State

BACKOFF = RetryPolicy(base_s=1.0, cap_s=30.0)


def breaker(run: int = 3) -> Breaker:
    return Breaker(BACKOFF, run=run, rng=random.Random(1))


class Bucket:
    """A provider's limit: `rate` a second, as many at once."""

    def __init__(self, rate: float) -> None:
        self.rate, self.tokens, self.at = rate, rate, 0.0

    def take(self, now: float) -> tuple[bool, Allowance]:
        self.tokens = min(self.rate, self.tokens + (now - self.at) * self.rate)
        self.at = now
        taken = self.tokens >= 1
        self.tokens -= taken
        return taken, self.told

    @property
    def told(self) -> Allowance:
        return Allowance(int(self.rate), int(self.tokens), (self.rate - self.tokens) / self.rate)


@given(st.integers(1, 1000), st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200))
def test_concurrency_stays_between_one_and_the_ceiling(ceiling: int, calls: list[tuple[bool, float]]) -> None:
    """Whatever comes, at least one call is allowed and never more than the ceiling."""
    concurrency, now = Concurrency(ceiling), 0.0
    assert concurrency.allowed == ceiling
    for good, latency_s in calls:
        before = concurrency.allowed
        sent = Sent(1, now)
        now += latency_s
        concurrency.good() if good else concurrency.bad(sent, now)
        assert 1 <= concurrency.allowed <= ceiling
        assert concurrency.allowed >= before if good else before // 2 <= concurrency.allowed <= before


def test_a_round_of_failures_halves_concurrency_once() -> None:
    """Of the calls that were on their way together, the first failure counts."""
    concurrency = Concurrency(100)
    for number in range(100):
        concurrency.bad(Sent(number, 0.0), now=1.0 + number / 1000)
    assert concurrency.allowed == 50
    concurrency.bad(Sent(101, 2.0), now=3.0)
    assert concurrency.allowed == 25


@given(st.integers(2, 500))
def test_concurrency_comes_back_in_rounds(ceiling: int) -> None:
    """After one halving some ten rounds of good answers reach the ceiling again, and no single answer does."""
    concurrency = Concurrency(ceiling)
    concurrency.bad(Sent(1, 0.0), now=1.0)
    rounds = 0
    while concurrency.allowed < ceiling:
        for _ in range(concurrency.allowed):
            concurrency.good()
        rounds += 1
    assert rounds <= 15


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([5.0, 20.0, 100.0]), st.floats(0.01, 1.0), st.booleans(), st.integers(0, 2**32))
def test_pace_uses_what_the_provider_allows(
    rate: float, latency_s: float, told_late: bool, seed: int
) -> None:
    """95 % of the rate is used, and few calls are rejected, whether headers are written at a call's start or end."""
    bucket, pace, rng = Bucket(rate), Pace(BACKOFF), random.Random(seed)
    now, seconds, at_once = 0.0, 10.0, 300
    taken = rejected = 0
    on_their_way: list[tuple[float, int, Sent, bool, Allowance]] = []
    while now < seconds:
        while pace.next_at(now) <= now and len(on_their_way) < at_once:
            sent = pace.send(now)
            ok, told = bucket.take(now)
            taken += ok
            rejected += not ok
            ends_at = now + (latency_s * rng.uniform(0.8, 1.2) if ok else 0.005)
            heappush(on_their_way, (ends_at, taken + rejected, sent, ok, told))
        while on_their_way and on_their_way[0][0] <= now:
            _, _, sent, ok, told = heappop(on_their_way)
            if ok:
                pace.answered(sent, bucket.told if told_late else told, now)
            else:
                pace.rejected(sent, told, 1 / rate, now)
        now += 0.002
    assert taken >= 0.95 * rate * seconds
    assert rejected <= at_once + 0.5 * taken


def test_what_is_told_of_the_rate_closes_for_an_hour_at_the_most() -> None:
    """However long the provider says that it takes until there is more."""
    pace = Pace(BACKOFF)
    pace.answered(pace.send(0.0), Allowance(20, 0, 20 * 86400.0), now=1.0)
    assert 1800.0 < pace.next_at(1.0) == pace.next_at(1000.0) <= 3601.0
    assert pace.next_at(4000.0) <= 4000.0


def test_a_429_closes_for_as_long_as_it_asks() -> None:
    """Retry-After holds for all, the longest wish wins, and none holds longer than an hour."""
    pace = Pace(BACKOFF)
    first, second = pace.send(0.0), pace.send(0.0)
    assert not pace.rejected(first, None, 5.0, now=1.0)
    pace.rejected(second, None, 2.0, now=1.0)
    assert pace.next_at(1.0) == 6.0
    pace.rejected(pace.send(7.0), None, 1e9, now=8.0)
    assert pace.next_at(8.0) == 3608.0


def test_429s_that_say_nothing_close_for_longer_and_longer() -> None:
    """Without headers the pause backs off, once a round."""
    pace, now, pauses = Pace(RetryPolicy(base_s=1.0, cap_s=30.0), random.Random(3)), 0.0, []
    for _ in range(8):
        calls = [pace.send(now) for _ in range(5)]
        for call in calls:
            pace.rejected(call, None, None, now + 1.0)
        pauses.append(pace.next_at(now + 1.0) - now - 1.0)
        now = pace.next_at(now + 1.0) + 0.001
    assert all(0 <= pause <= min(30, 2**number) for number, pause in enumerate(pauses))
    assert max(pauses) > 5


def test_a_wish_for_no_pause_is_none() -> None:
    """`Retry-After: 0` with a 429 is no leave to ask again at once, and again."""
    pace = Pace(RetryPolicy(base_s=1.0, cap_s=30.0), rng=random.Random(1))
    waits = []
    now = 0.0
    for _ in range(5):
        pace.rejected(pace.send(now), None, 0.0, now + 0.02)
        waits.append(pace.closed_until - now)
        now = pace.closed_until + 0.01
    assert all(wait > 0.02 for wait in waits)


def test_a_provider_that_tells_nothing_is_not_paced() -> None:
    """Without headers every call may be sent at once."""
    pace = Pace(BACKOFF)
    for _ in range(1000):
        assert pace.next_at(0.0) <= 0.0
        pace.answered(pace.send(0.0), None, 0.0)


def test_one_error_that_no_job_is_to_blame_for_opens_the_breaker() -> None:
    """A rejected key shuts it at once; other failures only in a row."""
    shut = breaker()
    shut.bad(Sent(1, 0.0), 1.0, fatal=True)
    assert shut.state is State.OPEN
    assert shut.next_at() > 1.0
    shut = breaker(run=3)
    for number in range(2):
        shut.bad(Sent(number, 0.0), 1.0, fatal=False)
    shut.good(Sent(3, 0.0), 1.0)
    for number in range(3):
        assert shut.state is State.CLOSED
        shut.bad(Sent(number, 0.0), 1.0, fatal=False)
    assert shut.state is State.OPEN


@given(st.lists(st.sampled_from(["send", "good", "bad", "fatal", "unknown", "wait"]), max_size=100))
def test_there_is_one_probe_at_a_time(moves: list[str]) -> None:
    """Whatever happens, a call that is sent while a probe is on its way is none, and none is sent before its time."""
    shut, now, number = breaker(), 0.0, 0
    on_their_way: list[Sent] = []
    for move in moves:
        now += 0.5
        if move == "wait":
            now += 40
        elif move == "send":
            if shut.next_at() > now:
                continue
            number += 1
            on_their_way.append(shut.send(Sent(number, now)))
        elif on_their_way:
            sent = on_their_way.pop(number % len(on_their_way))
            match move:
                case "good":
                    shut.good(sent, now)
                case "unknown":
                    shut.unknown(sent, now)
                case _:
                    shut.bad(sent, now, fatal=move == "fatal")
        probes = sum(sent.probe for sent in on_their_way)
        assert probes == (shut.state is State.PROBING)
        assert (shut.next_at() == NEVER) == (shut.state is State.PROBING)


def test_only_the_probe_closes_the_breaker() -> None:
    """An answer to a call from before says nothing about now; a failed probe opens it again."""
    shut = breaker()
    early = shut.send(Sent(1, 0.0))
    shut.bad(Sent(2, 0.0), 1.0, fatal=True)
    shut.good(early, 2.0)
    assert shut.state is State.OPEN
    probe = shut.send(Sent(3, 50.0))
    shut.bad(probe, 51.0, fatal=False)
    assert shut.state is State.OPEN
    probe = shut.send(Sent(4, 100.0))
    shut.good(probe, 101.0)
    assert shut.state is State.CLOSED
    shut.bad(Sent(5, 99.0), 102.0, fatal=True)
    assert shut.state is State.CLOSED, "a failure from before the probe is old news"


def test_headers_are_read_in_every_form() -> None:
    """Durations as OpenAI writes them, or bare seconds; what is missing or senseless counts as no header."""

    def told(reset: str, remaining: str = "3") -> Allowance | None:
        prefix = "x-ratelimit-"
        return allowance(
            {
                f"{prefix}limit-requests": "20",
                f"{prefix}remaining-requests": remaining,
                f"{prefix}reset-requests": reset,
            }
        )

    assert told("850ms") == Allowance(20, 3, 0.85)
    assert told("6m0s") == Allowance(20, 3, 360.0)
    assert told("1h2m3.5s") == Allowance(20, 3, 3723.5)
    assert told("2") == Allowance(20, 3, 2.0)
    assert told("30d") == Allowance(20, 3, 30 * 86400.0)
    for unreadable in ("", "soon", "-1", "nan", "inf", "1x", "s", "1764200000", "32d"):
        assert told(unreadable) is None
    assert told("1s", remaining="-1") is None
    assert allowance({}) is None


# --- the guard ----------------------------------------------------------------------------------------


def guard(last: int = 30, alike: float = 0.95, trial_s: float = 30.0, seed: int = 1) -> Guard:
    backoff = RetryPolicy(base_s=0.5, cap_s=30.0)
    return Guard(backoff, last=last, alike=alike, trial_s=trial_s, probes=10, rng=random.Random(seed))


@given(st.lists(st.sampled_from(["", "", "a", "a", "a", "a", "a", "b"]), max_size=300), st.integers(2, 12))
def test_a_guard_sees_when_nearly_all_failed_alike_and_not_before(ends: list[str], last: int) -> None:
    """The failure with which 19 of 20 of the last jobs failed for one reason is the first that does not stand."""
    watched = guard(last)
    for number, why in enumerate(ends):
        run = watched.let_in(number)
        recent = ends[max(0, number + 1 - last) : number + 1]
        enough = bool(why) and recent.count(why) >= 0.95 * last
        if why:
            assert watched.failed(run, why, number, final=True) is not enough
        else:
            watched.completed(run)
        assert (watched.state is not State.CLOSED) is enough
        if enough:
            return


@given(
    st.lists(st.sampled_from(["fail", "fail", "attempt", "lost"]), max_size=400),
    st.integers(1, 50),
    st.sampled_from([0.0, 1.0]),
    st.integers(),
)
def test_where_everything_fails_only_a_window_of_failures_stands(
    ends: list[str], in_flight: int, trial_s: float, seed: int
) -> None:
    """However many run at once and however they end, no more stand; after the trial a few probe, ever more rarely."""
    watched, now, standing, running = guard(trial_s=trial_s, seed=seed), 0.0, 0, []
    for end in ends:
        while len(running) < in_flight and watched.next_at() <= now:
            running.append(watched.let_in(now))
            if watched.next_at() != -NEVER:
                assert sum(run.probe == watched._round for run in running) <= 10
        if not running:
            assert watched.next_at() - now <= 30.0, "somebody is let in some time"
            now = max(now, watched.next_at())
            continue
        now += 0.01
        run = running.pop(0)
        match end:
            case "fail":
                standing += watched.failed(run, "a", now, final=True)
                assert watched.wait_s(now) <= 30.0 + trial_s
            case "attempt":
                closed = watched.state is State.CLOSED
                assert watched.failed(run, "a", now, final=False) is closed
            case "lost":
                watched.unknown(run)
    assert standing <= 28


def opened(watched: Guard, now: float) -> Guard:
    """All jobs failed, and again after the trial."""
    for at in [now] * 29 + [now + 30.0]:
        watched.failed(watched.let_in(at), "a", at, final=True)
    assert watched.state is State.OPEN
    return watched


def test_a_guard_stops_nobody_before_the_trial_is_over() -> None:
    """For half a minute everybody is let in, and nothing is failed; then it opens, with the next failure."""
    watched = guard()
    for number in range(29):
        watched.failed(watched.let_in(0.0), "a", 0.0, final=True)
        assert (watched.state is State.PROBING) is (number == 28)
    for now in (0.1, 10.0, 29.9):
        assert watched.next_at() <= now
        assert not watched.failed(watched.let_in(now), "b", now, final=True)
        assert watched.state is State.PROBING
    assert not watched.failed(watched.let_in(29.0), "a", 30.0, final=True)
    assert watched.state is State.OPEN


def test_a_success_closes_the_guard_unless_it_began_before_the_trouble() -> None:
    """What was on its way when the jobs began to fail says nothing; what began later does, a probe or not."""
    watched = guard()
    early = [watched.let_in(0.0) for _ in range(2)]
    failing = [watched.let_in(1.0 + n / 100) for n in range(29)]
    late = watched.let_in(3.0)
    assert [watched.failed(run, "a", 4.0, final=True) for run in failing] == [True] * 28 + [False]
    for run in early:
        watched.completed(run)
    assert watched.state is State.PROBING
    watched.completed(late)
    assert watched.state is State.CLOSED
    assert watched.failed(Run(5.0), "a", 6.0, final=True), "it begins to count anew"


def test_an_open_guard_lets_a_few_probe_and_closes_at_the_first_success() -> None:
    """Ten at a time, the next ten after a wait, and after one success everybody."""
    watched, now = opened(guard(), 0.0), 30.0
    for _ in range(3):
        assert now <= watched.next_at() < NEVER
        now = watched.next_at()
        probes = [watched.let_in(now) for _ in range(10)]
        assert watched.next_at() == NEVER
        watched.unknown(probes[0])
        assert watched.next_at() <= now
        probes[0] = watched.let_in(now)
        for run in probes:
            assert watched.state is State.PROBING
            assert not watched.failed(run, "a", now, final=True)
        assert watched.state is State.OPEN
    now = watched.next_at()
    stale = [watched.let_in(now) for _ in range(2)]
    watched.completed(watched.let_in(now))
    assert (watched.state, watched.next_at() <= now) == (State.CLOSED, True)
    watched.unknown(stale[0])
    opened(watched, now)
    now = watched.next_at()
    for _ in range(10):
        watched.let_in(now)
    watched.unknown(stale[1])
    assert watched.next_at() == NEVER, "who probed before makes no room now"


@settings(deadline=None, max_examples=20)
@given(st.floats(0.5, 0.97), st.integers(5, 200), st.integers(0, 1500), st.integers(0, 2**32))
def test_poison_among_good_jobs_holds_up_nobody(poison: float, in_flight: int, burst: int, seed: int) -> None:
    """With one always-failing job to each good one, or thirty, or a burst of them in front, everybody is let in."""
    rng, watched = random.Random(seed), guard(seed=seed)
    now, running = 0.0, []
    for number in range(3000):
        while len(running) < in_flight and watched.next_at() <= now:
            heappush(running, (now + rng.uniform(0.2, 0.4), rng.random(), watched.let_in(now)))
        assert len(running) == in_flight
        now, _, run = heappop(running)
        if number < min(burst, 50 * in_flight) or rng.random() < poison:
            watched.failed(run, "a", now, final=True)
        else:
            watched.completed(run)
