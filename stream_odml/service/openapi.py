"""Bodies of requests and answers as OpenAPI sees them: routes read and write theirs by hand, so both are
described by hand."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_FILTER: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "class": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
        "from": {"type": "string", "format": "date-time"},
        "to": {"type": "string", "format": "date-time"},
    },
}
_VECTOR: Schema = {"type": "array", "items": {"type": "number"}, "minItems": 1}
_IMAGE: Schema = {"type": "string", "format": "byte", "description": "encoded image, base64"}
_FILE: Schema = {"type": "string", "format": "binary"}
_VERSION: Schema = {
    "type": "string",
    "description": "the model version that made the vector (default: the served one); an older one is mapped",
}
_QUERY: Schema = {
    "k": {"type": "integer", "minimum": 1, "default": 10},
    "filter": _FILTER,
    "group_by": {"type": "string", "enum": ["class"]},
    "group_size": {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "default": 1,
        "description": "hits of each group; with group_by only",
    },
    "min_version": {"type": "string", "description": "wait until this version's commit is visible"},
    "min_seq": {
        "type": "integer",
        "description": "wait until all that an answer of this `sequence` knew is served",
    },
}


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return schema | ({"required": required} if required else {})


def _answer(schema: Schema, status: str = "200") -> Schema:
    """Return an answer with `schema`, and the error that every other status carries."""
    return {
        "responses": {
            status: {"description": "answered", "content": {"application/json": {"schema": schema}}},
            "default": {"description": "refused", "content": {"application/json": {"schema": _ERROR}}},
        }
    }


def _body(**contents: Schema) -> Schema:
    types = {
        kind.replace("__", "/").replace("_", "-"): {"schema": schema} for kind, schema in contents.items()
    }
    return {"requestBody": {"required": True, "content": types}}


_ERROR = _object(
    {name: {"type": "string"} for name in ("error", "detail", "remedy")}, ["error", "detail", "remedy"]
)
_HIT = _object(
    {
        "id": {"type": "string"},
        "class": {"type": "string"},
        "score": {
            "type": "number",
            "description": "cosine of the angle between the two embeddings, -1 to 1; of an item whose class a "
            "discriminant head has not learnt yet, with a constant of that head added",
        },
        "version": {"type": "string", "description": "the model version that made the item's vector"},
        "time": {"type": ["string", "null"], "format": "date-time"},
        "attributes": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "with `path`, of an image's file within what was landed",
        },
        "shard": {"type": "string", "description": "the shard that it came with"},
        "row": {"type": "integer", "description": "its row there"},
    },
    ["id", "class", "score", "version", "time", "attributes", "shard", "row"],
)
_FOUND: Schema = {
    "hits": {"type": "array", "items": _HIT, "description": "the most similar first; absent with group_by"},
    "groups": {
        "type": "array",
        "items": _object(
            {"class": {"type": "string"}, "hits": {"type": "array", "items": _HIT}}, ["class", "hits"]
        ),
        "description": "with group_by: the best class first",
    },
}
_SNAPSHOT: Schema = {
    "version": {"type": "string", "description": "the model version that answered"},
    "sequence": {"type": "integer", "description": "the commit of the store that answered, for min_seq"},
}
SEARCH_BODY = _body(
    application__json=_object({"vector": _VECTOR, "image": _IMAGE, "version": _VERSION, **_QUERY}),
    multipart__form_data=_object({"image": _FILE}, ["image"]),
    image__png=_FILE,
    image__jpeg=_FILE,
    image__webp=_FILE,
) | _answer(_object({**_SNAPSHOT, **_FOUND}, ["version", "sequence"]))
_PACKED = _object(
    {"base64": {"type": "string", "format": "byte"}, "dim": {"type": "integer"}}, ["base64", "dim"]
)
_PACKED["description"] = "rows of little-endian float32"
BATCH_BODY = _body(
    application__json=_object(
        {
            "vectors": {"oneOf": [{"type": "array", "items": _VECTOR}, _PACKED]},
            "images": {"type": "array", "items": _IMAGE},
            "version": _VERSION,
            **_QUERY,
        }
    )
) | _answer(
    _object(
        {
            **_SNAPSHOT,
            "results": {"type": "array", "items": _object(_FOUND), "description": "one a query, in order"},
        },
        ["version", "sequence", "results"],
    )
)
EMBED_BODY = _body(
    application__json=_object(
        {"image": _IMAGE, "images": {"type": "array", "items": _IMAGE}, "packed": {"type": "boolean"}}
    ),
    multipart__form_data=_object({"image": {"type": "array", "items": _FILE}}, ["image"]),
    image__png=_FILE,
    image__jpeg=_FILE,
    image__webp=_FILE,
) | _answer(
    _object(
        {
            **_SNAPSHOT,
            "dim": {"type": "integer"},
            "vectors": {
                "oneOf": [{"type": "array", "items": _VECTOR}, _PACKED],
                "description": "one an image, in order, as the model gives them: not normalised",
            },
        },
        ["version", "sequence", "dim", "vectors"],
    )
)
MAP_ANSWER: Schema = {
    "responses": {
        "200": {"description": "a map", "content": {"application/x-npz": {"schema": _FILE}}},
        "default": {"description": "refused", "content": {"application/json": {"schema": _ERROR}}},
    }
}
_ITEM: Schema = {
    "class": {"type": "string"},
    "id": {"type": "string"},
    "attributes": {"type": "object", "additionalProperties": {"type": "string"}},
    "time": {"type": "string", "format": "date-time"},
}
_FORM_ITEM = _ITEM | {"attributes": {"type": "string", "description": "JSON object of strings"}}
_LANDED = _object(
    {
        "stream": {"type": ["string", "null"]},
        "shard": {"type": "string"},
        "ids": {"type": "array", "items": {"type": "string"}, "description": "one an image, in order"},
    },
    ["shard", "ids"],
)
LABEL_BODY = _body(application__json=_object({"class": _ITEM["class"]}, ["class"])) | _answer(_LANDED, "202")
PUSH_BODY = _body(
    application__json=_object(
        {
            "items": {
                "type": "array",
                "items": {
                    "oneOf": [
                        _object({"image": _IMAGE, **_ITEM}, ["image", "class"]),
                        _object({"vector": {"oneOf": [_VECTOR, _PACKED]}, **_ITEM}, ["vector"]),
                    ]
                },
            }
        },
        ["items"],
    ),
    multipart__form_data=_object(
        {"image": {"type": "array", "items": _FILE}, **_FORM_ITEM}, ["image", "class"]
    ),
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
