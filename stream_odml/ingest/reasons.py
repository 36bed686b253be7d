"""Why a row, an image or a whole file cannot be used: one closed list, read by machines and by people.

Invariant: whatever is refused carries exactly one `Reason`, and what is only unreachable (network, disk,
permissions) is a `TransientReadError`, which is retried and never quarantined.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FIRST_BYTES = 32
"""How many leading bytes of the refused image or file a quarantine record keeps."""


class Reason(StrEnum):
    """The closed list of refusals. The value is stored; renaming one breaks old quarantine rows."""

    # an image
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    IMAGE_BOMB = "image_bomb"
    OUT_OF_MEMORY = "out_of_memory"
    # the other fields of a row
    MISSING_IMAGE = "missing_image"
    MISSING_LABEL = "missing_label"
    BAD_LABEL = "bad_label"
    BAD_ID = "bad_id"
    DUPLICATE_ID = "duplicate_id"
    BAD_ATTRIBUTES = "bad_attributes"
    BAD_TIME = "bad_time"
    OVERSIZED = "oversized"
    UNSAFE_PATH = "unsafe_path"
    MISSING_FILE = "missing_file"
    HASH_MISMATCH = "hash_mismatch"
    # a whole file
    UNKNOWN_FORMAT = "unknown_format"
    EMPTY_FILE = "empty_file"
    WRONG_SCHEMA = "wrong_schema"
    TRUNCATED_FILE = "truncated_file"
    CORRUPT_FILE = "corrupt_file"
    BAD_MANIFEST = "bad_manifest"
    CHANGED_WHILE_READ = "changed_while_read"
    KILLED_READER = "killed_reader"
    # a message of a topic, or offsets without one
    BAD_MESSAGE = "bad_message"
    LOST_MESSAGES = "lost_messages"
    ABSENT_MESSAGES = "absent_messages"


@dataclass(frozen=True)
class RowProblem:
    """One row that cannot be used. `row` counts from 0 within the shard; `first_bytes` are of its image."""

    row: int
    reason: Reason
    detail: str
    first_bytes: bytes = b""


class RowError(ValueError):
    """A value of one row is unusable; `reason` says which rule it broke."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.detail)


class BadImage(RowError):
    """Bytes that do not decode to an image within the limits."""


class BadShard(ValueError):
    """The whole file is refused: none of its rows may be used, also not those read before the error.

    The fixed file lands as a new shard, because its content hash differs. `first_bytes` are of the file.
    """

    def __init__(self, reason: Reason, detail: str, first_bytes: bytes = b"") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.first_bytes = first_bytes

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.detail, self.first_bytes)


class TransientReadError(OSError):
    """The bytes cannot be had now (network, throttling, permissions, disk). Retry; never quarantine."""
