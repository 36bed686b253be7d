"""Named places where a test makes the process die, so that "at any moment" is a list that can be walked."""

import os
import signal

ENVIRONMENT = "STREAM_ODML_CRASH_AT"

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
    "stage.before",
    "stage.after_gallery",
    "stage.after_versions",
    "stage.after_ledger",
    "head.before",
    "head.after_skipped",
    "head.after_versions",
    "forget.before",
    "forget.after",
    "maintain.before",
    "maintain.after_purge",
    "maintain.after_files",
    "maintain.after_artifacts",
    "maintain.after_compaction",
    "maintain.after_vacuum",
)
"""In the order in which a stream's life passes them first."""


def crash_point(name: str) -> None:
    """Kill this process (SIGKILL) when the environment names this point, as ``name`` or ``name:3`` (third
    pass)."""
    wanted = os.environ.get(ENVIRONMENT)
    if not wanted:
        return
    if name not in CRASH_POINTS:
        raise ValueError(f"crash point {name!r} is not in CRASH_POINTS; add it there so that tests walk it")
    point, _, count = wanted.partition(":")
    if point != name:
        return
    left = int(count or 1) - 1
    if left > 0:
        os.environ[ENVIRONMENT] = f"{point}:{left}"
        return
    os.kill(os.getpid(), signal.SIGKILL)
