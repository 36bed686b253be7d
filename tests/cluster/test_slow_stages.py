"""A running stream whose trunk moves after its base: tasks are learnt in seconds meanwhile, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_odml.client import Client
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows
from tests.cluster.test_fast_stages import _config, _land, _wait

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_trunk_moves_while_a_task_is_learnt_and_what_it_mapped_is_embedded_anew(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    categories = [category for category, _ in zip(glyph_categories(0, images=12), range(9), strict=False)]
    config = _config(tmp_path / "root") | {
        "learning": {
            "trunk": "distilled",
            "base_steps": 6,
            "stage_steps": 60,
            "classes_per_batch": 2,
            "images_per_class": 2,
        },
        "store": {"renew_per_s": 10_000},
    }
    with run_stream(parse_config(config)) as session:
        inbox = str(inbox_path(session.config))
        store = Store.open(root)

        def kinds() -> list[str]:
            store.refresh()
            return [str(version.metrics.get("kind")) for version in store.tree.versions.values()][1:]

        _land(inbox, "one", categories[:3])
        _wait(lambda: kinds() == ["trunk"], f"the base: {session.look()}")
        _land(inbox, "two", categories[3:6])
        _wait(lambda: (session.look() or {}).get("stage", {}).get("phase") == "training", "the slow stage")
        _land(inbox, "three", categories[6:])
        # The third task may be learnt before what the second one's stage mapped is embedded anew, or after it.
        _wait(
            lambda: kinds().count("renew") >= 1 and len(store.tree.learnt()) == 3,
            f"all of it: {session.look()}",
        )
        tree = store.tree
        assert kinds().count("slow") >= 1
        assert len(tree.learnt()) == 3
        slow = next(v for v in tree.versions.values() if v.metrics.get("kind") == "slow")
        assert not tree.same_trunk(slow.parent or "", slow.version_id)
        for version in list(tree.versions.values())[1:]:
            sums = store.sums_of(version.version_id)
            assert sums is not None
            again = learnt_rows(store, version.version_id).sums(sums.lift)
            assert sums.names == again.names
            assert (sums.products_EE == again.products_EE).all(), "sums are of what is stored"
        with Client(session.endpoints.service) as client:
            query = categories[1]
            _wait(lambda: client.search_image(query.images[0]).version in tree.versions, "a version serves")
            assert client.search_image(query.images[0], k=1).hits[0].class_name == query.class_name
        status = session.look()
        assert status is not None
        assert set(status["renewal"]) == {"mapped", "gone", "exact"}
