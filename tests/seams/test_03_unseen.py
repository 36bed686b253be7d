"""Seam 03: two names that look the same are one, or one of them is refused: by every door, with the same answer."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.exchange.checking import Findings, Target, check
from stream_odml.ingest import message_range, reading
from stream_odml.ingest.fields import attributes, item_id, written_out
from stream_odml.ingest.folder_scan import scan_folder
from stream_odml.ingest.kafka_options import MessageFormat
from stream_odml.ingest.message_range import Message, Range
from stream_odml.ingest.message_values import decoder_of
from stream_odml.ingest.reading import RawItem, read_folder, read_shard
from stream_odml.ingest.reasons import BadShard, Reason, RowError
from stream_odml.ingest.shard import ShardManifest
from stream_odml.ingest.sources import DirectorySource
from stream_odml.service.body import class_from
from stream_odml.service.errors import ApiError
from tests.service.tiny_stream import picture

UNSEEN = [
    "ca\u200dt", "ca\u200ct", "cat\u200d", "\u200dcat", "ca\u00adt", "ca\u2060t", "ca\u034ft", "ca\u115ft",
    "ca\u200bt", "ca\u202et", "ca\u2066t", "cat\u3164", "ca\ufe0ft", "cat\u2800", "葛\U000e0100", "😀\ufe0f",
    "ما\u200cر", "क\u200d", "ᠠ\u200d", "ca\u180bt",
]  # fmt: skip
"""Each looks like a name that it is not."""
SEEN = [
    "می\u200cخواهم", "क्\u200dष", "क्\u200cष", "👩🏽\u200d🔬", "❤\ufe0f", "👩\u200d❤\ufe0f\u200d👨", "1\ufe0f\u20e3",
    "ᠠ\u180b", "日本", "café",
]  # fmt: skip
TARGET = Target(dim=2, version="v", codes=None, held_out=0.0)


def classes_by_every_door(place: Path, name: str) -> dict[str, Reason | str]:
    """What becomes of a row of this class: its class, or why it is refused."""
    (place / "photos" / name).mkdir(parents=True)
    (place / "photos" / name / "1.png").write_bytes(picture(1))
    pq.write_table(pa.table({"image": [picture(1)], "label": [name]}), place / "table.parquet")
    (ref,) = (ref for ref in DirectorySource(place).poll(set()) if ref.format == "parquet")
    message = Message(0, 0, None, picture(1), (("class", name.encode()),))
    row = message_range._row(0, Range("t", 0, 0, 1), message, MessageFormat(), decoder_of(MessageFormat()))
    assert row is not None
    (of_folder,) = read_folder(place / "photos", scan_folder(place / "photos").files)
    (of_table,) = read_shard(ref)
    found = {"folder": of_folder, "table": of_table, "message": reading._check(row, "s", set())}
    taken = {door: row.class_name if isinstance(row, RawItem) else row.reason for door, row in found.items()}
    two = pa.table({"id": ["1"], "class": [name], "vector": [[1.0, 0.0]]})
    adopted = check(two, "s", TARGET, Findings())
    reasons, classes = adopted.quarantine["reason"].to_pylist(), adopted.rows["class_name"].to_pylist()
    return {**taken, "adopted": Reason(reasons[0]) if reasons else classes[0]}


@pytest.mark.parametrize("name", UNSEEN)
def test_every_door_refuses_what_does_not_show(tmp_path: Path, name: str) -> None:
    taken = classes_by_every_door(tmp_path, name)
    assert set(taken.values()) == {Reason.BAD_LABEL}, taken
    with pytest.raises(ApiError, match="invisible or control character U"):
        class_from(name)
    for field in (item_id, lambda text: attributes({text: "x"})):
        with pytest.raises(RowError, match="leave it out"):
            field(name)
    with pytest.raises(BadShard, match="invisible character"):
        ShardManifest.from_bytes(ShardManifest(task=name, task_complete=True).to_bytes())


@pytest.mark.parametrize("name", SEEN)
def test_every_door_takes_what_shows(tmp_path: Path, name: str) -> None:
    assert set(classes_by_every_door(tmp_path, name).values()) == {name}
    assert class_from(name) == item_id(name) == written_out(name) == name
    assert ShardManifest.from_bytes(ShardManifest(task=name).to_bytes()).task == name


def test_a_joiner_that_does_not_show_is_written_out() -> None:
    """In a name that an earlier release took."""
    assert written_out("ca\u200dt") == "ca\\u200dt"
