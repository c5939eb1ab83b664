"""What the real tests need of this machine, where it is and what is missing."""

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
LOCUST = Path(__file__).parents[2] / "loadtest" / ".venv" / "bin" / "locust"
RABBITMQ = Path(
    "/usr/lib/rabbitmq/bin/rabbitmq-server"
)  # Debian's own, without the script that changes the user
JAVA_VERSION = 17
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NotInstalledError(RuntimeError):
    """A server of the real tests is missing; the message says how to get it."""


@dataclass(frozen=True)
class JavaServer:
    """A server that Maven and javac put together from files of `data/`."""

    name: str
    title: str
    files: tuple[str, ...]
    is_archive: bool = False  # what Maven brings is to be unpacked

    @property
    def folder(self) -> Path:
        """Where it is once installed; the name follows the content of its files."""
        digest = hashlib.sha256(b"".join((DATA / file).read_bytes() for file in self.files)).hexdigest()
        return cache() / f"{self.name}-{digest[:12]}"

    @property
    def classpath(self) -> str:
        """For `java -cp`; raises NotInstalledError when it is missing."""
        if missing := self.missing():
            raise NotInstalledError(missing)
        return f"{self.folder}:{self.folder}/libs/*"

    def missing(self) -> str | None:
        """What is missing to start it, None when nothing is."""
        if shutil.which("java") is None:
            return f"{self.title}: no `java` on the PATH (needs Java {JAVA_VERSION})"
        if not self.folder.is_dir():
            return f"{self.title}: not installed; run `task servers` (needs Java {JAVA_VERSION} and Maven)"
        return None


KAFKA = JavaServer("kafka", "Kafka 4.1.0", ("kafka.pom.xml",))
MONGO = JavaServer("mongo", "MongoDB protocol", ("mongo.pom.xml", "MongoDev.java"))
REGISTRY = JavaServer("registry", "Apicurio registry 2.6.13", ("registry.pom.xml",), is_archive=True)
JAVA_SERVERS = (KAFKA, MONGO, REGISTRY)


def cache() -> Path:
    """The folder outside the tree that holds the servers."""
    return Path(
        os.environ.get("TRAVELREC_TEST_CACHE") or Path.home() / ".cache" / "travelrec-tests"
    ).resolve()


def redis_missing() -> str | None:
    """What is missing to start Redis, None when nothing is."""
    return None if shutil.which("redis-server") else "Redis: no `redis-server` on the PATH"


def rabbitmq_missing() -> str | None:
    """What is missing to start RabbitMQ, None when nothing is."""
    return None if RABBITMQ.exists() and shutil.which("epmd") else "RabbitMQ: no `rabbitmq-server` here"


def prometheus_missing() -> str | None:
    """What is missing to start Prometheus and to run promtool, None when nothing is."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    return f"Prometheus: no `{'`, no `'.join(missing)}` on the PATH" if missing else None


def chromium() -> str | None:
    """The path of a Chromium or Chrome, None when there is none."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def chromium_missing() -> str | None:
    """What is missing to start a browser, None when nothing is."""
    return None if chromium() else f"Chromium: none of {', '.join(CHROMIUM_NAMES)} on the PATH"


def docker_missing() -> str | None:
    """What is missing to run docker compose, None when nothing is."""
    return compose_missing() or _unless_it_works("a Docker engine that answers", "docker", "info")


def compose_missing() -> str | None:
    """What is missing to read a compose file, None when nothing is."""
    return _unless_it_works("`docker compose`", "docker", "compose", "version")


def locust_missing() -> str | None:
    """What is missing to run the load test, None when nothing is."""
    return None if LOCUST.exists() else "Locust: not installed; `task load` installs it"


def helm_missing() -> str | None:
    """What is missing to render and to judge the chart, None when nothing is."""
    from support import chart_tools

    return chart_tools.missing()


@functools.cache
def _unless_it_works(title: str, *command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return f"Docker: no {title}"
    return f"Docker: no {title}" if done.returncode else None


# What a test may need, by the name it uses in `@pytest.mark.real(...)`: its title, and what is missing.
NEEDS: dict[str, tuple[str, Callable[[], str | None]]] = {
    "kafka": (KAFKA.title, KAFKA.missing),
    "mongo": (MONGO.title, MONGO.missing),
    "registry": (REGISTRY.title, REGISTRY.missing),
    "redis": ("Redis", redis_missing),
    "rabbitmq": ("RabbitMQ", rabbitmq_missing),
    "prometheus": ("Prometheus", prometheus_missing),
    "chromium": ("Chromium", chromium_missing),
    "processes": ("processes", lambda: None),
    "compose": ("docker compose", compose_missing),
    "docker": ("Docker", docker_missing),
    "locust": ("Locust", locust_missing),
    "helm": ("Helm", helm_missing),
}
# Those without which `--real=require` is content: CI is the same on a machine without them.
OPTIONAL = {"compose", "docker", "locust", "helm"}
