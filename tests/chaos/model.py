"""`python -m chaos.model PORT LATENCY`: the offline model, which remembers who asked it what, and when.

`GET /calls` gives every call as [key, caller, began, ended]; the caller is its API key, the end is that of the answer
or of the connection.
"""

import asyncio
import json
import signal
import sys
import time

from aiohttp import web

from travelrec.fake_openai import FakeOpenAI, FakeSettings


class Witness:
    """Passes every request on to the offline model, and notes those that ask it something."""

    def __init__(self, model: FakeOpenAI) -> None:
        self._model = model
        self._calls: list[list[str | float]] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request."""
        if request.path == "/calls":
            return web.Response(body=json.dumps(self._calls).encode(), content_type="application/json")
        if request.method != "POST" or not request.path.endswith("/chat/completions"):
            return await self._model.handle(request)
        key = str(json.loads(await request.read())["messages"][-1]["content"])
        caller = request.headers.get("Authorization", "").removeprefix("Bearer ")
        call: list[str | float] = [key, caller, time.time(), 0.0]
        self._calls.append(call)
        try:
            return await self._model.handle(request)
        finally:  # of a caller that has gone, too
            call[3] = time.time()


async def serve(port: int, latency_s: float) -> None:
    """Serves until SIGTERM."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    witness = Witness(FakeOpenAI(FakeSettings(latency_s=latency_s)))
    server = web.Server(witness.handle, handler_cancellation=True, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", port, backlog=4096)
    await stopped.wait()
    listener.close()
    await server.shutdown(timeout=0.1)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
