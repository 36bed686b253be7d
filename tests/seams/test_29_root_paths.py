"""Seam 29: a stream root works at any local path, or is refused in one line before anything is made there."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from stream_odml.config.stream import StreamConfig
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.backup import back_up
from stream_odml.store.store import Store
from tests.store.world import Item, ingest, new_root

REFUSED = [
    "a[1]",
    "[",
    "a]b",
    "a|b",
    "a^b",
    "50%",
    "a%20b",
    "a\\b",
    "a\nb",
    "a\tb",
    "a\x1bb",
    "a\x7fb",
    "a\u202eb",
    "\udcff",
]
WORKING = [
    "a b",
    "фото",
    "写真",
    "a#b",
    "a?b",
    "a{b}",
    "a*b",
    'a"b',
    "a'b",
    "a<b>",
    "a`b",
    "a~b",
    "~x",
    "a&b+c=d,e;f:g@h!",
    "-x",
]


@pytest.mark.parametrize("name", WORKING)
def test_a_root_works_at_any_other_path(name: str, tmp_path: Path) -> None:
    root = tmp_path / name / "root"
    writer = new_root(str(root))
    ingest(writer, "a", [Item("x", "cat")])
    writer.maintain()
    writer.release()
    assert len(GallerySnapshot.load(Store.open(str(root)))) == 1
    assert back_up(str(root), str(tmp_path / "copy" / name)).head
    assert (root / "gallery" / "_delta_log").is_dir()  # there, and nowhere else
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "copy"])
    assert StreamConfig(root=str(root)).root == str(root)


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_what_tables_cannot_take_is_one_line(name: str, tmp_path: Path) -> None:
    root = str(tmp_path / name / "root")
    for use in (
        Store.open,
        lambda uri: Store.create(uri, 8),
        lambda uri: back_up(uri, str(tmp_path / "copy")),
    ):
        with pytest.raises(ValueError, match="Delta tables cannot; rename it") as refused:
            use(root)
        assert len(str(refused.value).splitlines()) == 1
        str(refused.value).encode()
    with pytest.raises(ValidationError, match="rename it"):
        StreamConfig(root=root)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "root", ["~", "~/stream", "~user/stream", "$HOME/stream", "${HOME}", "/data/${USER}/stream"]
)
def test_what_no_shell_expanded_is_one_line(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (lambda: Store.create(root, 8), lambda: StreamConfig(root=root)):
        with pytest.raises(ValueError, match="write the path out"):
            use()
    for data in ({"source": {"path": root}}, {"service": {"push_dir": root}}):
        with pytest.raises(ValueError, match="which only a shell expands"):
            StreamConfig.model_validate(data)
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_that_tables_cannot_take_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a[b]").mkdir()
    monkeypatch.chdir(tmp_path / "a[b]")
    with pytest.raises(ValueError, match="rename it"):
        Store.create("stream-root", 8)
