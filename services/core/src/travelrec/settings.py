"""The settings of a process: read once from the environment and `.env`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from travelrec.errors import BadSetting

_SCHEMES = {
    "BROKER_URL": ("memory", "kafka", "kafka+ssl"),
    "STORE_URL": ("sqlite", "mongodb", "mongodb+srv", "memory"),
    "SIGNAL_URL": ("memory", "kafka", "kafka+ssl"),
}


def _kafka_url(value: object) -> object:
    """`KAFKA_BOOTSTRAP_SERVERS` has no scheme."""
    if isinstance(value, str) and value and "://" not in value:
        return f"kafka://{value.strip()}"
    return value


class Settings(BaseSettings):
    """Every setting, named in the environment by its alias or else by its name in capitals."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    broker_url: Annotated[str, BeforeValidator(_kafka_url)] = Field(
        "memory://",
        validation_alias=AliasChoices("BROKER_URL", "KAFKA_BOOTSTRAP_SERVERS", "RABBITMQ_URL"),
        description="Where jobs are dispatched: memory:// (one process), kafka://host:9092,…",
    )
    store_url: str = Field(
        "sqlite:///.travelrec/travelrec.db",
        validation_alias=AliasChoices("STORE_URL", "MONGODB_URL"),
        description="Where jobs are kept: sqlite:///path (one process), mongodb://host/database",
    )
    signal_url: str = Field(
        "",
        validation_alias="SIGNAL_URL",
        description="How API replicas hear of ended jobs; default: the broker",
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

    openai_api_key: SecretStr | None = Field(
        None, validation_alias="OPENAI_API_KEY", description="the provider's key; none: the offline model"
    )
    openai_base_url: str | None = Field(
        None, validation_alias="OPENAI_BASE_URL", description="an OpenAI-compatible server"
    )
    openai_model: str = Field("gpt-4o-mini", validation_alias="OPENAI_MODEL", description="the model's name")
    model_timeout_s: float = Field(
        60.0, gt=0, le=3600, validation_alias="MODEL_TIMEOUT", description="seconds for one model call"
    )

    host: str = Field("127.0.0.1", validation_alias="HOST", description="the address the API listens on")
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
        86400.0, gt=0, validation_alias="JOB_DEADLINE", description="seconds after which a pending job fails"
    )
    job_retention_s: float = Field(
        7 * 86400.0, ge=86400, validation_alias="JOB_RETENTION", description="seconds an ended job is kept"
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

    @model_validator(mode="after")
    def _known_schemes(self) -> Self:
        for name, url in (
            ("BROKER_URL", self.broker_url),
            ("STORE_URL", self.store_url),
            ("SIGNAL_URL", self.signal_url),
        ):
            scheme, found, rest = url.partition("://")
            if url and (not found or scheme not in _SCHEMES[name]):
                raise ValueError(f"{name}: use one of {', '.join(f'{s}://' for s in _SCHEMES[name])}")
            if url and scheme != "memory" and not rest.strip("/"):
                raise ValueError(f"{name}: {scheme}:// needs {'a path' if scheme == 'sqlite' else 'a host'}")
        if self.openai_base_url and not self.openai_base_url.startswith(("http://", "https://")):
            raise ValueError("OPENAI_BASE_URL: use http:// or https://")
        return self

    @property
    def offline_model(self) -> bool:
        """Whether no model was named, so that the built-in one answers."""
        return self.openai_api_key is None and self.openai_base_url is None

    @property
    def sqlite_path(self) -> Path:
        """The file that an `sqlite:///path` names (`sqlite:////path` is absolute)."""
        return Path(self.store_url.partition(":///")[2])


def read_settings(**given: Any) -> Settings:
    """The settings of this process; what a command was `given` wins. Raises `BadSetting`, naming each bad one."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise BadSetting("; ".join(_complaint(e) for e in error.errors(include_input=False))) from None


def _complaint(error: Any) -> str:
    if not error["loc"]:
        return str(error["msg"]).removeprefix("Value error, ")
    place = str(error["loc"][0])
    field = Settings.model_fields.get(place)
    alias = field.validation_alias if field else place
    names = [str(n) for n in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]
    name = next((n for n in names if n in os.environ), names[0])
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}"
