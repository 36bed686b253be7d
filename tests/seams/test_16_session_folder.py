"""Seam 16: what a session keeps on disk is its user's alone under any umask, and no planted link is followed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_odml.cluster.haproxy_config import SESSION_VARIABLE
from stream_odml.cluster.session_folder import SessionFolder, keep_logs, remove_abandoned, tighten
from tests.seams.sessions import ended_pid


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def logs_of_a_session(folder: Path) -> Path:
    """As Ray leaves them, with modes that let everybody write."""
    logs = folder / "session_2026-01-01_00-00-00_000000_1" / "logs"
    (logs / "old").mkdir(parents=True)
    for path in (logs / "raylet.out", logs / "old" / "gcs.out"):
        path.write_text("log")
        path.chmod(0o666)
    for path in (logs, logs / "old"):
        path.chmod(0o777)
    return logs


def test_a_session_s_folder_is_its_user_s_alone(umask: int, short: Path) -> None:
    folder = SessionFolder()
    try:
        assert mode_of(folder.path) == 0o700
        logs = logs_of_a_session(folder.path)
        outside = short / "outside"
        outside.write_text("theirs")
        outside.chmod(0o644)
        (logs / "link").symlink_to(outside)
        tighten(folder.path)
        assert mode_of(logs) == mode_of(logs / "old") == 0o700
        assert mode_of(logs / "raylet.out") == 0o600
        assert mode_of(outside) == 0o644
    finally:
        folder.close()
    assert not folder.path.exists()


def test_kept_logs_are_private_and_planted_links_are_replaced(umask: int, tmp_path: Path) -> None:
    logs = logs_of_a_session(tmp_path / "session")
    secret, victim = tmp_path / "secret", tmp_path / "victim"
    secret.write_text("secret")
    victim.mkdir()
    (logs / "leak.out").symlink_to(secret)
    (logs / "leaks").symlink_to(tmp_path)
    os.mkfifo(logs / "pipe")
    target = tmp_path / "root" / "logs"
    target.mkdir(parents=True)
    (target / "raylet.out").symlink_to(secret)
    (target / "old").symlink_to(victim)
    keep_logs(tmp_path / "session", target)
    assert secret.read_text() == "secret"
    assert not list(victim.iterdir())
    assert {path.relative_to(target).as_posix() for path in target.rglob("*")} == {
        "raylet.out", "old", "old/gcs.out"
    }  # fmt: skip
    assert mode_of(target) == mode_of(target / "old") == 0o700
    assert mode_of(target / "raylet.out") == mode_of(target / "old" / "gcs.out") == 0o600


def test_logs_are_not_kept_through_a_link_in_place_of_their_folder(tmp_path: Path) -> None:
    logs_of_a_session(tmp_path / "session")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="logs"):
        keep_logs(tmp_path / "session", tmp_path / "logs")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_abandoned_folder_is_removed_and_neither_a_link_nor_one_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = ended_pid()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("theirs")
    (tmp_path / f"odml-{gone}-link").symlink_to(kept)
    left = tmp_path / f"odml-{gone}-left"
    left.mkdir()
    (left / "in").symlink_to(kept)
    held = tmp_path / f"odml-{gone}-held"  # its owner has this pid in another container
    held.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); "
         "print(flush=True); sys.stdin.read()", str(held)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        remove_abandoned()
        assert not left.exists()
        assert held.exists()
        assert (kept / "file").exists()
    finally:
        holder.communicate(b"")
    remove_abandoned()
    assert not held.exists()


def test_what_an_abandoned_session_had_started_ends_and_who_reads_its_files_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of Ray that was starting when its session was killed waits for it for ever."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = ended_pid()
    folder = tmp_path / f"odml-{gone}-left"
    folder.mkdir()
    waits = [
        sys.executable,
        "-c",
        "import sys; print(flush=True); sys.stdin.read()",
        f"{folder}/logs/raylet.out",
    ]
    of_session = {**os.environ, SESSION_VARIABLE: str(folder)}
    mine = subprocess.Popen(waits, env=of_session, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    reader = subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        for process in (mine, reader):
            assert process.stdout is not None
            process.stdout.readline()
        remove_abandoned()
        assert mine.wait(30) == -signal.SIGKILL
        assert reader.poll() is None
    finally:
        mine.communicate()
        reader.communicate(b"")
    assert reader.returncode == 0
