"""What lies below a stream root, by the first part of its name, and which of it a copy holds.

Protects: whoever adds a file to a root decides here whether a restore needs it; `tests/store/test_layout.py` fails for
a name that is not here.
"""

from __future__ import annotations

import pyarrow.fs as pafs

from stream_odml.storage.atomic import ASIDE
from stream_odml.storage.files import Files
from stream_odml.store.tables import SCHEMAS

ARTIFACTS = "artifacts"
REWRITTEN = ("thumbnails", "holdout")
"""Folders of files that forgetting rewrites or removes."""
PUSH = "push"
"""Images, vectors and labels that were pushed and acknowledged; deleted some time after they are learnt."""
SPOOL = "spool"
"""Copies of ranges of topics; deleted some time after they are learnt."""
LANDED = (PUSH, SPOOL)
UPGRADE = "upgrade"
"""The map of an upgrade, and the model that it is for: who repeats the command goes on with it."""
MARK = "backup.json"
"""What a copy says of itself: where it comes from (`origins.py`)."""
COPIED = (*SCHEMAS, ARTIFACTS, *REWRITTEN, *LANDED, UPGRADE)
NOT_COPIED = {
    MARK: "each copy has its own",
    "inbox": "the producers': shards stay there until their owner removes them",
    "lease.json": "of the process that writes now",
    "endpoints.json": "of the process that serves now",
    "progress": "a stage that had not ended begins again",
    "cache": "pixels, made again from the shards",
    "logs": "for people",
    "metrics": "addresses of exporters, for Prometheus",
    "traces": "for people",
    "profiles": "for people",
}
"""What is left out of a copy, and why a restored stream does not miss it."""


def strangers(files: Files) -> list[str]:
    """Return names at the top of a root that are none of a stream's, and of which a copy holds nothing."""
    known = {*COPIED, *NOT_COPIED}
    top = files.arrow("").get_file_info(pafs.FileSelector("", allow_not_found=True))
    # Clients of an object store note a folder by an empty object of its own name, which has no name inside it.
    names = (info.base_name for info in top if ASIDE not in info.path)
    return sorted(name for name in names if name and name not in known)
