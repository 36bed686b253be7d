"""multipart/form-data (RFC 7578) out of a bounded body in memory, strictly: what is malformed is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, FormParser, parse_options_header

from stream_odml.service.errors import bad_request, unprocessable
from stream_odml.wording import first_line

MAX_PARTS = 1024
MAX_HEADER_BYTES = 4096
MAX_HEADERS = 32
"""Of one part."""
_BOUNDS = {
    "MAX_HEADER_COUNT": MAX_HEADERS,
    "MAX_HEADER_SIZE": MAX_HEADER_BYTES,
    "MAX_MEMORY_FILE_SIZE": float("inf"),  # the body is in memory, and is bounded, already
}

# A client that sends nonsense is answered; a line for each such request would let it fill the log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Part:
    """One field of the form."""

    name: str
    content: bytes

    def text(self) -> str:
        """Return the content as UTF-8; ApiError 400 if it is not."""
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError:
            raise bad_request(
                f"the form field {self.name[:80]!a} is not UTF-8 text",
                "send text as UTF-8; the part of an image is named `image`",
            ) from None


def images_of(parts: Sequence[Part]) -> list[bytes]:
    """Return the content of the parts named `image`."""
    return [part.content for part in parts if part.name == "image"]


def images_alone(parts: Sequence[Part]) -> list[bytes]:
    """Return the content of all parts. Raises ApiError 422 for one that is no `image`: nothing would read it."""
    for part in parts:
        if part.name != "image":
            raise unprocessable(
                "unknown_field",
                f"the form has a field {part.name[:80]!a} beside its images",
                "leave it out; a search takes its parameters in the address: ?k=5&class=NAME",
            )
    return images_of(parts)


def parse_multipart(content_type: str, body: bytes) -> list[Part]:
    """Split `body` into its parts. Raises ApiError 400 if the form is malformed or has too many parts."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise bad_request(
            "the multipart form names no valid boundary", "let the HTTP library set Content-Type"
        )
    parts: list[Part] = []
    whole = False

    def add(name: bytes | None, content: bytes | None) -> None:
        if len(parts) == MAX_PARTS:
            raise bad_request(f"the multipart form has more than {MAX_PARTS} parts", "send several requests")
        parts.append(Part((name or b"").decode("utf-8", "replace"), content or b""))

    def add_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    def end() -> None:
        nonlocal whole
        whole = True

    parser = FormParser(
        "multipart/form-data",
        on_field=lambda field: add(field.field_name, field.value),
        on_file=add_file,
        on_end=end,
        boundary=boundary,
        config=_BOUNDS,
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise bad_request(
            f"the multipart form cannot be read: {ascii(first_line(error))[1:-1]}",
            "let an HTTP library write it",
        ) from None
    if not whole:
        raise bad_request("the multipart form is cut off", "send all of it, with its last boundary")
    return parts
