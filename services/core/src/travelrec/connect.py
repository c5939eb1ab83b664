"""Opens what the settings name: the URL's scheme picks the adapter, and only that one is imported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from travelrec.chat.ports import ChatHistory, RateLimit
from travelrec.errors import BadSetting
from travelrec.ports import Broker, ModelServer, Signals, Store
from travelrec.settings import Settings
from travelrec.tasks.ports import TaskStore, ThirdParty
from travelrec.trips.offline import BundledRegistry
from travelrec.trips.ports import Registry, TripStore
from travelrec.wire import SIGNALS_TOPIC, TOPICS

if TYPE_CHECKING:
    from travelrec.adapters.kafka import KafkaBroker
    from travelrec.adapters.mongo import MongoStore
    from travelrec.adapters.rabbitmq import RabbitBroker
    from travelrec.adapters.sqlite import SqliteStore

# ruff: noqa: PLC0415 - an adapter that is not used is not imported, and need not be installed


def _tasks_in_memory() -> TaskStore:
    from travelrec.adapters.memory_tasks import MemoryTaskStore

    return MemoryTaskStore()


def _trips_in_memory() -> TripStore:
    from travelrec.adapters.memory_trips import MemoryTripStore

    return MemoryTripStore()


@dataclass(frozen=True, slots=True)
class Chat:
    """What chat needs beside the broker."""

    history: ChatHistory
    limit: RateLimit


@dataclass(frozen=True, slots=True)
class Parts:
    """The neighbours of a process."""

    store: Store
    broker: Broker
    signals: Signals
    tasks: TaskStore = field(default_factory=_tasks_in_memory)
    trips: TripStore = field(default_factory=_trips_in_memory)
    registry: Registry = field(default_factory=BundledRegistry)
    chat: Chat | None = None  # None: there is no place for chats


@asynccontextmanager
async def opened_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Store, broker and signals; servers may still be away. Raises `BadSetting` or, for SQLite, `StoreUnavailable`."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_store(settings))
        broker = await stack.enter_async_context(_broker(settings, settings.broker_url))
        signals = await stack.enter_async_context(_signals(settings, broker))
        registry = await stack.enter_async_context(_registry(settings))
        chat = await stack.enter_async_context(_chat(settings, store))
        tasks, trips = _tasks_beside(settings, store), _trips_beside(settings, store)
        yield Parts(store, broker, signals, tasks=tasks, trips=trips, registry=registry, chat=chat)


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    """The store alone; see `opened_parts`."""
    match settings.store_url.partition("://")[0]:
        case "memory":
            from travelrec.adapters.memory import MemoryStore

            yield MemoryStore(settings.job_retention_s)
        case "sqlite":
            from travelrec.adapters.sqlite import SqliteStore

            async with SqliteStore.opened(settings.sqlite_path, settings.job_retention_s) as sqlite:
                yield sqlite
        case scheme:
            try:
                from travelrec.adapters.mongo import MongoStore
            except ImportError as error:
                raise _missing("STORE_URL", scheme, "mongo") from error
            async with MongoStore.opened(
                settings.store_url,
                driver=settings.mongo_driver,
                timeout_s=settings.neighbour_timeout_s,
                retention_s=settings.job_retention_s,
            ) as mongo:
                yield mongo


def _tasks_beside(settings: Settings, store: Store) -> TaskStore:
    """The tasks, which are kept where `store` keeps the jobs."""
    match settings.store_url.partition("://")[0]:
        case "memory":
            return _tasks_in_memory()
        case "sqlite":
            from travelrec.adapters.sqlite_tasks import SqliteTaskStore

            return SqliteTaskStore(cast("SqliteStore", store))
        case _:
            from travelrec.adapters.mongo_tasks import MongoTaskStore

            return MongoTaskStore(cast("MongoStore", store))


def _trips_beside(settings: Settings, store: Store) -> TripStore:
    """The join's state, which is kept where `store` keeps the jobs."""
    match settings.store_url.partition("://")[0]:
        case "memory":
            return _trips_in_memory()
        case "sqlite":
            from travelrec.adapters.sqlite_trips import SqliteTripStore

            return SqliteTripStore(cast("SqliteStore", store))
        case _:
            from travelrec.adapters.mongo_trips import MongoTripStore

            return MongoTripStore(cast("MongoStore", store))


