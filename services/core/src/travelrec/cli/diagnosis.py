"""What is wrong with a deployment, in plain words: every neighbour is asked, and what waits is looked at."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp

from travelrec.cli.addresses import shown
from travelrec.cli.samples import Samples, scraped
from travelrec.connect import Parts, opened_models, opened_parts
from travelrec.errors import BadKey, Forbidden, ModelError, NoQuota, RateLimited, Unavailable
from travelrec.ports import Backlog, Group, ModelServer
from travelrec.settings import Settings
from travelrec.wire import JOB_TOPICS

Answer = TypeVar("Answer")

OLD_S = 300.0  # a job that has waited so long is trouble
_LATELY_S = 3600.0
_MANY = 100_000
_SLACK_S = 2.0  # for an adapter to say itself that its time is over
_PORTS = {
    "mongodb": 27017,
    "kafka": 9092,
    "kafka+ssl": 9092,
    "amqp": 5672,
    "amqps": 5671,
    "redis": 6379,
    "rediss": 6379,
    "http": 80,
    "https": 443,
}


class State(StrEnum):
    """How something is."""

    FINE = "fine"
    NOTICE = "notice"  # worth knowing
    TROUBLE = "trouble"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and which command comes next."""

    part: str
    state: State
    says: str
    next: str | None = None


async def diagnosed(settings: Settings, urls: Sequence[str]) -> list[Finding]:
    """What there is to say; `urls` are those of processes that are asked too. Raises `BadSetting`."""
    if settings.broker_url.startswith("memory:"):
        return await _of_processes(urls or [f"http://localhost:{settings.port}"], "travelrec serve")
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(opened_parts(settings))
        found = await asyncio.gather(
            _of_store(parts, settings),
            _of_broker(parts, settings),
            _of_signals(parts, settings),
            _of_providers(settings),
            _of_processes(urls, "travelrec api` or `travelrec worker"),
        )
    (store, backlog, failed), (broker, group), signals, providers, processes = found
    if broker.state is State.TROUBLE and not settings.signal_url:
        signals = []  # they go over the broker, of which everything is said
    return [store, broker, *signals, *providers, *_of_backlog(backlog, group), *failed, *processes]


# --- the neighbours -------------------------------------------------------------------------------------


async def _of_store(parts: Parts, settings: Settings) -> tuple[Finding, Backlog | None, list[Finding]]:
    try:
        backlog = await _in_time(parts.store.backlog(_MANY), settings)
        failed = await _in_time(parts.store.failed(time.time() - _LATELY_S, _MANY), settings)
    except (Unavailable, TimeoutError) as error:
        effect = "Requests are answered with 503, and results wait in the workers."
        return _away("store", settings.store_url, error, effect), None, []
    return (
        Finding("store", State.FINE, f"answers at {shown(settings.store_url)}"),
        backlog,
        _of_failed(Counter(job.error or "no reason" for job in failed)),
    )


async def _of_broker(parts: Parts, settings: Settings) -> tuple[Finding, Group | None]:
    try:
        await _in_time(parts.broker.ping(), settings)
        groups = [await _in_time(parts.broker.group(topic, topic), settings) for topic in JOB_TOPICS]
        group = Group(
            min(each.members for each in groups), {n: sum(each.lag.values()) for n, each in enumerate(groups)}
        )
    except (Unavailable, TimeoutError) as error:
        effect = "Requests are accepted, and are processed once it is back."
        return _away("broker", settings.broker_url, error, effect), None
    return Finding("broker", State.FINE, f"answers at {shown(settings.broker_url)}"), group


async def _of_signals(parts: Parts, settings: Settings) -> list[Finding]:
    url = settings.signal_url or settings.broker_url
    try:
        await _in_time(parts.signals.ping(), settings)
    except (Unavailable, TimeoutError) as error:
        return [_away("signals", url, error, "Whoever waits for a job hears of its end two seconds late.")]
    return [Finding("signals", State.FINE, f"go over {shown(url)}")]


async def _of_providers(settings: Settings) -> list[Finding]:
    if settings.offline_model:
        says = "is not named here; workers need OPENAI_API_KEY or OPENAI_BASE_URL"
        return [Finding("provider", State.NOTICE, says)]
    urls = (settings.openai_base_url, settings.openai_fallback_base_url or settings.openai_base_url)
    async with opened_models(settings) as models:
        asked = zip(("provider", "fallback provider"), models, settings.model_names, urls, strict=False)
        return list(
            await asyncio.gather(
                *(
                    _of_provider(part, model, name, url or "https://api.openai.com/v1", settings)
                    for part, model, name, url in asked
                )
            )
        )


