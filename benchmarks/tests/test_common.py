"""A result file that is written in parts says of each part which run measured it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.common import Report


def test_parts_keep_the_commit_that_measured_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for commit, part, value in (("aaa", "first", 1.0), ("bbb", "second", 2.0), ("ccc", "first", 3.0)):
        monkeypatch.setattr(common, "git_commit", lambda commit=commit: commit)
        report = Report("some", tmp_path, [0], False)
        report.row(part=part, seconds=value)
        report.figure(part, value)
        report.write(keep=True)
    body = json.loads((tmp_path / "some.json").read_text())
    assert {part: run["git"] for part, run in body["parts"].items()} == {"first": "ccc", "second": "bbb"}
    assert body["figures"] == {"first": 3.0, "second": 2.0}
    assert sorted(row["seconds"] for row in body["rows"]) == [2.0, 3.0]
