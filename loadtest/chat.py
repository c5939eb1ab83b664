"""Users who chat, for Locust: each says something over a WebSocket, waits for the answer, and says the next thing.

With CHAT_TOKEN_SECRET in the environment, that of the deployment, they have tokens; without, any token will do.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from urllib.parse import urlencode

import jwt
from locust import User, between, task
from websocket import WebSocket, WebSocketException, create_connection

from locustfile import Shape  # and with it the options and the verdict

__all__ = ["Chatter", "Shape"]

_ANSWER_S = 120.0  # after which a user gives up and counts a failure
_FRAME_S = 30.0
_SECRET = os.environ.get("CHAT_TOKEN_SECRET", "")
_TOKEN_S = 6 * 3600


class Chatter(User):
    """One user on one connection; when it breaks they come back, go on where they were, and say it again."""

    wait_time = between(1.0, 3.0)

    def on_start(self) -> None:
        """Called by Locust: another user."""
        self._userid = f"load-{uuid.uuid4().hex[:16]}"
        self._position = ""
        self._socket: WebSocket | None = None

    def on_stop(self) -> None:
        """Called by Locust."""
        self._leave()

    @task
    def say(self) -> None:
        """Says something, and counts it as completed once it is answered."""
        began = time.perf_counter()
        problem = self._answered(uuid.uuid4().hex, began + _ANSWER_S)
        self.environment.events.request.fire(
            request_type="JOB",
            name="completed",
            response_time=(time.perf_counter() - began) * 1000,
            response_length=0,
            exception=RuntimeError(problem) if problem else None,
            context={},
        )

    def _answered(self, message: str, deadline: float) -> str | None:
        """None once the message is answered, else what is wrong."""
        said = {"type": "message", "content": "What may I do in Rome?", "userid": self._userid, "id": message}
        problem = "no answer in time"
        while time.perf_counter() < deadline:
            try:
                socket = self._socket or self._connected()
                socket.send(json.dumps(said))
                while True:
                    answer = json.loads(socket.recv())
                    self._position = answer.get("id", self._position)
                    if answer["type"] == "response":
                        return None
                    if answer["type"] == "error":
                        return str(answer["message"])
            except (WebSocketException, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
                self._leave()
                time.sleep(1.0)
        return problem

    def _connected(self) -> WebSocket:
        """A new connection, behind what was heard last; its handshake is counted as `connect`."""
        claims = {"sub": self._userid, "exp": int(time.time()) + _TOKEN_S}
        token = jwt.encode(claims, _SECRET or "any", algorithm="HS256")
        query = {"token": token, "userid": self._userid, "since": self._position}
        url = f"{str(self.host).replace('http', 'ws', 1)}/ws?{urlencode(query)}"
        began, problem = time.perf_counter(), None
        try:
            self._socket = create_connection(url, timeout=_FRAME_S)
        except (WebSocketException, OSError) as error:
            problem = error
            raise
        finally:
            self.environment.events.request.fire(
                request_type="WS",
                name="connect",
                response_time=(time.perf_counter() - began) * 1000,
                response_length=0,
                exception=problem,
                context={},
            )
        return self._socket

    def _leave(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
