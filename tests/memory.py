"""The most memory that this process has held, as Linux counts it: of this program alone.

What `getrusage` tells begins with the peak of the process that started it, behind which a smaller one cannot be seen.
"""

from __future__ import annotations

from pathlib import Path


def peak_mib(process: int | str = "self") -> float:
    """Return the peak of resident memory in MiB, since the start of the program or `forget_peak`."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def forget_peak() -> float:
    """Let the peak begin anew from what is held now; return that, in MiB."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_mib()
