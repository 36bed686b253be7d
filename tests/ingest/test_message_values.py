"""Values of messages that are records: in Avro, by the schema that their writer used, or refused."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest

from stream_odml.ingest.kafka_options import KafkaOptions, MessageFormat
from stream_odml.ingest.message_values import Fields, decoder_of
from stream_odml.ingest.reasons import Reason, RowError, TransientReadError

SCHEMA = {
    "type": "record",
    "name": "Photo",
    "fields": [
        {"name": "image", "type": "bytes"},
        {"name": "label", "type": "string"},
        {"name": "id", "type": ["null", "long"]},
        {"name": "attributes", "type": {"type": "map", "values": "string"}},
    ],
}
WIDER = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "shelf", "type": "int"}]}
PHOTO = {"image": b"\xff\xd8 jpeg", "label": "cat", "id": 7, "attributes": {"colour": "red"}}


def written(schema: Any, record: Any, schema_id: int | None = None) -> bytes:
    file = io.BytesIO()
    if schema_id is not None:
        file.write(b"\0" + schema_id.to_bytes(4, "big"))
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), record)
    return file.getvalue()


def test_an_avro_record_is_read_by_the_schema_of_its_id() -> None:
    schemas = {"17": json.dumps(SCHEMA), "18": json.dumps(WIDER)}
    decode = decoder_of(MessageFormat(value="avro", schemas=schemas))
    for schema, schema_id, more in ((SCHEMA, 17, {}), (WIDER, 18, {"shelf": 3})):
        found = decode(written(schema, PHOTO | more, schema_id), {})
        assert (found.image, found.label, found.item_id) == (PHOTO["image"], "cat", 7)
        assert found.attributes == {"colour": "red"}


def test_avro_records_without_an_id_have_one_schema() -> None:
    decode = decoder_of(MessageFormat(value="avro", schemas={"": json.dumps(SCHEMA)}))
    assert decode(written(SCHEMA, PHOTO | {"id": None}), {}).item_id is None
    assert decode(written(SCHEMA, PHOTO), {}).label == "cat"


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (written(SCHEMA, PHOTO, 99), r"schema 99 is not among kafka\.schemas \(17\)"),
        (written(SCHEMA, PHOTO), "no id of a schema"),
        (b"\0\0", "no id of a schema"),
        (written(WIDER, PHOTO | {"shelf": 3}, 17), "bytes follow the record"),
        (written(SCHEMA, PHOTO, 17)[:-4], "EOFError|Index|Error"),
    ],
)
def test_a_record_of_another_schema_is_refused_and_not_guessed(value: bytes, detail: str) -> None:
    decode = decoder_of(MessageFormat(value="avro", schemas={"17": json.dumps(SCHEMA)}))
    with pytest.raises(RowError, match=detail) as refused:
        decode(value, {})
    assert refused.value.reason is Reason.BAD_MESSAGE


def test_schemas_belong_to_avro() -> None:
    with pytest.raises(ValueError, match="schemas: expected with `value: avro`"):
        KafkaOptions(value="avro")
    with pytest.raises(ValueError, match="only there"):
        KafkaOptions(value="json", schemas={"": "{}"})


def test_a_decoder_that_is_not_here_is_waited_for() -> None:
    with pytest.raises(TransientReadError, match="no_such_module:decode"):
        decoder_of(MessageFormat(value="no_such_module:decode"))


@pytest.mark.parametrize("number", [[1], {"a": 1}])
def test_an_id_that_is_none_costs_its_own_message(number: Any) -> None:
    value = json.dumps({"image": "AAAA", "label": "cat", "id": number}).encode()
    with pytest.raises(RowError) as caught:
        decoder_of(MessageFormat(value="json"))(value, {})
    assert caught.value.reason == Reason.BAD_ID


@pytest.mark.parametrize("given", [None, (b"image", "cat"), Fields(b"image", attributes=None)])  # type: ignore[arg-type]
def test_a_decoder_that_gives_something_else_costs_its_own_message(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "own_decoder", lambda value, headers: given, raising=False)
    with pytest.raises(RowError, match="expected Fields") as caught:
        decoder_of(MessageFormat(value="json:own_decoder"))(b"", {})
    assert caught.value.reason == Reason.BAD_MESSAGE
