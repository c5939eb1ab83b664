"""Real servers, processes and a bad network for tests and benchmarks; each on ports of its own."""

from support.installed import NotInstalledError
from support.ports import free_port, unique_name
from support.processes import Process, ProcessError
from support.proxy import Proxy
from support.servers import Kafka, Mongo, Prometheus, RabbitMQ, Redis, Registry, Server
from support.waiting import eventually

__all__ = [
    "Kafka",
    "Mongo",
    "NotInstalledError",
    "Process",
    "ProcessError",
    "Prometheus",
    "Proxy",
    "RabbitMQ",
    "Redis",
    "Registry",
    "Server",
    "eventually",
    "free_port",
    "unique_name",
]
