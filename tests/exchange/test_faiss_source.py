"""FAISS indexes of all kinds: vectors under their ids, what is kept in part is said, others are refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.exchange import faiss_source
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import ID, VECTOR, GallerySource, Names, vectors_of

D, COUNT = 8, 200
VECTORS = np.random.default_rng(0).standard_normal((COUNT, D)).astype(np.float32)
OWN = np.random.default_rng(1).permutation(COUNT) * 10 + 5


def written(path: Path, kind: str, ids: Any = None) -> Path:
    index = faiss.index_factory(D, kind)
    index.train(VECTORS)
    if ids is None:
        index.add(VECTORS)
    else:
        index.add_with_ids(VECTORS, ids)
    faiss.write_index(index, str(path))
    return path


def opened(path: Path, ids: Path | None = None) -> GallerySource:
    return open_source(str(path), Names(), ids)


def taken(source: GallerySource) -> tuple[list[int], Any]:
    blocks = [block.table for block in source.blocks(None)]
    ids = [one for table in blocks for one in table[ID].to_pylist()]
    return ids, np.concatenate([vectors_of(table[VECTOR], D)[0] for table in blocks])


@pytest.mark.parametrize("kind", ["IVF4,Flat", "IDMap,Flat", "IDMap2,HNSW8"])
def test_vectors_come_under_the_ids_that_they_were_added_with(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_source, "rows_at_once", lambda dim: 64)
    source = opened(written(tmp_path / "a.faiss", kind, OWN))
    ids, vectors = taken(source)
    at = {int(one): row for row, one in enumerate(OWN)}
    assert sorted(ids) == sorted(at)
    assert np.array_equal(vectors, VECTORS[[at[one] for one in ids]])
    assert source.note == ""


@pytest.mark.parametrize("kind", ["PCAR8,IVF4,Flat", "IDMap,IVF4,Flat"])
def test_lists_inside_another_index_are_found(tmp_path: Path, kind: str) -> None:
    ids, vectors = taken(opened(written(tmp_path / "a.faiss", kind, OWN if "IDMap" in kind else None)))
    assert ids == (OWN.tolist() if "IDMap" in kind else list(range(COUNT)))
    assert np.allclose(vectors, VECTORS, atol=1e-4)


def test_a_file_of_ids_has_no_order_to_follow_in_lists_with_ids_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(COUNT))))
    with pytest.raises(ExchangeError, match=r"has ids of its own, .*; leave --ids out"):
        opened(written(tmp_path / "a.faiss", "IVF4,Flat", OWN), tmp_path / "ids.txt")


@pytest.mark.parametrize("kind", ["IVF4,Flat", "IDMap,Flat", "Flat"])
def test_a_file_of_ids_beside_an_index_counts_where_it_has_none(tmp_path: Path, kind: str) -> None:
    names = [f"item {at}" for at in range(COUNT)]
    pq.write_table(pa.table({"id": names}), tmp_path / "a.ids.parquet")
    has_own = kind != "Flat"
    ids, _ = taken(opened(written(tmp_path / "a.faiss", kind, OWN if has_own else None)))
    assert sorted(map(str, ids)) == sorted(map(str, OWN.tolist()) if has_own else names)


@pytest.mark.parametrize("kind", ["PCA4,Flat", "SQ8", "IVF4,SQ4", "LSH"])
def test_vectors_that_are_kept_in_part_are_said_to_be(tmp_path: Path, kind: str) -> None:
    assert "keeps vectors compressed" in opened(written(tmp_path / "a.faiss", kind)).note


def test_an_index_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match="IndexIVFPQFastScan, which does not give its vectors back"):
        opened(written(tmp_path / "a.faiss", "IVF4,PQ4x4fs"))


def test_what_is_no_index_of_vectors_is_one_line(tmp_path: Path) -> None:
    bits = faiss.IndexBinaryFlat(64)
    faiss.write_index_binary(bits, str(tmp_path / "bits.faiss"))
    faiss.write_index(faiss.IndexFlatIP(D), str(tmp_path / "empty.faiss"))
    (tmp_path / "junk.faiss").write_bytes(b"junk")
    for name, says in (
        ("bits", "binary index: its vectors are bits"),
        ("empty", "no vectors; there is nothing to adopt"),
        ("junk", "is no FAISS index: Index type .* not recognized"),
    ):
        with pytest.raises(ExchangeError, match=says) as error:
            opened(tmp_path / f"{name}.faiss")
        assert "\n" not in str(error.value)
