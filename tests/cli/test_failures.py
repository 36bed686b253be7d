"""What a person reads of a failure is one line that says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError
from pyarrow.fs import LocalFileSystem

from stream_odml.cli.failures import REMEDIES, message_of
from stream_odml.storage.atomic import ASIDE, write_named


def test_a_full_disk_is_named_with_what_to_do() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/shop/a.parquet")
    assert message_of(full) == (
        "No space left on device at /data/shop/a.parquet; free some, and run the same command again"
    )
    assert message_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))).startswith(
        "No space left on device; free"
    )


@pytest.mark.parametrize("number", sorted({*REMEDIES, errno.ENOSPC, errno.EDQUOT, errno.EPROTO}))
def test_every_error_of_the_system_is_said_with_its_place_and_a_remedy(number: int) -> None:
    said = message_of(OSError(number, os.strerror(number), "/data/x"))
    assert said.startswith(f"{os.strerror(number)} at /data/x; ")
    assert "Errno" not in said
    assert ("--debug" in said) == (number == errno.EPROTO)
    assert ": " not in message_of(OSError(number, os.strerror(number)))  # of no path it says none


def test_of_a_file_that_is_being_written_its_folder_is_named() -> None:
    aside = f"/data/root/{ASIDE}0123"
    said = message_of(PermissionError(errno.EACCES, os.strerror(errno.EACCES), aside))
    assert said.startswith("Permission denied at /data/root; run it as the user who may")
    both = OSError(errno.EXDEV, os.strerror(errno.EXDEV), aside, None, "/other/root")
    assert message_of(both).startswith("Invalid cross-device link at /data/root and /other/root; ")


def test_what_libraries_raise_is_said_alike(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OSError, match="Errno") as arrow:
        LocalFileSystem().open_output_stream(str(tmp_path / "gone" / "x"))
    assert message_of(arrow.value).startswith("Failed to open local file ")
    assert message_of(arrow.value).endswith("/gone/x': No such file or directory; check the name")
    with pytest.raises(DeltaError) as delta:
        write_deltalake(str(file / "x"), pa.table({"a": [1]}))
    assert message_of(delta.value).endswith(
        ": Not a directory (os error 20); a part of this path is a file; name another path, or move that file away"
    )


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "gone/r.html",
            "No such file or directory at gone/r.html; its folder is not there: make it (mkdir -p gone)",
        ),
        ("folder", "Is a directory at folder; name a file"),
        ("file/r.html", "Not a directory at file/r.html; a part of this path is a file"),
        ("/proc/r.html", "No such file or directory at /proc/r.html; "),
        ("x" * 300, "File name too long at xxx"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_with_what_to_do(
    place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("x")
    with pytest.raises(OSError, match="Errno") as raised:
        write_named(Path(place), lambda file: file.write(b"x"))
    assert message_of(raised.value).startswith(words)
