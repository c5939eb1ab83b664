"""A worker's own small HTTP server: /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from travelrec.health import Probes
from travelrec.metrics import exposition
from travelrec_worker.progress import Progress


@asynccontextmanager
async def served(probes: Probes, progress: Progress, host: str, port: int) -> AsyncIterator[None]:
    """Serves until left; raises `OSError` when the port is taken."""

    def stuck() -> dict[str, object]:
        hanging = progress.hanging
        named = [{"what": w.what, "uid": w.uid, "for_s": round(progress.now - w.since)} for w in hanging]
        return {"status": "stuck", "hanging": named} if hanging else {}

    async def healthz(_: web.Request) -> web.Response:
        body = {"status": "ok", **stuck()}
        return web.json_response(body, status=503 if "hanging" in body else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready, body = await probes.readiness()
        body |= stuck()
        return web.json_response(body, status=200 if ready and "hanging" not in body else 503)

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
