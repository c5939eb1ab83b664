"""One run of this kind: the model function, in a thread of its own if it is a plain one."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

from travelrec.errors import BadSetting, BrokenOutput, ModelTimeout, NotTheJobsFault
from travelrec.job import Json, Params
from travelrec.kinds.prediction.mock import mock
from travelrec.kinds.prediction.threads import Threads
from travelrec.ports import Model
from travelrec.settings import Settings

MAX_RESULT_BYTES = 1_000_000
_WITH_MODEL = 2  # arguments


class Prediction:
    """A model function that is ready to run."""

    def __init__(self, function: Callable[..., object], *, threads: int) -> None:
        self._function = function
        self._threads = Threads(threads)
        self._waits = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object that is called like a function
        )
        self.asks = _arguments(function) >= _WITH_MODEL
        if self.asks and not self._waits:
            raise BadSetting("PREDICTION_MODEL: a function that is given the chat model must be async")

    @classmethod
    def named(cls, settings: Settings) -> Prediction:
        """The one that the settings name; raises `BadSetting`."""
        name = settings.prediction_model
        function = _imported(name) if name else mock(settings.prediction_latency_s)
        return cls(function, threads=settings.prediction_concurrency)

    async def run(self, params: Params, model: Model, timeout_s: float) -> dict[str, Json]:
        """The result for `params["input"]` within `timeout_s`, as JSON text; raises `ModelError`."""
        given = (params["input"], model) if self.asks else (params["input"],)
        begun = self._waits
        try:
            async with asyncio.timeout(timeout_s):
                if self._waits:
                    result = await self._function(*given)  # type: ignore[misc]  # it is a coroutine function
                else:
                    await self._threads.place()
                    begun = True
                    result = await self._threads.run(self._function, *given)
        except TimeoutError as error:
            if not begun:
                raise NotTheJobsFault("The worker's places are taken by calls that do not end.") from error
            raise ModelTimeout("The model did not answer in time.") from error
        return {"json": _as_json(result)}


def _as_json(result: object) -> str:
    """Text, since a store may not take every number and name that JSON knows."""
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
        size_bytes = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise BrokenOutput("The model's result is not JSON.") from error
    if size_bytes > MAX_RESULT_BYTES:
        raise BrokenOutput("The model's result is larger than 1 MB.")
    return text


def _imported(name: str) -> Callable[..., object]:
    module, _, path = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a command that was installed does not look there
    try:
        found: object = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a module of theirs raises: it can't be used
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadSetting(f"PREDICTION_MODEL: {name} can't be imported ({told})") from error
    if not callable(found):
        raise BadSetting(f"PREDICTION_MODEL: {name} is not a function")
    return found


def _arguments(function: Callable[..., object]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some that are written in C tell nothing
        return 1
    required = [p for p in parameters if p.default is p.empty]
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in required)
