"""The floor for accept: a bare FastAPI handler that returns a uuid, on the same gunicorn settings as the API."""

import uuid

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

app = FastAPI()


@app.post("/recommendations", status_code=202)
async def accept(country: str, season: str) -> dict[str, str]:
    return {"uid": uuid.uuid4().hex}


class Bare:
    """Stands where `Edge` stands."""

    def stop(self) -> None:
        """Nothing to end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)


def main() -> None:
    """Serves it as `travelrec api` serves the API."""
    from travelrec.settings import read_settings
    from travelrec_api import server

    class Application(server._Application):
        def load(self) -> Bare:  # type: ignore[override]
            return Bare()

    Application(read_settings()).run()


if __name__ == "__main__":
    main()
