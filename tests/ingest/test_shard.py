"""Identity: what makes two shards the same, and names that are safe anywhere."""

from __future__ import annotations

import json
import pickle
import re

import pytest

from stream_odml.ingest.reasons import BadImage, BadShard, Reason
from stream_odml.ingest.shard import ManifestFile, ShardManifest, ShardRef, format_of, make_shard_id
from stream_odml.storage.regular import is_safe_path

SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "name", ["a.parquet", "ein Bild.tar", "../../etc/passwd", "日本", "x" * 400, "\udcff", ".", ""]
)
def test_ids_are_safe_file_names_and_tell_names_apart(name: str) -> None:
    made = make_shard_id(name, SHA)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-0123456789abcdef", made)
    assert len(made) < 130
    assert made != make_shard_id(name + "?", SHA)


def test_refs_survive_json() -> None:
    manifest = ShardManifest("t", True, ("a", "b"), (ManifestFile("c/d.png", 3, "ff", (("k", "v"),)),))
    ref = ShardRef("a-0123456789abcdef", "a", "/x/a", "folder", 7, 8, "a|7|8", manifest)
    assert ShardRef.from_dict(json.loads(json.dumps(ref.to_dict()))) == ref
    assert ref.content_hash == "0123456789abcdef"


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/a", "C:/a", "a\\b", "a\0b", ""])
def test_paths_that_leave_the_shard(path: str) -> None:
    assert not is_safe_path(path)
    assert is_safe_path("a/b..c/d.png")


def test_formats() -> None:
    names = ["a.PARQUET", "a.arrow", "a.tar", "t.task.json", "a.json", "a"]
    assert [format_of(name) for name in names] == ["parquet", "arrow", "tar", "task", "unknown", "unknown"]


def test_errors_cross_process_borders() -> None:
    for error in (BadShard(Reason.EMPTY_FILE, "d", b"x"), BadImage(Reason.IMAGE_BOMB, "d")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.reason, again.detail) == (type(error), error.reason, "d")
