"""An answer is of one snapshot, whatever happens beside it: a switch of the head, a query that cannot be answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.answering import _answer_together, _Ask
from stream_odml.service.api import create_app
from stream_odml.service.backend import ClassTable, Query
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi


class Switching(FakeBackend):
    """The head moves just before the classes are read."""

    def classes(self) -> ClassTable:
        self.head, self.sequence = "v0002-cc", self.sequence + 1
        return super().classes()


def test_classes_are_those_of_the_version_that_is_named() -> None:
    backend = Switching()
    with LocalApi(create_app(backend, ServiceOptions(), backend.metrics)) as api:
        found = api.get("/v1/classes").json()
    assert (found["version"], found["sequence"]) == ("v0002-cc", backend.sequence)


class Snapshot:
    """Cannot read what one version made."""

    def search(self, vectors: Any, version: str, *rest: Any) -> list[list[str]]:
        if version == "lost":
            raise FileNotFoundError("artifacts/lost/forward")
        return [[f"{version} {len(vectors)}"] for _ in vectors]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_query_that_fails_takes_no_other_with_it(grouped: bool) -> None:
    bundle = cast(Any, SimpleNamespace(snapshot=Snapshot()))
    query = Query(group_by_class=grouped)
    asks = [_Ask(bundle, np.ones((1, 4), np.float32), name, query) for name in ("a", "lost", "b", "lost")]
    a, lost, b, again = cast(list[Any], _answer_together(asks))
    assert (a, b) == ([["a 1"]], [["b 1"]])
    assert isinstance(lost, FileNotFoundError)
    assert isinstance(again, FileNotFoundError)
