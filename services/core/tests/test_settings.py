"""The settings: their names, defaults and limits, and what is said of a bad one."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices, SecretStr
from pydantic.fields import FieldInfo

from travelrec.errors import BadSetting
from travelrec.settings import Settings, read_settings

EXAMPLE = Path(__file__).parents[3] / ".env.example"
SECRET = "s3cret"


def names_of(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [str(name) for name in alias.choices] if isinstance(alias, AliasChoices) else [str(alias)]


NAMES = {name for field in Settings.model_fields.values() for name in names_of(field)}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without a setting, in an empty folder."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_with_nothing_set_everything_is_embedded() -> None:
    """One process, SQLite, the offline model, on the loopback's port 3000."""
    read = read_settings()
    assert (read.broker_url, read.store_url, read.signal_url) == (
        "memory://",
        "sqlite:///.travelrec/travelrec.db",
        "",
    )
    assert (read.host, read.port, read.metrics_port) == ("127.0.0.1", 3000, 9000)
    assert read.offline_model
    assert read.sqlite_path == Path(".travelrec/travelrec.db")


GOOD: dict[str, tuple[str, object]] = {
    "BROKER_URL": ("kafka://a:9092,b:9092", "kafka://a:9092,b:9092"),
    "KAFKA_BOOTSTRAP_SERVERS": ("a:9092,b:9092", "kafka://a:9092,b:9092"),
    "RABBITMQ_URL": ("amqps://u:p@a/v", "amqps://u:p@a/v"),
    "STORE_URL": ("mongodb://h/db", "mongodb://h/db"),
    "MONGODB_URL": ("mongodb+srv://h/db", "mongodb+srv://h/db"),
    "SIGNAL_URL": ("rediss://u:p@h:6379/0", "rediss://u:p@h:6379/0"),
    "MONGO_DRIVER": ("pymongo", "pymongo"),
    "KAFKA_PARTITIONS": ("12", 12),
    "NEIGHBOUR_TIMEOUT": ("2.5", 2.5),
    "SCHEMA_REGISTRY_URL": ("http://r:8080/apis/ccompat/v7", "http://r:8080/apis/ccompat/v7"),
    "TRIPS_JOIN_WINDOW": ("60", 60.0),
    "OPENAI_API_KEY": ("sk-1", SecretStr("sk-1")),
    "OPENAI_FALLBACK_API_KEY": ("sk-2", SecretStr("sk-2")),
    "OPENAI_BASE_URL": ("http://127.0.0.1:8089/v1", "http://127.0.0.1:8089/v1"),
    "OPENAI_MODEL": ("gpt-4.1-mini", "gpt-4.1-mini"),
    "OPENAI_FALLBACK_BASE_URL": ("http://127.0.0.1:8090/v1", "http://127.0.0.1:8090/v1"),
    "OPENAI_FALLBACK_MODEL": ("gpt-4.1-nano", "gpt-4.1-nano"),
    "OPENAI_REASONING_TOKENS": ("2000", 2000),
    "MODEL_PRICES": ("ours=0.2/0.8", "ours=0.2/0.8"),
    "MODEL_TIMEOUT": ("20", 20.0),
    "TASKS_PROVIDER": ("openai-batch", "openai-batch"),
    "TASKS_PROVIDER_URL": ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
    "TASKS_RATE_LIMIT": ("0.5", 0.5),
    "TASKS_POLL_INTERVAL": ("2", 2.0),
    "TASKS_TIMEOUT": ("30", 30.0),
    "REDIS_URL": ("redis://h:6379/1", "redis://h:6379/1"),
    "CHAT_TOKEN_SECRET": ("s", SecretStr("s")),
    "CHAT_ORIGINS": ("https://a", "https://a"),
    "CHAT_RATE_LIMIT": ("1", 1),
    "CHAT_CONNECTIONS": ("1", 1),
    "CHAT_HISTORY_LIMIT": ("10", 10),
    "CHAT_HISTORY_TTL": ("60", 60.0),
    "CHAT_TIMEOUT": ("5", 5.0),
    "HOST": ("::1", "::1"),
    "PORT": ("0", 0),
    "WEB_CONCURRENCY": ("4", 4),
    "METRICS_PORT": ("9100", 9100),
    "WORKER_CONCURRENCY": ("1", 1),
    "JOB_MAX_ATTEMPTS": ("1", 1),
    "JOB_DEADLINE": ("60", 60.0),
    "JOB_RETENTION": ("86400", 86400.0),
    "JOB_LEASE": ("1", 1.0),
    "SHUTDOWN_GRACE": ("0", 0.0),
    "LOG_LEVEL": ("debug", "debug"),
    "RECOMMENDATION_CACHE_TTL": ("0", 0.0),
    "PREDICTION_MODEL": ("ours.models:predict", "ours.models:predict"),
    "PREDICTION_CONCURRENCY": ("4", 4),
    "PREDICTION_LATENCY": ("0", 0.0),
}


