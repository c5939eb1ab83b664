"""The registry without a server: the bundled schemas, numbered in the order of the streams."""

from __future__ import annotations

from travelrec.errors import SchemaRefused, UnknownSchema
from travelrec.trips.codec import bundled_schema
from travelrec.trips.entities import STREAMS


class BundledRegistry:
    """See `trips.ports.Registry`; knows our schemas and takes no others."""

    def __init__(self) -> None:
        self._numbers = {stream.subject: number for number, stream in enumerate(STREAMS, 1)}
        self._schemas = {number: bundled_schema(stream) for number, stream in enumerate(STREAMS, 1)}

    async def register(self, subject: str, schema: str) -> int:
        """See `trips.ports.Registry`."""
        number = self._numbers.get(subject, 0)
        if self._schemas.get(number) != schema:
            raise SchemaRefused(f"{subject}: without SCHEMA_REGISTRY_URL there is only the bundled schema")
        return number

    async def schema(self, number: int) -> str:
        """See `trips.ports.Registry`."""
        if number not in self._schemas:
            raise UnknownSchema(
                f"schema {number} is not one of the bundled ones; is SCHEMA_REGISTRY_URL set?"
            )
        return self._schemas[number]

    async def ping(self) -> None:
        """See `trips.ports.Registry`."""
