"""What a person reads of a failure is one line that says what to do."""

from __future__ import annotations

import errno
import os

from stream_odml.cli.failures import message_of


def test_a_full_disk_is_named_with_what_to_do() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/shop/a.parquet")
    assert message_of(full) == (
        "No space left on device at /data/shop/a.parquet; free some, and run the same command again"
    )
    assert message_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))).startswith(
        "No space left on device; free"
    )
    assert message_of(FileNotFoundError(errno.ENOENT, "no such file", "x")) == "[Errno 2] no such file: 'x'"
