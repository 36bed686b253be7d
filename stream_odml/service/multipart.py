"""multipart/form-data (RFC 7578) out of a bounded body in memory, strictly: what is malformed is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from stream_odml.service.errors import bad_request

MAX_PARTS = 1024
MAX_HEADER_BYTES = 4096
"""Of all headers of one part."""
MAX_HEADERS = 64

# A client that sends nonsense is answered; a line for each such request would let it fill the log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Part:
    """One field of the form; ``filename`` is None for a plain one."""

    name: str
    filename: str | None
    content: bytes

    def text(self) -> str:
        """Return the content as UTF-8; ApiError 400 if it is not."""
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError:
            raise bad_request(f"the form field {self.name[:80]!a} is not UTF-8 text") from None


def images_of(parts: Sequence[Part]) -> list[bytes]:
    """Return the content of the parts named `image`."""
    return [part.content for part in parts if part.name == "image"]


def parse_multipart(content_type: str, body: bytes) -> list[Part]:
    """Split ``body`` into its parts. Raises ApiError 400 if the form is malformed or has too many parts."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():
        raise bad_request(
            "the multipart form names no valid boundary", "let the HTTP library set Content-Type"
        )
    form = _Form()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": form.begin,
            "on_header_begin": form.begin_header,
            "on_header_field": form.header_name,
            "on_header_value": form.header_value,
            "on_header_end": form.end_header,
            "on_headers_finished": form.end_headers,
            "on_part_data": form.data,
            "on_part_end": form.end,
            "on_end": form.finish,
        },
        max_header_count=MAX_HEADERS,
        max_header_size=MAX_HEADER_BYTES,
    )
    try:
        parser.write(body)
    except FormParserError:
        raise bad_request("the multipart form cannot be read", "let an HTTP library write it") from None
    if not form.whole:
        raise bad_request("the multipart form is cut off")
    return form.parts


class _Form:
    """What the parser has found so far. Refuses as soon as a bound is passed."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.whole = False
        self.begin()

    def begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise bad_request(f"the multipart form has more than {MAX_PARTS} parts")
        self._disposition: dict[bytes, bytes] = {}
        self._content: list[bytes] = []
        self._header_bytes = 0
        self.begin_header()

    def begin_header(self) -> None:
        self._name, self._value = b"", b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += self._bounded(data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._bounded(data[start:end])

    def _bounded(self, piece: bytes) -> bytes:
        self._header_bytes += len(piece)
        if self._header_bytes > MAX_HEADER_BYTES:
            raise bad_request(
                f"a part of the multipart form has more than {MAX_HEADER_BYTES} bytes of headers"
            )
        return piece

    def end_header(self) -> None:
        if self._name.strip().lower() == b"content-disposition" and not self._disposition:
            self._disposition = parse_options_header(self._value)[1]

    def end_headers(self) -> None:
        if b"name" not in self._disposition:
            raise bad_request("a part of the multipart form has no Content-Disposition with a name")

    def data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def end(self) -> None:
        filename = self._disposition.get(b"filename")
        self.parts.append(
            Part(
                _text(self._disposition[b"name"]),
                None if filename is None else _text(filename),
                b"".join(self._content),
            )
        )

    def finish(self) -> None:
        self.whole = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
