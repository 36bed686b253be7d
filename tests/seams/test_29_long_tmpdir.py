"""Seam 29: a folder for temporary files with a long path is no obstacle: sockets go where their paths fit."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from stream_odml.cluster import session_folder
from stream_odml.cluster.session_folder import SOCKET_PATH_BYTES, NoSessionFolder, SessionFolder


@pytest.mark.parametrize("name", ["x" * 100, "фото" * 12])
def test_sockets_fit_however_long_the_path_of_temporary_files_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    folder = SessionFolder()
    try:
        longest = folder.path / "h" / ("0" * 56) / f"a.{2**22}.tmp"
        assert len(os.fsencode(longest)) <= SOCKET_PATH_BYTES
    finally:
        folder.close()


def test_where_no_folder_will_do_one_line_says_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    monkeypatch.setattr(session_folder, "_FALLBACKS", (tmp_path / "nowhere",))
    with pytest.raises(NoSessionFolder, match="set TMPDIR to a folder whose path has at most") as reported:
        SessionFolder()
    assert "\n" not in str(reported.value)