def field_of(name: str) -> str:
    return next(field for field, info in Settings.model_fields.items() if name in names_of(info))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_each_name_sets_its_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name of the contract is read from the environment, and nothing else changes."""
    text, value = GOOD[name]
    before = read_settings()
    monkeypatch.setenv(name, text)
    read = read_settings()
    assert getattr(read, field_of(name)) == value
    assert read.model_copy(update={field_of(name): getattr(before, field_of(name))}) == before


def test_own_name_wins_over_that_of_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """BROKER_URL and STORE_URL are taken where KAFKA_BOOTSTRAP_SERVERS and MONGODB_URL are set as well."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "other:9092")
    monkeypatch.setenv("BROKER_URL", "kafka://own:9092")
    monkeypatch.setenv("MONGODB_URL", "mongodb://other/db")
    monkeypatch.setenv("STORE_URL", "memory://")
    read = read_settings()
    assert (read.broker_url, read.store_url) == ("kafka://own:9092", "memory://")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """`NAME=` means the default, for a number and for a key as well."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
    assert read_settings() == Settings(_env_file=None)
    assert read_settings().offline_model


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("BROKER_URL", "kafka://a, b:9092/"),
        ("BROKER_URL", "kafka+ssl://[::1]:9092,[fe80::1%eth0]"),
        ("BROKER_URL", "amqp://u:p%40@[::1]/v"),
        ("SIGNAL_URL", "redis://my_redis"),
        ("REDIS_URL", "redis://:p@localhost/0?socket_timeout=5"),
        ("STORE_URL", "mongodb://u:p@a:27017,b:27018/db?replicaSet=r"),
        ("OPENAI_BASE_URL", "https://u:p@münchen.example./v1?x=1"),
        ("TASKS_PROVIDER_URL", "http://10.0.0.1"),
    ],
)
def test_a_good_address_is_taken_as_it_is(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may be left out, and an IPv6 address stands in brackets."""
    monkeypatch.setenv(name, url)
    assert getattr(read_settings(), field_of(name)) == url


