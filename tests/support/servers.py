"""Real servers on private ports, data in a folder of their own: Kafka, the MongoDB protocol, Redis and more."""

import asyncio
import base64
import secrets
import shutil
import socket
import string
import struct
import subprocess
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from support.installed import DATA, KAFKA, MONGO, RABBITMQ, REGISTRY, NotInstalledError, rabbitmq_missing
from support.ports import free_port, release_port
from support.processes import Process, ProcessError, get_status, make_folder, remove_folder
from support.proxy import Proxy
from support.waiting import until

SMALL_JVM = ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")


class Server:
    """What the servers have in common; `start` returns when this very process answers on its port.

    All methods block, so that fixtures of any scope can call them; in a test with a running loop write
    `await asyncio.to_thread(kafka.restart)`. `async with` does that by itself.
    """

    name = "server"
    start_timeout_s = 60.0

    def __init__(self) -> None:
        self.port = free_port()
        self._folder: Path | None = None
        self._process: Process | None = None

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> Process:
        """The server's process: pid, output and the like."""
        if self._process is None:
            raise ProcessError(f"{self.name} was never started")
        return self._process

    def start(self) -> Self:
        """Start it, with the data of an earlier start if there is one; wait until it answers."""
        if self._process is None:
            self._folder = make_folder(self.name)
            self._prepare(self._folder)
            self._process = Process(self._command(self._folder), name=self.name, cwd=self._folder)
        self._process.start()
        try:
            ready = until(lambda: not self.process.alive or self._ready(), self.start_timeout_s)
            if not self.process.alive:
                raise ProcessError(self.story(f"ended with {self.process.returncode} while it started"))
            if not ready:
                raise ProcessError(self.story(f"gave no answer within {self.start_timeout_s:g} s"))
        except BaseException:
            self.process.kill()
            raise
        return self

    def stop(self) -> None:
        """End it in order; its data stays for the next `start`."""
        self.process.end(timeout_s=30)

    def kill(self) -> None:
        """SIGKILL; its data stays for the next `start`."""
        self.process.kill()

    def restart(self) -> None:
        """`stop` and `start`, on the same port with the same data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing answers."""
        self.process.freeze()

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        self.process.thaw()

    def close(self) -> None:
        """End it for good and remove its data."""
        if self._process is not None:
            self._process.kill()  # the data goes with it, so there is nothing to end in order
            self._process.close()
        if self._folder is not None:
            remove_folder(self._folder)
            self._folder = self._process = None
        for port in self._ports():
            release_port(port)

    def story(self, what: str = "last said") -> str:
        """The last lines of the server's output, for reports."""
        return self._process.story(what) if self._process is not None else f"{self.name} is not running"

    def proxy(self) -> Proxy:
        """A network in front of this server that a test can cut, freeze and slow down (`async with`)."""
        return Proxy(self.port)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, ProcessError):
            error.add_note(self.story())
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _ready(self) -> bool:
        return self._listens() and self._answers()

    def _listens(self) -> bool:
        """Whether the listener on our port is the process we started, and no one else's."""
        try:
            sockets = psutil.Process(self.process.pid).net_connections(kind="tcp4")
            sockets += psutil.Process(self.process.pid).net_connections(kind="tcp6")  # Java listens on both
        except psutil.Error:
            return False
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == self.port for s in sockets)

    def _ports(self) -> list[int]:
        return [self.port]

    def _prepare(self, folder: Path) -> None:
        """Lay out the data folder before the first start."""

    def _command(self, folder: Path) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


