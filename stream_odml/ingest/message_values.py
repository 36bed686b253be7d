"""What the value of a message says: an image, a record in JSON or Avro, or what a function of the user's makes of it.

Protects: whatever a value holds, it costs its own row only.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stream_odml.ingest.kafka_options import MessageFormat
from stream_odml.ingest.plain import json_once
from stream_odml.ingest.rawrow import LABEL_FIELDS, NAMES
from stream_odml.ingest.reasons import Reason, RowError, TransientReadError

Headers = Mapping[str, bytes | None]


@dataclass(frozen=True)
class Fields:
    """What a value says of its item; what it leaves out is taken from the headers."""

    image: bytes | None
    label: str | int | None = None
    item_id: str | int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    time: Any = None


Decode = Callable[[bytes, Headers], Fields]
"""A decoder of values. Raises RowError, or any other error for a value that is not what it should be."""
_SCHEMA_ID_BYTES = 5


def decoder_of(format: MessageFormat) -> Decode:
    """Return the decoder that a format names. Raises TransientReadError where its module cannot be imported here."""
    if format.value == "image":
        return lambda value, _: Fields(value)
    if format.value == "json":
        return _guarded(_from_json)
    if format.value == "avro":
        return _guarded(_Avro(format.schemas))
    module, _, name = format.value.partition(":")
    try:
        decode: Decode = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TransientReadError(
            f"kafka.value {format.value} cannot be had here ({error}): its module must be importable in all processes"
        ) from error
    return _guarded(decode)


def _guarded(decode: Decode) -> Decode:
    def decoded(value: bytes, headers: Headers) -> Fields:
        try:
            return _checked(decode(value, headers))
        except RowError:
            raise
        except Exception as error:  # the user's code, or its library: whatever it raises costs one message
            detail = f"{type(error).__name__}: {str(error)[:200]}"
            raise RowError(Reason.BAD_MESSAGE, detail) from error

    return decoded


def _checked(found: object) -> Fields:
    """Return what a decoder gave. Raises RowError for an id that is none, TypeError for what is no Fields: such a
    message costs its own row, not the range that it lies in."""
    if not isinstance(found, Fields) or not isinstance(found.attributes, Mapping):
        raise TypeError(
            f"the decoder gave a {type(found).__name__}; expected Fields with a mapping of attributes"
        )
    if not isinstance(found.item_id, Hashable):
        raise RowError(
            Reason.BAD_ID, f"an id of type {type(found.item_id).__name__}; expected text or a number"
        )
    return found


def _from_json(value: bytes, headers: Headers) -> Fields:
    record = json_once(value)
    if not isinstance(record, Mapping):
        raise RowError(Reason.BAD_MESSAGE, f"a {type(record).__name__}; expected an object with an image")
    return _from_record(record)


def _from_record(record: Mapping[str, Any]) -> Fields:
    image = _first(record, "image")
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RowError(Reason.BAD_MESSAGE, f"the image is not base64: {error}") from error
    if image is not None and not isinstance(image, bytes):
        raise RowError(Reason.BAD_MESSAGE, f"the image is a {type(image).__name__}; expected base64 or bytes")
    attributes = record.get("attributes") or {}
    if not isinstance(attributes, Mapping):
        raise RowError(Reason.BAD_ATTRIBUTES, "attributes: expected an object of names and values")
    label = next((record[name] for name in LABEL_FIELDS if record.get(name) is not None), None)
    item_id, time = (_first(record, part) for part in ("item_id", "time"))
    return Fields(image, label, item_id, attributes, time)


def _first(record: Mapping[str, Any], part: str) -> Any:
    return next((record[name] for name in NAMES[part] if record.get(name) is not None), None)


class _Avro:
    """Records by the schema that their writer used; one that is named by no id that we know is refused, not guessed."""

    def __init__(self, schemas: Mapping[str, str]) -> None:
        try:
            import fastavro
        except ImportError as error:
            raise TransientReadError(
                "kafka.value avro needs fastavro: pip install 'stream-odml[kafka]'"
            ) from error
        self._read = fastavro.schemaless_reader
        self._schemas = {name: fastavro.parse_schema(json.loads(text)) for name, text in schemas.items()}

    def __call__(self, value: bytes, headers: Headers) -> Fields:
        name, at = "", 0
        if "" not in self._schemas:
            if len(value) < _SCHEMA_ID_BYTES or value[0] != 0:
                raise RowError(Reason.BAD_MESSAGE, "no id of a schema before the record")
            name, at = str(int.from_bytes(value[1:_SCHEMA_ID_BYTES], "big")), _SCHEMA_ID_BYTES
        if name not in self._schemas:
            known = ", ".join(sorted(self._schemas))
            raise RowError(Reason.BAD_MESSAGE, f"schema {name} is not among kafka.schemas ({known})")
        file = io.BytesIO(value[at:])
        record = self._read(file, self._schemas[name], None)
        if file.read(1):
            raise RowError(Reason.BAD_MESSAGE, "bytes follow the record: it was written by another schema")
        if not isinstance(record, Mapping):
            raise RowError(Reason.BAD_MESSAGE, "the schema is of no record")
        return _from_record(record)