async def _of_provider(part: str, model: ModelServer, name: str, url: str, settings: Settings) -> Finding:
    look = f"curl -sS -m 5 -H 'Authorization: Bearer '\"$OPENAI_API_KEY\" {shown(url)}/models"
    try:
        offered = await model.offered(settings.neighbour_timeout_s)
    except (BadKey, Forbidden):
        says = f"rejects the API key at {shown(url)}. Jobs wait; no attempt is counted."
        return Finding(part, State.TROUBLE, says, "export OPENAI_API_KEY=…, and start the workers again")
    except (NoQuota, RateLimited) as error:
        return Finding(part, State.TROUBLE, f"has no more for us: {error} Jobs wait.", look)
    except ModelError as error:
        says = f"gives no answer at {shown(url)}: {error} Jobs wait, and are tried again."
        return Finding(part, State.TROUBLE, says, look)
    if offered and name not in offered:
        says = f"answers at {shown(url)}, but does not list the model {name}"
        return Finding(part, State.NOTICE, says, look)
    return Finding(part, State.FINE, f"answers at {shown(url)}, and takes the key")


def _away(part: str, url: str, error: Exception, effect: str) -> Finding:
    """A neighbour that gave no answer; the adapter's own words are long and say it in the words of a library."""
    first = shown(url).partition("://")[2].partition(",")[0].partition("/")[0]
    address = urlsplit(f"//{first}")
    port = address.port or _PORTS.get(url.partition("://")[0], 0)
    words = " ".join(str(error).split())[:120] or "no answer in time"
    return Finding(
        part,
        State.TROUBLE,
        f"gives no answer at {shown(url)} ({words}). {effect}",
        f"nc -vz {address.hostname} {port}",
    )


# --- the work -------------------------------------------------------------------------------------------


def _of_backlog(backlog: Backlog | None, group: Group | None) -> list[Finding]:
    if backlog is None:
        return []
    age_s = max(0.0, time.time() - backlog.oldest_at) if backlog.oldest_at is not None else 0.0
    waiting = f"{_counted(backlog.pending, 'job')} not ended, the oldest accepted {_span(age_s)} ago"
    if not backlog.pending:
        waiting = "nothing waits"
    if group is None:
        return [Finding("backlog", State.NOTICE if backlog.pending else State.FINE, waiting)]
    workers = (
        f"{_counted(group.members, 'worker')} in the group, {sum(group.lag.values()):,} messages not taken"
    )
    if not group.members:
        state = State.TROUBLE if backlog.pending else State.NOTICE
        says = f"{waiting}; no worker is in the group, so nobody works"
        return [Finding("backlog", state, says, "travelrec worker")]
    if age_s > OLD_S:
        return [
            Finding(
                "backlog",
                State.TROUBLE,
                f"{waiting}; {workers}: too few workers, or one job that can't be finished",
                "travelrec top --url http://WORKER:9000",
            )
        ]
    return [Finding("backlog", State.FINE, f"{waiting}; {workers}")]


def _of_failed(by_error: Counter[str]) -> list[Finding]:
    if not by_error:
        return []
    reasons = ", ".join(f"{error} ({count})" for error, count in by_error.most_common(5))
    says = f"{_counted(by_error.total(), 'job')} failed within the last hour: {reasons}"
    return [Finding("failed", State.NOTICE, says, "travelrec dead-letters list --since 1")]


# --- the processes --------------------------------------------------------------------------------------


async def _of_processes(urls: Sequence[str], command: str) -> list[Finding]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as http:
        found = await asyncio.gather(*(_of_process(http, url, command) for url in urls))
    return [finding for findings in found for finding in findings]


async def _of_process(http: aiohttp.ClientSession, url: str, command: str) -> list[Finding]:
    try:
        async with http.get(f"{url}/readyz") as response:
            body = await response.json(content_type=None)
        samples = await scraped(http, url)
        status, states = str(body["status"]), dict(body["dependencies"])
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
        return [Finding(shown(url), State.TROUBLE, "no process of travelrec answers there", f"{command}")]
    missing = [name for name, state in states.items() if state != "ok"]
    if missing:
        says = f"is {status}: it does not reach {', '.join(missing)}"
        findings = [Finding(shown(url), State.TROUBLE, says, f"curl {shown(url)}/readyz")]
    else:
        findings = [Finding(shown(url), State.FINE, f"is {status}, and reaches {', '.join(states)}")]
    return [*findings, *_of_samples(url, samples)]


def _of_samples(url: str, samples: Samples) -> list[Finding]:
    """What a process says of the provider, and of the backlog where it works on it."""
    findings = []
    broken = [labels["provider"] for labels, value in samples.of("travelrec_model_breaker") if value >= 1]
    if broken:
        says = f"does not ask the {' and the '.join(broken)} provider any more: its breaker is open"
        findings.append(
            Finding(shown(url), State.TROUBLE, says, "travelrec doctor, where the worker's settings are")
        )
    waiting, oldest_s = (
        samples.total(name) for name in ("travelrec_jobs_waiting", "travelrec_oldest_waiting_seconds")
    )
    if oldest_s > OLD_S:
        says = f"{_counted(int(waiting), 'job')} not ended, the oldest accepted {_span(oldest_s)} ago"
        findings.append(Finding("backlog", State.TROUBLE, says, f"travelrec top --url {shown(url)}"))
    return findings


async def _in_time(call: Awaitable[Answer], settings: Settings) -> Answer:
    async with asyncio.timeout(settings.neighbour_timeout_s + _SLACK_S):
        return await call


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