BAD = {
    "MODEL_PRICES": ["ours", "ours=1", "ours=-1/2"],
    "BROKER_URL": [
        "mqtt://h",
        "kafka://",
        "amqp://h:port",
        "://h",
        "foo",
        "kafka://u:p@h:9092",
        "kafka+ssl://u@h:9092",
        "kafka://h:port",
        "kafka://a:9092,b:port",
        "kafka://a:9092,,b:9092",
        "kafka://h:",
        "kafka://h:9092/path",
        "kafka://[::1",
        "amqp://h:0",
        "amqp://[::1",
        "amqp://a,b",
    ],
    "KAFKA_BOOTSTRAP_SERVERS": ["http://h:9092", "h", "u:p@h:9092", "h:9092,", "h:99999"],
    "STORE_URL": ["postgres://h/db", "sqlite://", "sqlite:///", "mongodb://", "file.db"],
    "MONGODB_URL": ["h/db"],
    "SIGNAL_URL": ["redis", "mqtt://h", "kafka://", "redis://", "redis://h:port", "redis://:6379"],
    "MONGO_DRIVER": ["beanie"],
    "KAFKA_PARTITIONS": ["0", "10001", "1.5"],
    "NEIGHBOUR_TIMEOUT": ["0", "-1", "301", "nan", "soon"],
    "SCHEMA_REGISTRY_URL": ["localhost:8081", "ftp://r", "http://r:port"],
    "TRIPS_JOIN_WINDOW": ["0", "-1", "604801", "nan"],
    "OPENAI_BASE_URL": [
        "localhost:8089",
        "ftp://h",
        "http://",
        "http:///v1",
        "http://h:port",
        "http://h:65536",
        "http://[::1",
        "http://[z]",
        "http://a..b",
        "http://a b",
        "http://999.1.1.1",
        "http://h/v1\n",
    ],
    "OPENAI_FALLBACK_BASE_URL": ["localhost:8090", "http://", "http://h:port", "http://[::1"],
    "MODEL_TIMEOUT": ["0", "3601", "nan"],
    "TASKS_PROVIDER": ["anthropic"],
    "TASKS_PROVIDER_URL": ["localhost:8090", "http://h:port"],
    "TASKS_RATE_LIMIT": ["0", "-1", "10001", "nan"],
    "TASKS_POLL_INTERVAL": ["0", "nan"],
    "TASKS_TIMEOUT": ["0", "301", "nan"],
    "REDIS_URL": ["h:6379", "http://h", "redis://h:99999"],
    "CHAT_RATE_LIMIT": ["0", "x"],
    "CHAT_CONNECTIONS": ["0"],
    "CHAT_HISTORY_LIMIT": ["9"],
    "CHAT_HISTORY_TTL": ["59", "nan", "inf", "1e9"],
    "CHAT_TIMEOUT": ["0", "3601", "nan"],
    "PORT": ["-1", "65536", "http", "3000.5", "nan"],
    "WEB_CONCURRENCY": ["0", "65"],
    "METRICS_PORT": ["65536"],
    "WORKER_CONCURRENCY": ["0", "10001"],
    "JOB_MAX_ATTEMPTS": ["0", "101"],
    "JOB_DEADLINE": ["0", "-1", "nan", "inf", "1e9"],
    "JOB_RETENTION": ["3600", "nan", "inf", "1e9"],
    "JOB_LEASE": ["0.5", "3601", "nan"],
    "SHUTDOWN_GRACE": ["-1", "3601", "nan"],
    "LOG_LEVEL": ["loud"],
    "RECOMMENDATION_CACHE_TTL": ["-1", "nan", "inf", "1e9"],
    "PREDICTION_MODEL": ["predict", "models:", ":predict"],
    "PREDICTION_CONCURRENCY": ["0", "1001"],
    "PREDICTION_LATENCY": ["-1", "nan"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_named_in_one_line(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line begins with the variable that the operator has set, and says what would be right."""
    monkeypatch.setenv(name, text)
    with pytest.raises(BadSetting) as bad:
        read_settings()
    line = str(bad.value)
    assert line.startswith(f"{name}: ")
    assert len(line.splitlines()) == 1
    assert "pydantic" not in line


def test_all_bad_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator mends everything in one go: no complaint hides another."""
    for name in BAD:
        monkeypatch.setenv(name, BAD[name][0])
    for name in ("BROKER_URL", "STORE_URL"):  # their other names, which stay, are bad as well
        monkeypatch.delenv(name)
    with pytest.raises(BadSetting) as bad:
        read_settings()
    complaints = str(bad.value).split("; ")
    assert sorted(one.split(":")[0] for one in complaints) == sorted(set(BAD) - {"BROKER_URL", "STORE_URL"})


SECRETS = {
    "OPENAI_API_KEY": SECRET,
    "OPENAI_BASE_URL": f"http://user:{SECRET}@h/v1",
    "OPENAI_FALLBACK_API_KEY": SECRET,
    "OPENAI_FALLBACK_BASE_URL": f"http://user:{SECRET}@h/v1",
    "TASKS_PROVIDER_URL": f"http://user:{SECRET}@h",
    "BROKER_URL": f"amqp://user:{SECRET}@h:5672",
    "STORE_URL": f"mongodb://user:{SECRET}@h/db",
    "CHAT_TOKEN_SECRET": SECRET,
    "REDIS_URL": f"redis://user:{SECRET}@h:6379",
    "SIGNAL_URL": f"redis://user:{SECRET}@h:6379",
}


def test_secrets_are_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the key nor a password in a URL is in any text of the settings."""
    for name, text in SECRETS.items():
        monkeypatch.setenv(name, text)
    read = read_settings()
    assert read.openai_api_key is not None
    assert read.openai_api_key.get_secret_value() == SECRET
    for text in (repr(read), str(read), f"{read}", repr([read])):
        assert SECRET not in text
        assert "3000" in text


def test_secrets_are_not_said_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A complaint about a URL does not repeat it, nor that of another setting."""
    for name in SECRETS:
        monkeypatch.setenv(name, f"foo://user:{SECRET}@h/{SECRET}")
    monkeypatch.setenv("PORT", SECRET)
    with pytest.raises(BadSetting) as bad:
        read_settings()
    assert SECRET not in str(bad.value)
    assert bad.value.__cause__ is None
    assert bad.value.__suppress_context__


def test_env_file_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.env` in the working folder counts below the environment, and what a command was given above both."""
    (tmp_path / ".env").write_text("PORT=4000\nHOST=0.0.0.0\nKAFKA_BOOTSTRAP_SERVERS=h:9092\nOTHER=1\n")
    monkeypatch.setenv("HOST", "::1")
    read = read_settings()
    assert (read.port, read.host, read.broker_url) == (4000, "::1", "kafka://h:9092")
    assert read_settings(port=5000, host=None).port == 5000
    assert read_settings(host="127.0.0.2").host == "127.0.0.2"


def test_a_bad_value_of_the_env_file_has_the_name_it_has_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KAFKA_BOOTSTRAP_SERVERS is named where it is what counts, in whatever case, and not BROKER_URL."""
    (tmp_path / ".env").write_text("kafka_bootstrap_servers=nope\nMONGODB_URL=nope\n")
    monkeypatch.setenv("BROKER_URL", "")
    with pytest.raises(BadSetting, match=r"^KAFKA_BOOTSTRAP_SERVERS: .*; MONGODB_URL: "):
        read_settings()
    monkeypatch.setenv("store_url", "nope")
    with pytest.raises(BadSetting, match=r"; STORE_URL: "):
        read_settings()


def test_an_env_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """One line, rather than the codec's words."""
    (tmp_path / ".env").write_bytes(b"OPENAI_MODEL=caf\xe9\n")
    with pytest.raises(BadSetting, match=r"^\.env: .*UTF-8") as bad:
        read_settings()
    assert bad.value.__suppress_context__


def test_settings_do_not_change() -> None:
    """They are read once and passed down; nobody can change them on the way."""
    read = read_settings()
    with pytest.raises(ValueError, match="frozen"):
        read.port = 1  # type: ignore[misc]  # what a type checker refuses is tried here


@pytest.mark.parametrize(
    ("url", "path"), [("sqlite:///a/b.db", "a/b.db"), ("sqlite:////var/b.db", "/var/b.db")]
)
def test_sqlite_path(url: str, path: str) -> None:
    """Three slashes are relative, four absolute."""
    assert read_settings(store_url=url).sqlite_path == Path(path)


def test_a_base_url_alone_is_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compatible server without a key is asked, rather than the offline model."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert not read_settings().offline_model


# --- .env.example -------------------------------------------------------------------------------------


def default_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:g}" if value < 1e6 else f"{value:.0f}"
        case _:
            return str(value)


def expected_example() -> str:
    """Every setting with its description and default, and its other names, all commented out."""
    lines = [
        "# Every setting, with its default. Copy this file to .env and uncomment what you change.",
        "# Traces follow the standard OTEL_* variables of the environment: see OTEL_EXPORTER_OTLP_ENDPOINT.",
        "",
    ]
    for field in Settings.model_fields.values():
        name, *others = names_of(field)
        lines += [f"# {field.description}", f"#{name}={default_text(field.default)}"]
        lines += [f"#{other}=" for other in others]
        lines.append("")
    return "\n".join(lines)


def test_example_names_every_setting_with_its_default() -> None:
    """`.env.example` has exactly the names, descriptions and defaults that are in force."""
    assert EXAMPLE.read_text() == expected_example()


def test_example_uncommented_changes_nothing(tmp_path: Path) -> None:
    """What it shows can be set as it stands, and is the default."""
    lines = EXAMPLE.read_text().splitlines()
    (tmp_path / ".env").write_text("\n".join(line[1:] for line in lines if not line.startswith("# ")))
    assert read_settings() == Settings(_env_file=None)


def test_every_setting_is_tried_here() -> None:
    """A new setting comes with a good value, and with a description."""
    assert set(GOOD) == NAMES
    assert all(field.description for field in Settings.model_fields.values())
