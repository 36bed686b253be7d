"""An editable install, as the README makes it, is found wherever its user stands."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
ASK = """
import site, sys
sys.path.insert(0, "")  # as Ray does in each of its processes
site.addsitedir(sys.argv[1])
import stream_odml
print(stream_odml.__version__)
"""


def test_the_folder_that_holds_a_clone_does_not_hide_the_package(tmp_path: Path) -> None:
    clone, installed = tmp_path / "stream_odml", tmp_path / "installed"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (clone / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, clone / name)
    (clone / "stream_odml").mkdir()
    shutil.copy(REPOSITORY / "stream_odml/__init__.py", clone / "stream_odml")
    installed.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(installed)], cwd=clone, check=True, capture_output=True)
    for wheel in installed.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(installed)
    # From the folder above the clone: there `stream_odml` is a folder without an `__init__.py`.
    asked = [sys.executable, "-I", "-S", "-c", ASK, str(installed)]
    said = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert said.stdout.strip() == "0.2.0", said.stderr
