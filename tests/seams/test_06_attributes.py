"""Seam 06: attributes come back as they were meant, whichever library wrote the column; what cannot be an attribute is
refused by its type and never turned into something else."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest import fields
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reasons import BadShard, Reason, RowError
from tests.ingest.helpers import only, read
from tests.ingest.pictures import picture

KEY_VALUE = pa.struct([("key", pa.string()), ("value", pa.string())])


def landed(folder: Path, attributes: Any, format: str = "parquet") -> list[dict[str, str] | Reason]:
    """What each row of a column of attributes becomes: its attributes, or the reason of its refusal."""
    count = len(attributes)
    table = pa.table(
        {"image": [picture(n) for n in range(count)], "label": ["a"] * count, "attributes": attributes}
    )
    if format == "parquet":
        pq.write_table(table, folder / "s.parquet")
    else:
        with pa.ipc.new_file(folder / "s.arrow", table.schema) as out:
            out.write_table(table)
    items, problems = read(only(folder))
    found: dict[int, dict[str, str] | Reason] = {item.row: item.attributes for item in items}
    found |= {problem.row: problem.reason for problem in problems}
    return [found[row] for row in range(count)]


FORMS = {
    "our own map": pa.array([[("lot", "7"), ("hue", "red")]], pa.map_(pa.string(), pa.string())),
    "Polars, and map_entries of Spark": pa.array(
        [[{"key": "lot", "value": "7"}, {"key": "hue", "value": "red"}]], pa.large_list(KEY_VALUE)
    ),
    "names and values": pa.array([[{"name": "lot", "value": "7"}, {"name": "hue", "value": "red"}]]),
    "values first": pa.array([[{"value": "7", "key": "lot"}, {"value": "red", "key": "hue"}]]),
    "pandas": pa.array([[["lot", "7"], ["hue", "red"]]]),
    "struct": pa.array([{"lot": 7, "hue": "red"}]),
    "text": pa.array(['{"lot": 7, "hue": "red"}']),
    "text of a list of entries": pa.array(['[{"key": "lot", "value": 7}, {"key": "hue", "value": "red"}]']),
    "bytes": pa.array([b'{"lot": 7, "hue": "red"}']),
    "text with a mark of Windows": pa.array(['\ufeff{"lot": 7, "hue": "red"}']),
    "dictionary of text": pa.array(['{"lot": 7, "hue": "red"}']).dictionary_encode(),
    "map of dictionaries": pa.array(
        [[("lot", "7"), ("hue", "red")]], pa.map_(pa.string(), pa.dictionary(pa.int8(), pa.string()))
    ),
    "list views": pa.array([[{"key": "lot", "value": "7"}, {"key": "hue", "value": "red"}]], pa.list_(KEY_VALUE)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_map_in_every_form_that_libraries_give_it(tmp_path: Path, form: str, format: str) -> None:
    assert landed(tmp_path, FORMS[form], format) == [{"lot": "7", "hue": "red"}]


def test_forms_that_only_arrow_files_have(tmp_path: Path) -> None:
    entries = pa.array([[{"key": "lot", "value": "7"}]])
    view = pa.ListViewArray.from_arrays(pa.array([0], pa.int32()), pa.array([1], pa.int32()), entries.values)
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(['{"lot": "7"}']))
    for number, column in enumerate((view, runs, pa.array(['{"lot": "7"}'], pa.string_view()))):
        (tmp_path / str(number)).mkdir()
        assert landed(tmp_path / str(number), column, "arrow") == [{"lot": "7"}] * len(column)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["ab", "cd"]]),
        pa.array([["red"]], pa.large_list(pa.string())),
        pa.array([["ab", "cd"]], pa.list_(pa.string(), 2)),
        pa.array([[1, 2]]),
        pa.array([[{"name": "cat", "score": 0.5}]]),
        pa.array([[{"name": "cat"}]]),
        pa.array([7]),
        pa.array([True]),
        pa.array([date(2024, 5, 1)]),
        pa.StructArray.from_arrays([pa.array(["a"]), pa.array(["b"])], ["x", "x"]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_without_names_is_refused_by_its_type(tmp_path: Path, column: Any) -> None:
    with pytest.raises(BadShard, match="column attributes") as refusal:
        landed(tmp_path, column, "arrow")
    assert refusal.value.reason is Reason.WRONG_SCHEMA


@pytest.mark.parametrize(
    "text", ['["ab", "cd"]', "[1, 2]", '[["a", "b", "c"]]', '[{"name": "x"}]', '["ab"]', "7"]
)
def test_text_of_a_list_of_tags_is_refused_and_never_becomes_pairs(tmp_path: Path, text: str) -> None:
    assert landed(tmp_path, pa.array([text, '{"a": "b"}'])) == [Reason.BAD_ATTRIBUTES, {"a": "b"}]


MOMENT = datetime(2024, 5, 1, 12, 30, 0, 250_000)
VALUES: list[tuple[Any, str | None]] = [
    (pa.array(["text"]), "text"),
    (pa.array([""]), ""),
    (pa.array([None], pa.string()), None),
    (pa.array([None], pa.null()), None),
    (pa.array([True]), "true"),
    (pa.array([False]), "false"),
    (pa.array([2**63 - 1]), "9223372036854775807"),
    (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
    (pa.array([0.1], pa.float64()), "0.1"),
    (pa.array([0.1], pa.float32()), "0.1"),
    (pa.array([np.float16(0.1)], pa.float16()), "0.1"),
    (pa.array([2.0]), "2.0"),
    (pa.array([float("nan")]), None),
    (pa.array([float("inf")], pa.float32()), None),
    (pa.array([Decimal("12.50")], pa.decimal128(10, 2)), "12.50"),
    (pa.array([Decimal("1E+3")], pa.decimal128(10, 0)), "1000"),
    (pa.array([date(2024, 5, 1)]), "2024-05-01"),
    (pa.array([date(2024, 5, 1)], pa.date64()), "2024-05-01"),
    (pa.array([MOMENT], pa.timestamp("ms")), "2024-05-01T12:30:00.250000"),
    (pa.array([MOMENT.replace(tzinfo=UTC)], pa.timestamp("us", "UTC")), "2024-05-01T12:30:00.250000+00:00"),
    (pa.array([0], pa.timestamp("s", "Asia/Tokyo")), "1970-01-01T00:00:00+00:00"),
    (pa.array([1_500_000_123], pa.timestamp("ns")), "1970-01-01T00:00:01.500000123"),
    (pa.array([time(12, 30, 0, 5000)], pa.time32("ms")), "12:30:00.005"),
    (pa.array([time(12, 30)], pa.time64("us")), "12:30:00"),
    (pa.array([timedelta(days=1, seconds=1.5)]), "86401.5"),
    (pa.array([100], pa.duration("s")), "100"),
    (pa.array([b"text"]), "text"),
    (pa.array([b"\xff\x00"]), "ff00"),
    (pa.array([b"abcd"], pa.binary(4)), "abcd"),
    (pa.array([UUID(int=5).bytes], pa.uuid()), str(UUID(int=5))),
    (pa.array(["red"]).dictionary_encode(), "red"),
    (pa.array([["ab", "cd"]]), '["ab", "cd"]'),
    (pa.array([[1.5, float("nan"), None]]), "[1.5, null, null]"),
    (pa.array([[date(2024, 5, 1)]]), '["2024-05-01"]'),
    (pa.array([{"a": {"b": [True]}}]), '{"a": {"b": [true]}}'),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '{"k": 1}'),
    (pa.array(["ж"]), "ж"),
    (pa.array([["ж"]]), '["ж"]'),
]


@pytest.mark.parametrize(("column", "text"), VALUES, ids=lambda value: str(getattr(value, "type", value)))
@pytest.mark.parametrize("form", ["struct", "map", "entries"])
def test_every_type_of_value_has_its_text(tmp_path: Path, column: Any, text: str | None, form: str) -> None:
    if form == "struct":
        attributes = pa.StructArray.from_arrays([column, pa.array(["x"])], ["v", "other"])
    else:
        keys, kind = pa.array(["v"]), [pa.field("key", pa.string(), False), pa.field("value", column.type)]
        entries = pa.StructArray.from_arrays([keys, column], fields=kind)
        if form == "map":
            attributes = pa.MapArray.from_arrays(pa.array([0, 1], pa.int32()), keys, column)
        else:
            attributes = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), entries)
    (found,) = landed(tmp_path, attributes, "arrow")
    assert isinstance(found, dict)
    assert found.get("v") == text
    assert ("v" in found) == (text is not None)


def test_one_bad_row_of_attributes_costs_itself_only(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.float64())
    rows = [[("v", 1.0)], [("v", float("nan")), ("w", 2.0)], None, [], [("v", 1.0), ("v", 2.0)]]
    assert landed(tmp_path, pa.array(rows, kind)) == [
        {"v": "1.0"},
        {"w": "2.0"},
        {},
        {},
        Reason.BAD_ATTRIBUTES,
    ]
    (tmp_path / "text").mkdir()
    texts = ['{"v": NaN, "w": 2.5}', '{"v": Infinity}', '{"v": [NaN]}', "{"]
    expected = [{"w": "2.5"}, {}, {"v": "[null]"}, Reason.BAD_ATTRIBUTES]
    assert landed(tmp_path / "text", pa.array(texts)) == expected


def test_a_row_of_very_many_values_costs_itself_only(tmp_path: Path) -> None:
    rows = pa.array([[("v", list(range(100_000)))], [("v", [1])]], pa.map_(pa.string(), pa.list_(pa.int64())))
    assert landed(tmp_path, rows) == [Reason.BAD_ATTRIBUTES, {"v": "[1]"}]


def test_what_we_write_comes_back_through_other_libraries(tmp_path: Path) -> None:
    """Our shard, read and written again as pandas and Polars do it."""
    meant = {"lot": "7", "hue": "red", "empty": "", "json": json.dumps(["a"])}
    land_items(tmp_path / "ours", "s", [NewItem(picture(), "a", "x", meant)])
    table = pq.read_table(tmp_path / "ours/s.parquet")
    at = table.schema.get_field_index("attributes")
    pandas_like = pa.array([[list(entry) for entry in row] for row in table["attributes"].to_pylist()])
    entries = table["attributes"].combine_chunks()
    pairs = pa.StructArray.from_arrays([entries.keys, entries.items], ["key", "value"])
    polars_like = pa.ListArray.from_arrays(entries.offsets, pairs).cast(pa.large_list(pairs.type))
    for name, column in {"pandas": pandas_like, "polars": polars_like}.items():
        (tmp_path / name).mkdir()
        pq.write_table(table.set_column(at, "attributes", column), tmp_path / name / "s.parquet")
        ((item,), problems) = read(only(tmp_path / name))
        assert (item.attributes, item.item_id, problems) == (meant, "x", [])
    polars = pytest.importorskip("polars")
    (tmp_path / "real").mkdir()
    polars.read_parquet(tmp_path / "ours/s.parquet").write_parquet(tmp_path / "real/s.parquet")
    assert read(only(tmp_path / "real"))[0][0].attributes == meant


def test_python_values_follow_the_same_table() -> None:
    """As they come from JSON and from callers."""
    given: dict[str, Any] = {"a": date(2024, 5, 1), "b": Decimal("1.50"), "c": float("nan")}
    given |= {"d": [None, 1.5], "e": UUID(int=1), "f": True}
    assert fields.attributes(given) == {
        "a": "2024-05-01", "b": "1.50", "d": "[null, 1.5]", "e": str(UUID(int=1)), "f": "true",
    }  # fmt: skip
    for bad in (["ab"], [["a", 1, 2]], [[1, 2]], {"a": object()}, {"a": "\ud800"}, [["a", 1], ["a", 2]]):
        with pytest.raises(RowError):
            fields.attributes(bad)


def test_text_that_names_an_attribute_twice_costs_its_row(tmp_path: Path) -> None:
    texts = ['{"a": 1, "a": 2}', '{"b": {"x": 1, "x": 1}}', '{"c": 3}']
    assert landed(tmp_path, pa.array(texts)) == [Reason.BAD_ATTRIBUTES, Reason.BAD_ATTRIBUTES, {"c": "3"}]


class NotADate(datetime):
    """As NaT of pandas: a datetime that equals nothing."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = datetime.__hash__