@asynccontextmanager
async def _registry(settings: Settings) -> AsyncIterator[Registry]:
    if not settings.schema_registry_url:
        yield BundledRegistry()
        return
    from travelrec.adapters.registry import HttpRegistry

    async with HttpRegistry.opened(
        settings.schema_registry_url, timeout_s=settings.neighbour_timeout_s
    ) as http:
        yield http


@asynccontextmanager
async def _chat(settings: Settings, store: Store) -> AsyncIterator[Chat | None]:
    """Chats in Redis, else beside the jobs of a single process."""
    if not settings.has_chat:
        yield None
        return
    try:
        from travelrec.adapters.chat_limits import LocalRateLimit, SharedRateLimit
    except ImportError as error:
        raise _missing("REDIS_URL", "redis", "redis") from error
    if settings.redis_url:
        from travelrec.adapters.redis_chat import RedisChatHistory
        from travelrec.adapters.redis_retry import refuse_bad_options

        refuse_bad_options("REDIS_URL", settings.redis_url)
        opened = RedisChatHistory.opened(
            settings.redis_url,
            timeout_s=settings.neighbour_timeout_s,
            limit=settings.chat_history_limit,
            ttl_s=settings.chat_history_ttl_s,
        )
        shared = SharedRateLimit.opened(settings.redis_url, settings.chat_rate_limit)
        async with opened as redis, shared as limit:
            yield Chat(redis, limit)
        return
    local = LocalRateLimit(settings.chat_rate_limit)
    if settings.store_url.startswith("memory:"):
        from travelrec.adapters.memory_chat import MemoryChatHistory

        yield Chat(MemoryChatHistory(settings.chat_history_limit), local)
    else:
        from travelrec.adapters.sqlite_chat import SqliteChatHistory

        yield Chat(SqliteChatHistory(cast("SqliteStore", store), settings.chat_history_limit), local)


@asynccontextmanager
async def _broker(settings: Settings, url: str) -> AsyncIterator[Broker]:
    if url.startswith("memory:"):
        from travelrec.adapters.memory import MemoryBroker

        yield MemoryBroker()
    elif url.startswith("amqp"):
        async with _rabbitmq(settings, url) as rabbitmq:
            yield rabbitmq
    else:
        async with _kafka(settings, url) as kafka:
            yield kafka


@asynccontextmanager
async def _kafka(settings: Settings, url: str) -> AsyncIterator[KafkaBroker]:
    scheme, _, rest = url.partition("://")
    try:
        from travelrec.adapters.kafka import KafkaBroker
    except ImportError as error:
        raise _missing("BROKER_URL", scheme, "kafka") from error
    async with KafkaBroker.opened(
        rest.rstrip("/"),
        partitions=settings.kafka_partitions,
        timeout_s=settings.neighbour_timeout_s,
        tls=scheme.endswith("+ssl"),
        member=settings.worker_name,
    ) as kafka:
        yield kafka


@asynccontextmanager
async def _rabbitmq(settings: Settings, url: str) -> AsyncIterator[RabbitBroker]:
    try:
        from travelrec.adapters.rabbitmq import RabbitBroker
    except ImportError as error:
        raise _missing("BROKER_URL", url.partition("://")[0], "rabbitmq") from error
    async with RabbitBroker.opened(
        url, prefetch=settings.worker_concurrency, timeout_s=settings.neighbour_timeout_s
    ) as rabbitmq:
        yield rabbitmq


