"""The report of a small stream: whole, self-contained, escaped, and right about its examples."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from stream_odml.cli import report_data
from stream_odml.cli.report import Line, bars, line_plot, write_report
from stream_odml.cli.report_data import service_latency
from stream_odml.pipeline.indexing import IndexOptions
from stream_odml.store.errors import NotAStreamRoot
from tests.service.tiny_stream import TinyStream

BAD_NAME = "<script>alert(1)</script>"


def test_one_file_with_everything_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", BAD_NAME], per_class=3)
    stream.stage()
    stream.close()
    path = tmp_path / "report.html"
    data = write_report(stream.root, str(path), latency={"vector, p99 at most": 4.0})
    text = path.read_text(encoding="utf-8")
    for title in ("Recall", "Forgetting", "re-extracted", "Drift", "Latency", "Quarantine", "neighbours"):
        assert title in text
    assert data.head in text
    assert "0.900" in text
    assert "4.00 ms" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert "<script" not in text


def test_examples_are_held_out_images_that_never_find_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = IndexOptions(max_pixels=1 << 20, thumbnails=True, held_out=0.5)
    monkeypatch.setattr("tests.service.tiny_stream.OPTIONS", options)
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", BAD_NAME], per_class=4)
    data = write_report(stream.root, str(tmp_path / "report.html"), queries=6)
    stream.close()
    assert 2 <= len(data.examples) <= 6
    for example in data.examples:
        assert len(example.neighbours) == 6
        assert example.right == (example.neighbours[0].class_name == example.class_name)
        assert all(n.right == (n.class_name == example.class_name) for n in example.neighbours)
        assert all(n.picture is not None and n.picture.startswith(b"\xff\xd8") for n in example.neighbours)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert BAD_NAME not in text
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(pictures) == 7 * len(data.examples)
    assert all(base64.b64decode(picture).startswith(b"\xff\xd8") for picture in pictures)


def test_examples_are_drawn_from_what_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard is looked at; whichever would be drawn from both, the other one is erased."""
    options = IndexOptions(max_pixels=1 << 20, thumbnails=True, held_out=0.5)
    monkeypatch.setattr("tests.service.tiny_stream.OPTIONS", options)
    monkeypatch.setattr(report_data, "SHARDS_READ", 1)
    for gone in (0, 1):
        stream = TinyStream(tmp_path / str(gone))
        for name in ("a", "b"):
            stream.land(name, ["cat", "dog"], per_class=4)
        shards = list(stream.writer.ledger.shards)
        stream.writer.forget("shard", shards[gone])
        data = write_report(stream.root, str(tmp_path / "report.html"), queries=6)
        stream.close()
        assert data.examples


def test_no_stream_is_an_error_not_an_empty_page(tmp_path: Path) -> None:
    with pytest.raises(NotAStreamRoot):
        write_report(str(tmp_path / "nothing"), str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_plots_leave_out_what_was_not_measured() -> None:
    assert "Nothing was measured" in line_plot([Line("a", [None, None])], "recall")
    assert line_plot([Line("a", [0.5, None, 0.7])], "recall").count("<circle") == 2
    assert bars({"too_large": 4, "no_class": 1}).count("<i ") == 2


def test_latency_is_read_from_a_replica_s_histogram() -> None:
    text = "\n".join(
        ["# TYPE stream_odml_query_seconds histogram"]
        + [
            f'stream_odml_query_seconds_bucket{{kind="vector",le="{le}"}} {count}'
            for le, count in (("0.001", 60), ("0.004", 99), ("+Inf", 100))
        ]
        + [
            'stream_odml_query_seconds_count{kind="vector"} 100',
            'stream_odml_query_seconds_sum{kind="vector"} 1',
            "",
        ]
    )
    assert service_latency(text) == {"vector, p50 at most": 1.0, "vector, p99 at most": 4.0}
