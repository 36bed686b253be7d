"""Questions that cannot be asked: one line that says what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["query", "gone.jpg", "--url", "http://127.0.0.1:9"], "gone.jpg is not there; name an image file"),
        (["query", "leaf.jpg", "--url", "127.0.0.1:8000"], "write http://127.0.0.1:8000"),
        (["query", "leaf.jpg"], "name the service: --url"),
        (["status", "nowhere"], "no stream has run on .*/nowhere.*stream-odml run CONFIG"),
    ],
)
def test_what_cannot_be_asked_is_said_with_the_remedy(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("leaf.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