@asynccontextmanager
async def _signals(settings: Settings, broker: Broker) -> AsyncIterator[Signals]:
    url = settings.signal_url or settings.broker_url
    if url.startswith("memory:"):
        from travelrec.adapters.memory import MemorySignals

        yield MemorySignals()
        return
    if url.startswith("redis"):
        try:
            from travelrec.adapters.redis_retry import refuse_bad_options
            from travelrec.adapters.redis_signals import RedisSignals
        except ImportError as error:
            raise _missing("SIGNAL_URL", "redis", "redis") from error
        refuse_bad_options("SIGNAL_URL", url)
        async with RedisSignals.opened(url, SIGNALS_TOPIC, timeout_s=settings.neighbour_timeout_s) as redis:
            yield redis
        return
    async with AsyncExitStack() as stack:
        if url != settings.broker_url:
            broker = await stack.enter_async_context(_broker(settings, url))
        match broker.system:
            case "kafka":
                from travelrec.adapters.kafka import KafkaBroker, KafkaSignals

                assert isinstance(broker, KafkaBroker)  # noqa: S101 - which has that name
                yield KafkaSignals(broker, SIGNALS_TOPIC)
            case "rabbitmq":
                from travelrec.adapters.rabbitmq import RabbitBroker, RabbitSignals

                assert isinstance(broker, RabbitBroker)  # noqa: S101 - which has that name
                yield RabbitSignals(broker, SIGNALS_TOPIC)
            case _:
                raise BadSetting("SIGNAL_URL: this broker can't carry signals")


async def make_topics(settings: Settings) -> list[tuple[str, str]]:
    """Makes our topics; says by name what was done. Raises `BrokerUnavailable`, or `BadSetting` where none can be."""
    scheme = settings.broker_url.partition("://")[0]
    if scheme.startswith("amqp"):
        async with _rabbitmq(settings, settings.broker_url) as rabbitmq:
            return await rabbitmq.make_topics([topic for topic in TOPICS if topic.name != SIGNALS_TOPIC])
    if not scheme.startswith("kafka"):
        raise BadSetting(f"BROKER_URL: {scheme}:// has no topics to make; this is for kafka://… and amqp://…")
    async with _kafka(settings, settings.broker_url) as kafka:
        return await kafka.make_topics(TOPICS)


@asynccontextmanager
async def opened_models(settings: Settings) -> AsyncIterator[Sequence[ModelServer]]:
    """The model that the settings name, and its fall-back if they do; nothing is asked yet.

    Raises `BadSetting` when they name none.
    """
    if settings.offline_model:
        raise BadSetting(
            "OPENAI_API_KEY: is not set; set it, or OPENAI_BASE_URL to a compatible server"
            " (`travelrec fake-openai` starts one)"
        )
    from travelrec.adapters.openai import OpenAIModel

    named = [(settings.openai_api_key, settings.openai_base_url, settings.openai_model)]
    if settings.has_fallback:
        key, base_url, model = named[0]
        if settings.openai_fallback_base_url:  # one provider's key is not shown to another
            key, base_url = None, settings.openai_fallback_base_url
        key = settings.openai_fallback_api_key or key
        named.append((key, base_url, settings.openai_fallback_model or model))
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                OpenAIModel.opened(
                    api_key=key.get_secret_value() if key else "not-needed",
                    base_url=base_url,
                    model=model,
                    connections=settings.worker_concurrency,
                    reasoning_tokens=settings.reasoning_tokens,
                )
            )
            for key, base_url, model in named
        ]


@asynccontextmanager
async def opened_third_party(settings: Settings) -> AsyncIterator[ThirdParty]:
    """Who works on tasks; nothing is asked yet. Raises `BadSetting` when the settings name nobody."""
    if not settings.has_third_party:
        raise BadSetting(
            "TASKS_PROVIDER_URL: is not set, and `submit` and `poll` need it (`travelrec fake-tasks` starts one)"
        )
    if settings.tasks_provider == "openai-batch":
        if settings.offline_model:
            raise BadSetting(
                "TASKS_PROVIDER: openai-batch needs OPENAI_API_KEY, or OPENAI_BASE_URL of a compatible server"
            )
        from travelrec.adapters.openai_batch import OpenAIBatches

        key = settings.openai_api_key
        async with OpenAIBatches.opened(
            api_key=key.get_secret_value() if key else "not-needed",
            base_url=settings.openai_base_url,
            model=settings.openai_model,
            timeout_s=settings.tasks_timeout_s,
        ) as batches:
            yield batches
        return
    from travelrec.adapters.third_party import HttpThirdParty

    async with HttpThirdParty.opened(settings.tasks_provider_url, timeout_s=settings.tasks_timeout_s) as http:
        yield http


def _missing(setting: str, scheme: str, extra: str) -> BadSetting:
    return BadSetting(f"{setting}: {scheme}:// needs the extra: pip install 'travelrec-core[{extra}]'")
