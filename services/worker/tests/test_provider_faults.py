"""What a user gets when the provider fails, fault by fault: the whole role `jobs` and the real SDK over HTTP."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from support import eventually
from travelrec.adapters.memory import MemoryBroker, MemorySignals, MemoryStore
from travelrec.adapters.openai import OpenAIModel
from travelrec.connect import Parts
from travelrec.fake_openai import FAULTS, FakeOpenAI, FakeSettings, running
from travelrec.job import Job, Status, new_uid
from travelrec.kinds.recommendation import NAME
from travelrec.kinds.recommendation.examples import PARAMS
from travelrec.retry import RetryPolicy
from travelrec.settings import Settings
from travelrec.wire import JOBS_TOPIC, encode_job
from travelrec_worker import gate, jobs, sweeper
from travelrec_worker.app import running_roles

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

AGAIN = " Given up after 1 attempts. Please try again later."
NEVER = " Sending the same request again will not help."

FAILS: Mapping[str, tuple[str, str]] = {
    "500": ("Model unavailable", f"The model's server answered 500.{AGAIN}"),
    "503": ("Model unavailable", f"The model's server answered 503.{AGAIN}"),
    "reset": ("Model unavailable", f"The connection to the model broke.{AGAIN}"),
    "half-body": ("Model unavailable", f"The connection to the model broke.{AGAIN}"),
    "hang": ("Model timeout", f"The model did not answer in time.{AGAIN}"),
    "slow-drip": ("Model timeout", f"The model did not answer in time.{AGAIN}"),
    "broken-json": (
        "Unusable model answer",
        f"The answer is not JSON of the schema that was asked for.{AGAIN}",
    ),
    "wrong-schema": (
        "Unusable model answer",
        f"The answer is not JSON of the schema that was asked for.{AGAIN}",
    ),
    "wrong-count": ("Unusable model answer", f"The answer has 2 recommendations instead of 3.{AGAIN}"),
    "duplicates": ("Unusable model answer", f"Two recommendations are the same.{AGAIN}"),
    "empty-strings": ("Unusable model answer", f"A recommendation is empty.{AGAIN}"),
    "markup": ("Unusable model answer", f"A recommendation is not plain text.{AGAIN}"),
    "refusal": ("Model refused", f"The model refused to answer.{NEVER}"),
    "length": ("Model answer truncated", f"The model's answer was cut off at its token limit.{NEVER}"),
    "content-filter": (
        "Model answer filtered",
        f"The provider's content filter held the answer back.{NEVER}",
    ),
    "wrong-model": (
        "Model rejected the request",
        f"The model's server rejects the request (404).{NEVER}",
    ),
}
WAITS = {
    "429": "The model's server asks for fewer requests.",
    "429-no-retry-after": "The model's server asks for fewer requests.",
    "quota": "The account at the model's provider has no quota left.",
    "401": "The model's server rejects the API key.",
    "403": "The model's server forbids this request.",
}
COMPLETES = ("no-json-schema",)


@dataclass
class Bench:
    """A worker on memory adapters; `fakes` are its providers."""

    store: MemoryStore
    broker: MemoryBroker
    fakes: list[FakeOpenAI]

    async def accept(self, country: str = PARAMS["country"]) -> str:
        now = time.time()
        job = Job(new_uid(), NAME, {**PARAMS, "country": country}, now, due_at=now + 60)
        await self.store.accept([job], now)
        await self.broker.publish(JOBS_TOPIC, [encode_job(job)])
        return job.uid

    async def ended(self, uid: str) -> Job:
        await eventually(lambda: self.store.jobs[uid].ended)
        return self.store.jobs[uid]

    def calls(self, provider: int = 0) -> int:
        return self.fakes[provider].stats()["calls"]


@asynccontextmanager
async def working(
    *providers: FakeSettings, urls: tuple[str, ...] = (), **settings: object
) -> AsyncIterator[Bench]:
    """One attempt a job, half a second of time, unless the `settings` say otherwise."""
    given: dict[str, object] = {
        "max_attempts": 1,
        "model_timeout_s": 0.5,
        "recommendation_cache_ttl_s": 0.0,
        **settings,
    }
    bench = Bench(MemoryStore(), MemoryBroker(), [])
    async with AsyncExitStack() as stack:
        for each in providers:
            bench.fakes.append(await stack.enter_async_context(running(each)))
        models = [
            await stack.enter_async_context(
                OpenAIModel.opened(api_key="x", base_url=url, model="m", connections=100)
            )
            for url in (*urls, *(fake.base_url for fake in bench.fakes))
        ]
        parts = Parts(bench.store, bench.broker, MemorySignals())
        read = Settings(
            broker_url="kafka://unused", store_url="memory://", grace_s=0, _env_file=None, **given
        )
        await stack.enter_async_context(running_roles(["jobs"], read, parts, *models))
        yield bench


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_BACKOFF", RetryPolicy(base_s=0.05, cap_s=0.1))
    monkeypatch.setattr(jobs, "_FORBIDDEN_S", 0.1)
    monkeypatch.setattr(sweeper, "_EVERY_S", 0.02)


def faulty(name: str) -> FakeSettings:
    return FakeSettings(faults={name: 1.0}, retry_after_s=0.05)


async def test_every_fault_has_its_outcome() -> None:
    """A fault that the offline model learns must be told here what a user gets."""
    assert {*FAILS, *WAITS, *COMPLETES} == set(FAULTS)


@pytest.mark.parametrize("fault", FAILS)
async def test_a_fault_that_ends_the_job_says_why(fault: str) -> None:
    """The job fails after its attempts, with the title and the words of the fault."""
    async with working(faulty(fault)) as bench:
        job = await bench.ended(await bench.accept())
        assert (job.status, job.error, job.message) == (Status.FAILED, *FAILS[fault])
        broken = FAILS[fault][0] == "Unusable model answer"
        assert bench.calls() == (2 if broken else 1), "one repair round for what can be repaired"


@pytest.mark.parametrize("fault", WAITS)
async def test_a_fault_of_the_provider_costs_only_time(fault: str) -> None:
    """The job stays pending without an attempt however often it meets the fault, and completes when that is gone."""
    async with working(faulty(fault)) as bench:
        uid = await bench.accept()
        await eventually(lambda: bench.calls() >= 3)
        assert not bench.store.jobs[uid].ended
        bench.fakes[0].configure(faults={})
        job = await bench.ended(uid)
        assert (job.status, job.tries, job.claims) == (Status.COMPLETED, (), 1)


@pytest.mark.parametrize("fault", WAITS)
async def test_a_fault_of_the_provider_ends_with_the_deadline(fault: str) -> None:
    """A job that can't be run by its deadline fails, and says what was in its way."""
    async with working(faulty(fault), job_deadline_s=0.4) as bench:
        job = await bench.ended(await bench.accept())
        told = f"{WAITS[fault]} No answer could be had in time. Please try again later."
        assert (job.status, job.error, job.message) == (Status.FAILED, "Deadline passed", told)


