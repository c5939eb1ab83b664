"""The deployment that suffers: its servers, the networks before them, and a model that knows its callers."""

import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from pymongo import AsyncMongoClient

from chaos.history import Record, key_of
from support import Kafka, Mongo, Process, Proxy, RabbitMQ, eventually
from support.deployment import Deployment
from travelrec.wire import JOBS_TOPIC, PREDICTIONS_TOPIC

BROKERS = {"kafka": Kafka, "rabbitmq": RabbitMQ}
DATABASE = "chaos"


class Arena(Deployment):
    """A deployment whose workers call the model by their names; `proxies` are the networks to `broker` and `store`."""

    def __init__(
        self,
        broker: Kafka | RabbitMQ,
        mongo: Mongo,
        proxies: dict[str, Proxy],
        *,
        apis: int,
        workers: int,
        latency_s: float,
        **env: str,
    ) -> None:
        self.proxies = proxies
        near, store = (proxies.get("broker", broker).address, proxies.get("store", mongo).address)
        urls = {
            "BROKER_URL": broker.url.replace(broker.address, near),
            "STORE_URL": f"mongodb://{store}/{DATABASE}",
        }
        super().__init__(broker, mongo, apis=apis, workers=workers, **urls, **env)
        command = [sys.executable, "-m", "chaos.model", str(self.model_port), str(latency_s)]
        self.model = Process(command, name="model")

    def worker(self, name: str, **env: str) -> Process:
        """One more worker, not started; its key is its name."""
        return super().worker(name, OPENAI_API_KEY=name, **env)

    async def records(self) -> list[Record]:
        """Every job that the store has."""
        async with AsyncMongoClient[dict[str, Any]](self.mongo.url) as client:
            return [_record(found) async for found in client[DATABASE]["jobs"].find({})]


@asynccontextmanager
async def arena(
    broker: str, networks: Iterable[str], *, apis: int, workers: int, latency_s: float, **env: str
) -> AsyncIterator[Arena]:
    """A healthy one on a `broker` of `BROKERS`, with a proxy before each of `networks`, until left."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(BROKERS[broker]())
        mongo = await stack.enter_async_context(Mongo())
        servers = {"broker": server, "store": mongo}
        proxies = {name: await stack.enter_async_context(servers[name].proxy()) for name in networks}
        made = Arena(server, mongo, proxies, apis=apis, workers=workers, latency_s=latency_s, **env)
        stack.callback(made.close)
        await made.healthy()
        if isinstance(server, RabbitMQ):
            for queue in (JOBS_TOPIC, PREDICTIONS_TOPIC):
                await eventually(lambda queue=queue: server.keeps(queue))
        yield made


def _record(found: dict[str, Any]) -> Record:
    return Record(
        uid=found["_id"],
        key=key_of(found["params"]["country"], found["params"]["season"]),
        status=found["status"],
        claims=found["claims"],
        tries=len(found["tries"]),
        created_at=found["created_at"],
        ended_at=found.get("ended_at"),
        recommendations=tuple(found.get("result", {}).get("recommendations", ())),
    )