class NoText:
    """Something that Python cannot write out."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.1), "0.1"),
        (np.float16(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (np.float32("nan"), None),
        (np.int64(3), "3"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "true"),
        (np.str_("x"), "x"),
        (np.bytes_(b"x"), "x"),
        (np.datetime64("2024-01-01T00:00:00.5", "ns"), "2024-01-01T00:00:00.500000"),
        (np.datetime64("NaT"), None),
        (np.timedelta64(90, "s"), "90"),
        ({"a": [np.float32(0.1), np.datetime64("NaT")]}, '{"a": [0.1, null]}'),
        (NotADate.now(), None),
    ],
)
def test_values_of_numpy_and_pandas_are_what_they_hold(value: Any, expected: str | None) -> None:
    assert fields.attributes({"a": value}).get("a") == expected


UNSHOWN = {
    "nested": nested(100_000),
    "digits": 10**5000,
    "text": NoText(),
    "calendar": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
}


@pytest.mark.parametrize("value", UNSHOWN.values(), ids=UNSHOWN)
def test_a_value_that_cannot_even_be_shown_is_refused_like_any_other(value: Any) -> None:
    for check, argument in (
        (fields.attributes, {"a": value}),
        (fields.attributes, [value]),
        (fields.when, value),
        (fields.class_name, value),
        (fields.item_id, value),
    ):
        with pytest.raises(RowError) as refusal:
            check(argument)
        assert len(refusal.value.detail) < 300


@pytest.mark.parametrize("key", [None, float("nan"), "", " ", frozenset("a"), 10**5000], ids=range(6))
def test_a_name_that_is_none_is_refused(key: Any) -> None:
    with pytest.raises(RowError):
        fields.attributes({key: 1})


def test_a_time_that_is_none_is_a_missing_one() -> None:
    assert fields.when(NotADate.now()) is None
    assert fields.when(np.datetime64("NaT")) is None
    assert fields.when(np.int64(1_714_566_600)) == datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
    assert fields.when(np.datetime64("2024-05-01T12:30:00", "ns")) == datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
