"""`stream-odml doctor` on roots with one thing wrong at a time: it names the thing and what to do, and exits with 1."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_odml.cli import machine
from stream_odml.cli import main as cli
from stream_odml.models import canaries, loading
from stream_odml.models.canaries import canaries_of
from stream_odml.store.artifacts import CANARIES, STUDENT
from tests.models.test_canaries import bgr
from tests.service.tiny_stream import TinyStream

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command; findings by check, after the exit code was seen to be `code`."""

    def call(root: Path | str, code: int) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["stream-odml", "doctor", str(root), "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        reported = json.loads(capfd.readouterr().out)
        assert ((end.value.code or 0), reported["ok"]) == (code, code == 0)
        worst: dict[str, Any] = {}
        for finding in reported["findings"]:
            if finding["state"] != "ok":
                assert finding["remedy"]
            if worst.get(finding["check"], {"state": "ok"})["state"] == "ok":
                worst[finding["check"]] = finding
        return worst

    monkeypatch.setattr(loading, "_refused", {})
    monkeypatch.setattr(
        machine, "_ports", lambda root, config: iter(())
    )  # a shared machine's are not ours to judge
    monkeypatch.setattr(machine, "LEAST_FREE_BYTES", 1)
    monkeypatch.setattr(machine, "LEAST_SHARED_BYTES", 0)
    return call


@pytest.fixture
def root(tmp_path: Path) -> Path:
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"])
    data = canaries_of(stream.writer.store.artifact(stream.head, STUDENT))
    stream.writer.replace_artifact(stream.head, CANARIES, data, "canaries")
    stream.close()
    return Path(stream.root)


def file_of(root: Path, pattern: str) -> Path:
    return next(path for path in sorted(root.glob(pattern)) if "_delta_log" not in path.parts)


def test_a_sound_root_passes_every_check(doctor: Doctor, root: Path) -> None:
    found = doctor(root, 0)
    assert set(found) >= {
        "tables", "data files", "artifacts", "canaries", "writer", "clock", "disk of the root", "shared memory", "Ray",
        "packages",
    }  # fmt: skip
    assert "4 gallery rows" in found["data files"]["detail"]
    assert found["canaries"]["state"] == "ok"


def test_a_byte_that_changed_in_an_artifact_is_found(doctor: Doctor, root: Path) -> None:
    path = file_of(root, f"artifacts/*/*{CANARIES}")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = doctor(root, 1)["artifacts"]
    assert path.name in found["detail"]
    assert "backup" in found["remedy"]


def test_a_gallery_file_that_is_gone_or_torn_is_named(doctor: Doctor, root: Path) -> None:
    path = file_of(root, "gallery/*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert path.name in doctor(root, 1)["data files"]["detail"]
    path.unlink()
    found = doctor(root, 1)["data files"]
    assert path.name in found["detail"]
    assert "missing" in found["detail"]


def test_another_way_to_read_images_is_named(
    doctor: Doctor, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canaries, "decode_image", bgr)
    assert "BGR" in doctor(root, 1)["canaries"]["detail"]


def test_a_clock_that_was_set_back_is_reported(
    doctor: Doctor, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = time.time() - 3600
    monkeypatch.setattr("stream_odml.pipeline.examining.time.time", lambda: earlier)
    found = doctor(root, 1)["clock"]
    assert "in the future" in found["detail"]
    assert "NTP" in found["remedy"]


def test_a_full_disk_and_no_root(doctor: Doctor, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_FREE_BYTES", 1 << 60)
    found = doctor(root / "nothing", 1)
    assert found["tables"]["state"] == "failure"
    found = doctor(root, 1)
    assert found["disk of the root"]["state"] == "failure"


def test_people_read_a_line_for_each_check(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["stream-odml", "doctor", str(root)])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("ok       tables")
    assert " checks: " in lines[-1]
