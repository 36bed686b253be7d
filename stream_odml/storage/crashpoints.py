"""Named places where a test makes the process die, so that "at any moment" is a list that can be walked."""

import os
import signal
from pathlib import Path

ENVIRONMENT = "STREAM_ODML_CRASH_AT"
ORDER = "STREAM_ODML_CRASH_ORDER"
"""Names a file; a point that is written into it kills the first process that passes there, once."""


def _points(**steps: str) -> tuple[str, ...]:
    return tuple(f"{operation}.{step}" for operation, names in steps.items() for step in names.split())


CRASH_POINTS = _points(
    claim="before after_ledger after_versions after_orphans",
    file="before_rename",
    artifact="after",
    root="before_versions after_versions",
    landed="before after",
    set_aside="before after",
    ingest="before after_gallery after_quarantine after_ledger",
    close="before after",
    attempt="before after",
    refuse="before after_ledger after_versions",
    skip="before after",
    relearn="before after",
    stage="before after_gallery after_versions after_ledger",
    head="before after_skipped after_versions",
    forget="before after",
    replace="before_versions after_versions",
    maintain="before after_files after_purge after_artifacts after_compaction after_vacuum",
)
"""In the order in which a stream's life passes them first."""
EXCHANGE_POINTS = _points(
    adopt="before after_gallery after_quarantine after_ledger",
    sync="before_rows after_rows before_switch after_switch before_drop",
)
"""Of galleries that are taken over from other stores, and kept in step there."""


def crash_point(name: str) -> None:
    """Kill this process (SIGKILL) when the environment names this point, as `name` or `name:3` (third pass), or
    when the file that `ORDER` names holds it."""
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
        if order.read_text() == name:
            order.unlink()  # succeeds for one process of all that pass here now
            return True
    except FileNotFoundError:
        pass
    return False
