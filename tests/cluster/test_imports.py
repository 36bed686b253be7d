"""What a process loads before it can work again after a kill."""

from __future__ import annotations

import subprocess
import sys


def test_the_driver_needs_no_torch() -> None:
    """It never touches an image; loading torch would cost a second and more of every restart."""
    code = "import sys, stream_odml.cluster.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=600).returncode == 0
