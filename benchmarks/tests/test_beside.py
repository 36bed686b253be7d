"""What a measuring command wrote is kept when it fails, and when it is ended early."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from benchmarks.beside import add_measured
from benchmarks.common import Report

COMMAND = """
import json, signal, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
path = sys.argv[sys.argv.index("--measured") + 1]
open(sys.argv[sys.argv.index("--begun") + 1], "w").close()
while "wait" in sys.argv and not ended:
    time.sleep(0.01)
json.dump({"figures": {"lost": 1.0}, "rows": [{"part": "x"}]}, open(path, "w"))
sys.exit(1 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    (tmp_path / "measuring_command.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Report("x", tmp_path, [0], False)


def test_figures_of_a_command_that_fails_are_kept(report: Report, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        add_measured(report, "measuring_command", 0, "fail", "--begun", str(tmp_path / "begun"))
    assert report.figures == {"lost": 1.0}
    assert report.rows == [{"part": "x"}]


def test_figures_of_a_command_that_is_ended_early_are_kept(report: Report, tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def end() -> None:
        while not begun.exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    with pytest.raises(RuntimeError, match="exit code 143"):
        add_measured(report, "measuring_command", 0, "wait", "--begun", str(begun))
    assert report.figures == {"lost": 1.0}
