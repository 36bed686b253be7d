"""Seam 41: who works on a root opens it once and hands it on. On an object store each opening is several requests for
each of its tables, and reads the whole ledger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.cli.stream_root import root_status
from stream_odml.config.service import ServiceOptions
from stream_odml.exchange.adopting import adopt
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import Names
from stream_odml.pipeline.first_version import open_root
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from stream_odml.store.store import Store
from stream_odml.store.table import Table
from tests.service.local import LocalApi
from tests.service.vector_stream import D, VectorStream, vector_config, vectors_of

FOLLOWED, ALL = 3, 4
"""Tables that a store opens, and those of a writer, or of whoever asks for the quarantine."""


class Opened:
    """Counts of stores and tables that were opened, since they were asked for."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._stores = self._tables = 0
        for kind, name in ((Store, "_stores"), (Table, "_tables")):
            patch.setattr(kind, "__init__", self._counted(kind.__init__, name))

    def _counted(self, begin: Callable[..., None], name: str) -> Callable[..., None]:
        def counted(*args: Any, **kwargs: Any) -> None:
            setattr(self, name, getattr(self, name) + 1)
            begin(*args, **kwargs)

        return counted

    def take(self) -> tuple[int, int]:
        """Return them, and begin anew."""
        seen = self._stores, self._tables
        self._stores = self._tables = 0
        return seen


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


def test_a_root_is_made_and_checked_through_one_store(tmp_path: Path, opened: Opened) -> None:
    config = vector_config(tmp_path / "root")
    open_root(config)
    made = opened.take()
    open_root(config)
    # Of a root that is not there the first of its tables is missed.
    assert (made, opened.take()) == ((2, 1 + ALL), (1, ALL))


def test_a_gallery_is_taken_over_through_the_writer_s_store_and_learnt_through_one_more(
    tmp_path: Path, opened: Opened
) -> None:
    names = [f"class {at % 4}" for at in range(40)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_of(names).reshape(-1)), D)
    pq.write_table(
        pa.table({"id": map(str, range(40)), "c": names, "vector": vectors}), tmp_path / "v.parquet"
    )
    config = vector_config(tmp_path / "root")

    def take_over() -> tuple[int, int]:
        report = adopt(open_source(str(tmp_path / "v.parquet"), Names(class_name="c")), config)
        assert report.items + report.before == 40
        return opened.take()

    assert take_over() == (3, 1 + ALL + FOLLOWED)
    assert take_over() == (1, ALL)


def test_status_and_search_read_one_store(tmp_path: Path, opened: Opened) -> None:
    root, options = str(tmp_path / "root"), ServiceOptions()
    stream = VectorStream(Path(root))
    vectors = stream.land("a", ["one", "two"] * 4)
    stream.close()
    opened.take()
    root_status(root)
    assert opened.take() == (1, ALL)
    replica = Replica(root, options)
    replica.start()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        for vector in vectors[:3]:
            assert api.post("/v1/search", json={"vector": vector.tolist()}).json()["hits"]
    replica.close()
    assert opened.take() == (1, FOLLOWED)
