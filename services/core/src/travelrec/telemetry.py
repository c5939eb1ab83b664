"""Logs: one JSON object a line, or a readable line on a terminal; every library's log in the same stream.

Our own lines go straight to the stream: through the standard library's logging each would cost nearly three times as
much (23 µs of CPU instead of 8), and there is one for every request and every job.
"""

from __future__ import annotations

import json
import logging
import sys

import structlog

_QUIET = (
    "aio_pika",
    "aiokafka",
    "aiormq",
    "pymongo",
    "openai",
    "httpx",
    "httpx2",
    "asyncio",
    "aiohttp.access",
    "uvicorn.error",
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=repr)


class _Stream:
    """Where structlog's rendered lines go, under the name of the module that speaks."""

    def __init__(self, name: str = "travelrec") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        """Writes one line."""
        sys.stderr.write(line + "\n")

    debug = info = warning = error = exception = critical = msg


def configure_logging(level: str) -> None:
    """Sends everything of at least `level` to stderr; libraries speak from `warning` on."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=lambda line, **_: _ENCODER.encode(line))
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_Stream,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
