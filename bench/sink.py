"""An OTLP receiver on `PORT` that takes everything and keeps nothing."""

import os

from aiohttp import web


async def take(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(content_type="application/x-protobuf")


async def alive(_: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    app = web.Application(client_max_size=64 * 2**20)
    app.add_routes([web.get("/", alive), web.post("/v1/traces", take)])
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), print=lambda _: None, access_log=None)


if __name__ == "__main__":
    main()