class Kafka(Server):
    """A broker of Kafka 4.1.0 (KRaft). `settings` are further lines of server.properties."""

    name = "kafka"

    def __init__(
        self,
        *,
        partitions: int = 6,
        auto_create_topics: bool = False,
        settings: Mapping[str, str | int] | None = None,
        jvm: Sequence[str] = SMALL_JVM,
    ) -> None:
        super().__init__()
        self._controller_port, self._proxied_port, self._proxy_port = free_port(), free_port(), free_port()
        self._partitions = partitions
        self._auto_create_topics = auto_create_topics
        self._settings = settings or {}
        self._jvm = jvm

    @property
    def url(self) -> str:
        """The address with a scheme."""
        return f"kafka://{self.address}"

    def proxy(self) -> Proxy:
        """A network to this broker: clients that come through it are told to stay on it. One at a time."""
        return Proxy(self._proxied_port, port=self._proxy_port)

    def _ports(self) -> list[int]:
        return [self.port, self._controller_port, self._proxied_port, self._proxy_port]

    def _prepare(self, folder: Path) -> None:
        template = string.Template((DATA / "kafka.properties").read_text())
        properties = template.substitute(
            port=self.port,
            controller_port=self._controller_port,
            proxied_port=self._proxied_port,
            proxy_port=self._proxy_port,
            data=folder / "data",
            partitions=self._partitions,
            auto_create_topics=str(self._auto_create_topics).lower(),
        )
        extra = "".join(f"{key}={value}\n" for key, value in self._settings.items())  # the last line wins
        (folder / "server.properties").write_text(properties + extra)
        # The first byte keeps it from beginning with "-", which the tool would take for an option.
        cluster = base64.urlsafe_b64encode(b"\x01" + secrets.token_bytes(15)).decode().rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", "server.properties"]
        done = subprocess.run(
            [*self._java(), *tool],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ProcessError(f"kafka's storage was not formatted:\n{done.stdout[-4000:]}")

    def _command(self, folder: Path) -> list[str]:
        return [*self._java(), "kafka.Kafka", "server.properties"]

    def _java(self) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={DATA / 'kafka.log4j2.properties'}"
        return [
            "java",
            *self._jvm,
            logging,
            "-cp",
            KAFKA.classpath,
        ]

    def _answers(self) -> bool:
        return bool(self.process.lines(r"Kafka Server started")) and speaks_kafka(self.port)


class Mongo(Server):
    """A server of the MongoDB protocol. Durable: what is older than 50 ms survives `kill`; else in memory."""

    name = "mongo"

    def __init__(self, *, durable: bool = True, jvm: Sequence[str] = ("-Xmx512m", "-Xshare:auto")) -> None:
        super().__init__()
        self._durable = durable
        self._jvm = jvm

    @property
    def url(self) -> str:
        """The connection string, without a database."""
        return f"mongodb://{self.address}/"

    def _command(self, folder: Path) -> list[str]:
        file = [str(folder / "mongo.mv")] if self._durable else []
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return [
            "java",
            *self._jvm,
            quiet,
            "-cp",
            MONGO.classpath,
            "MongoDev",
            "127.0.0.1",
            str(self.port),
            *file,
        ]

    def _answers(self) -> bool:
        return bool(self.process.lines(r"^serving mongodb://"))


class Registry(Server):
    """A schema registry with Confluent's API: Apicurio, which forgets everything when it ends."""

    name = "registry"

    @property
    def url(self) -> str:
        """The base of Confluent's API."""
        return f"http://{self.address}/apis/ccompat/v7"

    def _command(self, folder: Path) -> list[str]:
        if missing := REGISTRY.missing():
            raise NotInstalledError(missing)
        (runner,) = (REGISTRY.folder / "libs").glob("*-runner.jar")
        options = {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": self.port,
            "quarkus.log.level": "WARN",
        }
        return [
            "java",
            *SMALL_JVM,
            *(f"-D{name}={value}" for name, value in options.items()),
            "-jar",
            str(runner),
        ]

    def _answers(self) -> bool:
        return get_status(f"{self.url}/subjects") == HTTPStatus.OK


class Redis(Server):
    """The machine's redis-server, writing every command to disk before it answers."""

    name = "redis"

    @property
    def url(self) -> str:
        """The connection string of database 0."""
        return f"redis://{self.address}/0"

    def _command(self, folder: Path) -> list[str]:
        binary = shutil.which("redis-server")
        if binary is None:
            raise NotInstalledError("no `redis-server` on the PATH")
        listen = ["--bind", "127.0.0.1", "--port", str(self.port)]
        return [
            binary,
            *listen,
            "--dir",
            str(folder),
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
        ]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class RabbitMQ(Server):
    """The machine's RabbitMQ as a node of its own: its name, its port mapper, its cookie and its data."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        self._epmd_port, self._distribution_port = free_port(), free_port()

    @property
    def url(self) -> str:
        """The address with the user that a new node has."""
        return f"amqp://guest:guest@{self.address}/"

    def keeps(self, queue: str) -> bool:
        """Whether a quorum queue would be found again after `kill`: the server writes its name some seconds late."""
        assert self._folder is not None
        names = self._folder.glob("data/*/quorum/*/names.dets")
        return any(f"%2F_{queue}".encode() in file.read_bytes() for file in names)

    def _ports(self) -> list[int]:
        return [self.port, self._epmd_port, self._distribution_port]

    def _prepare(self, folder: Path) -> None:
        (folder / "enabled_plugins").write_text("[].")
        (folder / "env.conf").write_text("")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {self.address}\nlog.file = false\nlog.console = true\nlog.console.level = warning\n"
        )

    def _command(self, folder: Path) -> list[str]:
        if rabbitmq_missing():
            raise NotInstalledError(str(rabbitmq_missing()))
        settings = {
            "HOME": folder,  # for the cookie
            "ERL_EPMD_PORT": self._epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"travelrec-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": self._distribution_port,
            "RABBITMQ_MNESIA_BASE": folder / "data",
            "RABBITMQ_LOG_BASE": folder / "log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_CONF_ENV_FILE": folder / "env.conf",
            "RABBITMQ_PID_FILE": folder / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +sbwt none",
            "RUNNING_UNDER_SYSTEMD": 1,  # so that the script becomes the server instead of waiting for it
        }
        # its own port mapper, or it starts one that outlives it; the script of the distribution changes the user
        start = f"epmd -port {self._epmd_port} -address 127.0.0.1 & exec {RABBITMQ}"
        return ["env", *(f"{name}={value}" for name, value in settings.items()), "bash", "-c", start]

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return client.recv(64).startswith(b"\x01\x00\x00")  # a method on channel 0: Connection.Start
        except OSError:
            return False


class Prometheus(Server):
    """The machine's Prometheus; `config` is the text of its configuration, where `rule_files` are absolute."""

    name = "prometheus"

    def __init__(self, *, config: str) -> None:
        super().__init__()
        self._config = config

    @property
    def url(self) -> str:
        """The base of its HTTP API."""
        return f"http://{self.address}"

    def _prepare(self, folder: Path) -> None:
        (folder / "prometheus.yml").write_text(self._config)

    def _command(self, folder: Path) -> list[str]:
        binary = shutil.which("prometheus")
        if binary is None:
            raise NotInstalledError("no `prometheus` on the PATH")
        return [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]

    def _answers(self) -> bool:
        return get_status(f"{self.url}/-/ready") == HTTPStatus.OK


def speaks_kafka(port: int) -> bool:
    """Whether an ApiVersions request is answered, by its own number and without an error."""
    number = 7
    body = struct.pack(">hhih", 18, 0, number, -1)  # ApiVersions, version 0, no client id
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
            client.sendall(struct.pack(">i", len(body)) + body)
            answer = b""
            while len(answer) < 10:
                piece = client.recv(64)
                if not piece:
                    return False
                answer += piece
    except OSError:
        return False
    return struct.unpack(">ih", answer[4:10]) == (number, 0)
