"""Avro records in Confluent's wire format: a zero byte, the schema's number in four, the record without its schema."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import fastavro
from fastavro.schema import to_parsing_canonical_form

from travelrec.errors import Undecodable, UnknownSchema
from travelrec.trips.entities import STREAMS, Stream

if TYPE_CHECKING:
    from fastavro.types import Schema

    from travelrec.trips.ports import Registry

_MAGIC = 0
_HEADER = struct.Struct(">bI")
_UNKNOWN_S = 10.0  # for so long a number that the registry did not know is not asked for again
_MOST_UNKNOWN = 1000


def bundled_schema(stream: Stream) -> str:
    """The text of our schema of `stream`."""
    return (files("travelrec.trips") / "schemas" / f"{stream.topic}.avsc").read_text("utf-8")


class Codec:
    """Encodes with our schemas once they are registered, decodes with the writer's into ours; numbers are kept."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._texts = {stream.topic: bundled_schema(stream) for stream in STREAMS}
        self._ours: dict[str, Schema] = {
            topic: fastavro.parse_schema(json.loads(text)) for topic, text in self._texts.items()
        }
        self._heads: dict[str, bytes] = {}
        self._writers: dict[tuple[str, int], _Writer] = {}
        self._unknown: dict[int, float] = {}
        self._asking = asyncio.Lock()

    async def register(self, streams: Sequence[Stream]) -> None:
        """Registers our schemas of `streams`, before they are encoded for; raises as `Registry.register` does."""
        if all(stream.topic in self._heads for stream in streams):
            return
        async with self._asking:
            for stream in streams:
                if stream.topic not in self._heads:
                    number = await self._registry.register(stream.subject, self._texts[stream.topic])
                    self._heads[stream.topic] = _HEADER.pack(_MAGIC, number)

    def encode(self, stream: Stream, record: Mapping[str, object]) -> bytes:
        """The bytes of `record`; `stream` is registered."""
        out = io.BytesIO()
        out.write(self._heads[stream.topic])
        fastavro.schemaless_writer(out, self._ours[stream.topic], record)
        return out.getvalue()

    async def decode(self, stream: Stream, value: bytes) -> dict[str, object]:
        """The record, with the fields of our schema; raises `Undecodable` with the reason and `RegistryUnavailable`."""
        if len(value) < _HEADER.size or value[0] != _MAGIC:
            raise Undecodable("not in Confluent's wire format: no zero byte and schema number in front")
        number = _HEADER.unpack_from(value)[1]
        writer = self._writers.get((stream.topic, number))
        if writer is None:
            writer = await self._writer(stream, number)
        return writer.decode(value)

    async def _writer(self, stream: Stream, number: int) -> _Writer:
        if self._unknown.get(number, 0.0) < time.monotonic():
            async with self._asking:
                key = stream.topic, number
                if key not in self._writers and self._unknown.get(number, 0.0) < time.monotonic():
                    try:
                        text = await self._registry.schema(number)
                    except UnknownSchema:
                        self._remember_unknown(number)
                        raise
                    self._writers[key] = _Writer(number, text, self._ours[stream.topic])
                if key in self._writers:
                    return self._writers[key]
        raise UnknownSchema(f"schema {number} is not known to the registry")

    def _remember_unknown(self, number: int) -> None:
        if len(self._unknown) >= _MOST_UNKNOWN:
            self._unknown.clear()
        self._unknown[number] = time.monotonic() + _UNKNOWN_S


class _Writer:
    """What is written with one schema, read with ours."""

    def __init__(self, number: int, text: str, ours: Schema) -> None:
        self._number = number
        self._schema: Schema | None = None
        self._reader: Schema | None = None
        try:
            self._schema = fastavro.parse_schema(json.loads(text))
            is_ours = to_parsing_canonical_form(self._schema) == to_parsing_canonical_form(ours)
            self._reader = None if is_ours else ours
        except Exception:  # noqa: BLE001 - whatever is wrong with it: its records can't be read, and say so
            self._schema = None

    def decode(self, value: bytes) -> dict[str, object]:
        if self._schema is None:
            raise Undecodable(f"schema {self._number} is no Avro schema")
        body = io.BytesIO(value)
        body.seek(_HEADER.size)
        try:
            record = fastavro.schemaless_reader(body, self._schema, self._reader)
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise Undecodable(
                f"not a record of schema {self._number} that ours can read: {told:.200}"
            ) from error
        if body.tell() != len(value) or not isinstance(record, dict):
            raise Undecodable(f"not one record of schema {self._number}")
        return record
