"""The settings of a process: read once from the environment and `.env`."""

from __future__ import annotations

import re
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    SettingsConfigDict,
)

from travelrec.errors import BadSetting
from travelrec.prices import Price, parse_prices, price_of

_SCHEMES = {
    "broker_url": ("memory", "kafka", "kafka+ssl", "amqp", "amqps"),
    "store_url": ("sqlite", "mongodb", "mongodb+srv", "memory"),
    "signal_url": ("memory", "kafka", "kafka+ssl", "amqp", "amqps", "redis", "rediss"),
    "redis_url": ("redis", "rediss"),
    "schema_registry_url": ("http", "https"),
    "openai_base_url": ("http", "https"),
    "openai_fallback_base_url": ("http", "https"),
    "tasks_provider_url": ("http", "https"),
}
_TEN_YEARS_S = 10 * 365 * 86400.0

_SERVERS = re.compile(r"\s*[^\s,/@]+:\d+(\s*,\s*[^\s,/@]+:\d+)*\s*")
_NAME = re.compile(r"([\w-]{1,63}\.)*[\w-]{1,63}\.?")
_FOUR_NUMBERS = re.compile(r"\d+(\.\d+){3}")


def _kafka_url(value: object) -> object:
    """`KAFKA_BOOTSTRAP_SERVERS`, host:port,…, has no scheme."""
    if isinstance(value, str) and _SERVERS.fullmatch(value):
        return f"kafka://{''.join(value.split())}"
    return value


