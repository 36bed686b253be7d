"""A replica of a root in exact form: a class is learnt by a new head alone, and whoever asks sees only its gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.indexing import index_shard
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from stream_odml.store.artifacts import HEAD, STUDENT, SUMS
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import META
from stream_odml.store.sums import forget_in_sums, sums_now, task_rows
from stream_odml.store.tables import decoded, restamped
from stream_odml.store.versions import SUMS_SEQ
from tests.service.local import LocalApi
from tests.service.test_replica import OPTIONS as SERVED
from tests.service.test_replica import ask
from tests.service.tiny_stream import OPTIONS, SPEC, TinyStream

SETTINGS, LIFT = HeadSettings(dim=4, new_scale=0.7), Lift(SPEC.dim)


class ExactStream(TinyStream):
    """Its stages solve a head and touch no image; the embedder's output is what the gallery stores."""

    form = "exact"

    def ingest(self) -> list[str]:
        refs = self._source.poll(self._seen)
        for ref in refs:
            self._seen.add(ref.stamp)
            self.writer.record_landed([ref])
            found = index_shard(ref, self.model, self.head, self.writer.store.files, OPTIONS)
            rows = restamped(found.rows.select(META), decoded(found.rows, SPEC.dim), self.head, "int8")
            self.writer.commit_ingest(replace(found, rows=rows))
        return [ref.shard_id for ref in refs]

    def stage(self) -> str:
        task, parent, store = self.writer.ledger.open_task, self.head, self.writer.store
        shards = [shard.shard_id for shard in task.shards]
        self.writer.close_task(task.task_id, shards, "test")
        version = self.writer.begin_attempt(task.task_id)
        has_sums = SUMS in store.tree.get(parent).artifacts
        before = sums_now(store, parent) if has_sums else ClassSums.empty(LIFT)
        sums = before.plus(task_rows(store, parent, shards).sums(LIFT))
        data = {HEAD: solve_head(sums, SETTINGS).to_bytes(), SUMS: sums.to_bytes()}
        refs = {name: self.writer.put_artifact(version, name, part) for name, part in data.items()}
        refs[STUDENT] = store.tree.get(parent).artifacts[STUDENT]
        self.writer.commit_stage(version, parent, task.task_id, refs, metrics={SUMS_SEQ: store.ledger.seq})
        return version


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[ExactStream]:
    stream = ExactStream(tmp_path)
    yield stream
    stream.close()


def test_a_head_is_served_as_soon_as_it_is_solved(stream: ExactStream) -> None:
    replica = Replica(stream.root, SERVED)
    replica.start()
    with LocalApi(create_app(replica, SERVED, replica.metrics)) as api:
        first, root = stream.land("a", ["cat", "dog", "owl"], per_class=4), stream.head
        found = ask(api, stream.images[first[0]], min_seq=stream.sequence, k=1)
        assert (found["version"], found["hits"][0]["id"]) == (root, first[0])
        old = stream.vectors(first)  # of a version without a head the feature is the embedding

        learnt = stream.stage()
        late = stream.land("b", ["elk"], per_class=4)
        model = replica.puller.bundle
        assert model is not None
        head = stream.writer.store.head_of(learnt)
        for item, score in ((first[5], 1.0), (late[0], 0.7 + SETTINGS.new_bonus)):
            image = stream.images[item]
            found = ask(api, image, min_version=learnt, min_seq=stream.sequence, k=1)
            assert (found["version"], found["hits"][0]["id"]) == (learnt, item)
            # Stored features are of 8 bits: the cosine of an image with its own coded copy is a little under 1.
            assert found["hits"][0]["score"] == pytest.approx(score, abs=5e-3)

        newest = stream.stage()
        ask(api, stream.images[late[0]], min_version=newest)
        now = replica.puller.bundle
        assert now is not None
        assert now.embedder is model.embedder  # one trunk: only the head is another
        for vector, version in ((head.embed(old[4:5])[0], learnt), (old[4], root)):
            body = {"vector": vector.tolist(), "version": version, "k": 1}
            hit = api.post("/v1/search", json=body).json()["hits"][0]
            assert (hit["id"], hit["score"]) == (first[4], pytest.approx(1.0, abs=5e-3))
        wrong = api.post("/v1/search", json={"vector": old[4].tolist(), "k": 1})
        assert wrong.json()["error"] == "bad_dimension"
        dim = now.snapshot.dim
        assert f"those of version {newest} {dim}" in wrong.text
        assert replica.served().dim == dim

        stream.writer.forget("class", "cat")
        forget_in_sums(stream.writer)
        stream.writer.maintain(MaintenancePolicy(keep_versions=1))
        found = ask(api, stream.images[first[0]], min_seq=stream.sequence, k=50)
        assert {hit["class"] for hit in found["hits"]} == {"dog", "owl", "elk"}
        body = {"vector": head.embed(old[4:5])[0].tolist(), "version": learnt, "k": 1}
        assert stream.writer.tree.get(learnt).retired
        assert api.post("/v1/search", json=body).status_code == 200, "a head outlives its version's model"
        stream.writer.forget("class", "dog")
        forget_in_sums(stream.writer)
        ask(api, stream.images[first[0]], min_seq=stream.sequence, k=1)
        gone = api.post("/v1/search", json=body)
        assert (gone.status_code, gone.json()["error"]) == (422, "retired_version")
    replica.close()


def test_replicas_of_a_node_share_a_folder_of_features_that_stays(
    stream: ExactStream, tmp_path: Path
) -> None:
    options, folder = SERVED.model_copy(update={"features_dir": tmp_path / "features"}), tmp_path / "features"
    first = stream.land("a", ["cat", "dog"], per_class=4)
    copies = []
    for _ in range(2):
        replica = Replica(stream.root, options)
        replica.start()
        with LocalApi(create_app(replica, options, replica.metrics)) as api:
            assert ask(api, stream.images[first[0]], k=1)["hits"][0]["id"] == first[0]
        replica.close()
        copies.append({file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()})
    assert len(copies[0]) == len(stream.writer.store.tables["gallery"].present)
    assert copies[0] == copies[1], "the second one found what the first had left"
