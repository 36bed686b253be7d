"""Bodies of requests and answers as OpenAPI sees them, described by hand as routes read and write them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_FILE: Schema = {"type": "string", "format": "binary"}
_BASE64: Schema = {"type": "string", "format": "byte"}


def _about(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _list(items: Schema, description: str = "") -> Schema:
    schema: Schema = {"type": "array", "items": items}
    return _about(schema, description) if description else schema


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | ({"required": required} if required else {})


def _answer(
    schema: Schema, status: str = "200", what: str = "answered", kind: str = "application/json"
) -> Schema:
    """Return an answer with `schema`, and the error that every other status carries."""
    refused = {"description": "refused", "content": {"application/json": {"schema": _ERROR}}}
    return {
        "responses": {
            status: {"description": what, "content": {kind: {"schema": schema}}},
            "default": refused,
        }
    }


def _body(contents: dict[str, Schema]) -> Schema:
    types = {kind: {"schema": schema} for kind, schema in contents.items()}
    return {"requestBody": {"required": True, "content": types}}


_ERROR = _object(dict.fromkeys(("error", "detail", "remedy"), _TEXT), ["error", "detail", "remedy"])
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_VECTOR = {**_list({"type": "number"}), "minItems": 1}
_IMAGE = _about(_BASE64, "encoded image, base64")
_IMAGE_FILES = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), _FILE)
_PACKED = _about(
    _object({"base64": _BASE64, "dim": _WHOLE}, ["base64", "dim"]), "rows of little-endian float32"
)
_VERSION = _about(
    _TEXT, "the model version that made the vector (default: the served one); an older one is mapped"
)
_QUERY: Schema = {
    "k": {**_WHOLE, "minimum": 1, "default": 10},
    "filter": _object(
        {"class": {"oneOf": [_TEXT, _list(_TEXT)]}, "attributes": _TEXTS, "from": _TIME, "to": _TIME}
    ),
    "group_by": {**_TEXT, "enum": ["class"]},
    "group_size": _about(
        {**_WHOLE, "minimum": 1, "maximum": 100, "default": 1}, "hits of each group; with group_by only"
    ),
    "min_version": _about(_TEXT, "wait until this version's commit is visible"),
    "min_seq": _about(_WHOLE, "wait until all that an answer of this `sequence` knew is served"),
}
_HIT_FIELDS: Schema = {
    "id": _TEXT,
    "class": _TEXT,
    "score": _about(
        {"type": "number"},
        "cosine of the angle between the two embeddings, -1 to 1; of an item whose class a discriminant head has not "
        "learnt yet, with a constant of that head added",
    ),
    "version": _about(_TEXT, "the model version that made the item's vector"),
    "time": {**_TIME, "type": ["string", "null"]},
    "attributes": _about(_TEXTS, "with `path`, of an image's file within what was landed"),
    "shard": _about(_TEXT, "the shard that it came with"),
    "row": _about(_WHOLE, "its row there"),
}
_HITS = _list(_object(_HIT_FIELDS, list(_HIT_FIELDS)))
_FOUND: Schema = {
    "hits": _about(_HITS, "the most similar first; absent with group_by"),
    "groups": _list(
        _object({"class": _TEXT, "hits": _HITS}, ["class", "hits"]), "with group_by: the best class first"
    ),
}
_SNAPSHOT: Schema = {
    "version": _about(_TEXT, "the model version that answered"),
    "sequence": _about(_WHOLE, "the commit of the store that answered, for min_seq"),
}
SEARCH_BODY = _body(
    {
        "application/json": _object({"vector": _VECTOR, "image": _IMAGE, "version": _VERSION, **_QUERY}),
        "multipart/form-data": _object({"image": _FILE}, ["image"]),
        **_IMAGE_FILES,
    }
) | _answer(_object({**_SNAPSHOT, **_FOUND}, list(_SNAPSHOT)))
_VECTORS: Schema = {"oneOf": [_list(_VECTOR), _PACKED]}
_MANY: Schema = {"vectors": _VECTORS, "images": _list(_IMAGE), "version": _VERSION, **_QUERY}
_RESULTS = {**_SNAPSHOT, "results": _list(_object(_FOUND), "one a query, in order")}
BATCH_BODY = _body({"application/json": _object(_MANY)}) | _answer(_object(_RESULTS, list(_RESULTS)))
_EMBEDDED: Schema = {
    **_SNAPSHOT,
    "dim": _WHOLE,
    "vectors": _about(_VECTORS, "one an image, in order, as the model gives them: not normalised"),
}
EMBED_BODY = _body(
    {
        "application/json": _object(
            {"image": _IMAGE, "images": _list(_IMAGE), "packed": {"type": "boolean"}}
        ),
        "multipart/form-data": _object({"image": _list(_FILE)}, ["image"]),
        **_IMAGE_FILES,
    }
) | _answer(_object(_EMBEDDED, list(_EMBEDDED)))
MAP_ANSWER = _answer(_FILE, what="a map", kind="application/x-npz")
_ITEM: Schema = {"class": _TEXT, "id": _TEXT, "attributes": _TEXTS, "time": _TIME}
_FORM_ITEM = _ITEM | {"attributes": _about(_TEXT, "JSON object of strings")}
_LANDED = _object(
    {"stream": {"type": ["string", "null"]}, "shard": _TEXT, "ids": _list(_TEXT, "one an image, in order")},
    ["shard", "ids"],
)
LABEL_BODY = _body({"application/json": _object({"class": _TEXT}, ["class"])}) | _answer(_LANDED, "202")
_NEW_IMAGE = _object({"image": _IMAGE, **_ITEM}, ["image", "class"])
_NEW_VECTOR = _object({"vector": {"oneOf": [_VECTOR, _PACKED]}, **_ITEM}, ["vector"])
PUSH_BODY = _body(
    {
        "application/json": _object({"items": _list({"oneOf": [_NEW_IMAGE, _NEW_VECTOR]})}, ["items"]),
        "multipart/form-data": _object({"image": _list(_FILE), **_FORM_ITEM}, ["image", "class"]),
    }
) | _answer(_LANDED, "202")
PUSH_BODY["parameters"] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "maxLength": 512},
        "description": "repeat a push with the same key and it lands once",
    }
]
