"""Seam 35: what the API answers to searches and pushes is what its own description says, errors too."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi

ROW = [0.5] * 8
ASKED: list[tuple[str, dict[str, Any], int]] = [
    ("/v1/search", {"vector": ROW, "k": 3}, 200),
    ("/v1/search", {"vector": ROW, "group_by": "class", "group_size": 2}, 200),
    ("/v1/search", {"vector": ROW, "filter": {"class": "nothing"}}, 200),
    ("/v1/search/batch", {"vectors": [ROW, ROW]}, 200),
    ("/v1/search/batch", {"vectors": [ROW], "group_by": "class"}, 200),
    ("/v1/items", {"items": [{"image": "iVBORw==", "class": "a"}]}, 202),
    ("/v1/embed", {"image": "iVBORw=="}, 200),
    ("/v1/embed", {"images": ["iVBORw==", "iVBORw=="], "packed": True}, 200),
    ("/v1/embed", {"images": []}, 422),
    ("/v1/search", {"vector": ROW, "k": 0}, 422),
    ("/v1/search/batch", {}, 422),
    ("/v1/items", {"items": []}, 422),
]


@pytest.mark.parametrize(("path", "body", "status"), ASKED, ids=range(len(ASKED)))
def test_an_answer_is_what_the_description_says(path: str, body: dict[str, Any], status: int) -> None:
    with LocalApi(create_app(FakeBackend(), ServiceOptions())) as api:
        described = api.get("/openapi.json").json()["paths"][path]["post"]["responses"]
        answer = api.post(path, json=body)
    assert answer.status_code == status
    schema = described.get(str(status), described["default"])["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**answer.json(), "more": 1}, schema)