def refuse_bad_servers(url: str) -> None:
    """Raises `ValueError`, which repeats nothing of `url`, unless its host, or each of Kafka's, can be one."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    if not url.isprintable():
        raise ValueError("a URL has no line breaks or other characters that can't be seen")
    for server in place.split(",") if scheme.startswith("kafka") else [place]:
        try:
            parts = urlsplit(f"//{server.strip()}")
            host = parts.hostname or ""
            is_number = ":" in host or _FOUR_NUMBERS.fullmatch(host)
            is_one = ip_address(host) if is_number else _NAME.fullmatch(host)
        except ValueError:
            is_one = None
        if not is_one:
            raise ValueError(f"{scheme}:// needs a host, as name:port or [address]:port")
        try:
            is_port = parts.port != 0 and not parts.netloc.endswith(":")
        except ValueError:
            is_port = False
        if not is_port:
            raise ValueError("the port is not a number from 1 to 65535")


class Settings(BaseSettings):
    """Every setting, named in the environment by its aliases; those that may hold a password are not shown."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    broker_url: Annotated[str, BeforeValidator(_kafka_url)] = Field(
        "memory://",
        validation_alias=AliasChoices("BROKER_URL", "KAFKA_BOOTSTRAP_SERVERS", "RABBITMQ_URL"),
        description="Where jobs are dispatched: memory:// (one process), kafka://host:9092,…, amqp://user:password@host;"
        " with TLS kafka+ssl://, amqps://",
        repr=False,
    )
    store_url: str = Field(
        "sqlite:///.travelrec/travelrec.db",
        validation_alias=AliasChoices("STORE_URL", "MONGODB_URL"),
        description="Where jobs are kept: sqlite:///path (one process), mongodb://host/database, mongodb+srv://",
        repr=False,
    )
    signal_url: str = Field(
        "",
        validation_alias="SIGNAL_URL",
        description="How API replicas hear of ended jobs: redis://host:6379, or as BROKER_URL; default: the broker",
        repr=False,
    )
    mongo_driver: Literal["motor", "pymongo"] = Field(
        "motor", validation_alias="MONGO_DRIVER", description="motor, or pymongo (its successor)"
    )
    kafka_partitions: int = Field(
        6, ge=1, le=10_000, validation_alias="KAFKA_PARTITIONS", description="partitions of topics made by us"
    )
    neighbour_timeout_s: float = Field(
        5.0,
        gt=0,
        le=300,
        validation_alias="NEIGHBOUR_TIMEOUT",
        description="seconds for a store or broker call",
    )

    schema_registry_url: str | None = Field(
        None,
        validation_alias="SCHEMA_REGISTRY_URL",
        description="a schema registry (Confluent's API) for the trips' Avro records; none: the bundled schemas",
        repr=False,
    )
    trips_join_window_s: float = Field(
        300.0,
        gt=0,
        le=7 * 86400,
        validation_alias="TRIPS_JOIN_WINDOW",
        description="seconds after a trip's first record that the join waits for the others",
    )

    openai_api_key: SecretStr | None = Field(
        None, validation_alias="OPENAI_API_KEY", description="the provider's key; none: the offline model"
    )
    openai_base_url: str | None = Field(
        None, validation_alias="OPENAI_BASE_URL", description="an OpenAI-compatible server", repr=False
    )
    openai_model: str = Field("gpt-4o-mini", validation_alias="OPENAI_MODEL", description="the model's name")
    openai_fallback_api_key: SecretStr | None = Field(
        None,
        validation_alias="OPENAI_FALLBACK_API_KEY",
        description="the second provider's key; default: the first's, unless it has a server of its own",
    )
    openai_fallback_base_url: str | None = Field(
        None,
        validation_alias="OPENAI_FALLBACK_BASE_URL",
        description="the server of a second provider, asked while the first fails",
        repr=False,
    )
    openai_fallback_model: str | None = Field(
        None, validation_alias="OPENAI_FALLBACK_MODEL", description="the second provider's or a second model"
    )
    reasoning_tokens: int = Field(
        0,
        validation_alias="OPENAI_REASONING_TOKENS",
        ge=0,
        le=100_000,
        description="tokens a call may use besides its answer's, for a model that thinks before it answers",
    )
    model_prices: str = Field(
        "",
        validation_alias="MODEL_PRICES",
        description="your prices as NAME=INPUT/OUTPUT,… in US dollars a million tokens; default: list prices",
    )
    model_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        validation_alias="MODEL_TIMEOUT",
        description="seconds for one attempt of a job, all its model calls together",
    )

    recommendation_cache_ttl_s: float = Field(
        3600.0,
        ge=0,
        le=_TEN_YEARS_S,
        validation_alias="RECOMMENDATION_CACHE_TTL",
        description="seconds an answer serves later requests for the same country and season; 0: never",
    )

    tasks_provider: Literal["http", "openai-batch"] = Field(
        "http",
        validation_alias="TASKS_PROVIDER",
        description="who works on tasks: http (TASKS_PROVIDER_URL), or openai-batch (as OPENAI_… say)",
    )
    redis_url: str = Field(
        "",
        validation_alias="REDIS_URL",
        description="where chats are kept and rung for: redis://host:6379; none: beside the jobs, in one process",
        repr=False,
    )
    chat_token_secret: SecretStr | None = Field(
        None,
        validation_alias="CHAT_TOKEN_SECRET",
        description="the key of chat tokens (JWT, HS256); none: any token is taken",
    )
    chat_origins: str = Field(
        "",
        validation_alias="CHAT_ORIGINS",
        description="the Origins whose pages may open a chat, as https://host,…; default: any",
    )
    chat_rate_limit: int = Field(
        30,
        ge=1,
        le=100_000,
        validation_alias="CHAT_RATE_LIMIT",
        description="messages of one user a minute, over all replicas",
    )
    chat_connections: int = Field(
        5_000,
        ge=1,
        le=1_000_000,
        validation_alias="CHAT_CONNECTIONS",
        description="chat connections of one process; more are refused",
    )
    chat_history_limit: int = Field(
        1_000,
        ge=10,
        le=100_000,
        validation_alias="CHAT_HISTORY_LIMIT",
        description="messages and answers kept of a user",
    )
    chat_history_ttl_s: float = Field(
        30 * 86400.0,
        ge=60,
        le=_TEN_YEARS_S,
        validation_alias="CHAT_HISTORY_TTL",
        description="seconds a history in Redis is kept after its last message",
    )
    chat_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        validation_alias="CHAT_TIMEOUT",
        description="seconds in which the model must answer a message, all attempts together",
    )

    tasks_provider_url: str = Field(
        "",
        validation_alias="TASKS_PROVIDER_URL",
        description="the third party that works on tasks; none: they stay Not Started",
        repr=False,
    )
    tasks_rate_limit: float = Field(
        10.0,
        gt=0,
        le=10_000,
        validation_alias="TASKS_RATE_LIMIT",
        description="tasks submitted to the third party a second, by all workers together",
    )
    tasks_poll_interval_s: float = Field(
        10.0,
        gt=0,
        le=86400,
        validation_alias="TASKS_POLL_INTERVAL",
        description="seconds from one question to the third party about its tasks to the next",
    )
    tasks_timeout_s: float = Field(
        10.0,
        gt=0,
        le=300,
        validation_alias="TASKS_TIMEOUT",
        description="seconds for a call of the third party",
    )

    prediction_model: str = Field(
        "",
        validation_alias="PREDICTION_MODEL",
        description="the function that predicts, as package:function, plain or async; default: a mock",
    )
    prediction_concurrency: int = Field(
        32,
        ge=1,
        le=1000,
        validation_alias="PREDICTION_CONCURRENCY",
        description="predictions in flight in a worker; a plain function has a thread for each",
    )
    prediction_latency_s: float = Field(
        0.5,
        ge=0,
        le=3600,
        validation_alias="PREDICTION_LATENCY",
        description="seconds that the mock model takes for a prediction",
    )

    host: str = Field(
        "127.0.0.1",
        validation_alias="HOST",
        description="the address the API, and a worker's METRICS_PORT, listen on",
    )
    port: int = Field(
        3000, ge=0, le=65535, validation_alias="PORT", description="the port the API listens on"
    )
    web_concurrency: int = Field(
        1,
        ge=1,
        le=64,
        validation_alias="WEB_CONCURRENCY",
        description="gunicorn processes of `travelrec api`",
    )
    metrics_port: int = Field(
        9000, ge=0, le=65535, validation_alias="METRICS_PORT", description="a worker's health and metrics"
    )
    worker_concurrency: int = Field(
        200, ge=1, le=10_000, validation_alias="WORKER_CONCURRENCY", description="model calls in flight"
    )
    max_attempts: int = Field(
        5, ge=1, le=100, validation_alias="JOB_MAX_ATTEMPTS", description="failed attempts before a job fails"
    )
    job_deadline_s: float = Field(
        86400.0,
        gt=0,
        le=_TEN_YEARS_S,
        validation_alias="JOB_DEADLINE",
        description="seconds after which a pending job fails",
    )
    job_retention_s: float = Field(
        7 * 86400.0,
        ge=86400,
        le=_TEN_YEARS_S,
        validation_alias="JOB_RETENTION",
        description="seconds an ended job is kept",
    )
    lease_s: float = Field(
        30.0,
        ge=1,
        le=3600,
        validation_alias="JOB_LEASE",
        description="seconds until a dead worker's job is taken",
    )
    grace_s: float = Field(
        25.0,
        ge=0,
        le=3600,
        validation_alias="SHUTDOWN_GRACE",
        description="seconds for running jobs on SIGTERM",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", validation_alias="LOG_LEVEL", description="the least level that is logged"
    )

    @field_validator(*_SCHEMES)
    @classmethod
    def _an_address(cls, url: str | None, info: ValidationInfo) -> str | None:
        if not url:
            return url
        schemes = _SCHEMES[str(info.field_name)]
        scheme, found, rest = url.partition("://")
        if not found or scheme not in schemes:
            servers = ", or host:port,… for Kafka" if info.field_name == "broker_url" else ""
            raise ValueError(f"use one of {', '.join(f'{s}://' for s in schemes)}{servers}")
        if scheme == "sqlite" and not (rest.startswith("/") and rest.strip("/")):
            raise ValueError("sqlite:// needs a path: sqlite:///relative or sqlite:////absolute")
        if scheme.startswith("mongodb") and not rest.strip("/"):
            raise ValueError(f"{scheme}:// needs a host")  # its driver looks at the rest
        if scheme.startswith("kafka") and "@" in rest:
            raise ValueError(
                "Kafka with a user and a password is not supported; use kafka:// or kafka+ssl://"
            )
        if scheme.startswith("kafka") and not set(rest.rstrip("/")).isdisjoint("/?#"):
            raise ValueError("nothing follows Kafka's servers; use kafka://host:port,…")
        if scheme not in ("memory", "sqlite", "mongodb", "mongodb+srv"):
            refuse_bad_servers(url)
        return url

    @field_validator("model_prices")
    @classmethod
    def _readable_prices(cls, text: str) -> str:
        parse_prices(text)
        return text

    @field_validator("prediction_model")
    @classmethod
    def _a_function(cls, name: str) -> str:
        module, _, function = name.partition(":")
        if name and not (module and function):
            raise ValueError("use package:function")
        return name

    @property
    def model_names(self) -> tuple[str, str]:
        """The names of the model and of its fall-back, which may be the same."""
        return self.openai_model, self.openai_fallback_model or self.openai_model

    def price_of(self, model: str) -> Price | None:
        """What the tokens of `model` cost, None if that is not known."""
        return price_of(model, parse_prices(self.model_prices))

    @property
    def offline_model(self) -> bool:
        """Whether no model was named, so that the built-in one answers."""
        return self.openai_api_key is None and self.openai_base_url is None

    @property
    def has_fallback(self) -> bool:
        """Whether a second provider or model is named."""
        return any((self.openai_fallback_api_key, self.openai_fallback_base_url, self.openai_fallback_model))

    @property
    def has_chat(self) -> bool:
        """Whether there is a place for chats: Redis, or the store of a single process."""
        return bool(self.redis_url) or self.store_url.startswith(("memory:", "sqlite:"))

    @property
    def has_third_party(self) -> bool:
        """Whether there is somebody who works on tasks."""
        return bool(self.tasks_provider_url) or self.tasks_provider != "http"

    @property
    def worker_name(self) -> str | None:
        """What this worker is called, before and after a crash: no other on its machine has its port. None: nothing."""
        return f"{socket.gethostname()}-{self.metrics_port}" if self.metrics_port else None

    @property
    def sqlite_path(self) -> Path:
        """The file that an `sqlite:///path` names (`sqlite:////path` is absolute)."""
        return Path(self.store_url.partition(":///")[2])


def read_settings(**given: Any) -> Settings:
    """The settings of this process; what a command was `given` wins. Raises `BadSetting`, naming each bad one."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except UnicodeDecodeError:
        raise BadSetting(".env: is not text in UTF-8") from None
    except ValidationError as error:
        raise BadSetting("; ".join(_complaint(e) for e in error.errors(include_input=False))) from None


def _complaint(error: Any) -> str:
    names = _names(str(error["loc"][0]))
    sources = EnvSettingsSource(Settings), DotEnvSettingsSource(Settings)
    is_set = (name for source in sources for name in names if name.lower() in source.env_vars)
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{next(is_set, names[0])}: {message[0].lower()}{message[1:]}"


def _names(place: str) -> list[str]:
    """The variables of the setting that pydantic calls `place`, which is the field or its first alias."""
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = [str(n) for n in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]
        if place in (name, *names):
            return names
    return [place]