async def test_a_name_that_is_not_found_costs_only_time() -> None:
    """With a provider whose name can't be resolved the job waits, without an attempt."""
    async with working(urls=("http://provider.invalid/v1",), job_deadline_s=1.0) as bench:
        job = await bench.ended(await bench.accept())
        assert (job.error, job.message) == (
            "Deadline passed",
            "The model's server can't be reached. No answer could be had in time. Please try again later.",
        )


async def test_a_server_without_json_schema_is_asked_for_json() -> None:
    """What the server lacks is found out by one call, and not tried again."""
    async with working(faulty("no-json-schema")) as bench:
        for country in ("Peru", "Kenya", "Japan"):
            job = await bench.ended(await bench.accept(country))
            assert job.status is Status.COMPLETED, job.message
        assert bench.calls() == 4


@pytest.mark.parametrize("fault", ["401", "403", "quota", "500", "503", "reset", "hang"])
async def test_the_second_provider_stands_in_for_the_first(fault: str) -> None:
    """A job that meets trouble of the first provider is completed by the second, in the same attempt."""
    async with working(faulty(fault), FakeSettings()) as bench:
        job = await bench.ended(await bench.accept())
        assert (job.status, job.tries) == (Status.COMPLETED, ())
        assert (bench.calls(0), bench.calls(1)) == (1, 1)


async def test_the_second_provider_is_not_asked_what_the_first_refuses() -> None:
    """A refusal is an answer."""
    async with working(faulty("refusal"), FakeSettings()) as bench:
        assert (await bench.ended(await bench.accept())).error == "Model refused"
        assert bench.calls(1) == 0


async def test_while_the_breaker_is_open_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rejected key a hundred jobs cost one call at a time and no attempt; the rest waits in the broker."""
    monkeypatch.setattr(gate, "_PATIENCE_S", 0.2)
    async with working(faulty("401"), worker_concurrency=20) as bench:
        uids = [await bench.accept() for _ in range(1)]
        await eventually(lambda: bench.calls() >= 3)
        uids += [await bench.accept(country) for country in map(str, range(100))]
        await eventually(lambda: bench.calls() >= 8)
        jobs = bench.store.jobs
        assert sum(jobs[uid].claims for uid in uids) <= 1 + 40, "what is claimed goes back"
        assert bench.fakes[0].stats()["max_in_flight"] == 1
        bench.fakes[0].configure(faults={})
        for uid in uids:
            job = await bench.ended(uid)
            assert (job.status, job.tries) == (Status.COMPLETED, ())


async def test_a_rate_limit_is_used_and_fails_nothing() -> None:
    """Sixty jobs at twenty requests a second take some seconds, whatever the machine does, and not one attempt."""
    async with working(FakeSettings(rate_limit_per_s=20, latency_s=0.1), model_timeout_s=5) as bench:
        began = time.monotonic()
        uids = [await bench.accept(str(number)) for number in range(60)]
        for uid in uids:
            job = await bench.ended(uid)
            assert (job.status, job.tries) == (Status.COMPLETED, ())
        assert time.monotonic() - began < 15, (
            "one that backs off at each 429 takes longer; bench limit has the share"
        )
