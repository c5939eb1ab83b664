"""One trace for each chat message, from its socket through Kafka, the model, Kafka and Redis to a socket."""

import json

import aiohttp
import pytest

from support import Kafka, Mongo, Redis, eventually, unique_name
from support.collector import Span, collecting
from support.deployment import Deployment, url_of
from travelrec.wire import INCOMING_TOPIC

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.real("kafka", "mongo", "redis"),
    pytest.mark.timeout(180),
]
CALLER = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "X-Request-ID": "a-handshake",
}
PARENTS = {
    f"publish {INCOMING_TOPIC}": "chat message",
    "chat": "chat message",
    "chat gpt-4o-mini": "chat",
    "relay": "chat",
    "send": "relay",
}


async def test_a_message_is_one_trace_to_the_socket_that_gets_the_answer(
    kafka_server: Kafka, mongo_server: Mongo, redis_server: Redis
) -> None:
    """It goes on the handshake's; the answer is sent by the other API, to another connection of the user, in it too."""
    async with collecting() as collector:
        with Deployment(
            kafka_server,
            mongo_server,
            apis=2,
            workers=1,
            REDIS_URL=redis_server.url,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="100",
        ) as deployment:
            await deployment.healthy()
            query = {"token": "any", "userid": unique_name("user")}
            one, other = (f"{url_of(api)}/ws" for api in deployment.apis)
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(one, params=query, headers=CALLER) as speaking,
                http.ws_connect(other, params=query) as listening,
            ):
                said = {"type": "message", "content": "hello", "userid": query["userid"], "id": "mine"}
                await speaking.send_str(json.dumps(said))
                for socket in (speaking, listening):
                    assert (await socket.receive_json(timeout=60))["type"] == "response"

            def sent() -> list[Span]:
                found = [span for span in collector.spans if span.name == "send"]
                return found if len(found) == 2 else []

            await eventually(lambda: bool(sent()), 20)
            (begun,) = [span for span in collector.spans if span.name == "chat message"]
            assert CALLER["traceparent"] == f"00-{begun.trace_id}-{begun.parent_id}-01"
            assert begun.attributes["travelrec.request_id"] == CALLER["X-Request-ID"]
            spans = await collector.trace(begun.trace_id, *PARENTS)
            assert begun.attributes["travelrec.message"] == "mine"
            assert {span.trace_id for span in sent()} == {begun.trace_id}
            by_name = {span.name: span for span in spans}
            for name, parent in PARENTS.items():
                assert by_name[name].parent_id == by_name[parent].span_id, name
            assert sorted(span.name for span in spans) == sorted([*PARENTS, "chat message", "send"])
            told = json.dumps([span.attributes for span in spans])
            assert "hello" not in told
