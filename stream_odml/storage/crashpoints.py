"""Named places where a test makes the process die, so that "at any moment" is a list that can be walked."""

import os
import signal
from pathlib import Path

ENVIRONMENT = "STREAM_ODML_CRASH_AT"
ORDER = "STREAM_ODML_CRASH_ORDER"
"""Names a file; a point that is written into it kills the first process that passes there, once."""

CRASH_POINTS = (
    "claim.before",
    "claim.after_ledger",
    "claim.after_versions",
    "claim.after_orphans",
    "file.before_rename",
    "artifact.after",
    "root.before_versions",
    "root.after_versions",
    "landed.before",
    "landed.after",
    "set_aside.before",
    "set_aside.after",
    "ingest.before",
    "ingest.after_gallery",
    "ingest.after_quarantine",
    "ingest.after_ledger",
    "close.before",
    "close.after",
    "attempt.before",
    "attempt.after",
    "refuse.before",
    "refuse.after_ledger",
    "refuse.after_versions",
    "skip.before",
    "skip.after",
    "relearn.before",
    "relearn.after",
    "stage.before",
    "stage.after_gallery",
    "stage.after_versions",
    "stage.after_ledger",
    "head.before",
    "head.after_skipped",
    "head.after_versions",
    "forget.before",
    "forget.after",
    "replace.before_versions",
    "replace.after_versions",
    "maintain.before",
    "maintain.after_files",
    "maintain.after_purge",
    "maintain.after_artifacts",
    "maintain.after_compaction",
    "maintain.after_vacuum",
)
"""In the order in which a stream's life passes them first."""
EXCHANGE_POINTS = (
    "adopt.before",
    "adopt.after_gallery",
    "adopt.after_quarantine",
    "adopt.after_ledger",
    "sync.before_rows",
    "sync.after_rows",
    "sync.before_switch",
    "sync.after_switch",
    "sync.before_drop",
)
"""Of galleries that are taken over from other stores, and kept in step there."""


def crash_point(name: str) -> None:
    """Kill this process (SIGKILL) when the environment names this point, as ``name`` or ``name:3`` (third
    pass), or when the file that :data:`ORDER` names holds it."""
    wanted, order = os.environ.get(ENVIRONMENT), os.environ.get(ORDER)
    if not wanted and not order:
        return
    if name not in CRASH_POINTS and name not in EXCHANGE_POINTS:
        raise ValueError(f"crash point {name!r} is not in CRASH_POINTS; add it there so that tests walk it")
    if order and _claimed(Path(order), name):
        os.kill(os.getpid(), signal.SIGKILL)
    point, _, count = (wanted or "").partition(":")
    if point != name:
        return
    left = int(count or 1) - 1
    if left > 0:
        os.environ[ENVIRONMENT] = f"{point}:{left}"
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _claimed(order: Path, name: str) -> bool:
    try:
        if order.read_text() != name:
            return False
        order.unlink()  # succeeds for one process of all that pass here now
    except FileNotFoundError:
        return False
    return True
