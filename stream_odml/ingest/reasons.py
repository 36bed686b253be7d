"""Why a row, an image or a whole file cannot be used: one closed list, read by machines and by people.

Invariant: whatever is refused carries exactly one `Reason`, and what is only unreachable (network, disk,
permissions) is a `TransientReadError`, which is retried and never quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    MISSING_VECTOR = "missing_vector"
    BAD_VECTOR = "bad_vector"
    WRONG_DIMENSION = "wrong_dimension"
    UNKNOWN_ITEM = "unknown_item"
    UNSAFE_PATH = "unsafe_path"
    MISSING_FILE = "missing_file"
    HASH_MISMATCH = "hash_mismatch"
    # a whole file
    UNKNOWN_FORMAT = "unknown_format"
    EMPTY_FILE = "empty_file"
    WRONG_SCHEMA = "wrong_schema"
    SERVED_VECTORS = "served_vectors"
    TRUNCATED_FILE = "truncated_file"
    CORRUPT_FILE = "corrupt_file"
    BAD_MANIFEST = "bad_manifest"
    CHANGED_WHILE_READ = "changed_while_read"
    KILLED_READER = "killed_reader"
    # a message of a topic, or offsets without one
    BAD_MESSAGE = "bad_message"
    LOST_MESSAGES = "lost_messages"
    ABSENT_MESSAGES = "absent_messages"


REMEDIES: Mapping[Reason, str] = {
    Reason.EMPTY_IMAGE: "the image has no bytes: write it again",
    Reason.NOT_AN_IMAGE: "the bytes are of no format that is read: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF (HEIC "
    "with the extra `heic`)",
    Reason.TRUNCATED_IMAGE: "the image ends early: copy it again from where it is whole",
    Reason.CORRUPT_IMAGE: "the image cannot be decoded: save it again in an image program, or leave it out",
    Reason.IMAGE_BOMB: "the image declares more pixels than `ingest.max_pixels`: scale it down, or raise the limit",
    Reason.OUT_OF_MEMORY: "decoding the image needs more memory than there is: scale it down",
    Reason.MISSING_IMAGE: "the row has no image: give it one, or leave the row out",
    Reason.MISSING_LABEL: "the row has no class: put the image into a folder of its class, or fill `class_name`",
    Reason.BAD_LABEL: "the class is no name or whole number, or holds characters that nobody sees: write it anew",
    Reason.BAD_ID: "the id is no name or whole number, or holds characters that nobody sees: write it anew",
    Reason.DUPLICATE_ID: "another row of the shard has this id: make ids differ, or leave them out",
    Reason.BAD_ATTRIBUTES: "the attributes are no object of names and values, or too long: fix them",
    Reason.BAD_TIME: "the time is none: write ISO 8601, or seconds since 1970",
    Reason.OVERSIZED: "the image file is larger than 64 MiB: compress it",
    Reason.MISSING_VECTOR: "the stream takes vectors and the row has none: fill the column `vector`, or leave it out",
    Reason.BAD_VECTOR: "the vector holds NaN, infinity or zeros alone, or is no list of numbers: compute it anew",
    Reason.WRONG_DIMENSION: "the vector's length is not that of the stream's vectors: use the model that made those",
    Reason.UNKNOWN_ITEM: "the label names an item that the gallery does not have: land the item first, or fix its id",
    Reason.UNSAFE_PATH: "a name leads out of its shard, or is a link: copy the file to where the name says",
    Reason.MISSING_FILE: "a file that the shard names is not there: land it whole under another name",
    Reason.HASH_MISMATCH: "a file is not the one that was landed: land it again under another name",
    Reason.UNKNOWN_FORMAT: "the file is no Parquet, Arrow, tar or folder with a manifest: land it with `ingest`",
    Reason.EMPTY_FILE: "the file has no rows: there is nothing to land",
    Reason.WRONG_SCHEMA: "the table lacks the columns `image` and `class_name` (or `label`): rename its columns",
    Reason.SERVED_VECTORS: "an export's or a sync's vectors are of a version's space: land what they were made of, or "
    "`adopt` them into a new root",
    Reason.TRUNCATED_FILE: "the file ends early: land it again with `ingest`, which reads it through first, under "
    "another name",
    Reason.CORRUPT_FILE: "the file cannot be read: write it again, and land it with `ingest`, which reads it through "
    "first, under another name",
    Reason.BAD_MANIFEST: "the manifest is none: land the folder with `ingest`, which writes it",
    Reason.CHANGED_WHILE_READ: "the file was changed after it had landed: a shard is immutable, land another one",
    Reason.KILLED_READER: "reading it ended its process several times: look at the file, and land what is good of it",
    Reason.BAD_MESSAGE: "a message of the topic is no item: fix its producer, and send the item again",
    Reason.LOST_MESSAGES: "the topic had deleted messages before they were read: lengthen its retention, and send them "
    "again where they are kept",
    Reason.ABSENT_MESSAGES: "offsets of the topic have no message (compacted, or of a transaction): nothing to do",
}
"""What each refusal means and what to do about it, for people."""


MAX_DETAIL_CHARS = 2000
"""Of a detail about as much is kept."""


@dataclass(frozen=True)
class RowProblem:
    """One row that cannot be used. `row` counts from 0 within the shard; `first_bytes` are of its image. Its detail is
    text that can be stored and shown: a name in it may have had megabytes, or bytes that are no text."""

    row: int
    reason: Reason
    detail: str
    first_bytes: bytes = b""

    def __post_init__(self) -> None:
        detail = self.detail
        if len(detail) > MAX_DETAIL_CHARS:  # what is wrong stands at its end, after the name of the file
            half = MAX_DETAIL_CHARS // 2
            detail = f"{detail[:half]} … {detail[-half:]}"
        object.__setattr__(self, "detail", detail.encode(errors="backslashreplace").decode())


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

    The fixed file lands as a new shard, because its content hash differs. `first_bytes` are of the file. The detail is
    one line, however many a library's error has.
    """

    def __init__(self, reason: Reason, detail: str, first_bytes: bytes = b"") -> None:
        detail = " ".join(line.strip() for line in detail.splitlines())
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.first_bytes = first_bytes

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.detail, self.first_bytes)


class TransientReadError(OSError):
    """The bytes cannot be had now (network, throttling, permissions, disk). Retry; never quarantine."""
