"""Seam 43: a gallery of another store is taken over as it is written: no id loses its zeros and no class its name, a
value that is no text costs its row alone, and nothing that may lie beside the columns is in the way."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import stream_odml as so
from stream_odml.config.stream import parse_config
from stream_odml.exchange.adopting import adopt
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import Names
from stream_odml.ingest.landing import land_file
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import RowProblem
from stream_odml.ingest.sources import DirectorySource

N = 6
VECTORS = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
PLAIN: dict[str, Any] = {
    "vector": VECTORS,
    "id": np.array([f"{at:03d}" for at in range(N)]),
    "class_name": np.array(["a", "b"] * (N // 2)),
}


def taken(source: Any, root: Path) -> tuple[list[tuple[str, str, dict[str, str]]], Mapping[str, int]]:
    """Items of a root that took the source over, and reasons of what was refused."""
    plain = {"root": str(root), "model": {"backbone": "none", "head": "discriminant"}}
    report = adopt(source, parse_config(plain), learn=False)
    items = so.open(root).items()
    return [(item.item_id, item.class_name, dict(item.attributes)) for item in items], report.quarantined


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "all.npz", **{**PLAIN, **arrays})
    return folder / "all.npz"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ids.csv",
            "\ufeffid,class,day\n007,NA,2020-01-01\n1e5,null,\n08,true,1\n9.0,1.50,TRUE\n10,nan,NaN\n,a,x\n",
        ),
        (
            "IDS.CSV",
            "id,class,day\r\n007,NA,2020-01-01\r\n1e5,null,\r\n08,true,1\r\n9.0,1.50,TRUE\r\n10,nan,NaN\r\n,a,x",
        ),
    ],
)
def test_columns_of_text_are_not_guessed_at(tmp_path: Path, name: str, text: str) -> None:
    index = faiss.IndexFlatIP(4)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    (tmp_path / name).write_bytes(text.encode())
    source = open_source(
        str(tmp_path / "v.faiss"), Names(class_name="class", attributes=("day",)), tmp_path / name
    )
    items, refused = taken(source, tmp_path / "root")
    days = ["2020-01-01", None, "1", "TRUE", "NaN", "x"]
    assert [item[1:] for item in items] == [
        (name, {} if day is None else {"day": day})
        for name, day in zip(["NA", "null", "true", "1.50", "nan", "a"], days, strict=True)
    ]
    assert [item[0] for item in items][:5] == ["007", "1e5", "08", "9.0", "10"]
    assert not refused


def test_a_mark_before_a_list_of_ids_is_no_part_of_the_first(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(4)
    index.add(VECTORS[:2])
    faiss.write_index(index, str(tmp_path / "v.faiss"))
    for name, text in (("ids.txt", "007\n8\n"), ("ids.json", '["007", "8"]')):
        (tmp_path / name).write_text(f"\ufeff{text}", encoding="utf-8")
        items, _ = taken(
            open_source(str(tmp_path / "v.faiss"), Names(), tmp_path / name), tmp_path / f"of-{name}"
        )
        assert [item[0] for item in items] == ["007", "8"]


@pytest.mark.parametrize("bad", [b"\xff", "\ud800"])
@pytest.mark.parametrize("column", ["id", "class_name"])
def test_a_value_that_is_no_text_costs_its_row_alone(tmp_path: Path, column: str, bad: Any) -> None:
    values = PLAIN[column].tolist()
    values[2] = bad
    if isinstance(bad, bytes):
        values = [one if isinstance(one, bytes) else one.encode() for one in values]
    items, refused = taken(
        open_source(str(npz(tmp_path, **{column: np.array(values)})), Names()), tmp_path / "root"
    )
    assert [item[0] for item in items] == ["000", "001", "003", "004", "005"]
    assert refused == {"bad_id" if column == "id" else "bad_label": 1}
    # As a shard that lands it loses the same row.
    landed = land_file(tmp_path / "inbox", tmp_path / "all.npz", None, None)
    (ref,) = DirectorySource(tmp_path / "inbox").poll(())
    rows = list(read_shard(ref))
    assert landed
    assert [row.row for row in rows if isinstance(row, RowProblem)] == [2]
    assert sum(isinstance(row, RawItem) for row in rows) == N - 1


def test_what_lies_beside_the_columns_is_in_nobody_s_way(tmp_path: Path) -> None:
    beside = {"dim": np.int64(4), "model": np.array("clip"), "about": np.array([{}, 1], object)}
    items, refused = taken(open_source(str(npz(tmp_path, **beside)), Names()), tmp_path / "root")
    assert (len(items), refused) == (N, {})


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"vector": VECTORS.astype(np.longdouble), "boxes": VECTORS}, "array vector"),
        ({"vector": np.asfortranarray(VECTORS), "boxes": VECTORS}, "array vector"),
        ({"id": np.array([{}] * N, object)}, "array id"),
        ({"vector": VECTORS[:, :0]}, "no values"),
    ],
)
def test_a_column_that_cannot_be_read_is_named_and_no_other_takes_its_place(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExchangeError, match=said):
        open_source(str(npz(tmp_path, **arrays)), Names())


@pytest.mark.parametrize("name", ["v.npz", "v.parquet", "v.faiss", "v.arrow"])
def test_a_pipe_holds_nobody_up(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ExchangeError, match="is a FIFO"):
        open_source(str(tmp_path / name), Names())
